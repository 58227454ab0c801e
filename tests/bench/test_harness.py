"""The harness itself: what it measures must be what it says."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Awaitable, Callable

import pytest

from tests.bench.figures import Floor, Row, Unit, median, percentile
from tests.bench.load import Send, at_rate, by_connections
from tests.bench.processes import Meter, family, pss_mebibytes


async def test_a_stall_is_charged_to_everybody_who_came_meanwhile() -> None:
    door = asyncio.Lock()

    async def send(number: int) -> None:
        async with door:
            if number == 10:
                await asyncio.sleep(0.4)

    latencies = await at_rate(send, per_second=100, seconds=0.8)

    assert len(latencies.milliseconds) == 80
    # 40 were due within the stall; the one that caused it and the thirty next waited more than 100 ms.
    assert len([each for each in latencies.milliseconds if each > 100]) >= 25


async def test_requests_are_due_at_the_rate_whatever_they_take() -> None:
    async def send(_number: int) -> None:
        await asyncio.sleep(0.2)

    begin = time.perf_counter()
    await at_rate(send, per_second=100, seconds=0.5)

    assert 0.6 < time.perf_counter() - begin < 3, "fifty one after the other would take ten seconds"


@pytest.mark.parametrize(
    "measure",
    [
        lambda send: at_rate(send, per_second=200, seconds=0.2),
        lambda send: by_connections(send, connections=4, seconds=5),
    ],
    ids=["at a rate", "by connections"],
)
async def test_a_request_that_fails_ends_the_measurement(measure: Callable[[Send], Awaitable[object]]) -> None:
    sent = 0

    async def send(number: int) -> None:
        nonlocal sent
        sent += 1
        if number == 5:
            raise RuntimeError("answered 503")
        await asyncio.sleep(0.001)

    with pytest.raises(RuntimeError, match="answered 503"):
        await measure(send)

    sent_until_then = sent
    await asyncio.sleep(0.05)  # Nothing can be awaited: it is the absence of further requests that counts.
    assert sent == sent_until_then


async def test_a_closed_loop_stops_at_its_count() -> None:
    async def send(_number: int) -> None:
        await asyncio.sleep(0)

    throughput = await by_connections(send, connections=3, seconds=10, at_most=100)

    assert throughput.answered == 100


def test_one_bad_repetition_shows_in_the_percentile_of_all() -> None:
    calm = [1.0] * 100
    reading = percentile([calm, calm, [1.0] * 90 + [500.0] * 10], 99)

    assert reading.value == 500
    assert reading.repetitions == (1, 1, 500)
    assert percentile([[3.0, 1.0, 2.0]], 50).value == 2


@pytest.mark.parametrize(
    ("unit", "value", "is_within"),
    [
        (Unit.MILLISECONDS, 5.0, True),
        (Unit.MILLISECONDS, 5.1, False),
        (Unit.PER_SECOND, 5.0, True),
        (Unit.PER_SECOND, 4.9, False),
    ],
)
def test_a_budget_is_an_upper_bound_of_times_and_a_lower_one_of_rates(
    unit: Unit, value: float, is_within: bool
) -> None:
    row = Row(
        quantity="any",
        unit=unit,
        figure=median([value]),
        floors=(Floor(what="half of it", reading=median([value / 2])), Floor(what="other", reading=median([1.0]))),
        budget=5,
    )

    assert row.is_within is is_within
    assert row.ratio == 2


def test_the_meter_counts_the_work_of_children_that_have_ended() -> None:
    work = "(i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done); echo done; read forever"
    with subprocess.Popen(["sh", "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        meter = Meter()
        with meter.running():
            child.stdout.readline()
        (found,) = (each for each in family(os.getpid()) if each.pid == child.pid)

        assert "sh " in meter.each(1)
        assert pss_mebibytes(found) > 0
        child.kill()
    assert all(each.pid != child.pid for each in family(os.getpid()))
