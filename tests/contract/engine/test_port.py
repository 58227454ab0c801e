"""What the controller may rely on, of every engine behind the port."""

from __future__ import annotations

import asyncio
import io
import tarfile
import time

import msgspec
import pytest

from services.run.engine import NameTaken, NodeId, WorkflowName
from tests.contract.engine.engines import EngineFactory, EngineUnderTest
from tests.contract.engine.manifests import c, dag, file_of, given, on_claim, task, workflow
from tests.contract.engine.marked import gone, marked, new_marker, processes_with
from tests.contract.engine.recorder import FINAL, Recorder, new_run, said
from tests.support.servers import ObjectStoreAccess

ORDER = {"Pending": 0, "Running": 1, "Succeeded": 2, "Failed": 2, "Error": 2, "Skipped": 2, "Omitted": 2}

STUBBORN = "trap '' TERM; echo up; while :; do sleep 0.1; done"
FAMILY = f"(trap '' TERM; sh -c \"{STUBBORN}\" & wait) & sleep 300 & {STUBBORN}"
"""A tree with grandchildren, of which some do not heed TERM."""

BYE = c("printf %s '{{workflow.status}}' > /tmp/o", gives={"o": "/tmp/o"})


# -- submit ------------------------------------------------------------------------------------------------------------


async def test_a_workflow_submitted_again_runs_once(recorder: Recorder) -> None:
    run = await recorder.begin(
        workflow(
            dag(task("a", "once"), task("b", "count", "a")),
            templates={
                "once": on_claim("echo >> /v/f; sleep 0.2"),
                "count": on_claim("wc -l < /v/f > /tmp/o", gives={"o": "/tmp/o"}),
            },
        )
    )
    await recorder.engine.submit(run.submission())
    await recorder.running(run, ".a")
    await recorder.engine.submit(run.submission())

    await recorder.end_of(run)

    assert run.value(".b").strip() == "1"


async def test_a_name_that_another_run_holds_is_taken(recorder: Recorder) -> None:
    run = await recorder.begin(workflow(c("sleep 300")))
    other = new_run(run.workflow, name=run.name)

    with pytest.raises(NameTaken):
        await recorder.engine.submit(other.submission())

    await recorder.engine.erase(run.run_id)


async def test_a_retried_run_goes_on_from_its_finished_nodes(recorder: Recorder) -> None:
    run = await recorder.carry_out(
        workflow(
            dag(task("a", "a"), task("b", "b", "a"), task("c", "count", "b")),
            templates={
                "a": on_claim("echo >> /v/f"),
                "b": on_claim("[ -e /v/seen ] || { touch /v/seen; exit 1; }"),
                "count": on_claim("wc -l < /v/f > /tmp/o", gives={"o": "/tmp/o"}),
            },
        )
    )
    assert run.phases() == {"": "Failed", ".a": "Succeeded", ".b": "Failed", ".c": "Omitted"}
    root = {**run.node(), "phase": "Running", "finishedAt": None}
    run.nodes = {node["id"]: node for node in (root, run.node(".a"))}
    run.attempt, run.finished_at = 2, None

    await recorder.engine.submit(run.submission())
    await recorder.end_of(run)

    assert run.phases() == {"": "Succeeded", ".a": "Succeeded", ".b": "Succeeded", ".c": "Succeeded"}
    assert run.value(".c").strip() == "1"


# -- observe and recorded ----------------------------------------------------------------------------------------------


async def test_what_is_observed_of_a_workflow_only_goes_forward(recorder: Recorder) -> None:
    run = await recorder.carry_out(
        workflow(
            dag(task("t", "p", given={"v": "{{item}}"}, withItems=[1, 2, 3]), task("z", "q", "t")),
            templates={"p": c("echo", takes=["v"]), "q": c("true")},
        )
    )

    seen: dict[str, int] = {}
    for observation in run.history:
        assert observation.phase not in FINAL or observation is run.history[-1]
        for node in observation.nodes:
            assert ORDER[node["phase"]] >= seen.get(node["id"], 0)
            seen[node["id"]] = ORDER[node["phase"]]
    assert set(seen.values()) == {2}


async def test_an_observation_that_was_not_recorded_is_told_to_the_next_observer(under_test: EngineUnderTest) -> None:
    engine = under_test.engine
    run = new_run(workflow(c("true")))
    async with asyncio.timeout(20):
        first = engine.observe()
        await engine.submit(run.submission())
        lost = await anext(first)

        async for observation in engine.observe():
            if not run.history:
                assert observation == lost
            run.take(observation)
            await engine.recorded(observation)
            if run.is_final:
                break

    assert run.phase == "Succeeded"


async def test_a_late_record_of_an_earlier_attempt_does_not_stand_for_the_present_one(recorder: Recorder) -> None:
    run = new_run(workflow(c("true")))
    recorder.runs[run.name] = run
    recorder.holds.add(run.name)
    await recorder.engine.submit(run.submission())
    await recorder.until(run, lambda run: bool(run.history))
    run.attempt = 2
    await recorder.engine.submit(run.submission(nodes=(), started_at=None))
    await recorder.until(run, lambda run: len(run.history) == 2)

    await recorder.engine.recorded(run.history[0])
    await recorder.carry_out(workflow(c("true")))
    assert len(run.history) == 2

    recorder.holds.clear()
    await recorder.engine.recorded(run.history[1])
    await recorder.end_of(run)


# -- terminate ---------------------------------------------------------------------------------------------------------


async def test_terminated_steps_end_with_all_their_descendants_within_ten_seconds(recorder: Recorder) -> None:
    marker = new_marker()
    run = await recorder.begin(
        workflow(
            dag(task("a", "s"), task("b", "s"), task("after", "s", "a")),
            templates={"s": marked(c(FAMILY), marker), "bye": BYE},
            onExit="bye",
        )
    )
    await said(recorder, run, ".a", "up")
    await said(recorder, run, ".b", "up")
    assert len(processes_with(marker)) > 6

    began = time.monotonic()
    await recorder.engine.terminate(run.name)
    await recorder.end_of(run)

    assert time.monotonic() - began <= 10
    assert run.phases() == {"": "Failed", ".a": "Failed", ".b": "Failed", ".after": "Omitted", ".onExit": "Succeeded"}
    assert (run.phase, run.message) == ("Failed", "terminated")
    assert run.node(".a")["message"] == "terminated"
    assert run.value(".onExit") == "Failed"
    assert processes_with(marker) == []


async def test_a_run_terminated_before_anything_started_fails(recorder: Recorder) -> None:
    marker = new_marker()
    run = new_run(workflow(marked(c("sleep 300"), marker)))
    recorder.runs[run.name] = run
    await recorder.engine.submit(run.submission())
    await recorder.engine.terminate(run.name)

    await recorder.end_of(run, within_seconds=10)

    assert (run.phase, run.message) == ("Failed", "terminated")
    await gone(marker)


async def test_a_run_that_is_terminated_while_it_is_being_started_leaves_nothing_behind(recorder: Recorder) -> None:
    marker = new_marker()
    runs = []
    for pause_seconds in (0, 0.002, 0.004, 0.006, 0.008, 0.012, 0.016, 0.024):
        run = await recorder.begin(workflow(marked(c("sleep 300"), marker)))
        await asyncio.sleep(pause_seconds)  # wherever its start is by then
        await recorder.engine.terminate(run.name)
        runs.append(run)

    for run in runs:
        await recorder.end_of(run, within_seconds=10)
        assert run.phase == "Failed"
    await gone(marker)


async def test_steps_that_wait_for_their_turn_are_terminated_at_once(
    engine_factory: EngineFactory, object_store_access: ObjectStoreAccess
) -> None:
    async with engine_factory(object_store_access, most_steps=1) as under_test:
        recorder = Recorder(under_test.engine)
        following = asyncio.create_task(recorder.follow())
        busy = await recorder.begin(workflow(c("sleep 300")))
        await recorder.running(busy, "")
        waiting = await recorder.begin(workflow(c("true")))
        await recorder.until(waiting, lambda run: run.phases() == {"": "Pending"})

        await recorder.engine.terminate(waiting.name)
        await recorder.end_of(waiting, within_seconds=5)
        await recorder.engine.terminate(busy.name)
        await recorder.end_of(busy)

        assert (waiting.phase, waiting.message) == ("Failed", "terminated")
        following.cancel()


async def test_terminating_what_is_not_there_is_harmless(recorder: Recorder) -> None:
    await recorder.engine.terminate(WorkflowName("nobody"))


async def test_a_run_that_was_being_terminated_when_its_controller_died_is_still_stopped(recorder: Recorder) -> None:
    run = new_run(workflow(c("sleep 300")))
    recorder.runs[run.name] = run

    await recorder.engine.submit(run.submission(is_terminating=True))
    await recorder.end_of(run, within_seconds=10)

    assert (run.phase, run.message) == ("Failed", "terminated")


# -- erase -------------------------------------------------------------------------------------------------------------


async def test_an_erased_run_is_gone_with_its_processes(recorder: Recorder) -> None:
    marker = new_marker()
    run = await recorder.begin(
        workflow(dag(task("a", "s"), task("b", "s")), templates={"s": marked(c(FAMILY), marker)})
    )
    await said(recorder, run, ".a", "up")
    await said(recorder, run, ".b", "up")

    await recorder.engine.erase(run.run_id)

    await gone(marker)  # A cluster takes its pods away by itself.
    assert run.run_id not in await recorder.engine.known() | (await recorder.engine.leftovers()).keys()
    assert not run.is_final


async def test_a_run_erased_while_it_is_being_started_leaves_nothing_behind(recorder: Recorder) -> None:
    marker = new_marker()
    for pause_seconds in (0, 0.002, 0.004, 0.006, 0.008, 0.012, 0.016, 0.024):
        run = await recorder.begin(workflow(marked(c("sleep 300"), marker)))
        await asyncio.sleep(pause_seconds)  # wherever its start is by then
        await recorder.engine.erase(run.run_id)

    await gone(marker)
    assert await recorder.engine.known() == set()
    assert await recorder.engine.leftovers() == {}


async def test_a_run_erased_before_its_observation_was_recorded_is_not_observed_any_more(recorder: Recorder) -> None:
    run = new_run(workflow(c("true")))
    recorder.runs[run.name] = run
    recorder.holds.add(run.name)
    await recorder.engine.submit(run.submission())
    await recorder.until(run, lambda run: bool(run.history))

    await recorder.engine.erase(run.run_id)
    await recorder.engine.recorded(run.history[-1])
    await recorder.carry_out(workflow(c("true")))

    assert len(run.history) == 1


async def test_whoever_erases_an_earlier_attempt_leaves_a_later_one_alone(recorder: Recorder) -> None:
    run = new_run(workflow(c("sleep 300")))
    run.attempt = 2
    recorder.runs[run.name] = run
    await recorder.engine.submit(run.submission())
    await recorder.running(run, "")

    await recorder.engine.erase(run.run_id, up_to_attempt=1)

    assert await recorder.engine.known() == {run.run_id}
    await recorder.engine.erase(run.run_id, up_to_attempt=2)
    assert await recorder.engine.known() == set()
    assert await recorder.engine.leftovers() == {}


async def test_erasing_nothing_is_harmless(recorder: Recorder) -> None:
    await recorder.engine.erase("nobody")


# -- known and leftovers -----------------------------------------------------------------------------------------------


async def test_a_run_is_known_for_as_long_as_it_is_driven(recorder: Recorder) -> None:
    run = await recorder.begin(workflow(c("sleep 300")))
    await recorder.running(run, "")
    assert await recorder.engine.known() == {run.run_id}
    assert await recorder.engine.leftovers() == {}

    await recorder.engine.terminate(run.name)
    await recorder.end_of(run)
    async with asyncio.timeout(5):
        while await recorder.engine.known() | (await recorder.engine.leftovers()).keys():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# -- logs and artifacts ------------------------------------------------------------------------------------------------


async def test_the_log_of_a_running_step_can_be_followed(recorder: Recorder) -> None:
    run = await recorder.begin(
        workflow(on_claim("echo one; echo two >&2; until [ -e /v/go ]; do sleep 0.02; done; echo three"))
    )
    await said(recorder, run, "", "two")

    so_far = b"".join([chunk async for chunk in recorder.engine.logs(run.name, run.id_of(), follow=False)])

    assert so_far.decode().splitlines()[-2:] == ["one", "two"]
    await recorder.engine.terminate(run.name)
    await recorder.end_of(run)


async def test_the_log_of_an_unknown_step_is_empty(recorder: Recorder) -> None:
    logs = recorder.engine.logs(WorkflowName("nobody"), NodeId("nobody-1"), follow=True)

    assert [chunk async for chunk in logs] == []


async def test_a_final_state_is_never_seen_before_its_logs_and_artifacts_are_stored(
    recorder: Recorder, under_test: EngineUnderTest
) -> None:
    run = await recorder.carry_out(
        workflow(
            dag(task("a", "w"), task("b", "f", "a")),
            templates={
                "w": c("echo to the log; echo content > /tmp/a", leaves={"a": "/tmp/a"}),
                "f": c("echo last words >&2; exit 1"),
            },
        )
    )

    for name, words in ((".a", "to the log"), (".b", "last words")):
        log = run.artifact(name, "main-logs")
        assert run.node(name)["outputs"]["artifacts"][-1] == log
        assert log["archiveLogs"] is True
        assert run.id_of(name) in log["s3"]["key"]
        assert log["s3"]["key"].endswith("/main.log")
        assert words in (await under_test.blobs.get(log["s3"]["key"])).decode()
    stored = run.artifact(".a", "a")["s3"]
    assert stored["bucket"] == under_test.blobs.bucket
    assert f"/{run.id_of('.a')}/" in stored["key"]
    with tarfile.open(fileobj=io.BytesIO(await under_test.blobs.get(stored["key"]))) as packed:
        assert packed.getnames() == ["a"]


async def test_a_consumer_repeats_the_key_of_its_producer(recorder: Recorder) -> None:
    run = await recorder.carry_out(
        workflow(
            dag(task("a", "p"), task("b", "q", "a", files={"f": file_of("a")})),
            templates={"p": c("echo > /tmp/a", leaves={"a": "/tmp/a"}), "q": c("cat /f", files={"f": "/f"})},
        )
    )

    (received,) = run.node(".b")["inputs"]["artifacts"]
    assert received["s3"]["key"] == run.artifact(".a", "a")["s3"]["key"]


async def test_metrics_are_stored_where_they_were_written_and_missed_by_nobody(
    recorder: Recorder, under_test: EngineUnderTest
) -> None:
    metrics = {"mlpipeline-metrics": {"path": "/mlpipeline-metrics.json", "optional": True}}
    run = await recorder.carry_out(
        workflow(
            dag(task("a", "with"), task("b", "without"), task("c", "fails")),
            templates={
                "with": c("echo '{\"metrics\": []}' > /mlpipeline-metrics.json", leaves=metrics),
                "without": c("true", leaves=metrics),
                "fails": c("echo '{\"metrics\": []}' > /mlpipeline-metrics.json; exit 1", leaves=metrics),
            },
        )
    )

    assert run.phases() == {"": "Failed", ".a": "Succeeded", ".b": "Succeeded", ".c": "Failed"}
    for name in (".a", ".c"):
        assert await under_test.blobs.exists(run.artifact(name, "mlpipeline-metrics")["s3"]["key"])
    assert "s3" not in run.artifact(".b", "mlpipeline-metrics")


async def test_what_a_step_prints_is_its_result_without_what_it_says_to_stderr(recorder: Recorder) -> None:
    run = await recorder.carry_out(
        workflow(
            dag(task("a", "p"), task("b", "e", "a", given={"v": "{{tasks.a.outputs.result}}"})),
            templates={
                "p": c("echo one; echo noise >&2; echo two"),
                "e": c("printf %s '" + given("v") + "' > /tmp/o", takes=["v"], gives={"o": "/tmp/o"}),
            },
        )
    )

    assert run.node(".a")["outputs"]["result"] == "one\ntwo"
    assert run.value(".b") == "one\ntwo"


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_no_more_steps_run_at_once_than_the_engine_allows(
    engine_factory: EngineFactory, object_store_access: ObjectStoreAccess
) -> None:
    counting = "touch /v/$$-{{pod.name}}; ls /v | wc -l > /tmp/o; sleep 0.15; rm /v/$$-{{pod.name}}"
    async with engine_factory(object_store_access, most_steps=2) as under_test:
        recorder = Recorder(under_test.engine)
        following = asyncio.create_task(recorder.follow())
        run = await recorder.carry_out(
            workflow(
                dag(task("t", "s", given={"v": "{{item}}"}, withItems=list(range(6)))),
                templates={"s": on_claim(counting, takes=["v"], gives={"o": "/tmp/o"})},
            )
        )
        following.cancel()

    assert {int(run.value(f".t({n}:{n})")) for n in range(6)} <= {1, 2}


async def test_an_engine_that_works_says_so(recorder: Recorder) -> None:
    await recorder.engine.check()
    assert (await recorder.engine.about()).weaker is None
    assert msgspec.json.encode(sorted(await recorder.engine.known())) == b"[]"
