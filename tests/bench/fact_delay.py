"""How long a committed fact takes to a subscriber from outside, and how many a second arrive.

Facts are added as a service adds them, through the outbox in a transaction, and published by the service's own relay;
the subscriber logs in as subscribers from outside do and follows the stream. The clock starts when the commit is
acknowledged. The floor is a message of the same size published to a stream on the same server, which writes each to
the disk before it acknowledges.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import DeliverPolicy, StreamConfig

from shared.bus import Bus
from shared.contracts.events import RUN_CREATED
from shared.contracts.states import ExperimentId, RunState
from shared.database import Database
from shared.outbox import Outbox
from tests.bench.figures import Floor, Result, Row, Unit, median, percentile
from tests.bench.house import House, rest, standing
from tests.bench.load import at_rate
from tests.bench.processes import Meter

NAME = "fact-delay"
ABOUT = "a fact from its commit to a subscriber on JetStream"

PER_SECOND = 100
MANY_PER_SECOND = 2000

_REPETITIONS = 3
_AT_ONCE_OF_MANY = 10
"""Facts in one transaction of the higher rate, so that facts are what there is much of, and not commits."""
_SECONDS = 3.0
_MANY = 4000
_AT_ONCE = 50
"""Facts in one transaction of the sustained measurement."""
_WRITERS = 4
_IN_FLIGHT = 64
_ARRIVE_WITHIN_SECONDS = 20
_FLOOR = "JetStream publish, synced"
_SUBJECT = "bench.floor"


class Journey:
    """When each fact set out and when it came, by its id."""

    def __init__(self) -> None:
        self.set_out: dict[str, float] = {}
        self.came: dict[str, float] = {}
        self._arrival = asyncio.Event()

    def arrived(self, fact_id: str) -> None:
        self.came.setdefault(fact_id, time.perf_counter())
        self._arrival.set()

    async def complete(self, count: int) -> None:
        """Wait until so many have come."""
        async with asyncio.timeout(_ARRIVE_WITHIN_SECONDS):
            while len(self.came) < count:
                self._arrival.clear()
                await self._arrival.wait()

    def milliseconds(self) -> list[float]:
        # Never below nought: a relay woken by the fact before can overtake the news of our own commit.
        return [max(0.0, (self.came[each] - began) * 1000) for each, began in self.set_out.items()]


class Course(msgspec.Struct, kw_only=True):
    delays: list[list[float]] = []
    rates: list[float] = []


async def measure() -> Result:
    with standing() as house:
        async with _facts(house) as (add, follow_facts), _messages(house) as (publish, follow_messages):
            figure, floor, meter = Course(), Course(), Meter()
            await _at_leisure(add, follow_facts, seconds=1)
            await _at_leisure(publish, follow_messages, seconds=1)
            busy, busy_meter = Course(delays=[]), Meter()
            for _ in range(_REPETITIONS):
                floor.delays.append(await _at_leisure(publish, follow_messages, seconds=_SECONDS))
                figure.delays.append(await _at_leisure(add, follow_facts, seconds=_SECONDS))
                with busy_meter.running():
                    busy.delays.append(
                        await _at_leisure(
                            add, follow_facts, seconds=_SECONDS, per_second=MANY_PER_SECOND, at_once=_AT_ONCE_OF_MANY
                        )
                    )
                floor.rates.append(await _in_a_hurry(publish, follow_messages, writers=_IN_FLIGHT, at_once=1))
                with meter.running():
                    figure.rates.append(await _in_a_hurry(add, follow_facts, writers=_WRITERS, at_once=_AT_ONCE))
    delays = [
        Row(
            quantity=f"fact, commit to subscriber: {per_second:,}/s, p{percent}",
            unit=Unit.MILLISECONDS,
            figure=percentile(course.delays, percent),
            floors=(Floor(what=_FLOOR, reading=percentile(floor.delays, percent)),),
            budget=budget,
        )
        for per_second, course in ((PER_SECOND, figure), (MANY_PER_SECOND, busy))
        for percent, budget in ((50, None), (99, 50.0))
    ]
    rate = Row(
        quantity=f"facts, sustained over {_MANY:,}",
        unit=Unit.PER_SECOND,
        figure=median(figure.rates),
        floors=(Floor(what=f"{_FLOOR}, {_IN_FLIGHT} in flight", reading=median(floor.rates)),),
        budget=2000,
    )
    notes = (
        f"facts: the sustained rate includes writing them, {_AT_ONCE} to a transaction, {_WRITERS} at a time",
        f"the floor of both rates is one message at {PER_SECOND}/s; at {MANY_PER_SECOND:,}/s facts are committed "
        f"{_AT_ONCE_OF_MANY} at a time",
        f"at that rate, a fact costs {busy_meter.each(int(MANY_PER_SECOND * _SECONDS * _REPETITIONS))}",
        f"a fact costs {meter.each(_MANY * _REPETITIONS)}",
    )
    return Result(rows=(*delays, rate), notes=notes)


Set = Callable[[Journey, int], Awaitable[None]]
"""Sends so many on their way at once."""
Follow = Callable[[Journey], None]
"""From now on, arrivals count for this journey."""


async def _at_leisure(
    send: Set, follow: Follow, *, seconds: float, per_second: int = PER_SECOND, at_once: int = 1
) -> list[float]:
    await rest(0.3)
    journey = Journey()
    follow(journey)

    async def one(_number: int) -> None:
        await send(journey, at_once)

    await at_rate(one, per_second=per_second / at_once, seconds=seconds)
    await journey.complete(len(journey.set_out))
    return journey.milliseconds()


async def _in_a_hurry(send: Set, follow: Follow, *, writers: int, at_once: int) -> float:
    await rest(0.3)
    journey = Journey()
    follow(journey)
    begin = time.perf_counter()
    left = _MANY

    async def writer() -> None:
        nonlocal left
        while left > 0:
            left -= at_once
            await send(journey, at_once)

    async with asyncio.TaskGroup() as group:
        for _ in range(writers):
            group.create_task(writer())
    await journey.complete(len(journey.set_out))
    return len(journey.came) / (max(journey.came.values()) - begin)


@asynccontextmanager
async def adding(house: House) -> AsyncIterator[Set]:
    """Facts about runs, as the run service tells them."""
    bus = await Bus(house.nats_url("run"), name="bench").open()
    database = await Database(house.database_url("run"), name="bench").open()
    outbox = Outbox(RUN_CREATED.owner, bus)

    async def add(journey: Journey, count: int) -> None:
        committed: list[str] = []

        async def stamp() -> None:
            now = time.perf_counter()
            journey.set_out.update(dict.fromkeys(committed, now))

        async with database.transaction() as tx:
            tx.after_commit(stamp)  # Before the outbox's own callback, which wakes the relay.
            committed.extend([str(await outbox.add(tx, RUN_CREATED, _state())) for _ in range(count)])

    try:
        yield add
    finally:
        await database.close()
        await bus.close()


@asynccontextmanager
async def _facts(house: House) -> AsyncIterator[tuple[Set, Follow]]:
    current = Journey()

    def follow(journey: Journey) -> None:
        nonlocal current
        current = journey

    async def arrived(message: Msg) -> None:
        current.arrived((message.headers or {})["ce-id"])

    subscriber = await connect(house.nats_url("events"))
    await subscriber.jetstream().subscribe(
        f"kfp.event.{RUN_CREATED.owner}.>", cb=arrived, ordered_consumer=True, deliver_policy=DeliverPolicy.NEW
    )
    try:
        async with adding(house) as add:
            yield add, follow
    finally:
        await subscriber.close()


@asynccontextmanager
async def _messages(house: House) -> AsyncIterator[tuple[Set, Follow]]:
    publisher, subscriber = await connect(house.nats_url("admin")), await connect(house.nats_url("admin"))
    stream = publisher.jetstream()
    await stream.add_stream(StreamConfig(name="BENCH", subjects=[_SUBJECT]))
    body = msgspec.json.encode(_state())
    current = Journey()

    async def publish(journey: Journey, count: int) -> None:
        for _ in range(count):
            fact_id = str(uuid.uuid4())
            journey.set_out[fact_id] = time.perf_counter()
            await stream.publish(_SUBJECT, body, headers={"Nats-Msg-Id": fact_id})

    def follow(journey: Journey) -> None:
        nonlocal current
        current = journey

    async def arrived(message: Msg) -> None:
        current.arrived((message.headers or {})["Nats-Msg-Id"])

    await subscriber.jetstream().subscribe(
        _SUBJECT, cb=arrived, ordered_consumer=True, deliver_policy=DeliverPolicy.NEW
    )
    try:
        yield publish, follow
    finally:
        await stream.delete_stream("BENCH")
        await subscriber.close()
        await publisher.close()


async def connect(url: str) -> Client:
    client = Client()
    await client.connect(url, name="bench", allow_reconnect=False)
    return client


def _state() -> RunState:
    """As large as a real one."""
    return RunState(
        id=str(uuid.uuid4()),
        version=1,
        name="own-ml-train-deploy 2026-11-23 12-00-00",
        experiment_id=ExperimentId(str(uuid.uuid4())),
        workflow_name="own-ml-train-deploy-x7k2p",
        created_at=datetime.now(UTC),
    )
