"""One replica of a relay or a subscriber as a process of its own, that stops or kills itself at a named point.

A signal that a process sends to itself strikes exactly there; one sent from outside strikes somewhere.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import msgspec

from tests.support.eventually import eventually

Point = Literal["before_publishing", "before_commit", "before_acknowledging"]


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to do, on its command line as JSON."""

    role: Literal["relay", "subscriber"]
    database_url: str
    nats_url: str
    lease_seconds: float = 1.0
    ack_wait_seconds: float = 2.0
    at: Point | None = None
    signal: Literal["SIGSTOP", "SIGKILL"] = "SIGKILL"


class ReplicaProcess:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def died(self, *, within_seconds: float = 15) -> int:
        return await asyncio.wait_for(self._process.wait(), within_seconds)

    async def stopped(self, *, within_seconds: float = 15) -> None:
        async def is_stopped() -> bool:
            stat = Path(f"/proc/{self.pid}/stat").read_text()  # noqa: ASYNC240 - the kernel's memory, not a disk
            return stat.rpartition(")")[2].split()[0] == "T"

        await eventually(is_stopped, within_seconds=within_seconds)


@asynccontextmanager
async def replica_process(orders: Orders) -> AsyncIterator[ReplicaProcess]:
    """A running replica; it is killed at the end, also when it is stopped."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.replica_process", msgspec.json.encode(orders).decode()
    )
    try:
        yield ReplicaProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _obey(orders: Orders) -> None:
    from shared.bus import Bus
    from shared.contracts.events import EXPERIMENT_CREATED
    from shared.database import Database
    from shared.leases import Lease
    from shared.outbox import Relay
    from shared.subscriptions import Subscriber
    from tests.support.facts import record_effect

    database = await Database(orders.database_url, name="replica", max_size=4, idle_in_transaction_seconds=1).open()
    bus = await Bus(orders.nats_url, name="replica").open()

    def strike_at(point: Point) -> Callable[[], Awaitable[None]] | None:
        return _strike_once(signal.Signals[orders.signal]) if orders.at == point else None

    if orders.role == "relay":
        lease = Lease(database, "relay:experiment", seconds=orders.lease_seconds)
        relay = Relay(database, bus, "experiment", lease=lease, before_publishing=strike_at("before_publishing"))
        await relay.run()
    else:
        subscriber = Subscriber(
            "run",
            database,
            bus,
            {EXPERIMENT_CREATED: record_effect},
            lease_seconds=orders.lease_seconds,
            ack_wait_seconds=orders.ack_wait_seconds,
            retry_seconds=0.1,
            before_commit=strike_at("before_commit"),
            before_acknowledging=strike_at("before_acknowledging"),
        )
        await subscriber.run()


def _strike_once(number: signal.Signals) -> Callable[[], Awaitable[None]]:
    has_struck = False

    async def strike() -> None:
        nonlocal has_struck
        if not has_struck:
            has_struck = True
            os.kill(os.getpid(), number)

    return strike


if __name__ == "__main__":
    asyncio.run(_obey(msgspec.json.decode(sys.argv[1], type=Orders)))
