"""Steps that take over what the same step left: nothing runs, and the record says so."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.run.engine.embedded.cache import Kept
from shared.errors import Unavailable
from tests.contract.engine.engines import EngineUnderTest, RunnerProcess, embedded
from tests.contract.engine.manifests import c, dag, file_of, given, of, task, workflow
from tests.contract.engine.recorder import Recorder, recording, said
from tests.support.servers import ObjectStoreAccess

ENABLED = {"pipelines.kubeflow.org/cache_enabled": "true"}
TAKEN = b"This step output is taken from cache.\n"


class Memory:
    """Remembers without a database."""

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}
        self.max_age_seconds: float | None = None
        self.is_away = False

    async def find(self, key: str, *, max_age_seconds: float | None) -> Kept | None:
        self._check()
        self.max_age_seconds = max_age_seconds
        return self.kept.get(key)

    async def keep(self, key: str, kept: Kept, *, run_id: str) -> None:
        self._check()
        assert run_id
        self.kept[key] = kept

    def _check(self) -> None:
        if self.is_away:
            raise Unavailable("Nobody remembers.")


@pytest.fixture
def memory() -> Memory:
    return Memory()


class Caching:
    """An engine with a memory, and a volume in which steps leave a trace of each execution."""

    def __init__(self, under_test: EngineUnderTest, recorder: Recorder, runner: RunnerProcess) -> None:
        self.blobs = under_test.blobs
        self.recorder = recorder
        self._runner = runner
        self.claim = f"traces-{uuid.uuid4().hex[:8]}"

    def traced(self, script: str, **rest: Any) -> dict[str, Any]:
        """A template that may be cached, and that leaves a line when it runs."""
        template = c(f"echo >> /traces/runs; {script}", **rest)
        template["container"]["volumeMounts"] = [{"name": "t", "mountPath": "/traces"}]
        metadata = {"labels": ENABLED, **template.get("metadata", {})}
        volumes = [{"name": "t", "persistentVolumeClaim": {"claimName": self.claim}}]
        return {**template, "metadata": metadata, "volumes": volumes}

    @property
    def executions(self) -> int:
        return len(self._runner.claimed(self.claim, "runs"))


@contextlib.asynccontextmanager
async def caching(runner: RunnerProcess, store: ObjectStoreAccess, memory: Memory | None) -> AsyncIterator[Caching]:
    async with embedded(runner)(store, cache=memory) as under_test, recording(under_test.engine) as recorder:
        yield Caching(under_test, recorder, runner)


@pytest.fixture
async def cached(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess, memory: Memory
) -> AsyncIterator[Caching]:
    async with caching(shared_runner, object_store_access, memory) as made:
        yield made


def two_steps(cached: Caching, word: str) -> dict[str, Any]:
    makes = cached.traced(
        f"echo {given('word')} | tee /tmp/o > /tmp/a; echo made",
        takes=["word"],
        gives={"o": "/tmp/o"},
        leaves={"a": "/tmp/a"},
    )
    reads = cached.traced(
        f"cat /in/f > /tmp/o; echo {given('o')} >> /tmp/o", takes=["o"], files={"f": "/in/f"}, gives={"o": "/tmp/o"}
    )
    return workflow(
        dag(
            task("a", "makes", given={"word": word}),
            task("b", "reads", "a", given={"o": of("a")}, files={"f": file_of("a")}),
        ),
        templates={"makes": makes, "reads": reads},
    )


async def test_the_second_run_executes_nothing_and_has_the_outputs_of_the_first(cached: Caching) -> None:
    first = await cached.recorder.carry_out(two_steps(cached, "hello"))
    second = await cached.recorder.carry_out(two_steps(cached, "hello"))

    assert cached.executions == 2
    assert second.phase == "Succeeded"
    assert {"Succeeded"} == set(second.phases().values())
    assert second.value(".b") == first.value(".b") == "hello\nhello"
    assert second.artifact(".a", "a") == first.artifact(".a", "a")
    assert second.node(".a")["outputs"]["exitCode"] == "0"


async def test_a_cached_step_says_so_in_its_log_and_to_the_ui(cached: Caching) -> None:
    first = await cached.recorder.carry_out(two_steps(cached, "hello"))
    second = await cached.recorder.carry_out(two_steps(cached, "hello"))

    assert await cached.blobs.get(first.artifact(".a", "main-logs")["s3"]["key"]) != TAKEN
    for name in (".a", ".b"):
        assert await cached.blobs.get(second.artifact(name, "main-logs")["s3"]["key"]) == TAKEN
        # By this the UI tells the two apart (specification, section 14), also where a step leaves parameters alone.
        assert all(first.id_of(name) in each["s3"]["key"] for each in first.node(name)["outputs"]["artifacts"])
        assert not any(second.id_of(name) in each["s3"]["key"] for each in second.node(name)["outputs"]["artifacts"])


async def test_another_argument_executes_what_depends_on_it(cached: Caching) -> None:
    await cached.recorder.carry_out(two_steps(cached, "hello"))
    run = await cached.recorder.carry_out(two_steps(cached, "goodbye"))

    assert cached.executions == 4
    assert run.value(".b") == "goodbye\ngoodbye"


async def test_a_step_that_failed_runs_again(cached: Caching, memory: Memory) -> None:
    for _ in range(2):
        run = await cached.recorder.carry_out(workflow(cached.traced("exit 3")))
        assert run.phase == "Failed"
    missing = workflow(cached.traced("true", gives={"o": "/tmp/never"}))
    for _ in range(2):
        assert (await cached.recorder.carry_out(missing)).phase == "Error"

    assert cached.executions == 4
    assert not memory.kept


async def test_a_step_that_was_terminated_is_not_kept(cached: Caching, memory: Memory) -> None:
    run = await cached.recorder.begin(workflow(cached.traced("trap 'exit 0' TERM; echo ready; sleep 60 & wait")))
    await said(cached.recorder, run, "", "ready")
    await cached.recorder.engine.terminate(run.name)
    await cached.recorder.end_of(run)

    assert run.message == "terminated"
    assert not memory.kept


async def test_p0d_runs_each_time_and_another_staleness_is_asked_for(cached: Caching, memory: Memory) -> None:
    def stale(duration: str) -> dict[str, Any]:
        metadata = {"annotations": {"pipelines.kubeflow.org/max_cache_staleness": duration}}
        return workflow(cached.traced("true", metadata=metadata))

    for _ in range(2):
        await cached.recorder.carry_out(stale("P0D"))
    assert cached.executions == 2

    for _ in range(2):
        await cached.recorder.carry_out(stale("PT2H"))
    assert cached.executions == 3
    assert memory.max_age_seconds == 7200


async def test_a_step_whose_artifact_is_gone_runs_again_and_is_kept_again(cached: Caching) -> None:
    first = await cached.recorder.carry_out(two_steps(cached, "hello"))
    await cached.blobs.delete(first.artifact(".a", "a")["s3"]["key"])

    second = await cached.recorder.carry_out(two_steps(cached, "hello"))
    assert second.value(".b") == "hello\nhello"
    assert cached.executions == 4

    await cached.recorder.carry_out(two_steps(cached, "hello"))
    assert cached.executions == 4


async def test_an_artifact_of_many_objects_is_found_again(cached: Caching) -> None:
    plain = {"a": {"path": "/tmp/a", "archive": {"none": {}}}}
    manifest = workflow(cached.traced("mkdir /tmp/a; echo 1 > /tmp/a/1; echo 2 > /tmp/a/2", leaves=plain))
    for _ in range(2):
        await cached.recorder.carry_out(manifest)

    assert cached.executions == 1


async def test_what_a_step_printed_is_taken_over_where_it_is_asked_for(cached: Caching) -> None:
    prints = cached.traced("echo printed")
    quiet = workflow(dag(task("a", "prints")), templates={"prints": prints})
    asking = workflow(
        dag(task("a", "prints"), task("b", "says", "a", given={"o": "{{tasks.a.outputs.result}}"})),
        templates={"prints": prints, "says": c(f"echo {given('o')} > /tmp/o", takes=["o"], gives={"o": "/tmp/o"})},
    )
    await cached.recorder.carry_out(quiet)

    for _ in range(2):
        run = await cached.recorder.carry_out(asking)
        assert run.value(".b") == "printed"
    assert cached.executions == 2, "the first one kept no text"


async def test_a_cache_that_is_away_costs_an_execution_and_no_run(cached: Caching, memory: Memory) -> None:
    manifest = workflow(cached.traced("true"))
    await cached.recorder.carry_out(manifest)
    memory.is_away = True

    assert (await cached.recorder.carry_out(manifest)).phase == "Succeeded"
    assert cached.executions == 2


async def test_without_a_cache_every_run_executes(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    async with caching(shared_runner, object_store_access, None) as plain:
        for _ in range(2):
            await plain.recorder.carry_out(workflow(plain.traced("true")))
        assert plain.executions == 2
