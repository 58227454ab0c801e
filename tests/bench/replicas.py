"""How many requests a second one, two and four replicas of the run service answer, behind the one gateway.

Whether more replicas answer more is a matter of processors: on two, which the client, the gateway and the servers
share, they show what they cost.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from tests.bench.creation import CONNECTIONS, REPETITIONS, SMALLEST_MANIFEST, client, poster, renamed
from tests.bench.figures import Floor, Reading, Result, Row, Unit, median
from tests.bench.house import House, rest, standing
from tests.bench.load import Send, by_connections

NAME = "replicas"
ABOUT = "get and create a run with one, two and four replicas of the run service, engine paused"

_COUNTS = (1, 2, 4)
_SECONDS = 1.5
_WARM_UP_SECONDS = 0.7


async def measure() -> Result:
    rates = {count: await _rates(count) for count in _COUNTS}
    rows = tuple(
        Row(
            quantity=f"{way}: {CONNECTIONS} connections, {count} replica{'s' if count > 1 else ''}",
            unit=Unit.PER_SECOND,
            figure=rates[count][way],
            floors=() if count == 1 else (Floor(what="one replica", reading=rates[1][way]),),
        )
        for way in rates[1]
        for count in _COUNTS
    )
    return Result(
        rows=rows, notes=(f"replicas: {len(os.sched_getaffinity(0))} processors, client and gateway included",)
    )


async def _rates(count: int) -> Mapping[str, Reading]:
    with standing(replicas=f"run={count}") as house, house.engine_paused():
        async with client() as session:
            ways = await _ways(house, session)
            seen: dict[str, list[float]] = {way: [] for way in ways}
            for send in ways.values():
                await by_connections(send, connections=CONNECTIONS, seconds=_WARM_UP_SECONDS)
            for _ in range(REPETITIONS):
                for way, send in ways.items():
                    await rest(0.3)
                    measured = await by_connections(send, connections=CONNECTIONS, seconds=_SECONDS)
                    seen[way].append(measured.per_second)
    return {way: median(rates) for way, rates in seen.items()}


async def _ways(house: House, session: aiohttp.ClientSession) -> Mapping[str, Send]:
    runs = f"{house.url}/apis/v1beta1/runs"
    body = renamed({"pipeline_spec": {"workflow_manifest": SMALLEST_MANIFEST}})
    async with session.post(runs, data=body()) as answer:
        run: Any = msgspec.json.decode(await answer.read())

    async def read(_number: int) -> None:
        async with session.get(f"{runs}/{run['run']['id']}") as answer:
            await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{runs} answered {answer.status}")

    return {"get run": read, "create run": poster(session, runs, body)}
