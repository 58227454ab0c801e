"""Creating a resource through the gateway, against creating nothing but its row.

Two ways of asking: 200 a second for latency, 32 connections for throughput. The floors are the row in the same
Postgres, inserted by the bench itself and behind a bare endpoint.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from tests.bench import bare
from tests.bench.figures import Floor, Row, Unit, median, percentile
from tests.bench.house import House, rest
from tests.bench.load import Latencies, Send, Throughput, at_rate, by_connections
from tests.bench.processes import Meter

PER_SECOND = 200
CONNECTIONS = 32

REPETITIONS = 3

SMALLEST_MANIFEST = msgspec.json.encode(
    {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "nothing-"},
        "spec": {
            "entrypoint": "main",
            "templates": [{"name": "main", "container": {"image": "alpine", "command": ["true"]}}],
        },
    }
).decode()
"""For runs that only have to exist."""

_OPEN_SECONDS = 2.0
_CLOSED_SECONDS = 1.5
_WARM_UP_SECONDS = 0.7

_ENDPOINT = "Litestar, one insert"
_INSERT = "asyncpg, one insert"


class Budgets(msgspec.Struct, frozen=True, kw_only=True):
    p50_ms: float | None = None
    p99_ms: float | None = None
    per_second: float | None = None


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """What one way of creating did, repetition by repetition."""

    latencies: tuple[Latencies, ...]
    throughputs: tuple[Throughput, ...]
    cost: str
    """In processor time."""


@asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=256, keepalive_timeout=30)  # Less than any server here keeps one.
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session


def poster(session: aiohttp.ClientSession, url: str, body: Callable[[], bytes]) -> Send:
    """Posts what `body` makes; reads the answer to its end."""

    async def send(_number: int) -> None:
        async with session.post(url, data=body(), headers={"Content-Type": "application/json"}) as answer:
            said = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{url} answered {answer.status}: {said[:300]!r}")

    return send


def renamed(request: Mapping[str, Any]) -> Callable[[], bytes]:
    """The request as JSON with another name each time; encoded once, so that the generator's share stays small."""
    before, _, after = msgspec.json.encode({"name": "NAME", **request}).partition(b"NAME")
    return lambda: b"%bbench %b%b" % (before, uuid.uuid4().hex.encode(), after)


async def compare(
    house: House,
    session: aiohttp.ClientSession,
    *,
    ways: Mapping[str, Send],
    floor_body: Callable[[], bytes],
    table: str,
    unique: Sequence[str],
    budgets: Budgets,
    repetitions: int = REPETITIONS,
) -> tuple[list[Row], list[str]]:
    """`ways`: a quantity's name, and how to create one. `table` holds a row that was created in one of them."""
    async with (
        bare.pool(house.database_url()) as pool,
        bare.endpoint(house.database_url(), table, unique) as url,
    ):
        bare_table = await bare.BareTable.open(pool, table, unique)

        async def insert(number: int) -> None:
            await bare_table.insert(number)

        floors = {_ENDPOINT: poster(session, url, floor_body), _INSERT: insert}
        courses = await _take_turns({**floors, **ways}, repetitions)
    rows = [row for way in ways for row in _rows(way, courses, budgets)]
    late = percentile([each.late_milliseconds for course in courses.values() for each in course.latencies], 99)
    return rows, [
        f"the generator itself was late by {late.value:.2f} ms at p99; latencies include it",
        *(f"{way} costs {course.cost}" for way, course in courses.items()),
    ]


async def _take_turns(ways: Mapping[str, Send], repetitions: int) -> dict[str, Course]:
    for send in ways.values():
        await at_rate(send, per_second=PER_SECOND, seconds=_WARM_UP_SECONDS)
    latencies: dict[str, list[Latencies]] = {way: [] for way in ways}
    throughputs: dict[str, list[Throughput]] = {way: [] for way in ways}
    meters = {way: Meter() for way in ways}
    for _ in range(repetitions):
        for way, send in ways.items():
            await rest(0.3)
            latencies[way].append(await at_rate(send, per_second=PER_SECOND, seconds=_OPEN_SECONDS))
        for way, send in ways.items():
            await rest(0.3)
            with meters[way].running():
                throughputs[way].append(await by_connections(send, connections=CONNECTIONS, seconds=_CLOSED_SECONDS))
    return {
        way: Course(
            latencies=tuple(latencies[way]),
            throughputs=tuple(throughputs[way]),
            cost=meters[way].each(sum(each.answered for each in throughputs[way])),
        )
        for way in ways
    }


def _rows(way: str, courses: Mapping[str, Course], budgets: Budgets) -> list[Row]:
    rows = [
        Row(
            quantity=f"{way}: {PER_SECOND}/s, p{percent}",
            unit=Unit.MILLISECONDS,
            figure=percentile([each.milliseconds for each in courses[way].latencies], percent),
            floors=tuple(
                Floor(what=floor, reading=percentile([each.milliseconds for each in courses[floor].latencies], percent))
                for floor in (_ENDPOINT, _INSERT)
            ),
            budget=budget,
        )
        for percent, budget in ((50, budgets.p50_ms), (99, budgets.p99_ms))
    ]
    throughput = Row(
        quantity=f"{way}: {CONNECTIONS} connections",
        unit=Unit.PER_SECOND,
        figure=median([each.per_second for each in courses[way].throughputs]),
        floors=tuple(
            Floor(what=floor, reading=median([each.per_second for each in courses[floor].throughputs]))
            for floor in (_ENDPOINT, _INSERT)
        ),
        budget=budgets.per_second,
    )
    return [*rows, throughput]
