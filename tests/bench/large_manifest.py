"""What everybody else waits for while one client brings a large manifest, or reads a run of one.

Small requests are sent at a rate meanwhile; the worst of their latencies counts. The engine is paused.
"""

from __future__ import annotations

import asyncio
import io
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import msgspec

from shared import go_yaml
from tests.bench.creation import client
from tests.bench.figures import Floor, Reading, Result, Row, Unit, median
from tests.bench.house import rest, standing
from tests.bench.load import at_rate
from tests.support.packages import ordinary

NAME = "large-manifest"
ABOUT = "what others wait for while runs and jobs of a 6 MiB manifest are created and read, engine paused"

_MANIFEST_BYTES = 6 * 1024 * 1024
_REPETITIONS = 3
_PER_SECOND = 50
_AT_LEAST_SECONDS = 1.0
_IDS = re.compile(rb'"id":"([^"]+)"')


async def measure() -> Result:
    with standing() as house, house.engine_paused():
        async with client() as session:
            manifest = go_yaml.load(ordinary(_MANIFEST_BYTES))
            runs, jobs = f"{house.url}/apis/v1beta1/runs", f"{house.url}/apis/v1beta1/jobs"
            at_runs, at_jobs = _Bystander(session, runs), _Bystander(session, jobs)

            async def creating(bystander: _Bystander, url: str, **more: str) -> _Wait:
                body = _of_a_new_manifest(manifest, more)
                return await bystander.waits(lambda: _said(session.post(url, data=io.BytesIO(body))))

            async def reading() -> _Wait:
                listed = await _said(session.get(runs, params={"page_size": "1"}))
                run = f"{runs}/{_IDS.findall(listed)[0].decode()}"
                return await at_runs.waits(lambda: _said(session.get(run)))

            await at_runs.waits(lambda: rest(_AT_LEAST_SECONDS))
            floor = [await at_runs.waits(lambda: rest(_AT_LEAST_SECONDS)) for _ in range(_REPETITIONS)]
            taken = {
                "GET /runs/nope while a run is created": [await creating(at_runs, runs) for _ in range(_REPETITIONS)],
                "GET /runs/nope while that run is read": [await reading() for _ in range(_REPETITIONS)],
                "GET /jobs/nope while a job is created": [
                    await creating(at_jobs, jobs, max_concurrency="1") for _ in range(_REPETITIONS)
                ],
            }
    least = Floor(what="nobody brings anything", reading=_worst(floor))
    rows = [
        Row(
            quantity=f"{way} ({_MANIFEST_BYTES >> 20} MiB), worst",
            unit=Unit.MILLISECONDS,
            figure=_worst(waits),
            floors=(least,),
        )
        for way, waits in taken.items()
    ]
    notes = [f"{way}: that took {median([each.seconds for each in waits]).value:.1f} s" for way, waits in taken.items()]
    return Result(rows=tuple(rows), notes=tuple(notes))


class _Wait(msgspec.Struct, frozen=True, kw_only=True):
    worst_milliseconds: float
    seconds: float
    """How long there was something to wait for."""


def _worst(waits: list[_Wait]) -> Reading:
    return median([each.worst_milliseconds for each in waits])


class _Bystander:
    """Somebody who asks for a resource that there is not."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = f"{url}/nope"

    async def waits(self, work: Callable[[], Awaitable[object]]) -> _Wait:
        """While the work is done."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        task = asyncio.ensure_future(work())
        worst = 0.0
        while not task.done():
            latencies = await at_rate(self._ask, per_second=_PER_SECOND, seconds=0.5)
            worst = max(worst, *latencies.milliseconds)
        await task
        return _Wait(worst_milliseconds=worst, seconds=loop.time() - begin)

    async def _ask(self, _number: int) -> None:
        async with self._session.get(self._url) as answer:
            await answer.read()
            if answer.status != 404:
                raise RuntimeError(f"{self._url} answered {answer.status}")


def _of_a_new_manifest(manifest: dict[str, Any], more: dict[str, str]) -> bytes:
    new = manifest | {"metadata": {"generateName": "large-", "labels": {"bench": uuid.uuid4().hex}}}
    spec = {"workflow_manifest": msgspec.json.encode(new).decode()}
    return msgspec.json.encode({"name": "large", "pipeline_spec": spec, **more})


async def _said(request: aiohttp.client._RequestContextManager) -> bytes:
    """Not understood here: that would keep the bystander waiting, too."""
    async with request as answer:
        said = await answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.url} answered {answer.status}: {said[:300]!r}")
        return said
