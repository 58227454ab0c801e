"""Work that is cut into shards, each done by one replica at a time: a row for each, the database's clock, and epochs.

As `leases` is for work that is not cut. Every replica that takes part announces itself, and holds no more than its fair
share; what it has beyond is handed on once it has let go of it. Who says nothing for as long as a lease lasts has lost
all of its shards, whether somebody else has taken them already or not.

Two things keep a replica that was stopped from doing what is another's by now. What it does to the world it does while
`holds` says so: that goes by this machine's clock since the last renewal was asked for, so that one who wakes up knows
before anybody has told. What it writes into the schema it proves in the same transaction (`fence`): taking over raises
the epoch, and waits for that transaction.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NoReturn, Protocol

import msgspec

from shared.database import Database, Transaction
from shared.errors import Unavailable
from shared.leases import LEASE_SECONDS, Lease, LeaseLost

_log = logging.getLogger(__name__)

Moved = Callable[[frozenset[int]], Awaitable[None]]
"""Told which shards are held from now on; returns when nothing is done in the others any more. Where `holds` has said
no of a shard, it is told without that one before it is told of it again."""
Turn = Callable[[], None]
"""Told each time round that it goes on."""


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What `fence` finds in the row of a shard for as long as nobody else has it."""

    name: str
    shard: int
    holder: str
    epoch: int


class Holding(Protocol):
    """The right to do some of the shards of some work, or all of them."""

    gives_up_in_outages: bool
    """Whether somebody else had better try when something is away; else it is away for everybody."""

    @property
    def held(self) -> frozenset[int]: ...

    def hold(self) -> AbstractAsyncContextManager[None]:
        """Take part during the body, and hand everything back after. Waits until there may be something to do."""

    async def keep(self, moved: Moved, turn: Turn) -> NoReturn:
        """Say what is held, now and whenever it changes. Raises LeaseLost where that ends everything."""

    def holds(self, shard: int) -> bool:
        """Whether it is ours to do, at this moment and without asking anybody."""

    def proof(self, shard: int) -> Proof | None:
        """For `fence`; None where nobody could be in our way. Raises LeaseLost."""

    def wake(self) -> None:
        """Others have come, gone, or handed something on."""


class Whole:
    """All shards or none, by one lease: for work that cannot be divided."""

    gives_up_in_outages = True

    def __init__(self, lease: Lease, count: int, *, confirm_seconds: float) -> None:
        self._lease = lease
        self._confirm_seconds = confirm_seconds
        self._all = frozenset(range(count))
        self._none: frozenset[int] = frozenset()
        self.held = self._none

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        async with self._lease.hold():
            self.held = self._all
            try:
                yield
            finally:
                self.held = self._none

    async def keep(self, moved: Moved, turn: Turn) -> NoReturn:
        """Who slept through its lease must not act on what it remembers."""
        await moved(self._all)
        while True:
            turn()
            await self._lease.confirm()
            await asyncio.sleep(self._confirm_seconds)

    def holds(self, shard: int) -> bool:
        return shard in self.held

    def proof(self, shard: int) -> None:
        return None

    def wake(self) -> None: ...


class Shards:
    """A fair share of the shards of `name`, which has `count` of them: as many as rows with that name."""

    gives_up_in_outages = False

    def __init__(
        self,
        database: Database,
        name: str,
        count: int,
        *,
        seconds: float = LEASE_SECONDS,
        tell: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`tell` wakes the others, as far as they can be reached; without, they look by themselves before long."""
        self._database = database
        self._name = name
        self._count = count
        self._seconds = seconds
        self._tell = tell
        self._holder = uuid.uuid4().hex
        self._epochs: dict[int, int] = {}
        """Whose rows are ours. The row of a shard that is being let go of is until that is done."""
        self._leaving: frozenset[int] = frozenset()
        self._members = 1
        self._asked_at = -_FOREVER
        self._lapses = 0
        """How often nothing was held for a while, and somebody may have been told so."""
        self._turn = asyncio.Lock()
        """One statement about our rows at a time: each begins with what the one before has left."""
        self._woken = asyncio.Event()

    @property
    def held(self) -> frozenset[int]:
        return frozenset(self._epochs) - self._leaving if self._is_fresh else frozenset()

    def holds(self, shard: int) -> bool:
        return self._is_fresh and shard in self._epochs and shard not in self._leaving

    def proof(self, shard: int) -> Proof:
        if not self.holds(shard):
            raise LeaseLost(f"{self._name} {shard}")
        return Proof(name=self._name, shard=shard, holder=self._holder, epoch=self._epochs[shard])

    def wake(self) -> None:
        self._woken.set()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        renewing = asyncio.create_task(self._renew(), name=f"shards of {self._name}")
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await self._leave()

    async def keep(self, moved: Moved, turn: Turn) -> NoReturn:
        told: dict[int, tuple[int, int]] | None = None
        while True:
            turn()
            self._woken.clear()
            try:
                await self._balance()
            except Unavailable as error:
                _log.warning("the shards of %s could not be shared: %s", self._name, error)
            try:
                held = {shard: (self._epochs[shard], self._lapses) for shard in self.held}
                before, told = told, None
                # What was not ours in between is given up first, and so is everything where that cannot be known.
                kept = frozenset(shard for shard, since in held.items() if before and before.get(shard) == since)
                if before is None or kept != before.keys():
                    await moved(kept)
                if kept != held.keys():
                    await moved(frozenset(held))
                told = held
                await self._hand_on()
            except Unavailable as error:
                _log.warning("the shards of %s did not move: %s", self._name, error)
            await self._until_woken()

    async def _until_woken(self) -> None:
        try:
            async with asyncio.timeout(self._seconds / 4):
                await self._woken.wait()
        except TimeoutError:
            return

    @property
    def _is_fresh(self) -> bool:
        return _now() < self._asked_at + self._seconds

    async def _renew(self) -> None:
        """Beside `keep`, for whom it may take long to do what has moved."""
        while True:
            await asyncio.sleep(self._seconds / 3)
            if _now() - self._asked_at < self._seconds / 3:
                continue
            try:
                async with self._turn:
                    await self._announce()
            except Unavailable as error:
                _log.warning("the shards of %s could not be renewed: %s", self._name, error)

    async def _balance(self) -> None:
        """What we have beyond our share is to be let go of, what we lack is taken where it is free."""
        async with self._turn:
            is_new = await self._announce()
            share = fair_share(self._count, self._members)
            self._leaving = frozenset(sorted(self._epochs)[share:])
            if len(self._epochs) < share:
                await self._take(share - len(self._epochs))
        if is_new:
            await self._wake_others()

    async def _hand_on(self) -> None:
        if not self._leaving:
            return
        async with self._turn:
            await self._database.execute(
                """
                update shards set expires_at = '-infinity'
                where name = $1 and holder = $2 and shard = any($3::integer[])
                """,
                self._name,
                self._holder,
                list(self._leaving),
            )
            self._epochs = {shard: epoch for shard, epoch in self._epochs.items() if shard not in self._leaving}
            self._leaving = frozenset()
        await self._wake_others()

    async def _announce(self) -> bool:
        """Say that we are here, and keep what is ours; learn what that is, and who else is here.

        Returns whether we had not been here.
        """
        asked_at = _now()
        rows = await self._database.fetch(
            """
            with announced as (
                insert into shard_members (name, holder, expires_at)
                values ($1, $2, clock_timestamp() + make_interval(secs => $3))
                on conflict (name, holder) do update set expires_at = excluded.expires_at
                returning xmax = 0 as is_new
            ), forgotten as (
                delete from shard_members where name = $1 and holder in (
                    select holder from shard_members
                    where name = $1 and holder <> $2 and expires_at < clock_timestamp() for update skip locked
                )
            ), others as (
                select count(*) as number from shard_members
                where name = $1 and holder <> $2 and expires_at >= clock_timestamp()
            ), renewed as (
                update shards set expires_at = clock_timestamp() + make_interval(secs => $3)
                where name = $1 and holder = $2 and expires_at <> '-infinity'
                returning shard, epoch
            )
            select is_new, number + 1 as members, shard, epoch
            from announced cross join others left join renewed on true
            """,
            self._name,
            self._holder,
            self._seconds,
        )
        ours = {row["shard"]: row["epoch"] for row in rows if row["shard"] is not None}
        if lost := self._epochs.keys() - ours.keys():
            _log.warning("%d shards of %s are another's by now", len(lost), self._name)
            self._woken.set()
        self._lapses += bool(self._epochs and not self._is_fresh)
        self._epochs, self._members, self._asked_at = ours, rows[0]["members"], asked_at
        return bool(rows[0]["is_new"])

    async def _take(self, most: int) -> None:
        rows = await self._database.fetch(
            """
            update shards
            set holder = $2, epoch = shards.epoch + 1, expires_at = clock_timestamp() + make_interval(secs => $3)
            from (
                select shard from shards where name = $1 and expires_at < clock_timestamp()
                order by shard limit $4 for update skip locked
            ) as free
            where shards.name = $1 and shards.shard = free.shard
            returning shards.shard, epoch
            """,
            self._name,
            self._holder,
            self._seconds,
            most,
        )
        self._epochs |= {row["shard"]: row["epoch"] for row in rows}

    async def _leave(self) -> None:
        """Let the others go on at once; where that fails, everything of ours simply expires."""
        self._epochs, self._leaving = {}, frozenset()
        try:
            async with self._turn:
                await self._database.execute(
                    """
                    with left_by as (delete from shard_members where name = $1 and holder = $2)
                    update shards set expires_at = '-infinity' where name = $1 and holder = $2
                    """,
                    self._name,
                    self._holder,
                )
        except Unavailable:
            _log.debug("the shards of %s were left to expire", self._name)
        await self._wake_others()

    async def _wake_others(self) -> None:
        if self._tell is not None:
            await self._tell()


def fair_share(count: int, members: int) -> int:
    """How many shards one of so many members holds at most, so that all are held."""
    return -(-count // members)


async def fence(tx: Transaction, proof: Proof) -> None:
    """Make the transaction fail with LeaseLost unless the shard is ours until its commit."""
    found = await tx.fetchval(
        "select 1 from shards where name = $1 and shard = $2 and holder = $3 and epoch = $4 for share",
        proof.name,
        proof.shard,
        proof.holder,
        proof.epoch,
    )
    if found is None:
        raise LeaseLost(f"{proof.name} {proof.shard}")


_FOREVER = float("inf")


def _now() -> float:
    """Of a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
