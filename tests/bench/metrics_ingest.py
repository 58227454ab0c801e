"""Reporting metrics, fifty a request, from the client to the row and back.

A reply means more than the row: the run service shows the metrics, as far as its bounded wait allows.
"""

from __future__ import annotations

import itertools

import aiohttp
import asyncpg
import msgspec

from tests.bench import bare
from tests.bench.creation import SMALLEST_MANIFEST, client
from tests.bench.figures import Floor, Result, Row, Unit, median, percentile
from tests.bench.house import House, rest, standing
from tests.bench.load import Send, at_rate, by_connections
from tests.bench.processes import Meter

NAME = "metrics-ingest"
ABOUT = "report metrics through the gateway, 50 a request, relay and subscribers on"

METRICS = 50
RUNS = 64
CONNECTIONS = 32

_REPETITIONS = 3
_SECONDS = 2.0
_REQUESTS_PER_SECOND = 100
_BUDGET_PER_SECOND = 20_000


async def measure() -> Result:
    floor: list[float] = []
    figure: list[float] = []
    latencies = []
    meter = Meter()
    with standing() as house, house.engine_paused():
        async with client() as session, bare.pool(house.database_url("metrics")) as pool:
            report = _reporter(house, session, [await _create_run(house, session) for _ in range(RUNS)])
            insert = await _inserter(house, pool)
            await by_connections(report, connections=CONNECTIONS, seconds=0.7)
            for _ in range(_REPETITIONS):
                await rest(0.5)
                bare_course = await by_connections(insert, connections=bare.CONNECTIONS, seconds=_SECONDS / 2)
                floor.append(bare_course.per_second * METRICS)
                await rest(0.5)
                with meter.running():
                    course = await by_connections(report, connections=CONNECTIONS, seconds=_SECONDS)
                figure.append(course.per_second * METRICS)
                await rest(0.5)
                latencies.append(await at_rate(report, per_second=_REQUESTS_PER_SECOND, seconds=_SECONDS))
    throughput = Row(
        quantity=f"metrics, {METRICS} a request: {CONNECTIONS} connections",
        unit=Unit.PER_SECOND,
        figure=median(figure),
        floors=(Floor(what=f"asyncpg, {METRICS} a statement", reading=median(floor)),),
        budget=_BUDGET_PER_SECOND,
    )
    delays = (
        Row(
            quantity=f"report of {METRICS} metrics: {_REQUESTS_PER_SECOND}/s, p{percent}",
            unit=Unit.MILLISECONDS,
            figure=percentile([each.milliseconds for each in latencies], percent),
        )
        for percent in (50, 99)
    )
    # Of a request, estimated by the rate that was kept up: the meter ran for all repetitions.
    requests = round(sum(figure) * _SECONDS / METRICS)
    return Result(rows=(throughput, *delays), notes=(f"metrics: a request costs {meter.each(requests)}",))


def _reporter(house: House, session: aiohttp.ClientSession, runs: list[str]) -> Send:
    """Each request reports metrics that nobody has reported: another node of one of the runs."""
    nodes = itertools.count()
    metrics = [
        {"name": f"metric-{n}", "node_id": "NODE", "number_value": n / 7, "format": "RAW"} for n in range(METRICS)
    ]
    parts = msgspec.json.encode({"metrics": metrics}).split(b"NODE")

    async def report(_number: int) -> None:
        node = next(nodes)
        url = f"{house.url}/apis/v1beta1/runs/{runs[node % len(runs)]}:reportMetrics"
        body = (b"node-%d" % node).join(parts)
        async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
            said = await answer.read()
        if answer.status != 200 or said.count(b'"OK"') != METRICS:
            raise RuntimeError(f"{url} answered {answer.status}: {said[:300]!r}")

    return report


async def _create_run(house: House, session: aiohttp.ClientSession) -> str:
    body = {"name": "measured", "pipeline_spec": {"workflow_manifest": SMALLEST_MANIFEST}}
    async with session.post(f"{house.url}/apis/v1beta1/runs", data=msgspec.json.encode(body)) as answer:
        said = await answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the run was refused, {answer.status}: {said[:300]!r}")
    return str(msgspec.json.decode(said)["run"]["id"])


async def _inserter(house: House, pool: asyncpg.Pool) -> Send:
    """The same rows in a table like the one of the service."""
    async with bare.pool(house.database_url()) as superuser:
        await superuser.execute("create schema bench_metrics authorization metrics")
    await pool.execute("create table bench_metrics.metrics (like metrics.metrics including all)")
    numbers = itertools.count()
    names = [f"metric-{n}" for n in range(METRICS)]
    values = [n / 7 for n in range(METRICS)]

    async def insert(_number: int) -> None:
        await pool.execute(
            """
            insert into bench_metrics.metrics (run_id, node_id, name, number)
            select 'run', $1, * from unnest($2::text[], $3::float8[]) on conflict do nothing
            """,
            f"node-{next(numbers)}",
            names,
            values,
        )

    return insert
