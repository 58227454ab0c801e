"""How long a committed fact takes to a reader of server-sent events, through the gateway, and what readers weigh.

Facts are committed at a rate, ten in a transaction, through the outbox of the run service, and published by its own
relay while the stack's subscribers follow. Two hundred readers follow one run each, and five follow everything. The
clock starts when the commit is acknowledged and stops when a reader has the event; a reader of one run is as late as
its own event is. The floor is a subscriber on JetStream in the same seconds.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from nats.aio.msg import Msg
from nats.js.api import DeliverPolicy

from shared.bus import Bus
from shared.contracts.events import RUN_STARTED
from shared.contracts.states import ExperimentId, RunState
from shared.database import Database
from shared.outbox import Outbox
from tests.bench import processes
from tests.bench.fact_delay import Journey, connect
from tests.bench.figures import Floor, Result, Row, Unit, median, percentile
from tests.bench.house import House, rest, standing
from tests.bench.load import at_rate
from tests.bench.processes import Meter
from tests.support.eventually import eventually
from tests.support.facts import LONG_AGO

NAME = "event-streams"
ABOUT = "a fact from its commit to 205 readers of server-sent events, and the memory that they take"

PER_SECOND = 500
READERS_OF_ONE_RUN = 200
READERS_OF_EVERYTHING = 5

_AT_ONCE = 10
_SECONDS = 4.0
_REPETITIONS = 2
_OPEN_WITHIN_SECONDS = 30
_FLOOR = "subscriber on JetStream meanwhile"


async def measure() -> Result:
    run_ids = [str(uuid.uuid4()) for _ in range(READERS_OF_ONE_RUN)]
    direct: list[list[float]] = []
    of_one: list[list[float]] = []
    of_everything: list[list[float]] = []
    meter = Meter()
    with standing() as house:
        async with _writer(house, run_ids) as writer:
            before = _memory(house)
            async with _readers(house, run_ids) as readers:
                await writer.write(readers, seconds=1)
                for _ in range(_REPETITIONS):
                    await rest(0.3)
                    with meter.running():
                        said = await writer.write(readers, seconds=_SECONDS)
                    direct.append(said.direct.milliseconds())
                    of_one.append(said.of_one)
                    of_everything.append(said.of_everything)
                after = _memory(house)
    delays = [
        Row(
            quantity=f"{PER_SECOND}/s, commit to {who}, p{percent}",
            unit=Unit.MILLISECONDS,
            figure=percentile(delays, percent),
            floors=(Floor(what=_FLOOR, reading=percentile(direct, percent)),),
        )
        for who, delays in (
            (f"{READERS_OF_ONE_RUN} readers of one run each", of_one),
            (f"{READERS_OF_EVERYTHING} readers of everything", of_everything),
        )
        for percent in (50, 99)
    ]
    weights = [
        Row(
            quantity=f"{name}, with {READERS_OF_ONE_RUN + READERS_OF_EVERYTHING} readers",
            unit=Unit.MEBIBYTES,
            figure=median([after[name]]),
            floors=(Floor(what="without", reading=median([before[name]])),),
        )
        for name in ("gateway", "notifier")
    ]
    note = f"a fact and its events cost {meter.each(int(PER_SECOND * _SECONDS * _REPETITIONS))}"
    return Result(rows=(*delays, *weights), notes=(note,))


class _Said(msgspec.Struct, frozen=True, kw_only=True):
    direct: Journey
    of_one: list[float]
    of_everything: list[float]


class _Readers:
    """When each has had which event, by the event's id."""

    def __init__(self) -> None:
        self.came_to_one: dict[str, float] = {}
        self.came_to_all: list[dict[str, float]] = [{} for _ in range(READERS_OF_EVERYTHING)]
        self.opened = 0

    async def have_all(self, journey: Journey) -> bool:
        return all(journey.set_out.keys() <= came.keys() for came in (self.came_to_one, *self.came_to_all))

    async def are_open(self, number: int) -> bool:
        return self.opened == number

    async def read(self, session: aiohttp.ClientSession, url: str, came: dict[str, float]) -> None:
        async with session.get(url) as answer:
            answer.raise_for_status()
            self.opened += 1
            async for line in answer.content:
                if line.startswith(b"data: "):
                    event = msgspec.json.decode(line[6:], type=_Event)
                    came.setdefault(event.id, time.perf_counter())


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    id: str


class _Writer:
    def __init__(self, database: Database, outbox: Outbox, run_ids: list[str]) -> None:
        self._database = database
        self._outbox = outbox
        self._run_ids = run_ids
        self._next = 0
        self._current = Journey()

    async def heard(self, message: Msg) -> None:
        self._current.arrived((message.headers or {})["ce-id"])

    async def write(self, readers: _Readers, *, seconds: float) -> _Said:
        journey = self._current = Journey()

        async def one(_number: int) -> None:
            await self._commit(journey)

        await at_rate(one, per_second=PER_SECOND / _AT_ONCE, seconds=seconds)
        await journey.complete(len(journey.set_out))
        await eventually(lambda: readers.have_all(journey), within_seconds=_OPEN_WITHIN_SECONDS)
        return _Said(
            direct=journey,
            of_one=_delays(journey, readers.came_to_one),
            of_everything=[delay for came in readers.came_to_all for delay in _delays(journey, came)],
        )

    async def _commit(self, journey: Journey) -> None:
        committed: list[str] = []

        async def stamp() -> None:
            journey.set_out.update(dict.fromkeys(committed, time.perf_counter()))

        async with self._database.transaction() as tx:
            tx.after_commit(stamp)
            for _ in range(_AT_ONCE):
                run_id = self._run_ids[self._next % len(self._run_ids)]
                self._next += 1
                state = RunState(
                    id=run_id,
                    version=self._next,
                    name="own-ml-train-deploy 2026-11-23 12-00-00",
                    experiment_id=ExperimentId(run_id),
                    created_at=LONG_AGO,
                )
                committed.append(str(await self._outbox.add(tx, RUN_STARTED, state)))


def _delays(journey: Journey, came: dict[str, float]) -> list[float]:
    return [max(0.0, (came[each] - began) * 1000) for each, began in journey.set_out.items()]


@asynccontextmanager
async def _writer(house: House, run_ids: list[str]) -> AsyncIterator[_Writer]:
    bus = await Bus(house.nats_url("run"), name="bench").open()
    database = await Database(house.database_url("run"), name="bench").open()
    writer = _Writer(database, Outbox(RUN_STARTED.owner, bus), run_ids)
    subscriber = await connect(house.nats_url("events"))
    await subscriber.jetstream().subscribe(
        f"kfp.event.{RUN_STARTED.owner}.>", cb=writer.heard, ordered_consumer=True, deliver_policy=DeliverPolicy.NEW
    )
    try:
        yield writer
    finally:
        await subscriber.close()
        await database.close()
        await bus.close()


@asynccontextmanager
async def _readers(house: House, run_ids: list[str]) -> AsyncIterator[_Readers]:
    readers = _Readers()
    events = f"{house.url}/apis/headrace/v1/events"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        # By the id, as for a run: the streams of runs ask the run service whether there is one, and here there is none.
        reading = [
            asyncio.create_task(readers.read(session, url, came))
            for url, came in (
                *((f"{events}?resource=run,node,metrics&id={each}", readers.came_to_one) for each in run_ids),
                *((events, came) for came in readers.came_to_all),
            )
        ]
        try:
            await eventually(lambda: readers.are_open(len(reading)), within_seconds=_OPEN_WITHIN_SECONDS)
            yield readers
        finally:
            for each in reading:
                each.cancel()
            await asyncio.gather(*reading, return_exceptions=True)


def _memory(house: House) -> dict[str, float]:
    return {each.name: processes.pss_mebibytes(each) for each in processes.family(house.pid)}
