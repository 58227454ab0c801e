"""Several controllers of one cluster: they share its runs, and whatever becomes of one of them, no run notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.run.controller import SHARDS_PING, Controller
from services.run.domain import EngineName
from services.run.engine.shards import ALL, SHARDS, shard_of
from services.run.records import Records
from services.run.step_metrics import StepMetrics
from shared.bus import Bus
from shared.contracts.questions import READ_LOG, LogRequest
from shared.database import Database
from shared.outbox import Outbox
from shared.shards import Shards
from shared.tasks import Tasks
from tests.component.run.conftest import World
from tests.support.eventually import eventually
from tests.support.played_cluster import ClusterEngine, PlayedCluster


class Replica:
    """A controller with connections of its own."""

    def __init__(self, world: World, engine: ClusterEngine, database: Database, bus: Bus, seconds: float) -> None:
        self.engine = engine
        self.shards = Shards(database, "argo", SHARDS, seconds=seconds, tell=lambda: bus.ping(SHARDS_PING))
        self._database = database
        self._bus = bus
        self._controller = Controller(
            Records(database, Outbox("run", bus), world.manifests, engine=EngineName.ARGO),
            engine,
            bus,
            StepMetrics(world.blobs, bus, database),
            self.shards,
            poll_seconds=0.1,
            compare_seconds=0.2,
            metrics_wait_seconds=1,
            tasks=Tasks(),
        )
        self._task = asyncio.create_task(self._controller.run(engine.work))

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._database.close()
        await self._bus.close()

    async def die(self) -> None:
        """Without a word to anybody."""
        await self._bus.close()
        await self._database.close()
        self._task.cancel()
        await asyncio.wait([self._task])
        self.engine.owned = frozenset()


class Controllers:
    def __init__(self, world: World, nats_url: str) -> None:
        self.world = world
        self.cluster = PlayedCluster()
        self.alive: list[Replica] = []
        self._nats_url = nats_url

    async def start(self, *, seconds: float = 1.5) -> Replica:
        database = await Database(self.world.settings.database_url, name="controller", max_size=4).open()
        bus = await Bus(self._nats_url, name="run-controller").open()
        replica = Replica(self.world, self.cluster.engine(), database, bus, seconds)
        self.alive.append(replica)
        return replica

    async def kill(self, replica: Replica) -> None:
        self.alive.remove(replica)
        await replica.die()

    async def stop(self, replica: Replica) -> None:
        self.alive.remove(replica)
        await replica.stop()

    async def until_shared(self) -> None:
        """All runs are somebody's, and each controller has its part."""

        async def is_shared() -> bool:
            owned = [each.engine.owned for each in self.alive]
            return frozenset().union(*owned) == ALL and max(map(len, owned)) <= -(-SHARDS // len(owned))

        await eventually(is_shared, within_seconds=30)


@pytest.fixture
async def controllers(world: World, nats_urls: dict[str, str]) -> AsyncIterator[Controllers]:
    controllers = Controllers(world, nats_urls["run-controller"])
    yield controllers
    for replica in list(controllers.alive):
        await controllers.stop(replica)


async def test_controllers_that_die_stop_and_come_in_turn_lose_no_run_and_start_none_twice(
    controllers: Controllers,
) -> None:
    world, cluster = controllers.world, controllers.cluster
    client = await world.start_replica(engine=EngineName.ARGO)
    first = await controllers.start()
    second = await controllers.start()
    await controllers.until_shared()

    run_ids: list[str] = []

    async def create(number: int) -> None:
        run_ids.extend([(await client.create())["id"] for _ in range(number)])

    async def until_made() -> None:
        await eventually(lambda: _met(set(run_ids) <= cluster.made.keys()), within_seconds=30)

    await create(8)
    # In the middle of what there is to do.
    await controllers.kill(first)
    await create(8)
    third = await controllers.start()
    cluster.end_all()
    await create(4)
    await controllers.stop(second)
    await until_made()
    cluster.end_all()
    await controllers.start()
    await create(4)
    await controllers.kill(third)
    await until_made()
    cluster.end_all()

    async def are_over() -> bool:
        return bool(await world.database.fetchval("select count(*) = 24 from runs where status = 'Succeeded'"))

    await eventually(are_over, within_seconds=30)
    # What is over was removed, by whoever recorded its end, and made by nobody again.
    assert set(cluster.made.values()) == {1}
    for run_id in run_ids:
        # Whose beginning nobody saw has ended all the same.
        assert await world.facts(run_id) in (["created", "started", "succeeded"], ["created", "succeeded"])


async def test_an_orderly_end_hands_the_runs_on_at_once(controllers: Controllers) -> None:
    """Long before anything expires."""
    leaving = await controllers.start(seconds=60)
    await controllers.start(seconds=60)
    await controllers.until_shared()
    await controllers.stop(leaving)
    await controllers.until_shared()


async def test_a_run_goes_to_the_controller_of_its_shard_and_any_answers_for_its_steps(
    controllers: Controllers,
) -> None:
    world = controllers.world
    client = await world.start_replica(engine=EngineName.ARGO)
    await controllers.start()
    await controllers.start()
    await controllers.until_shared()
    run_id = (await client.create())["id"]
    await eventually(lambda: _met(run_id in controllers.cluster.made), within_seconds=30)
    knowing = [each for each in controllers.alive if run_id in await each.engine.known()]
    assert [shard_of(run_id) in each.engine.owned for each in knowing] == [True]

    (name,) = controllers.cluster.workflows
    asking = world.peers.buses["experiment"]
    for _ in range(4):
        answer = await asking.ask(READ_LOG, LogRequest(workflow_name=name, node_id=name), within_seconds=20)
        assert answer.text == f"{name} says".encode()


async def _met(condition: bool) -> bool:
    return condition
