"""Lists of a million runs, and of a hundred thousand names, as clients and the user interface ask for them.

The floor of a page is its own statement by key, sent to the same Postgres; that of a total is COUNT(*).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import aiohttp
import asyncpg
import msgspec

from services.experiment.store import LISTING as EXPERIMENTS
from services.run.store import LISTING as RUNS
from services.run.store import kept_count
from shared.listing import Listing, ListRequest
from shared.references import ResourceType, WireReferenceKey
from tests.bench import bare, rows
from tests.bench.creation import client
from tests.bench.figures import Floor, Result, Row, Unit, median, percentile
from tests.bench.house import House, rest, standing
from tests.bench.load import Latencies, Send, at_rate
from tests.bench.processes import Meter

NAME = "lists"
ABOUT = "pages of 20 out of 1 M runs at any depth, by substring, and their totals"

PAGE_SIZE = 20

_PER_SECOND = 40
_SECONDS = 1.2
_FLOOR_SECONDS = 0.4
_REPETITIONS = 3
_PAGE_P99_MS = 20.0
_TOTAL_MS = 1.0
_COUNTS = 20

_OF_EXPERIMENT = {"resource_reference_key.type": "EXPERIMENT", "resource_reference_key.id": rows.LARGEST_EXPERIMENT}
_NOT_ARCHIVED = {
    "filter": '{"predicates":[{"key":"storage_state","op":"NOT_EQUALS","string_value":"STORAGESTATE_ARCHIVED"}]}'
}
_ARCHIVED = {"filter": '{"predicates":[{"key":"storage_state","op":"EQUALS","string_value":"STORAGESTATE_ARCHIVED"}]}'}
_NEWEST_FIRST = {"sort_by": "created_at desc"}


class List(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for, and from which share of it the page is."""

    quantity: str
    parameters: Mapping[str, str] = {}
    depth: float = 0.0
    """0: the first page; 1: the last one."""
    is_of_runs: bool = True
    has_budget: bool = True

    @property
    def listing(self) -> Listing:
        return RUNS if self.is_of_runs else EXPERIMENTS

    @property
    def route(self) -> str:
        return "runs" if self.is_of_runs else "experiments"


LISTS = (
    List(quantity="1 M runs, first page"),
    List(quantity="1 M runs, middle page", depth=0.5),
    List(quantity="1 M runs, last page", depth=1),
    List(quantity="1 M runs, newest first, middle page", parameters=_NEWEST_FIRST, depth=0.5),
    List(quantity="not archived, newest first", parameters=_NOT_ARCHIVED | _NEWEST_FIRST),
    List(quantity="archived, middle page", parameters=_ARCHIVED, depth=0.5),
    List(quantity="of an experiment, first page", parameters=_OF_EXPERIMENT),
    List(quantity="of an experiment, middle page", parameters=_OF_EXPERIMENT, depth=0.5),
    List(quantity="of an experiment, not archived, first page", parameters=_OF_EXPERIMENT | _NOT_ARCHIVED),
    List(quantity="of an experiment, not archived, last page", parameters=_OF_EXPERIMENT | _NOT_ARCHIVED, depth=1),
)


def _containing(part: str) -> dict[str, str]:
    predicate = {"key": "name", "op": "IS_SUBSTRING", "string_value": part}
    return {"filter": msgspec.json.encode({"predicates": [predicate]}).decode()}


SUBSTRINGS = (
    List(quantity="substring of few of 100 k names", parameters=_containing("a3f9c"), is_of_runs=False),
    List(quantity="word in 5 k of 100 k names", parameters=_containing("churn"), is_of_runs=False),
    List(quantity="substring of few of 1 M runs", parameters=_containing("-02-17 10-3"), has_budget=False),
)


async def measure() -> Result:
    with standing() as house:
        async with (
            client() as session,
            bare.pool(house.database_url("run")) as run_pool,
            bare.pool(house.database_url("experiment")) as experiment_pool,
        ):
            begin = time.perf_counter()
            await rows.load_runs(run_pool)
            await rows.load_experiments(experiment_pool)
            loaded_seconds = time.perf_counter() - begin
            pools = {True: run_pool, False: experiment_pool}
            ways = [await _Way.open(house, session, pools[each.is_of_runs], each) for each in (*LISTS, *SUBSTRINGS)]
            cost = await _take_turns(ways)
            totals = await _totals(run_pool)
    sizes = sorted(way.size_bytes / 1024 for way in ways)
    return Result(
        rows=(*(row for way in ways for row in way.rows()), *totals),
        notes=(
            f"lists: loading the rows took {loaded_seconds:.0f} s",
            f"lists: a page of runs costs {cost}",
            f"lists: answers of {sizes[0]:.0f} to {sizes[-1]:.0f} KiB, median {statistics.median(sizes):.0f}, "
            "the manifests of twenty runs included",
        ),
    )


class _Way:
    """One list, asked of the gateway and, by the statement of its page, of the database."""

    def __init__(self, asked: List, by_gateway: Send, by_sql: Send, size_bytes: int) -> None:
        self.asked = asked
        self.by_gateway = by_gateway
        self.by_sql = by_sql
        self.size_bytes = size_bytes
        self.figures: list[Latencies] = []
        self.floors: list[Latencies] = []

    @classmethod
    async def open(cls, house: House, session: aiohttp.ClientSession, pool: asyncpg.Pool, asked: List) -> _Way:
        """Raises RuntimeError where the answer is not the page that the database has."""
        total, token = await _find_page(pool, asked)
        parameters = {**asked.parameters, "page_size": str(PAGE_SIZE), "page_token": token}
        sql, arguments = _statement(asked, token)
        url = f"{house.url}/apis/v1beta1/{asked.route}"

        async def by_gateway(_number: int) -> None:
            async with session.get(url, params=parameters) as answer:
                said = await answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"{asked.quantity}: answered {answer.status}: {said[:300]!r}")

        async def by_sql(_number: int) -> None:
            await pool.fetch(sql, *arguments)

        async with session.get(url, params=parameters) as answer:
            said = await answer.read()
        page = msgspec.json.decode(said)
        ids = [row["id"] for row in (await pool.fetch(sql, *arguments))[:PAGE_SIZE]]
        if [each["id"] for each in page[asked.route]] != ids or page["total_size"] != total:
            raise RuntimeError(f"{asked.quantity}: {len(ids)} of {total} were expected, not {said[:300]!r}")
        return cls(asked, by_gateway, by_sql, len(said))

    def rows(self) -> list[Row]:
        return [
            Row(
                quantity=f"{self.asked.quantity}: p{percent}",
                unit=Unit.MILLISECONDS,
                figure=percentile([each.milliseconds for each in self.figures], percent),
                floors=(
                    Floor(
                        what="its statement in SQL",
                        reading=percentile([each.milliseconds for each in self.floors], percent),
                    ),
                ),
                budget=_PAGE_P99_MS if percent == 99 and self.asked.has_budget else None,
            )
            for percent in (50, 99)
        ]


async def _take_turns(ways: Sequence[_Way]) -> str:
    """What a page of runs by key costs, in processor time."""
    meter = Meter()
    for way in ways:
        await at_rate(way.by_gateway, per_second=_PER_SECOND, seconds=0.25)
    for _ in range(_REPETITIONS):
        for way in ways:
            await rest(0.1)
            way.floors.append(await at_rate(way.by_sql, per_second=_PER_SECOND, seconds=_FLOOR_SECONDS))
            with meter.running() if way.asked in LISTS else nullcontext():
                way.figures.append(await at_rate(way.by_gateway, per_second=_PER_SECOND, seconds=_SECONDS))
    return meter.each(sum(len(each.milliseconds) for way in ways if way.asked in LISTS for each in way.figures))


async def _totals(pool: asyncpg.Pool) -> list[Row]:
    async def kept(equalities: Mapping[str, str]) -> list[float]:
        async with pool.acquire() as connection:
            return [await _timed(kept_count(connection, equalities)) for _ in range(_COUNTS)]

    counted = Floor(
        what="COUNT(*)",
        reading=median([await _timed(pool.fetchval("select count(*) from runs")) for _ in range(_REPETITIONS)]),
    )
    asked: dict[str, Mapping[str, str]] = {
        "total of 1 M runs": {},
        "total of an experiment, not archived": {
            "experiment_id": rows.LARGEST_EXPERIMENT,
            "storage_state": "available",
        },
    }
    return [
        Row(
            quantity=f"{quantity}: p50",
            unit=Unit.MILLISECONDS,
            figure=median(await kept(equalities)),
            floors=(counted,),
            budget=_TOTAL_MS,
        )
        for quantity, equalities in asked.items()
    ]


async def _timed(awaited: Any) -> float:
    begin = time.perf_counter()
    await awaited
    return (time.perf_counter() - begin) * 1000


# Pages that no client could reach in time.


class _FarAlong:
    """Runs a list's own statement as if its first rows were not there."""

    def __init__(self, pool: asyncpg.Pool, offset: int) -> None:
        self._pool = pool
        self._offset = offset

    async def fetch(self, sql: str, *arguments: Any) -> Sequence[Any]:
        return await self._pool.fetch(f"{sql} offset {self._offset}", *arguments)


async def _find_page(pool: asyncpg.Pool, asked: List) -> tuple[int, str]:
    """The number of rows that match, and the token of the page at the wanted depth."""
    query = asked.listing.query(_request(asked, page_size=1))
    sql, arguments = asked.listing.count_sql(query)
    total = await pool.fetchval(sql, *arguments)
    offset = int((total - PAGE_SIZE) * asked.depth)
    if offset <= 0:
        return total, ""
    _, token = await asked.listing.fetch(_FarAlong(pool, offset - 1), query)
    return total, token


def _statement(asked: List, token: str) -> tuple[str, list[Any]]:
    return asked.listing.page_sql(asked.listing.query(_request(asked, page_size=PAGE_SIZE, page_token=token)))


def _request(asked: List, **page: Any) -> ListRequest:
    key = None
    if "resource_reference_key.id" in asked.parameters:
        key = WireReferenceKey(type=ResourceType.EXPERIMENT, id=asked.parameters["resource_reference_key.id"])
    return ListRequest(
        filter=asked.parameters.get("filter", ""),
        sort_by=asked.parameters.get("sort_by", ""),
        resource_reference_key=key,
        **page,
    )
