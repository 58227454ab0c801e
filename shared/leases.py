"""One replica at a time: a row in the schema, the database's clock, and an epoch that fences whoever was overtaken.

A holder proves itself inside the transaction that uses the lease (`Lease.fence`): taking over raises the epoch
and waits for that transaction, so a stopped holder that wakes up finds its next transaction refused.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import Gauge

from shared import telemetry
from shared.database import Database, Transaction
from shared.errors import Unavailable

_held = Gauge(
    "headrace_leases_held",
    "1 where this process does what one replica does at a time, else 0.",
    ("lease",),
    registry=telemetry.metrics,
)
_log = logging.getLogger(__name__)

LEASE_SECONDS = 5.0


class LeaseLost(Exception):
    """Another replica has taken over; what this one was doing must stop."""


class Lease:
    """The right to do `name`, held by one replica. `hold()` waits for it and keeps it."""

    def __init__(self, database: Database, name: str, *, seconds: float = LEASE_SECONDS) -> None:
        """`name` is a label of the metrics: it comes from a closed set."""
        self.name = name
        self._database = database
        self._seconds = seconds
        self._holder = uuid.uuid4().hex
        self._epoch = 0

    @property
    def seconds(self) -> float:
        """How long a holder that says nothing keeps it."""
        return self._seconds

    @property
    def proof(self) -> tuple[str, str, int]:
        """Name, holder and epoch, for a statement that fences itself by locking the row, as `fence` does."""
        return self.name, self._holder, self._epoch

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Wait for the lease, keep renewing it during the body, and hand it back after.

        Raises LeaseLost inside the body's next `fence` when it was overtaken.
        """
        held = _held.labels(self.name)
        while not await self._take():  # noqa: ASYNC110 - what changes is a row, not an object
            await asyncio.sleep(self._seconds / 4)
        renewing = asyncio.create_task(self._keep(), name=f"lease {self.name}")
        held.set(1)
        try:
            yield
        finally:
            held.set(0)
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await self._hand_back()

    async def fence(self, tx: Transaction) -> None:
        """Make the transaction fail with LeaseLost unless the lease is ours until its commit."""
        found = await tx.fetchval(
            "select 1 from leases where name = $1 and holder = $2 and epoch = $3 for share",
            self.name,
            self._holder,
            self._epoch,
        )
        if found is None:
            raise LeaseLost(self.name)

    async def confirm(self) -> None:
        """Raise LeaseLost when another replica has it; for whoever has nothing to do, and no transaction."""
        found = await self._database.fetchval(
            "select 1 from leases where name = $1 and holder = $2 and epoch = $3",
            self.name,
            self._holder,
            self._epoch,
        )
        if found is None:
            raise LeaseLost(self.name)

    async def _take(self) -> bool:
        try:
            epoch = await self._database.fetchval(
                """
                insert into leases (name, holder, expires_at)
                select $1, $2, clock_timestamp() + make_interval(secs => $3)
                -- Whoever only waits must not lock the row: the holder's transactions go through it.
                where not exists (select 1 from leases where name = $1 and expires_at >= clock_timestamp())
                on conflict (name) do update
                set holder = excluded.holder, epoch = leases.epoch + 1, expires_at = excluded.expires_at
                where leases.expires_at < clock_timestamp()
                returning epoch
                """,
                self.name,
                self._holder,
                self._seconds,
            )
        except Unavailable:
            return False
        if epoch is None:
            return False
        self._epoch = epoch
        return True

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._seconds / 3)
            try:
                await self._database.execute(
                    """
                    update leases set expires_at = clock_timestamp() + make_interval(secs => $4)
                    where name = $1 and holder = $2 and epoch = $3
                    """,
                    self.name,
                    self._holder,
                    self._epoch,
                    self._seconds,
                )
            except Unavailable as error:
                _log.warning("lease %s could not be renewed: %s", self.name, error)

    async def _hand_back(self) -> None:
        """Let the next replica start at once; where that fails, the lease simply expires."""
        try:
            await self._database.execute(
                "update leases set expires_at = '-infinity' where name = $1 and holder = $2 and epoch = $3",
                self.name,
                self._holder,
                self._epoch,
            )
        except Unavailable:
            _log.debug("lease %s was left to expire", self.name)
