"""What is to be known of a schema as a whole, looked up now and then by one process and shown in its metrics.

Facts that wait, letters that are dead, how far a subscriber is behind: rows that all replicas share. If each of them
exported what it sees, every sum over replicas would be wrong; therefore one does, by a lease, and the others show
nothing. It is a task of its own, because what it tells of is how the other tasks fail. Nothing here counts rows without
a bound: a figure that reaches `MOST_COUNTED` means "so many or more".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from prometheus_client import Gauge

from shared import dead_letters, telemetry
from shared.bus import Bus, BusError
from shared.database import Connection, Database
from shared.errors import Unavailable
from shared.leases import Lease, LeaseLost

_log = logging.getLogger(__name__)

MOST_COUNTED: Final = 100_000
_EVERY_SECONDS = 10.0
_LEASE_SECONDS = 30.0

Measure = Callable[[Connection], Awaitable[None]]
"""Looks up what one service knows beside, and sets its gauges. Raises Unavailable."""

_shown: list[Gauge] = []


def schema_gauge(name: str, about: str, *labels: str) -> Gauge:
    """A gauge that one process of those that share a schema shows; its first label is `service`."""
    gauge = Gauge(name, about, ("service", *labels), registry=telemetry.metrics)
    _shown.append(gauge)
    return gauge


_waiting = schema_gauge(
    "headrace_outbox_waiting", "Facts that were committed and that the broker has not yet.", "owner"
)
_oldest = schema_gauge(
    "headrace_outbox_oldest_seconds",
    "Age of the oldest fact that the broker has not yet; 0 where there is none.",
    "owner",
)
_published = schema_gauge("headrace_outbox_position", "Position of the last fact that the broker has.", "owner")
_behind = schema_gauge(
    "headrace_subscriber_behind", "Facts that the broker holds and the subscriber has not applied.", "owner"
)
_dead = schema_gauge("headrace_dead_letters", "Facts that the subscriber gave up on, and that wait for somebody.")


class Figures:
    """Of one service's schema."""

    def __init__(
        self,
        service: str,
        database: Database,
        bus: Bus,
        *,
        relayed: Sequence[str],
        followed: Sequence[str],
        further: Sequence[Measure] = (),
        every_seconds: float = _EVERY_SECONDS,
        lease: Lease | None = None,
    ) -> None:
        """`relayed`: the owners whose facts leave from here; `followed`: those whose facts are applied here."""
        self._service = service
        self._database = database
        self._bus = bus
        self._relayed = relayed
        self._followed = followed
        self._further = further
        self._every_seconds = every_seconds
        self._lease = lease or Lease(database, "figures", seconds=_LEASE_SECONDS)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with self._lease.hold():
                    try:
                        while True:
                            await self._lease.confirm()
                            await self.measure()
                            await asyncio.sleep(self._every_seconds)
                    finally:
                        # What nobody looks up any more is not to be believed.
                        for gauge in _shown:
                            gauge.clear()
            except LeaseLost:
                continue
            except Unavailable as error:
                _log.debug("figures wait: %s", error)
                await asyncio.sleep(self._every_seconds)

    async def measure(self) -> None:
        """Once. Raises Unavailable."""
        for owner in self._relayed:
            row = await _outbox(self._database, owner)
            _waiting.labels(self._service, owner).set(row["waiting"])
            _oldest.labels(self._service, owner).set(row["oldest_seconds"])
            _published.labels(self._service, owner).set(row["published"])
        if self._followed:
            await self._measure_behind()
            letters = await dead_letters.count(self._database, self._service, most=MOST_COUNTED)
            _dead.labels(self._service).set(letters)
        for measure in self._further:
            await measure(self._database)

    async def _measure_behind(self) -> None:
        """Without the broker nobody knows; all else is known, and needed then."""
        positions = {owner: await _cursor(self._database, self._service, owner) for owner in self._followed}
        try:
            for owner, position in positions.items():
                behind = await self._bus.last_position(owner) - position
                _behind.labels(self._service, owner).set(max(behind, 0))
        except (BusError, Unavailable) as error:
            _log.debug("nobody knows how far subscribers are behind: %s", error)
            _behind.clear()


async def _outbox(connection: Connection, owner: str) -> dict[str, float]:
    row = await connection.fetchrow(
        """
        with relayed as (
            select coalesce(max(published), 0) as published from relay where owner = $1
        ), oldest as (
            (select added_at from outbox where owner = $1 and position is null order by seq limit 1)
            union all
            (
                select added_at from outbox
                where owner = $1 and position > (select published from relayed) order by position limit 1
            )
        )
        select published,
            -- Rows and no difference of positions: after a restore these leap.
            (select count(*) from (select from outbox where owner = $1 and position is null limit $2) as fresh)
                + (
                    select count(*) from (
                        select from outbox where owner = $1 and position > (select published from relayed) limit $2
                    ) as positioned
                )
                as waiting,
            coalesce(extract(epoch from clock_timestamp() - (select min(added_at) from oldest)), 0)::float8
                as oldest_seconds
        from relayed
        """,
        owner,
        MOST_COUNTED,
    )
    assert row is not None, "an aggregate has a row"
    return dict(row)


async def _cursor(connection: Connection, subscriber: str, owner: str) -> int:
    position: int | None = await connection.fetchval(
        "select position from cursors where subscriber = $1 and owner = $2", subscriber, owner
    )
    return position or 0
