"""The controller between the records and an engine that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from services.run.controller import Controller
from services.run.engine import About, NodeId, Observation, Submission, WorkflowName
from services.run.step_metrics import StepMetrics
from shared.leases import Lease
from tests.component.run.conftest import World, until
from tests.component.run.test_life import STARTED


class PlayedEngine:
    """Takes everything and does nothing."""

    def __init__(self) -> None:
        self.submitted: list[Submission] = []

    async def submit(self, submission: Submission) -> None:
        self.submitted.append(submission)

    async def terminate(self, workflow_name: WorkflowName) -> None: ...

    async def erase(self, run_id: str, *, up_to_attempt: int | None = None) -> None: ...

    async def known(self) -> set[str]:
        return {submission.run_id for submission in self.submitted}

    async def leftovers(self) -> dict[str, int]:
        return {}

    async def observe(self) -> AsyncIterator[Observation]:
        await asyncio.Event().wait()
        return
        yield

    async def recorded(self, observation: Observation) -> None: ...

    async def logs(
        self, workflow_name: WorkflowName, node_id: NodeId, *, follow: bool, offset: int = 0
    ) -> AsyncGenerator[bytes, None]:
        return
        yield b""

    async def about(self) -> About:
        return About(name="played", runtime="none")

    async def check(self) -> None: ...

    async def work(self) -> None:
        await asyncio.Event().wait()


async def test_after_a_start_the_engine_hears_of_started_runs_first_and_of_the_others_as_they_were_created(
    world: World,
) -> None:
    experiment = world.peers.has_experiment("another")
    owner = {"key": {"type": "EXPERIMENT", "id": experiment}, "relationship": "OWNER"}
    old = [(await world.client.create())["id"] for _ in range(6)]
    for run_id in old:
        await world.records.mark_submitted(run_id, 1)
    await world.observe(old[4], "Running", started_at=STARTED)
    await world.observe(old[1], "Pending", message="position 2 in the queue")
    new = (await world.client.create(resource_references=[owner]))["id"]

    bus = world.peers.buses["run-controller"]
    engine = PlayedEngine()
    controller = Controller(
        world.records,
        engine,
        bus,
        StepMetrics(world.blobs, bus, world.database),
        Lease(world.database, "run-controller"),
        poll_seconds=0.05,
        compare_seconds=0.05,
        metrics_wait_seconds=1,
    )
    controlling = asyncio.create_task(controller.run(engine.work))

    async def all_are_submitted() -> bool:
        return len(engine.submitted) >= 7

    await until(all_are_submitted, within_seconds=20)
    controlling.cancel()
    await asyncio.wait([controlling])

    order = [old[4], *old[:4], old[5], new]
    assert [submission.run_id for submission in engine.submitted] == order
    assert [submission.experiment_id for submission in engine.submitted].index(experiment) == 6
