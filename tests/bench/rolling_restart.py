"""Every replica of every service is ended in order and succeeded by another, one after the other, under traffic.

The traffic is of nearly every operation, on connections that are kept and on new ones. Its latencies are compared with
those of the same clients while nobody is restarted.
"""

from __future__ import annotations

import asyncio
import signal

import aiohttp

from infra.embedded.replicas import SERVICES
from tests.bench.figures import Floor, Reading, Result, Row, Unit, percentile
from tests.bench.house import standing
from tests.support.processes import end, replicas_of
from tests.support.traffic import Traffic

NAME = "rolling-restart"
ABOUT = "two replicas of each service restarted in turn under traffic: requests sent and failed, p99"

_UNDISTURBED_SECONDS = 5.0


async def measure() -> Result:
    with standing(replicas="2") as house:
        undisturbed, restarted = (Traffic(house.url, aiohttp.ClientSession) for _ in range(2))
        async with undisturbed.flowing():
            await asyncio.sleep(_UNDISTURBED_SECONDS)
        async with restarted.flowing():
            for service in SERVICES:
                for replica in replicas_of(house.stack, service):
                    await end(house.stack, service, replica, signal.SIGTERM)
        await restarted.verify()
    failed = float(len(restarted.failures))
    rows = (
        Row(
            quantity="rolling restart of all services: requests failed",
            unit=Unit.REQUESTS,
            figure=Reading(value=failed, repetitions=(failed,)),
            budget=0,
        ),
        *(
            Row(
                quantity=f"rolling restart of all services: requests, p{percent}",
                unit=Unit.MILLISECONDS,
                figure=_milliseconds(restarted, percent),
                floors=(Floor(what="the same while nobody is restarted", reading=_milliseconds(undisturbed, percent)),),
            )
            for percent in (50, 99)
        ),
    )
    sent = sum(restarted.sent.values())
    notes = (f"rolling restart: {sent} requests of {len(restarted.sent)} operations, {len(restarted.failures)} failed",)
    return Result(rows=rows, notes=(*notes, *(f"rolling restart: {failure}" for failure in restarted.failures[:5])))


def _milliseconds(traffic: Traffic, percent: int) -> Reading:
    return percentile([[seconds * 1000 for seconds in traffic.seconds]], percent)
