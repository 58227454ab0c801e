"""Runs and steps for which there is no room: what is seen of them, whose turn is next, and how they can be ended."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

from services.run.engine.embedded.driver import EmbeddedEngine
from tests.contract.engine.engines import RunnerProcess, embedded
from tests.contract.engine.manifests import c, dag, on_claim, task, workflow
from tests.contract.engine.marked import gone, marked, new_marker, processes_with
from tests.contract.engine.recorder import Recorder, Run, new_run
from tests.support.servers import ObjectStoreAccess

LONG = workflow(c("sleep 300"))


@contextlib.asynccontextmanager
async def crowded(
    runner: RunnerProcess, store: ObjectStoreAccess, **most: int
) -> AsyncIterator[tuple[EmbeddedEngine, Recorder]]:
    async with embedded(runner)(store, **most) as made:
        assert isinstance(made.engine, EmbeddedEngine)
        recorder = Recorder(made.engine)
        following = asyncio.create_task(recorder.follow())
        yield made.engine, recorder
        following.cancel()
        await asyncio.wait([following])


class Diary:
    """A claim that several runs share; each notes there that it runs."""

    def __init__(self, runner: RunnerProcess) -> None:
        self._name = f"diary-{uuid.uuid4().hex[:8]}"
        self._runner = runner

    def noting(self, line: str, script: str = "true") -> dict[str, Any]:
        template = on_claim(f"echo {line} >> /v/lines; {script}")
        claim = {"name": "v", "persistentVolumeClaim": {"claimName": self._name}}
        return workflow({**template, "volumes": [claim]})

    def lines(self) -> list[str]:
        return self._runner.claimed(self._name, "lines").split()


def queued_at(run: Run, position: int, limit: int) -> bool:
    said = f"position {position} in the queue: the limit of concurrent runs is {limit} (HEADRACE_MOST_RUNS)"
    return (run.phase, run.message, run.started_at, run.nodes) == ("Pending", said, None, {})


async def test_a_run_without_room_is_pending_and_says_where_it_stands_until_it_begins(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    async with crowded(shared_runner, object_store_access, most_runs=2) as (engine, recorder):
        busy = [await recorder.begin(LONG) for _ in range(2)]
        first, second = [await recorder.begin(workflow(c("true"))) for _ in range(2)]
        await recorder.until(first, lambda run: queued_at(run, 1, 2))
        await recorder.until(second, lambda run: queued_at(run, 2, 2))
        assert await engine.known() == {run.run_id for run in (*busy, first, second)}

        for run in busy:
            await engine.terminate(run.name)
        for run in (*busy, first, second):
            await recorder.end_of(run)

    for run in (first, second):
        assert (run.phase, run.message) == ("Succeeded", "")
        phases = [observation.phase for observation in run.history]
        assert phases == sorted(phases, key=["Pending", "Running", "Succeeded"].index)


async def test_experiments_take_turns(shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess) -> None:
    diary = Diary(shared_runner)
    async with crowded(shared_runner, object_store_access, most_runs=1) as (engine, recorder):
        busy = await recorder.begin(LONG, experiment_id="a")
        runs = [
            await recorder.begin(diary.noting(line), experiment_id=line[0]) for line in ("a1", "a2", "a3", "b1", "b2")
        ]
        await engine.terminate(busy.name)
        for run in (busy, *runs):
            await recorder.end_of(run)

    assert diary.lines() == ["a1", "b1", "a2", "b2", "a3"]


async def test_a_run_in_the_queue_is_terminated_at_once_and_nothing_of_it_is_started(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    marker = new_marker()
    step = marked(c("sleep 300"), marker)
    async with crowded(shared_runner, object_store_access, most_runs=1) as (engine, recorder):
        busy = await recorder.begin(LONG)
        queued = [await recorder.begin(workflow(step)) for _ in range(3)]
        await recorder.until(queued[0], lambda run: queued_at(run, 1, 1))
        new = new_run(workflow(step))
        recorder.runs[new.name] = new
        await engine.submit(new.submission())

        for run in (*queued, new):
            await engine.terminate(run.name)
        for run in (*queued, new):
            await recorder.end_of(run, within_seconds=10)
            assert (run.phase, run.message, run.phases()) == ("Failed", "terminated", {"": "Failed"})
        assert not busy.is_final
        assert not any(processes_with(marker))
        await engine.terminate(busy.name)
        await recorder.end_of(busy)


async def test_a_run_in_the_queue_is_erased_at_once_and_does_not_begin_later(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    diary = Diary(shared_runner)
    async with crowded(shared_runner, object_store_access, most_runs=1) as (engine, recorder):
        busy = await recorder.begin(LONG)
        erased, kept = await recorder.begin(diary.noting("erased")), await recorder.begin(diary.noting("kept"))
        await recorder.until(kept, lambda run: queued_at(run, 2, 1))

        await engine.erase(erased.run_id)
        assert await engine.known() == {busy.run_id, kept.run_id}
        await recorder.until(kept, lambda run: queued_at(run, 1, 1))
        await engine.terminate(busy.name)
        await recorder.end_of(busy)
        await recorder.end_of(kept)

    assert diary.lines() == ["kept"]
    assert not erased.is_final


async def test_a_run_that_has_started_never_waits_for_new_ones(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    diary = Diary(shared_runner)
    marker = new_marker()
    started = new_run(workflow(dag(task("a", "s"), task("b", "s", "a")), templates={"s": marked(c("true"), marker)}))
    async with crowded(shared_runner, object_store_access, most_runs=1) as (engine, recorder):
        recorder.runs[started.name] = started
        recorder.holds.add(started.name)
        await engine.submit(started.submission())
        await recorder.until(started, lambda run: bool(run.nodes))
    async with crowded(shared_runner, object_store_access, most_runs=1) as (engine, recorder):
        recorder.runs[started.name] = started
        busy = await recorder.begin(LONG)
        queued = await recorder.begin(diary.noting("queued"))
        await recorder.until(queued, lambda run: queued_at(run, 1, 1))

        await engine.submit(started.submission())
        await recorder.end_of(started)

        assert started.phase == "Succeeded"
        assert queued_at(queued, 1, 1)
        await engine.terminate(busy.name)
        await recorder.end_of(busy)
        await recorder.end_of(queued)
    await gone(marker)


async def test_a_step_without_room_is_pending_and_says_where_it_stands_until_it_runs(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    def said(run: Run, name: str) -> str:
        return str(run.node(name).get("message", "")) if name in run.phases() else ""

    limit = "in the queue: the limit of concurrent steps is 1 (HEADRACE_MOST_STEPS)"
    manifest = workflow(
        dag(task("t", "s", given={"v": "{{item}}"}, withItems=[0, 1, 2])),
        templates={"s": on_claim("until [ -e /v/go ]; do sleep 0.02; done", takes=["v"])},
    )
    async with crowded(shared_runner, object_store_access, most_steps=1) as (_, recorder):
        run = await recorder.begin(manifest)
        await recorder.until(run, lambda run: said(run, ".t(2:2)") == f"position 2 {limit}")
        assert said(run, ".t(1:1)") == f"position 1 {limit}"
        assert run.phases()[".t(1:1)"] == run.phases()[".t(2:2)"] == "Pending"

        shared_runner.let_go(run.name)
        await recorder.end_of(run)

    assert {said(run, name) for name in run.phases()} == {""}
    running = [node for observation in run.history for node in observation.nodes if node["phase"] == "Running"]
    assert {node.get("message", "") for node in running} == {""}
