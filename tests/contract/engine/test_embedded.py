"""What only the embedded engine has to promise: about its own bugs, its runner's losses and its own restarts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.run.engine.embedded.driver import EmbeddedEngine
from services.run.engine.embedded.reconcile import Limits
from services.run.engine.embedded.runner.client import RunnerClient
from shared.blobs import Blobs
from shared.errors import Unavailable
from tests.contract.engine.engines import RunnerProcess, embedded, open_blobs, runner_process
from tests.contract.engine.manifests import c, dag, file_of, given, of, on_claim, task, workflow
from tests.contract.engine.marked import begun, gone, marked, new_marker, processes_with
from tests.contract.engine.recorder import Run, new_run, recording, said
from tests.support.eventually import eventually
from tests.support.servers import ObjectStoreAccess


@contextlib.asynccontextmanager
async def working(runner: RunnerProcess, blobs: Blobs) -> AsyncIterator[EmbeddedEngine]:
    engine = EmbeddedEngine(runner.client(), blobs, steps_dir=runner.steps_dir, data_dir=runner.data_dir)
    await engine.check()
    work = asyncio.create_task(engine.run())
    try:
        yield engine
    finally:
        work.cancel()
        await asyncio.wait([work])


async def test_a_run_that_the_engine_cannot_think_about_ends_in_error(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    async with embedded(shared_runner)(object_store_access) as made, recording(made.engine) as recorder:
        run = new_run(workflow(c("true")))
        recorder.runs[run.name] = run
        broken = {"id": "x", "name": run.name, "type": "NoSuchType", "phase": "Running"}
        run.nodes["x"] = broken

        for _ in range(3):
            await made.engine.submit(run.submission())
            async with asyncio.timeout(10):
                while run.run_id in await made.engine.known():  # noqa: ASYNC110 - nobody signals it
                    await asyncio.sleep(0.01)

        await recorder.end_of(run)
        assert run.phase == "Error"
        assert run.nodes["x"]["phase"] == "Error"
        assert "NoSuchType" in run.message


async def test_nothing_starts_before_its_node_is_recorded(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    """Steps are started here; elsewhere somebody starts them who knows nothing of our records."""
    async with embedded(shared_runner)(object_store_access) as made, recording(made.engine) as recorder:
        marker = new_marker()
        held = new_run(workflow(marked(c("echo"), marker)))
        recorder.runs[held.name] = held
        recorder.holds.add(held.name)
        await recorder.engine.submit(held.submission())
        await recorder.until(held, lambda run: bool(run.history))

        await recorder.carry_out(workflow(c("true")))
        assert [observation.phase for observation in held.history] == ["Running"]
        assert held.phases() == {"": "Pending"}
        assert [chunk async for chunk in recorder.engine.logs(held.name, held.id_of(), follow=True)] == []

        recorder.holds.clear()
        await recorder.engine.recorded(held.history[-1])
        await recorder.end_of(held)
        assert held.phase == "Succeeded"


async def test_after_a_crash_of_its_loop_the_engine_knows_no_run_and_steps_go_on(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    marker = new_marker()
    blobs = await open_blobs(object_store_access)
    engine = EmbeddedEngine(
        shared_runner.client(), blobs, steps_dir=shared_runner.steps_dir, data_dir=shared_runner.data_dir
    )
    await engine.check()
    async with recording(engine) as recorder:
        work = asyncio.create_task(engine.run())
        run = await recorder.begin(workflow(marked(c("sleep 300"), marker)))
        await recorder.running(run, "")
        work.cancel()
        await asyncio.wait([work])
        assert await engine.known() == set()
        assert await engine.leftovers() == {run.run_id: 1}
        await begun(marker)

        work = asyncio.create_task(engine.run())
        await engine.submit(run.submission())
        await engine.terminate(run.name)
        await recorder.end_of(run)

        assert (run.phase, run.message) == ("Failed", "terminated")
        assert processes_with(marker) == []
        work.cancel()
        await asyncio.wait([work])
    blobs.close()


async def test_a_step_whose_directory_was_wiped_is_lost(object_store_access: ObjectStoreAccess) -> None:
    with runner_process() as runner:
        blobs = await open_blobs(object_store_access)
        engine = EmbeddedEngine(runner.client(), blobs, steps_dir=runner.steps_dir, data_dir=runner.data_dir)
        await engine.check()
        work = asyncio.create_task(engine.run())
        async with recording(engine) as recorder:
            marker = new_marker()
            run = await recorder.begin(workflow(marked(c("sleep 300"), marker)))
            await recorder.running(run, "")
            await begun(marker)
            runner.kill()
            await gone(marker)
            shutil.rmtree(runner.steps_dir)
            runner.start()
            await engine.check()
            await engine.compare()

            await recorder.end_of(run)
            assert (run.phase, run.message) == ("Error", "pod deleted")
            work.cancel()
            await asyncio.wait([work])
        blobs.close()


async def test_without_a_runner_the_engine_is_unavailable(
    tmp_path: Any, object_store_access: ObjectStoreAccess
) -> None:
    blobs = await open_blobs(object_store_access)
    nobody = RunnerClient(str(tmp_path / "nobody.sock"), patience_seconds=0.05)
    engine = EmbeddedEngine(nobody, blobs, steps_dir=tmp_path, data_dir=tmp_path)

    with pytest.raises(Unavailable):
        await engine.check()
    with pytest.raises(Unavailable):
        await engine.leftovers()
    with pytest.raises(Unavailable):
        await engine.erase("some-run")
    blobs.close()


@contextlib.asynccontextmanager
async def useless_store(*, hangs: bool) -> AsyncIterator[Blobs]:
    """A store that takes requests and never answers, or hangs up at once."""
    taken: list[asyncio.StreamWriter] = []

    def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(writer)
        if not hangs:
            writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    blobs = Blobs(f"http://{host}:{port}", access_key="a", secret_key="b", bucket="mlpipeline")
    try:
        yield blobs
    finally:
        server.close()
        for writer in taken:
            writer.close()
        blobs.close()


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_terminated_run_does_not_wait_for_the_object_store(shared_runner: RunnerProcess, hangs: bool) -> None:
    manifest = workflow(
        dag(task("runs", "long"), task("ended", "quick"), task("failed", "bad"), task("after", "quick", "ended")),
        templates={
            "long": c("echo up; sleep 300"),
            "quick": c("echo > /tmp/a; echo over", leaves={"a": "/tmp/a"}),
            "bad": c("echo > /tmp/a; echo over; exit 3", leaves={"a": "/tmp/a"}),
        },
    )
    async with (
        useless_store(hangs=hangs) as blobs,
        working(shared_runner, blobs) as engine,
        recording(engine) as recorder,
    ):
        run = await recorder.begin(manifest)
        await said(recorder, run, ".runs", "up")
        for name in (".ended", ".failed"):
            await recorder.running(run, name)
            # To its end, which is the step's.
            assert [chunk async for chunk in engine.logs(run.name, run.id_of(name), follow=True)]

        began = time.monotonic()
        await engine.terminate(run.name)
        await recorder.end_of(run)

        assert time.monotonic() - began <= 10
        assert (run.phase, run.message) == ("Failed", "terminated")
        phases = {".runs": "Failed", ".ended": "Failed", ".failed": "Failed", ".after": "Omitted", "": "Failed"}
        assert run.phases() == phases
        assert run.node(".runs")["message"] == run.node(".ended")["message"] == "terminated"
        assert run.node(".failed")["message"] == "Error (exit code 3)"
        # Its log may still come, as long as this engine lives and nobody wants it gone.
        await engine.erase(run.run_id)
        await eventually(lambda: _nothing_is_left(engine, shared_runner, run))


class LogsHeldBack(Blobs):
    """A store that takes no log before it is told to."""

    def __init__(self, of: Blobs, access: ObjectStoreAccess) -> None:
        super().__init__(
            f"http://{of.endpoint}", access_key=access.access_key, secret_key=access.secret_key, bucket=of.bucket
        )
        self.takes_logs = asyncio.Event()
        self.tried: set[str] = set()

    async def put_file(self, key: str, file: Path) -> int:
        if key.endswith("/main.log"):
            self.tried.add(key)
            await self.takes_logs.wait()
        return await super().put_file(key, file)


@contextlib.asynccontextmanager
async def logs_held_back(access: ObjectStoreAccess) -> AsyncIterator[LogsHeldBack]:
    opened = await open_blobs(access)
    held_back = LogsHeldBack(opened, access)
    try:
        yield held_back
    finally:
        held_back.close()
        opened.close()


ONE_AFTER_THE_OTHER = workflow(dag(task("a", "w"), task("b", "w", "a")), templates={"w": c("echo the words")})


async def test_a_step_waits_for_no_log_and_the_end_of_the_run_for_all(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    async with (
        logs_held_back(object_store_access) as blobs,
        working(shared_runner, blobs) as engine,
        recording(engine) as recorder,
    ):
        run = await recorder.begin(ONE_AFTER_THE_OTHER)
        await eventually(lambda: _true(len(blobs.tried) == 2))
        assert not run.is_final
        assert run.phases()[".a"] == "Succeeded"
        kept = engine.logs(run.name, run.id_of(".a"), follow=False)
        assert b"the words" in b"".join([chunk async for chunk in kept]), "nobody forgets what is stored nowhere"

        blobs.takes_logs.set()
        await recorder.end_of(run)

        assert run.phases() == {"": "Succeeded", ".a": "Succeeded", ".b": "Succeeded"}
        for name in (".a", ".b"):
            assert b"the words" in await blobs.get(run.artifact(name, "main-logs")["s3"]["key"])
        await eventually(lambda: _nothing_is_left(engine, shared_runner, run))


async def test_a_log_that_was_on_its_way_when_the_engine_died_is_stored_by_the_next_one(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    async with logs_held_back(object_store_access) as blobs:
        async with working(shared_runner, blobs) as engine, recording(engine) as recorder:
            run = await recorder.begin(ONE_AFTER_THE_OTHER)
            await eventually(lambda: _true(len(blobs.tried) == 2))
        assert not run.is_final

        blobs.takes_logs.set()
        async with working(shared_runner, blobs) as engine, recording(engine) as recorder:
            recorder.runs[run.name] = run
            await engine.submit(run.submission())
            await recorder.end_of(run)
            for name in (".a", ".b"):
                assert b"the words" in await blobs.get(run.artifact(name, "main-logs")["s3"]["key"])
            await eventually(lambda: _nothing_is_left(engine, shared_runner, run))


async def test_a_run_that_is_erased_wants_its_logs_no_more(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    async with (
        logs_held_back(object_store_access) as blobs,
        working(shared_runner, blobs) as engine,
        recording(engine) as recorder,
    ):
        run = await recorder.begin(ONE_AFTER_THE_OTHER)
        await eventually(lambda: _true(len(blobs.tried) == 2))

        await engine.erase(run.run_id)

        await eventually(lambda: _nothing_is_left(engine, shared_runner, run))
        assert await blobs.list_keys(f"artifacts/{run.name}/") == []


async def _nothing_is_left(engine: EmbeddedEngine, runner: RunnerProcess, run: Run) -> bool:
    of_run = [path for path in runner.steps_dir.iterdir() if path.name.startswith(run.run_id)]
    return not of_run and run.run_id not in await engine.leftovers()


async def _true(value: bool) -> bool:
    return value


@pytest.mark.parametrize("is_erased", [False, True])
async def test_a_run_is_retried_after_a_restart_whatever_the_engine_has_kept(
    object_store_access: ObjectStoreAccess, is_erased: bool
) -> None:
    use = task("c", "use", "b", "a", given={"v": of("a")}, files={"f": file_of("a", "f")})
    manifest = workflow(
        dag(task("a", "make"), task("b", "fail-once", "a"), use),
        templates={
            "make": on_claim(
                "echo a >> /v/made; printf value > /tmp/o; echo content > /tmp/f",
                gives={"o": "/tmp/o"},
                leaves={"f": "/tmp/f"},
            ),
            "fail-once": on_claim("[ -e /v/seen ] || { touch /v/seen; exit 1; }"),
            "use": c(
                "printf '{{inputs.parameters.v}} ' | cat - /f > /tmp/o",
                takes=["v"],
                files={"f": "/f"},
                gives={"o": "/tmp/o"},
            ),
        },
    )
    with runner_process() as runner:
        async with embedded(runner)(object_store_access) as made, recording(made.engine) as recorder:
            run = await recorder.carry_out(manifest)
        assert run.phases() == {"": "Failed", ".a": "Succeeded", ".b": "Failed", ".c": "Omitted"}
        first = run.node(".a")
        runner.stop()
        if is_erased:
            shutil.rmtree(runner.steps_dir)
            shutil.rmtree(runner.data_dir / "scratch")
        runner.start()

        async with embedded(runner)(object_store_access) as made, recording(made.engine) as recorder:
            run.reopen()
            recorder.runs[run.name] = run
            await made.engine.submit(run.submission())
            await recorder.end_of(run)
            log = await made.blobs.get(run.artifact(".a", "main-logs")["s3"]["key"])

        assert run.phases() == {"": "Succeeded", ".a": "Succeeded", ".b": "Succeeded", ".c": "Succeeded"}
        assert {**run.node(".a"), "children": ()} == {**first, "children": ()}
        assert run.value(".c") == "value content"
        assert runner.claimed(run.name, "made") == "a\n"
        assert log


@pytest.mark.parametrize("key", ["manifests/0123", "pipelines/x", "a//b", "../a", "a" * 1100])
async def test_no_artifact_is_stored_where_it_has_no_place(
    key: str, shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    artifact = {"a": {"path": "/tmp/a", "s3": {"key": key}}}
    async with embedded(shared_runner)(object_store_access) as made, recording(made.engine) as recorder:
        run = await recorder.carry_out(workflow(c("echo > /tmp/a", leaves=artifact)))

    assert run.phase == "Error"
    assert run.message.startswith("Error (exit code 1): /tmp/a: the key ")
    assert msgspec.json.encode(run.node()["outputs"]).count(b'"s3"') == 1  # its log's


@pytest.mark.parametrize(
    "key",
    ["manifests/0123", "/manifests/0123", "pipelines//x", "./manifests/0123", "a/../pipelines/x", "a\0b", "/"],
)
async def test_no_artifact_is_read_where_nobody_has_any(
    key: str, shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    artifact = {"f": {"path": "/f", "s3": {"key": key}, "archive": {"none": {}}}}
    async with embedded(shared_runner)(object_store_access) as made, recording(made.engine) as recorder:
        for kept in ("manifests/0123", "pipelines/x"):
            await made.blobs.put(kept, b"of the server")
        run = await recorder.carry_out(workflow(c("cat /f", files=artifact)))

    assert run.phase == "Error"
    assert run.message.startswith("artifact f: the key ")


@pytest.mark.parametrize(
    "make", ["d=$(printf %0200d/ 1 2 3 4 5); mkdir -p $d; touch $d/f", "touch $(printf 'a\\377b')"]
)
async def test_a_directory_with_a_name_that_no_store_takes_is_an_error(
    make: str, shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    plain = {"a": {"path": "/tmp/a", "archive": {"none": {}}}}
    script = f"mkdir /tmp/a; cd /tmp/a; {make}"
    async with embedded(shared_runner)(object_store_access) as made, recording(made.engine) as recorder:
        run = await recorder.carry_out(workflow(c(script, leaves=plain)))

    assert run.phase == "Error"
    assert run.message.startswith("Error (exit code 1): /tmp/a: the key ")


@pytest.mark.parametrize(("kibibytes", "is_told"), [(200, False), (300, True), (1024, True)])
async def test_a_large_parameter_is_passed_on_unchanged_and_told_of(
    kibibytes: int,
    is_told: bool,
    shared_runner: RunnerProcess,
    object_store_access: ObjectStoreAccess,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bulk = kibibytes * 1024
    make = f"printf 'ä\\042\\\\\\n' > /tmp/o; head -c {bulk} /dev/zero | tr '\\0' x >> /tmp/o"
    take = c(
        "cp /f /tmp/o", takes=["v"], gives={"o": "/tmp/o"}, files={"f": {"path": "/f", "raw": {"data": given("v")}}}
    )
    manifest = workflow(
        dag(task("a", "make"), task("b", "take", "a", given={"v": of("a")})),
        templates={"make": c(make, gives={"o": "/tmp/o"}), "take": take},
    )
    async with embedded(shared_runner)(object_store_access) as made, recording(made.engine) as recorder:
        run = await recorder.carry_out(manifest)

    text = 'ä"\\\n' + "x" * bulk
    assert run.phase == "Succeeded"
    assert run.value(".a") == run.given(".b", "v") == run.value(".b") == text
    told = [record.getMessage() for record in caplog.records if "bytes of outputs" in record.getMessage()]
    assert len(told) == (2 if is_told else 0)
    assert all(run.id_of(name) in line for name, line in zip((".a", ".b"), told, strict=False))


async def test_a_runner_that_is_stopped_lets_its_steps_end_and_what_follows_is_for_the_next_one(
    object_store_access: ObjectStoreAccess,
) -> None:
    with runner_process() as runner:
        runner.stop()
        runner.start(HEADRACE_STOP_STEPS="wait", HEADRACE_STOP_WAIT_SECONDS="600")
        wait = "echo x >> /v/begun; until [ -e /v/go ]; do sleep 0.02; done; printf done > /tmp/o"
        note = "printf {{inputs.parameters.v}} >> /v/begun"
        manifest = workflow(
            dag(task("a", "wait"), task("b", "note", "a", given={"v": of("a")})),
            templates={"wait": on_claim(wait, gives={"o": "/tmp/o"}), "note": on_claim(note, takes=["v"])},
        )
        async with embedded(runner)(object_store_access) as made, recording(made.engine) as recorder:
            run = await recorder.begin(manifest)
            await recorder.running(run, ".a")
            stopping = asyncio.create_task(asyncio.to_thread(runner.stop))

            async def waits() -> bool:
                return "waiting up to 600 s for 1 running step;" in runner.log()

            await eventually(waits)
            runner.let_go(run.name)
            await stopping
            await recorder.until(run, lambda run: run.phases().get(".b") == "Pending")
            runner.start()

            await recorder.end_of(run)
            assert run.phase == "Succeeded"
            assert runner.claimed(run.name, "begun") == "x\ndone"


async def test_a_step_that_meets_a_stopping_runner_is_started_by_the_next_one(
    object_store_access: ObjectStoreAccess,
) -> None:
    with runner_process() as runner:
        blobs = await open_blobs(object_store_access)
        engine = EmbeddedEngine(runner.client(), blobs, steps_dir=runner.steps_dir, data_dir=runner.data_dir)
        await engine.check()
        work = asyncio.create_task(engine.run())
        async with recording(engine) as recorder:
            stubborn = await recorder.begin(workflow(c("trap '' TERM; echo up; while :; do sleep 0.1; done")))
            await said(recorder, stubborn, "", "up")
            stopping = asyncio.create_task(asyncio.to_thread(runner.stop))
            await asyncio.to_thread(runner.signalled.wait)

            late = await recorder.begin(workflow(c("true")))
            await stopping
            runner.start()

            await recorder.end_of(late)
            await recorder.end_of(stubborn)
            assert late.phase == "Succeeded"
            assert (stubborn.phase, stubborn.message) == ("Error", "pod deleted")
            work.cancel()
            await asyncio.wait([work])
        blobs.close()


CLAIMING: dict[str, Any] = {
    "volumeClaimTemplates": [{"metadata": {"name": "work"}, "spec": {"resources": {"requests": {"storage": "1Gi"}}}}]
}


def on_work(script: str, **rest: Any) -> dict[str, Any]:
    template = c(script, **rest)
    template["container"]["volumeMounts"] = [{"name": "work", "mountPath": "/w"}]
    return template


def claims_of(runner: RunnerProcess, run: Run) -> list[str]:
    return [path.name for path in runner.data_dir.rglob(f"{run.name}-*") if path.is_dir()]


async def test_a_claim_of_the_run_is_shared_by_its_steps_and_goes_when_it_succeeds(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    get = json.dumps({"kind": "PersistentVolumeClaim", "metadata": {"name": "{{workflow.name}}-work"}})
    bound = {"parameters": [{"name": "o", "valueFrom": {"jsonPath": "{.status.phase}"}}]}
    async with embedded(shared_runner)(object_store_access) as made, recording(made.engine) as recorder:
        run = await recorder.carry_out(
            workflow(
                dag(task("a", "write"), task("b", "read", "a"), task("see", "see")),
                templates={
                    "write": on_work("echo from a > /w/f"),
                    "read": on_work("cp /w/f /tmp/o", gives={"o": "/tmp/o"}),
                    "see": {"resource": {"action": "get", "manifest": get}, "outputs": bound},
                },
                **CLAIMING,
            )
        )
        assert (run.value(".b"), run.value(".see")) == ("from a", "Bound")

        async def is_gone() -> bool:
            return not claims_of(shared_runner, run)

        await eventually(is_gone)


async def test_a_claim_of_a_failed_run_waits_for_its_retry_and_goes_when_it_is_erased(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    async with embedded(shared_runner)(object_store_access) as made, recording(made.engine) as recorder:
        run = await recorder.carry_out(workflow(on_work("echo >> /w/f; exit 1"), **CLAIMING))
        assert (run.phase, claims_of(shared_runner, run)) == ("Failed", [f"{run.name}-work"])
        await made.engine.erase(run.run_id, up_to_attempt=1)
        assert claims_of(shared_runner, run) == [f"{run.name}-work"]

        await made.engine.erase(run.run_id)

        assert claims_of(shared_runner, run) == []


async def test_a_workflow_that_calls_itself_ends_where_the_engine_says(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    engine = embedded(shared_runner)(object_store_access, limits=Limits(depth=3))
    async with engine as made, recording(made.engine) as recorder:
        run = await recorder.carry_out(workflow(dag(task("r", "main"))))

    assert (run.phase, set(run.phases())) == ("Error", {"", ".r", ".r.r", ".r.r.r", ".r.r.r.r"})
    assert run.node(".r.r.r.r")["message"] == "templates are nested deeper than 3 levels (HEADRACE_MOST_LEVELS)"


async def test_a_step_that_wants_more_memory_than_its_limit_is_killed_and_its_node_says_why(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    take = "import time; held = bytearray(300 * 1024 * 1024); time.sleep(1000)"
    hog = c(f"echo > /tmp/left; exec python3 -c '{take}'", leaves={"left": "/tmp/left"})
    hog["container"]["resources"] = {"limits": {"memory": "64Mi", "cpu": 1}}
    async with embedded(shared_runner)(object_store_access) as made, recording(made.engine) as recorder:
        run = await recorder.carry_out(workflow(hog))

    assert (run.phase, run.message) == ("Failed", "OOMKilled (exit code 137)")
    assert run.node()["outputs"]["exitCode"] == "137"
    assert [each["name"] for each in run.node()["outputs"]["artifacts"]] == ["left", "main-logs"]


async def test_a_workflow_of_very_many_templates_begins_and_ends_like_any_other(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    unused = {f"unused-{number}": c("false") for number in range(400)}
    async with embedded(shared_runner)(object_store_access) as made, recording(made.engine) as recorder:
        run = await recorder.carry_out(workflow(c("true"), templates=unused))
        assert (run.phase, run.phases()) == ("Succeeded", {"": "Succeeded"})
        # What is wrong with it is told as it is of a small one.
        run = await recorder.carry_out(workflow(c("true", parallelism="many"), templates=unused))
        assert (run.phase, run.phases()) == ("Error", {})
        assert "parallelism" in run.message
