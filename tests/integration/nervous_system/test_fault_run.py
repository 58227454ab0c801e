"""Facts under load, while whoever carries them is killed: none is lost, none is out of order, none is applied twice.

What is killed and when is drawn from a seed, which a failure shows. HEADRACE_CHAOS_SEED repeats it, and
HEADRACE_CHAOS_KILLS asks for more.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import nats
import pytest
from nats.errors import Error as NatsError
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.errors import Error as JetStreamError

from infra.embedded.nats import NatsServer
from shared.bus import EVENTS_STREAM
from shared.contracts.states import ExperimentState
from tests.integration.nervous_system.conftest import House, cancel, house_on
from tests.support.eventually import eventually
from tests.support.replica_process import ReplicaProcess, replica_process

_KILLS = int(os.environ.get("HEADRACE_CHAOS_KILLS", "5"))
_SEED = int(os.environ.get("HEADRACE_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)

_VICTIMS = ("broker", "store", "relay", "subscriber", "outsider")
_WRITERS = 4
_MOST_BETWEEN = 30
"""Facts that are applied from one blow to the next, at least one and at most so many."""
_WITHIN_SECONDS = 60

Seen = tuple[str, int, int]
"""Resource, version, position."""


@pytest.mark.timeout(120 + 10 * _KILLS)
async def test_whatever_is_killed_no_fact_is_lost_out_of_order_or_applied_twice(
    database_urls: dict[str, str], own_nats: NatsServer, tmp_path: Path
) -> None:
    (tmp_path / "migrations").mkdir()
    chance = random.Random(_SEED)
    # Each of them at least once, where there are blows enough.
    blows = [chance.choice(_VICTIMS) for _ in range(_KILLS - len(_VICTIMS))]
    blows += chance.sample(_VICTIMS, min(_KILLS, len(_VICTIMS)))
    chance.shuffle(blows)
    async with house_on(database_urls, own_nats.urls(), tmp_path / "migrations") as house, AsyncExitStack() as held:
        carriers = _Carriers(house, own_nats, tmp_path / "nats" / "store", held)
        await carriers.start()
        writing = [house.run(_write(house, f"thing-{number}")) for number in range(_WRITERS)]
        for victim in blows:
            await _applied_more(house, chance.randrange(1, _MOST_BETWEEN))
            await carriers.kill(victim)
        await cancel(*writing)

        committed = int(await house.owner.fetchval("select count(*) from outbox"))
        received = carriers.received
        await eventually(lambda: _has_arrived(house, received, committed), within_seconds=_WITHIN_SECONDS)
        applied = [
            (row["id"], row["version"], row["position"])
            for row in await house.listener.fetch("select id, version, position from effects order by n")
        ]

    found = {
        "committed": committed,
        "received": len(received),
        "received again": carriers.received_again,
        "applied": len(applied),
        "missing": len(_missing(received, committed)) + len(_missing(applied, committed)),
        "out of order": _out_of_order(received) + _out_of_order(applied),
        "applied twice": len(applied) - len({position for _, _, position in applied}),
    }
    said = f"seed {_SEED}: {len(blows)} kills {dict(Counter(blows))}, {found}"
    print(said)
    assert all(found[each] == 0 for each in ("missing", "out of order", "applied twice")), said
    assert found["committed"] == found["received"] == found["applied"] > len(blows), said


class _Carriers:
    """Two relays and two subscribers as processes, a subscriber from outside, and their broker."""

    def __init__(self, house: House, broker: NatsServer, store: Path, held: AsyncExitStack) -> None:
        self._house = house
        self._broker = broker
        self._store = store
        self._held = held
        self._replicas: dict[str, list[ReplicaProcess]] = {"relay": [], "subscriber": []}
        self.received: list[Seen] = []
        self.received_again = 0

    async def start(self) -> None:
        for role in self._replicas:
            for _ in range(2):
                await self._start(role)
        self._outsider = self._house.run(self._follow())

    async def kill(self, victim: str) -> None:
        match victim:
            case "broker" | "store":
                self._broker.process.kill()
                await self._broker.exited()
                if victim == "store":
                    await asyncio.to_thread(shutil.rmtree, self._store)
                await self._broker.start()
            case "outsider":
                await cancel(self._outsider)
                self._outsider = self._house.run(self._follow())
            case _:
                # The older one: it is at work, unless it was overtaken.
                replica = self._replicas[victim].pop(0)
                replica.kill()
                await replica.died()
                await self._start(victim)

    async def _start(self, role: str) -> None:
        orders = self._house.orders(role)
        self._replicas[role].append(await self._held.enter_async_context(replica_process(orders)))

    async def _follow(self) -> None:
        """As somebody from outside does who goes by positions, and whose place in the stream goes with the store."""
        client = await nats.connect(
            self._house.nats_urls["events"], max_reconnect_attempts=-1, reconnect_time_wait=0.1, connect_timeout=20
        )
        try:
            while True:
                try:
                    await self._read(client)
                except (TimeoutError, NatsError, JetStreamError):
                    await asyncio.sleep(0.1)
        finally:
            await client.close()

    async def _read(self, client: Any) -> None:
        # One at a time: what was on its way to an outsider that is gone comes again before what follows it.
        config = ConsumerConfig(
            filter_subject="kfp.event.experiment.>", deliver_policy=DeliverPolicy.ALL, ack_wait=1, max_ack_pending=1
        )
        stream = client.jetstream()
        facts = await stream.pull_subscribe("", durable="outsider", stream=EVENTS_STREAM, config=config)
        while True:
            await stream.consumer_info(EVENTS_STREAM, "outsider")  # Raises where it went with the store.
            (message,) = await facts.fetch(1, timeout=1)
            self._take(message)
            await message.ack()

    def _take(self, message: Any) -> None:
        position = int(message.headers["ce-position"])
        last = self.received[-1][2] if self.received else 0
        if position <= last:
            self.received_again += 1
            return
        state = msgspec.json.decode(message.data, type=ExperimentState)
        self.received.append((state.id, state.version, position))


async def _write(house: House, identity: str) -> None:
    while True:
        await house.change(identity)
        await asyncio.sleep(0.02)


async def _applied_more(house: House, number: int) -> None:
    """A blow that falls before anybody is at work again strikes nobody."""
    count = "select count(*) from effects"
    aim = int(await house.listener.fetchval(count)) + number

    async def is_reached() -> bool:
        return int(await house.listener.fetchval(count)) >= aim

    await eventually(is_reached, within_seconds=_WITHIN_SECONDS)


async def _has_arrived(house: House, received: list[Seen], committed: int) -> bool:
    applied = int(await house.listener.fetchval("select count(distinct position) from effects"))
    return applied >= committed and len(received) >= committed


def _missing(seen: Iterable[Seen], committed: int) -> set[int]:
    return set(range(1, committed + 1)) - {position for _, _, position in seen}


def _out_of_order(seen: Iterable[Seen]) -> int:
    """How often a resource's version does not follow the one before."""
    versions: dict[str, list[int]] = {}
    for identity, version, _ in seen:
        versions.setdefault(identity, []).append(version)
    return sum(later != earlier + 1 for each in versions.values() for earlier, later in pairwise([0, *each]))
