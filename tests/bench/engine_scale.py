"""What a thousand steps cost, and two hundred runs at once: whether a step's price grows with what lies around it.

Every step notes in a claim when it begins and when it ends, so each single one can be seen: in a chain the time from
one beginning to the next is the price of a step, and in a fan the rate is read off the same notes.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import msgspec

from tests.bench.creation import client
from tests.bench.engine_runs import Finals, Notes, chain_of, fan_of, listening, paces, submit
from tests.bench.figures import Reading, Result, Row, Unit, percentile
from tests.bench.house import House, rest, standing
from tests.bench.processes import family, pss_mebibytes

NAME = "engine-scale"
ABOUT = "a chain and a fan of 1,000 steps, 200 runs at once, and how soon the end of a step is seen"

STEPS = 1000
RUNS = 200
SEEN = 100
_EDGE = 100
"""So many steps at the start are compared with as many at the end."""
_ENDS_WITHIN_SECONDS = 150
_SAMPLE_SECONDS = 0.25


async def measure() -> Result:
    with standing() as house:
        notes = Notes(house)
        async with client() as session, listening(house) as finals:
            await _ended(house, session, finals, "warm-up", notes.of("warm-up", chain_of, 3))
            before = _controller_mebibytes(house)
            seen = await _seen(house, session, notes)
            await rest(1)
            chain = await _noted(house, session, finals, notes, "chain", chain_of)
            await rest(1)
            fan = await _noted(house, session, finals, notes, "fan", fan_of)
            await rest(1)
            runs = await _all_at_once(house, session, finals, notes)
            after = _controller_mebibytes(house)
    prices = paces(chain.begun)
    rows = (
        _row("chain of 1,000: each step, median", Unit.MILLISECONDS, percentile([prices], 50)),
        _row("chain of 1,000: each step, p99", Unit.MILLISECONDS, percentile([prices], 99)),
        _row("chain of 1,000: the last 100 against the first", Unit.TIMES, _ratio(prices), budget=1.5),
        _row("fan of 1,000: steps", Unit.PER_SECOND, _single(STEPS / fan.seconds)),
        _row("fan of 1,000: the last 100 against the first", Unit.TIMES, _ratio(paces(fan.begun)), budget=1.5),
        _row("200 runs at once: runs ended", Unit.PER_SECOND, _single(RUNS / runs.seconds)),
        _row("end of a step, until GET shows it, median", Unit.MILLISECONDS, percentile([seen], 50)),
        _row("end of a step, until GET shows it, p99", Unit.MILLISECONDS, percentile([seen], 99), budget=250),
        _row("run controller, most during the fan", Unit.MEBIBYTES, _single(fan.most_mebibytes)),
        _row("run controller, most during 200 runs", Unit.MEBIBYTES, _single(runs.most_mebibytes)),
    )
    return Result(
        rows=rows, notes=(f"engine-scale: the run controller held {before:.0f} MiB before and {after:.0f} after",)
    )


class _Measured(msgspec.Struct, frozen=True, kw_only=True):
    seconds: float
    """From the first reply to the last end."""
    begun: tuple[tuple[float, float], ...]
    """When each step began and ended, by when it began; seconds of the epoch."""
    most_mebibytes: float


async def _noted(
    house: House,
    session: aiohttp.ClientSession,
    finals: Finals,
    notes: Notes,
    name: str,
    shape: Callable[[Mapping[str, Any], int], str],
) -> _Measured:
    begin = time.time()
    async with _Watch(house) as watch:
        await _ended(house, session, finals, name, notes.of(name, shape, STEPS))
    begun = notes.read(name)
    if len(begun) != STEPS:
        raise RuntimeError(f"{len(begun)} steps of the {name} have noted that they ran")
    return _Measured(seconds=begun[-1][1] - begin, begun=begun, most_mebibytes=watch.most_mebibytes)


async def _all_at_once(house: House, session: aiohttp.ClientSession, finals: Finals, notes: Notes) -> _Measured:
    manifest = notes.of("runs", chain_of, 1)
    begin = time.time()
    async with _Watch(house) as watch, asyncio.TaskGroup() as group:
        for number in range(RUNS):
            group.create_task(_ended(house, session, finals, f"run {number}", manifest))
    begun = notes.read("runs")
    return _Measured(seconds=time.time() - begin, begun=begun, most_mebibytes=watch.most_mebibytes)


async def _ended(house: House, session: aiohttp.ClientSession, finals: Finals, name: str, manifest: str) -> None:
    run_id = await submit(house, session, name, manifest)
    await finals.until_succeeded(run_id, within_seconds=_ENDS_WITHIN_SECONDS)


async def _seen(house: House, session: aiohttp.ClientSession, notes: Notes) -> list[float]:
    """Milliseconds from a step's own last word until its node is shown as over; asked for as fast as answers come."""
    delays = []
    for number in range(SEEN):
        name = f"seen-{number}"
        run_id = await submit(house, session, name, notes.of(name, chain_of, 1))
        async with asyncio.timeout(_ENDS_WITHIN_SECONDS):
            while not await _shows_the_end(house, session, run_id):
                pass
        delays.append((time.time() - notes.read(name)[0][1]) * 1000)
    return delays


async def _shows_the_end(house: House, session: aiohttp.ClientSession, run_id: str) -> bool:
    async with session.get(f"{house.url}/apis/v1beta1/runs/{run_id}") as answer:
        detail = msgspec.json.decode(await answer.read())
    nodes = msgspec.json.decode(detail["pipeline_runtime"]["workflow_manifest"])["status"].get("nodes", {})
    return any(node["type"] == "Pod" and node["phase"] == "Succeeded" for node in nodes.values())


class _Watch:
    """The most memory that the run controller holds while the block runs."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._task: asyncio.Task[None] | None = None
        self.most_mebibytes = 0.0

    async def __aenter__(self) -> _Watch:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _look(self) -> None:
        while True:
            self.most_mebibytes = max(self.most_mebibytes, await asyncio.to_thread(_controller_mebibytes, self._house))
            await asyncio.sleep(_SAMPLE_SECONDS)


def _controller_mebibytes(house: House) -> float:
    return sum(pss_mebibytes(each) for each in family(house.pid) if each.name == "run-controller")


def _ratio(prices: list[float]) -> Reading:
    """Means, as several steps of a fan begin together."""
    return _single(statistics.fmean(prices[-_EDGE:]) / statistics.fmean(prices[:_EDGE]))


def _single(value: float) -> Reading:
    return Reading(value=value, repetitions=(value,))


def _row(quantity: str, unit: Unit, figure: Reading, budget: float | None = None) -> Row:
    return Row(quantity=quantity, unit=unit, figure=figure, budget=budget)
