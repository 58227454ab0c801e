"""Load of two kinds, both bounded in count and in time; a request that fails ends the measurement.

Latency is measured at a rate, in an open loop: each request has a time at which it is due, whatever became of those
before it, and its latency counts from then. A server that stalls is charged for everybody who came meanwhile.
Throughput is measured in a closed loop: some connections, each sending its next request when the last is answered.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Collection

import msgspec

Send = Callable[[int], Awaitable[None]]
"""Sends request number n and reads the whole answer. Raises where the answer is not the one wanted."""

_AT_MOST_IN_FLIGHT = 256
_SETTLE_WITHIN_SECONDS = 20


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    milliseconds: tuple[float, ...]
    """From the time a request was due to the end of its answer."""
    late_milliseconds: tuple[float, ...]
    """From the time a request was due to when this generator came to send it: its own share of the above."""


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    answered: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.answered / self.seconds


async def at_rate(send: Send, *, per_second: float, seconds: float) -> Latencies:
    """`send` at even distances. Beyond a number of requests in flight the next ones wait, and their time runs on."""
    loop = asyncio.get_running_loop()
    count = int(per_second * seconds)
    latencies: list[float] = []
    late: list[float] = []
    room = asyncio.Semaphore(_AT_MOST_IN_FLIGHT)
    tasks: set[asyncio.Task[None]] = set()
    all_sent = asyncio.Event()

    async def one(number: int, due: float) -> None:
        async with room:
            late.append((time.perf_counter() - due) * 1000)
            await send(number)
            latencies.append((time.perf_counter() - due) * 1000)

    def come_due(number: int, due: float) -> None:
        tasks.add(loop.create_task(one(number, due)))
        if number == count - 1:
            all_sent.set()

    stop = threading.Event()
    pace = threading.Thread(target=_pace, args=(loop, come_due, count, per_second, stop), daemon=True)
    try:
        async with asyncio.timeout(seconds + _SETTLE_WITHIN_SECONDS):
            pace.start()
            await all_sent.wait()
            await asyncio.gather(*tasks)
    finally:
        stop.set()
        await _cancelled(tasks)
    return Latencies(milliseconds=tuple(latencies), late_milliseconds=tuple(late))


def _pace(
    loop: asyncio.AbstractEventLoop,
    come_due: Callable[[int, float], None],
    count: int,
    per_second: float,
    stop: threading.Event,
) -> None:
    """A thread, because an event loop's timers tick in whole milliseconds and the kernel's sleep does not."""
    begin = time.perf_counter() + 0.01
    for number in range(count):
        due = begin + number / per_second
        if (ahead := due - time.perf_counter()) > 0:
            time.sleep(ahead)
        if stop.is_set():
            return
        loop.call_soon_threadsafe(come_due, number, due)


async def by_connections(send: Send, *, connections: int, seconds: float, at_most: int = 50_000) -> Throughput:
    """Keep so many requests under way until the time or the count is up."""
    numbers = itertools.count()
    begin = time.perf_counter()
    end = begin + seconds
    answered = 0

    async def connection() -> None:
        nonlocal answered
        while time.perf_counter() < end and (number := next(numbers)) < at_most:
            await send(number)
            answered += 1

    tasks = [asyncio.create_task(connection()) for _ in range(connections)]
    try:
        async with asyncio.timeout(seconds + _SETTLE_WITHIN_SECONDS):
            await asyncio.gather(*tasks)
    finally:
        await _cancelled(tasks)
    return Throughput(answered=answered, seconds=time.perf_counter() - begin)


async def _cancelled(tasks: Collection[asyncio.Task[None]]) -> None:
    """After the first failure the others are of no interest, and must not go on."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
