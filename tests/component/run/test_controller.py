"""The controller between the records and an engine that a test plays."""

from __future__ import annotations

import asyncio
import contextlib
import io
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from services.run.controller import Controller
from services.run.engine import About, NodeId, Observation, Submission, WorkflowName
from services.run.engine.shards import SHARDS
from services.run.step_metrics import ARTIFACT, StepMetrics
from shared import telemetry
from shared.errors import Unavailable
from shared.leases import Lease
from shared.shards import Whole
from shared.tasks import Tasks
from tests.component.run.conftest import MANIFEST, World, until
from tests.component.run.test_life import ENDED, STARTED, node


class PlayedEngine:
    """Takes everything, does nothing, and shows what a test tells it to."""

    def __init__(self) -> None:
        self.submitted: list[Submission] = []
        self.told: list[str] = []
        """Which workflows were to be terminated, and which runs to be erased."""
        self.compared = 0
        self.recorded_of: list[str] = []
        """The runs of the observations that were recorded, in order."""
        self._shown: asyncio.Queue[Observation] = asyncio.Queue()

    def show(self, run_id: str, phase: str, **details: Any) -> None:
        (name,) = (each.workflow_name for each in self.submitted if each.run_id == run_id)
        observation = Observation(workflow_name=name, run_id=run_id, attempt=1, phase=phase, **details)
        self._shown.put_nowait(observation)

    async def submit(self, submission: Submission) -> None:
        self.submitted.append(submission)

    async def terminate(self, workflow_name: WorkflowName) -> None:
        self.told.append(workflow_name)

    async def erase(self, run_id: str, *, up_to_attempt: int | None = None) -> None:
        self.told.append(run_id)

    async def own(self, shards: frozenset[int]) -> None: ...

    async def known(self) -> set[str]:
        return {submission.run_id for submission in self.submitted}

    async def leftovers(self) -> dict[str, int]:
        self.compared += 1
        return {}

    async def observe(self) -> AsyncIterator[Observation]:
        while True:
            yield await self._shown.get()

    async def recorded(self, observation: Observation) -> None:
        self.recorded_of.append(observation.run_id)

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


class Overtaken(Whole):
    """It believes to hold everything, and asked at the moment it does not."""

    def holds(self, shard: int) -> bool:
        return False


class Patient(Whole):
    """Whatever is away is away for every controller."""

    gives_up_in_outages = False


class FarEngine(PlayedEngine):
    """It does not know what it drives before it has looked, and it cannot look."""

    def __init__(self) -> None:
        super().__init__()
        self.can_look = asyncio.Event()
        self.asked = 0

    async def known(self) -> set[str]:
        self.asked += 1
        await self.can_look.wait()
        return await super().known()


class InterruptedEngine(PlayedEngine):
    """Something happens while it is given its first run."""

    meanwhile: Callable[[], Awaitable[None]]

    async def submit(self, submission: Submission) -> None:
        if not self.submitted:
            await self.meanwhile()
        await super().submit(submission)


class ForgetfulEngine(PlayedEngine):
    """It cannot be reached when it is to erase what nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = True
        self.begun = 0
        self.refused = 0

    async def erase(self, run_id: str, *, up_to_attempt: int | None = None) -> None:
        if self.is_away and up_to_attempt is not None:
            self.refused += 1
            raise Unavailable("It is away.")
        await super().erase(run_id, up_to_attempt=up_to_attempt)

    async def work(self) -> None:
        self.begun += 1
        await super().work()


class ThoroughEngine(PlayedEngine):
    """Erasing takes it its time."""

    def __init__(self) -> None:
        super().__init__()
        self.erasing = asyncio.Event()
        self.is_gone = asyncio.Event()

    async def erase(self, run_id: str, *, up_to_attempt: int | None = None) -> None:
        self.erasing.set()
        await self.is_gone.wait()
        await super().erase(run_id, up_to_attempt=up_to_attempt)


@contextlib.asynccontextmanager
async def controlled(
    world: World, *, metrics_wait_seconds: float = 1, kind: type[Whole] = Whole, engine: PlayedEngine | None = None
) -> AsyncIterator[PlayedEngine]:
    """A controller at work."""
    bus = world.peers.buses["run-controller"]
    engine = engine or PlayedEngine()
    controller = Controller(
        world.records,
        engine,
        bus,
        # Nobody answers questions about metrics here, so no report ever ends.
        StepMetrics(world.blobs, bus, world.database),
        kind(Lease(world.database, "run-controller"), SHARDS, confirm_seconds=0.05),
        poll_seconds=0.05,
        compare_seconds=0.05,
        metrics_wait_seconds=metrics_wait_seconds,
        tasks=Tasks(),
    )
    controlling = asyncio.create_task(controller.run(engine.work))
    try:
        yield engine
    finally:
        controlling.cancel()
        await asyncio.wait([controlling])


async def met(condition: bool) -> bool:
    return condition


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

    async with controlled(world, metrics_wait_seconds=1) as engine:
        await until(lambda: met(len(engine.submitted) >= 7), within_seconds=20)

    order = [old[4], *old[:4], old[5], new]
    assert [submission.run_id for submission in engine.submitted] == order
    assert [submission.experiment_id for submission in engine.submitted].index(experiment) == 6


async def test_the_end_of_a_run_waits_for_metrics_from_when_they_were_written_not_from_the_end(world: World) -> None:
    def with_metrics(key: str) -> dict[str, Any]:
        return node("a", "Succeeded", outputs={"artifacts": [{"name": ARTIFACT, "s3": {"key": key}}]}, finishedAt="x")

    await world.blobs.put("m.tgz", packed_metrics())
    first, second, third = [(await world.client.create())["id"] for _ in range(3)]
    async with controlled(world, metrics_wait_seconds=3) as engine:
        await until(lambda: met(len(engine.submitted) == 3), within_seconds=20)
        for run_id in (first, second):
            engine.show(run_id, "Running", started_at=STARTED, nodes=(with_metrics("m.tgz"),))
        engine.show(first, "Succeeded", started_at=STARTED, finished_at=ENDED)
        await until(lambda: met(engine.recorded_of.count(first) == 2), within_seconds=20)

        engine.show(third, "Running", started_at=STARTED, nodes=(with_metrics("m.tgz"),))
        engine.show(third, "Succeeded", started_at=STARTED, finished_at=ENDED)
        await until(lambda: met(engine.recorded_of.count(third) == 1), within_seconds=20)
        engine.show(second, "Succeeded", started_at=STARTED, finished_at=ENDED)
        await until(lambda: met(engine.recorded_of.count(third) == 2), within_seconds=20)

    assert engine.recorded_of[-2:] == [second, third]


async def test_a_controller_that_is_overtaken_while_it_reads_tells_the_engine_nothing(world: World) -> None:
    running = (await world.client.create())["id"]
    await world.records.mark_submitted(running, 1)
    await world.observe(running, "Running", started_at=STARTED)
    await world.client.call("POST", f"/runs/{running}/terminate")
    gone = (await world.client.create())["id"]
    await world.client.call("DELETE", f"/runs/{gone}")
    await world.client.create()
    async with controlled(world, kind=Overtaken) as engine:
        await until(lambda: met(engine.compared > 1), within_seconds=20)
    assert (engine.submitted, engine.told) == ([], [])
    due = await world.records.due(10)
    assert (len(due.submissions), len(due.terminations), len(due.erasures)) == (1, 1, 1)


async def test_an_engine_that_cannot_be_reached_for_long_is_asked_again_and_hears_of_no_run_before(
    world: World,
) -> None:
    run_id = (await world.client.create())["id"]
    engine = FarEngine()
    async with controlled(world, kind=Patient, engine=engine):
        await until(lambda: met(engine.asked > 2), within_seconds=20)
        assert engine.submitted == []
        engine.can_look.set()
        await until(lambda: met([each.run_id for each in engine.submitted] == [run_id]), within_seconds=20)


async def test_a_stop_that_the_engine_heard_before_it_was_given_the_run_is_said_again(world: World) -> None:
    """Whoever compares may have read the record before there was a wish to stop it."""
    run_id = (await world.client.create())["id"]
    engine = InterruptedEngine()

    async def meanwhile() -> None:
        await world.client.call("POST", f"/runs/{run_id}/terminate")
        await world.records.mark_terminated(run_id, 1)

    engine.meanwhile = meanwhile
    async with controlled(world, engine=engine):
        await until(lambda: met(bool(engine.told)), within_seconds=20)
    assert engine.told == [(await world.row(run_id))["workflow_name"]]


async def test_a_run_with_the_name_of_one_that_was_deleted_waits_until_that_is_erased(world: World) -> None:
    manifest = MANIFEST.replace('"generateName":"two-steps-"', '"name":"fixed"')

    async def create() -> str:
        run = await world.client.create(pipeline_spec={"workflow_manifest": manifest})
        assert (await world.row(run["id"]))["workflow_name"] == "fixed"
        return str(run["id"])

    first, engine = await create(), ThoroughEngine()
    async with controlled(world, engine=engine):
        await until(lambda: met(bool(engine.submitted)), within_seconds=20)
        await world.client.call("DELETE", f"/runs/{first}")
        second, other = await create(), str((await world.client.create())["id"])
        await asyncio.wait_for(engine.erasing.wait(), 20)
        compared = engine.compared
        await until(lambda: met(engine.compared > compared + 1), within_seconds=20)
        assert second not in [each.run_id for each in engine.submitted]
        engine.is_gone.set()
        await until(lambda: met(len(engine.submitted) == 3), within_seconds=20)
    assert engine.told == [first]
    assert [each.run_id for each in engine.submitted] in ([first, other, second], [first, second, other])


async def test_what_is_left_of_a_run_that_is_gone_is_erased_when_the_engine_is_back(world: World) -> None:
    run_id = (await world.client.create())["id"]
    engine = ForgetfulEngine()
    async with controlled(world, kind=Patient, engine=engine):
        await until(lambda: met(bool(engine.submitted)), within_seconds=20)
        await world.client.call("DELETE", f"/runs/{run_id}")
        await until(lambda: met(engine.told == [run_id]), within_seconds=20)
        engine.show(run_id, "Running", started_at=STARTED)
        await until(lambda: met(engine.refused > 1), within_seconds=20)
        engine.is_away = False
        await until(lambda: met(engine.told == [run_id, run_id]), within_seconds=20)
    assert engine.begun == 1, "no other run has noticed"


async def test_the_runs_that_wait_to_be_started_are_counted(world: World) -> None:
    def is_counted(number: int) -> bool:
        return telemetry.metrics.get_sample_value("headrace_engine_queued_runs") == number

    run_ids = [(await world.client.create())["id"] for _ in range(3)]
    async with controlled(world) as engine:
        await until(lambda: met(len(engine.submitted) == 3 and is_counted(3)), within_seconds=20)
        engine.show(run_ids[0], "Pending", message="position 1 in the queue")
        engine.show(run_ids[1], "Running", started_at=STARTED)
        await until(lambda: met(is_counted(2)), within_seconds=20)
        run = await world.client.get(run_ids[0])
        assert run["status"] == "Pending"
        status = (await world.client.workflow(run_ids[0]))["status"]
        assert (status["phase"], status["message"]) == ("Pending", "position 1 in the queue")
    assert is_counted(0)


def packed_metrics() -> bytes:
    text = msgspec.json.encode({"metrics": [{"name": "m", "numberValue": 1}]})
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        file = tarfile.TarInfo("data")
        file.size = len(text)
        archive.addfile(file, io.BytesIO(text))
    return packed.getvalue()
