"""Two of every service: while one of them leaves, in order or not, the other goes on, and nobody outside notices more
than must be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from gateway.table import EXTENSION_PREFIX
from infra.embedded.replicas import SERVICES
from tests.support.eventually import eventually
from tests.support.processes import end, replicas_of
from tests.support.stack import Stack, running
from tests.support.traffic import CLIENTS, Traffic

_QUESTIONS_END_WITHIN_SECONDS = 2.5

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def pairs() -> Iterator[Stack]:
    with (
        tempfile.TemporaryDirectory(prefix="headrace-", dir="/var/tmp") as folder,
        running(Path(folder, "data"), replicas="2") as stack,
    ):
        yield stack


async def test_every_replica_is_restarted_in_its_turn_and_no_request_fails(pairs: Stack) -> None:
    traffic = Traffic(pairs.url)
    async with traffic.flowing(), _Follower(pairs) as follower:
        first = {service: replicas_of(pairs, service) for service in SERVICES}
        for turn in range(2):
            # Of every service one at a time, and of all services at once: who is asked may be leaving as well.
            await asyncio.gather(
                *(end(pairs, service, replicas[turn], signal.SIGTERM) for service, replicas in first.items())
            )
        traffic.stop()
        await follower.has_told_of(traffic)

    assert traffic.failures == []
    assert sum(traffic.sent.values()) > 100
    assert follower.failures == []
    assert set(follower.told.values()) == {1}, "what is told is told once"
    assert follower.connections > 1, "a replica that leaves lets go of those who follow"
    await traffic.verify()


async def test_a_killed_replica_takes_along_what_it_was_answering_and_no_more(pairs: Stack) -> None:
    traffic = Traffic(pairs.url)
    async with traffic.flowing():
        victims = {service: replicas_of(pairs, service)[0] for service in SERVICES}
        for victim in victims.values():
            victim.suspend()
        await eventually(lambda: _everybody_waits(traffic), within_seconds=60)
        await asyncio.gather(*(end(pairs, service, victim, signal.SIGKILL) for service, victim in victims.items()))

    # Nobody can tell whether these were applied, so that nobody but their clients may send them again.
    assert [each for each in traffic.failures if each.method == "GET" or not each.said.startswith("503 ")] == []
    # Once for the kill, and once for a question of another service that a sleeper did not answer in time.
    assert len(traffic.failures) <= 2 * CLIENTS
    await traffic.verify()


async def _everybody_waits(traffic: Traffic) -> bool:
    """For an answer of a sleeper, and not for that of another service which waits for one, because that has an end."""
    return traffic.in_flight == CLIENTS and time.monotonic() - traffic.last_answer_at > _QUESTIONS_END_WITHIN_SECONDS


class _Follower:
    """Follows what is told of experiments, as an event source does: whenever its stream ends it comes back."""

    def __init__(self, stack: Stack) -> None:
        self._url = f"{stack.url}{EXTENSION_PREFIX}events?resource=experiment&fact=created&since=600s"
        self.told: Counter[str] = Counter()
        self.failures: list[str] = []
        self.connections = 0

    async def __aenter__(self) -> _Follower:
        self._following = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._following

    async def has_told_of(self, traffic: Traffic) -> None:
        async def is_complete() -> bool:
            return set(traffic.experiments) <= set(self.told)

        await eventually(is_complete, within_seconds=30)

    async def _follow(self) -> None:
        headers: dict[str, str] = {}
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
            while True:
                try:
                    async with session.get(self._url, headers=headers) as stream:
                        if stream.status != 200:
                            self.failures.append(f"{stream.status} {await stream.text()}")
                            return
                        self.connections += 1
                        async for line in stream.content:
                            field, _, value = line.decode().strip().partition(": ")
                            if field == "id":
                                headers["Last-Event-ID"] = value
                            elif field == "data":
                                self.told[json.loads(value)["subject"]] += 1
                except aiohttp.ClientError as error:
                    self.failures.append(repr(error))
                    return
