"""One replica of the job scheduler as a process of its own, without its HTTP, that stops or kills itself at a named
point of firing.

A signal that a process sends to itself strikes exactly there; one sent from outside strikes somewhere.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Literal

import msgspec

from tests.support.replica_process import ReplicaProcess


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to do, on its command line as JSON."""

    database_url: str
    nats_url: str
    at: Literal["before_commit", "after_commit"] | None = None
    signal: Literal["SIGSTOP", "SIGKILL"] = "SIGKILL"


@asynccontextmanager
async def scheduler_process(orders: Orders) -> AsyncIterator[ReplicaProcess]:
    """A running replica; it is killed at the end, also when it is stopped."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.scheduler_process", msgspec.json.encode(orders).decode()
    )
    try:
        yield ReplicaProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _obey(orders: Orders) -> None:
    from services.job_scheduler import ticker
    from services.job_scheduler.reactions import Reactions
    from services.job_scheduler.slots import Slots
    from services.job_scheduler.subscribers import handlers
    from services.job_scheduler.usecases import on_wake
    from shared.bus import Bus
    from shared.database import Database, Transaction
    from shared.leases import Lease
    from shared.outbox import Outbox, Relay
    from shared.subscriptions import Subscriber

    class Striking(Slots):
        has_struck = False

        async def fire(self, limit: int) -> int:
            fired = await super().fire(limit)
            if fired:
                self._strike("after_commit")
            return fired

        async def write(self, tx: Transaction, now: datetime, planned: Any) -> None:
            await super().write(tx, now, planned)
            self._strike("before_commit")

        def _strike(self, point: str) -> None:
            if orders.at == point and not self.has_struck:
                self.has_struck = True
                os.kill(os.getpid(), signal.Signals[orders.signal])

    name = "job-scheduler"
    database = await Database(orders.database_url, name=name, max_size=6, idle_in_transaction_seconds=1).open()
    bus = await Bus(orders.nats_url, name=name).open()
    slots = Striking(database, Outbox(name, bus), bus, ask_seconds=1)
    reactions = Reactions(database, bus, slots, longest_chain=10, ask_seconds=1)
    woken = asyncio.Event()
    await on_wake(bus, woken.set)
    relay = Relay(database, bus, name, lease=Lease(database, f"relay:{name}", seconds=1))
    nobody: Any = None
    of_runs = {kind: handler for kind, handler in handlers(nobody, slots, reactions).items() if kind.owner == "run"}
    subscriber = Subscriber(name, database, bus, of_runs, lease_seconds=1, ack_wait_seconds=2, retry_seconds=0.1)
    async with asyncio.TaskGroup() as group:
        group.create_task(relay.run())
        group.create_task(subscriber.run())
        group.create_task(ticker.fire(slots, reactions, woken, poll_seconds=0.5))


if __name__ == "__main__":
    asyncio.run(_obey(msgspec.json.decode(sys.argv[1], type=Orders)))
