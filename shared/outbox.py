"""Facts leave a service through its outbox: written with the change, relayed in order, never lost.

`add` runs in the transaction that makes a fact true. One relay per schema gives each fact a gap-free position,
commits it, and publishes; it is woken by a ping and polls as a safety net. Losing the broker's whole store loses
nothing: on connecting, the relay compares the broker's last position with its own and publishes from there. A
subscriber that misses facts on the bus asks for them again (`repeat`).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from time import time_ns
from uuid import UUID

import msgspec
from prometheus_client import Counter, Histogram

from shared import clock, telemetry
from shared.bus import Bus, BusError, Message
from shared.contracts.events import LARGEST_FACT_BYTES, FactKind
from shared.contracts.questions import RepeatAnswer, RepeatRequest, repeat
from shared.contracts.states import State
from shared.database import Connection, Database, Transaction
from shared.errors import Unavailable
from shared.leases import Lease, LeaseLost
from shared.telemetry import current_traceparent, note_span
from shared.trace import are_spans_recorded

_log = logging.getLogger(__name__)
_published = Counter(
    "headrace_facts_published_total",
    "Facts that the broker has acknowledged.",
    ("owner",),
    registry=telemetry.metrics,
)
_delays = Histogram(
    "headrace_fact_publish_delay_seconds",
    "From a fact's commit to the broker's acknowledgement.",
    ("owner",),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300, 3600),
    registry=telemetry.metrics,
)

_BATCH = 500
_FORGOTTEN_AT_ONCE = 5000
_POLL_SECONDS = 0.5
_COMPARE_SECONDS = 30.0
_FIRST_LOOK_SECONDS, _LATER_LOOK_SECONDS = 0.004, 0.1
_SUBJECT_PART = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")
_ROW_BYTES = 500
"""What a row takes beside its body, with its share of the indexes."""


class FactTooLarge(Exception):
    """The body exceeds what a fact may carry; the fact's shape is wrong, not the request."""


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of facts that were published, for a broker that loses them: whichever limit is reached first."""

    days: float = 7
    """Less than the stream's own, so that what the stream has outlived is not published again."""
    bytes: int = 1024**3


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the outbox, as far as its writer knows it."""

    id: UUID | None = None
    """The fact's, where its writer wants to find it again; else the database chooses one."""
    type: str
    owner: str
    what: str
    resource_id: str
    body: bytes
    traceparent: str


class Outbox:
    """Adds facts of one owner, and wakes its relay after the commit."""

    def __init__(self, owner: str, bus: Bus | None = None) -> None:
        self.owner = owner
        self._bus = bus

    async def add(self, tx: Transaction, kind: FactKind[State], state: State) -> UUID:
        """Record that `kind` has happened to `state.id`. Returns the fact's id.

        The resource's row must be locked by this transaction, so that its facts keep their order.
        Raises FactTooLarge beyond 256 KiB.
        """
        entry = self.entry(kind, state)
        fact_id: UUID = await tx.fetchval(
            """
            insert into outbox (type, owner, what, resource_id, body, traceparent)
            values ($1, $2, $3, $4, $5, $6) returning id
            """,
            entry.type,
            entry.owner,
            entry.what,
            entry.resource_id,
            entry.body,
            entry.traceparent,
        )
        tx.after_commit(self.wake)
        return fact_id

    async def add_all(self, tx: Transaction, entries: Sequence[Entry]) -> None:
        """Record many facts, in their order, at the price of one. As for `add`, their resources must be locked."""
        await tx.execute(
            """
            insert into outbox (id, type, owner, what, resource_id, body, traceparent)
            select coalesce(id, gen_random_uuid()), type, owner, what, resource_id, body, traceparent
            from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::text[])
                with ordinality as entry (id, type, owner, what, resource_id, body, traceparent, nth)
            order by nth
            """,
            [entry.id for entry in entries],
            [entry.type for entry in entries],
            [entry.owner for entry in entries],
            [entry.what for entry in entries],
            [entry.resource_id for entry in entries],
            [entry.body for entry in entries],
            [entry.traceparent for entry in entries],
        )
        tx.after_commit(self.wake)

    def entry(self, kind: FactKind[State], state: State, *, fact_id: UUID | None = None) -> Entry:
        """What `add` would insert, for a statement that writes it together with the change; `wake` after its commit.

        Raises FactTooLarge beyond 256 KiB.
        """
        if kind.owner != self.owner:
            raise ValueError(f"{kind.type} is not {self.owner}'s to tell")
        if not _SUBJECT_PART.fullmatch(state.id):
            # The broker would refuse this one for ever, and every fact behind it would wait.
            raise ValueError(f"{state.id!r} cannot be part of a subject")
        body = msgspec.json.encode(state)
        if len(body) > LARGEST_FACT_BYTES:
            raise FactTooLarge(f"{kind.type} of {state.id} has {len(body)} bytes, more than {LARGEST_FACT_BYTES}")
        return Entry(
            id=fact_id,
            type=kind.type,
            owner=kind.owner,
            what=kind.what,
            resource_id=state.id,
            body=body,
            traceparent=current_traceparent(),
        )

    async def wake(self) -> None:
        if self._bus is not None:
            await self._bus.ping(_ping_subject(self.owner))


class Positions:
    """Waits for the relay to come to facts; one statement looks for all of them that are waited for here."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: dict[UUID, asyncio.Future[int]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def of(self, fact_id: UUID, *, within_seconds: float) -> int | None:
        """The position of a fact that was committed; None where the relay is too slow. Raises Unavailable."""
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[fact_id] = found
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="look for positions")
        try:
            async with asyncio.timeout(within_seconds):
                return await found
        except TimeoutError:
            return None
        finally:
            del self._waiting[fact_id]

    async def _look(self) -> None:
        """Until nobody waits. Under load the relay takes longer, and looking often would keep it from its work."""
        pause_seconds = _FIRST_LOOK_SECONDS
        while self._waiting:
            await asyncio.sleep(pause_seconds)
            try:
                positions = await _positions_of(self._connection, list(self._waiting))
            except Exception as error:  # noqa: BLE001 - those who wait are to know it
                for found in self._waiting.values():
                    if not found.done():
                        found.set_exception(error)
                return
            for fact_id, position in positions.items():
                waiting = self._waiting.get(fact_id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(position)
            pause_seconds = _FIRST_LOOK_SECONDS if positions else min(2 * pause_seconds, _LATER_LOOK_SECONDS)


async def _positions_of(connection: Connection, fact_ids: Sequence[UUID]) -> dict[UUID, int]:
    """Of those that the relay has come to."""
    rows = await connection.fetch(
        "select id, position from outbox where id = any($1::uuid[]) and position is not null", fact_ids
    )
    return {row["id"]: row["position"] for row in rows}


class Relay:
    """Publishes one owner's facts. Any number of replicas may run it; a lease lets one work at a time."""

    def __init__(
        self,
        database: Database,
        bus: Bus,
        owner: str,
        *,
        lease: Lease | None = None,
        before_publishing: Callable[[], Awaitable[None]] | None = None,
        compare_seconds: float = _COMPARE_SECONDS,
        gather_seconds: float = 0,
        keep: Keep | None = None,
    ) -> None:
        """`gather_seconds`: how long facts may wait for others to be published with, where many small ones come.

        `before_publishing` is a crash point for tests: it runs after positions are committed.
        """
        self._database = database
        self._bus = bus
        self._owner = owner
        self._lease = lease or Lease(database, f"relay:{owner}")
        self._woken = asyncio.Event()
        self._must_compare = True
        # How far the broker had the facts when the last batch began, and how far it has acknowledged them since. The
        # second is recorded with the next batch, where the first still stands: whoever lowered it wants facts again.
        self._begun = self._published = 0
        self._compare_seconds = compare_seconds
        self._before_publishing = before_publishing
        self._gather_seconds = gather_seconds
        self._keep = keep or Keep()

    async def run(self) -> None:
        """Relay until cancelled."""
        await self._bus.on_ping(_ping_subject(self._owner), self._woken.set)
        await self._bus.answer(repeat(self._owner), self.repeat)
        self._bus.on_reconnect(self._compare_soon)
        complaint = ""
        while True:
            try:
                async with self._lease.hold():
                    self._must_compare = True
                    await self._work()
            except LeaseLost:
                _log.info("the relay of %s was taken over", self._owner)
            except (Unavailable, BusError) as error:
                # Once for each outage: the waiting repeats itself twice a second.
                _log.log(logging.DEBUG if str(error) == complaint else logging.WARNING, "relay waits: %s", error)
                complaint = str(error)
                await asyncio.sleep(_POLL_SECONDS)

    async def repeat(self, request: RepeatRequest) -> RepeatAnswer:
        """Publish again from a position on, where the fact of that position is still here. Any replica can do it."""
        first: int = await self._database.fetchval(
            """
            select coalesce(min(position), (select allocated + 1 from relay where owner = $1), 1)
            from outbox where owner = $1 and position >= $2
            """,
            self._owner,
            request.position,
        )
        if first == request.position:
            await self._database.execute(
                "update relay set published = $2 where owner = $1 and published > $2", self._owner, first - 1
            )
            self._woken.set()
        return RepeatAnswer(position=first)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        compare_at = loop.time()
        while True:
            self._woken.clear()
            if self._must_compare or loop.time() >= compare_at:
                await self._compare()
                compare_at = loop.time() + self._compare_seconds
            while await self._relay_batch():
                pass
            while not await self._pinged() and not await self._has_work() and loop.time() < compare_at:
                pass

    async def _pinged(self) -> bool:
        """Whether a ping came within the poll interval."""
        try:
            async with asyncio.timeout(_POLL_SECONDS):
                return await self._woken.wait()
        except TimeoutError:
            return False

    async def _has_work(self) -> bool:
        """Only reads: an idle relay writes nothing but its lease."""
        await self._lease.confirm()
        found: bool = await self._database.fetchval(
            """
            select exists (select from outbox where owner = $1 and position is null)
            or exists (
                select from outbox where owner = $1 and position > (select published from relay where owner = $1)
            )
            """,
            self._owner,
        )
        return found

    async def _relay_batch(self) -> bool:
        """Whether there may be more to do at once."""
        if self._gather_seconds:
            await asyncio.sleep(self._gather_seconds)
        loop = asyncio.get_running_loop()
        ours_until = loop.time() + self._lease.seconds
        messages = await self._next_messages()
        if not messages:
            return False
        if self._before_publishing is not None:
            await self._before_publishing()
        if loop.time() >= ours_until:
            # This process slept through its lease: what it holds is old, and the broker forgets ids in time.
            raise LeaseLost(self._lease.name)
        started_ns = time_ns()
        accepted = await self._bus.publish(messages)
        if accepted:
            self._published = messages[accepted - 1].position
            self._count(messages[:accepted], started_ns)
        if accepted < len(messages):
            self._compare_soon()
            raise BusError(f"the broker took {accepted} of {len(messages)} facts")
        return True

    def _count(self, accepted: Sequence[Message], started_ns: int) -> None:
        if are_spans_recorded():
            ended_ns = time_ns()
            for message in accepted:
                note_span(
                    f"publish {message.owner} {message.what}",
                    parent=message.traceparent,
                    started_ns=started_ns,
                    ended_ns=ended_ns,
                    kind="producer",
                    attributes={"headrace.resource_id": message.resource_id, "headrace.position": message.position},
                )
        _published.labels(self._owner).inc(len(accepted))
        delays, now = _delays.labels(self._owner), clock.now()
        for message in accepted:
            delays.observe(max((now - message.time).total_seconds(), 0))

    async def _next_messages(self) -> list[Message]:
        """Record what was published, give positions to facts that have none, and return what is not yet published.

        Raises LeaseLost.
        """
        # One statement is one round trip and one commit for a batch, and the lease is held until that commit.
        rows = await self._database.fetch(
            """
            with held as (
                select 1 from leases where name = $1 and holder = $2 and epoch = $3 for share
            ), begun as (
                select allocated, case published when $4 then $5 else published end as published
                from relay where owner = $7
            ), fresh as (
                select seq, row_number() over (order by seq) as nth
                from (
                    select seq from outbox where owner = $7 and position is null order by seq limit $6
                ) as oldest, held
            ), given as (
                update outbox set position = (select allocated from begun) + fresh.nth
                from fresh where outbox.seq = fresh.seq
                returning outbox.*
            ), moved as (
                update relay set
                    allocated = relay.allocated + (select count(*) from fresh),
                    published = case relay.published when $4 then $5 else relay.published end,
                    kept_bytes = relay.kept_bytes + (select coalesce(sum(octet_length(body) + $8), 0) from given)
                from held where owner = $7 and ($4 < $5 or exists (select 1 from fresh))
            ), unpublished as (
                select * from given
                union all
                (
                    select * from outbox where owner = $7 and position > (select published from begun)
                    order by position limit $6
                )
                order by position limit $6
            )
            select begun.published, id, type, owner, what, resource_id, position, added_at, traceparent, body
            from held cross join begun left join unpublished on true
            order by position
            """,
            *self._lease.proof,
            self._begun,
            self._published,
            _BATCH,
            self._owner,
            _ROW_BYTES,
        )
        if not rows:
            raise LeaseLost(self._lease.name)
        self._begun = self._published = rows[0]["published"]
        return [
            Message(
                id=str(row["id"]),
                type=row["type"],
                owner=row["owner"],
                what=row["what"],
                resource_id=row["resource_id"],
                position=row["position"],
                time=row["added_at"],
                traceparent=row["traceparent"],
                body=row["body"],
            )
            for row in rows
            if row["id"] is not None
        ]

    async def _compare(self) -> None:
        """Believe the broker about what it holds: less than we published means that its store was lost."""
        self._must_compare = False
        self._begun = self._published = 0  # What was not recorded is published again, and the broker knows it by id.
        try:
            await self._bus.declare_streams()
            created_at = (await self._bus.stand()).created_at
            held = await self._bus.last_position(self._owner)
        except BusError:
            self._must_compare = True
            raise
        await self._forget()
        async with self._database.transaction() as tx:
            await self._lease.fence(tx)
            await tx.execute("insert into relay (owner) values ($1) on conflict do nothing", self._owner)
            relay = await tx.fetchrow(
                "select allocated, published, stream_created_at from relay where owner = $1", self._owner
            )
            assert relay is not None, "it was just inserted"
            is_another_stream = relay["stream_created_at"] not in (None, created_at)
            if held > relay["allocated"]:
                # Our database is the older one (a restored backup): positions that subscribers have seen are not
                # given out again.
                _log.warning("the broker holds %s to %d, we know of %d", self._owner, held, relay["allocated"])
                await tx.execute("update relay set allocated = $2, published = $2 where owner = $1", self._owner, held)
            elif is_another_stream or held < relay["published"]:
                _log.warning("the broker has lost facts of %s; publishing them again", self._owner)
                # Another stream than the one we know may hold our newest facts already, and none of the others.
                begin = 0 if is_another_stream else held
                await tx.execute("update relay set published = $2 where owner = $1", self._owner, begin)
            if relay["stream_created_at"] != created_at:
                await tx.execute("update relay set stream_created_at = $2 where owner = $1", self._owner, created_at)
            # Between the two, the last one held says nothing of those before it: a connection that broke in the
            # middle of a batch can have lost some. They are published again, and the broker knows them by id.

    async def _forget(self) -> None:
        """Delete what was published and is beyond what is kept; before comparing, lest it be published again."""
        forgotten = _FORGOTTEN_AT_ONCE
        while forgotten == _FORGOTTEN_AT_ONCE:
            async with self._database.transaction() as tx:
                await self._lease.fence(tx)
                # Positions follow time closely enough: looking at the oldest spares an index by time.
                forgotten = await tx.fetchval(
                    """
                    with relayed as (
                        select published, kept_bytes from relay where owner = $1
                    ), oldest as (
                        select seq, added_at, bytes, sum(bytes) over (order by position) - bytes as bytes_before
                        from (
                            select seq, position, added_at, octet_length(body) + $5 as bytes from outbox
                            where owner = $1 and position <= (select published from relayed)
                            order by position limit $2
                        ) as published
                    ), gone as (
                        delete from outbox using oldest, relayed where outbox.seq = oldest.seq and (
                            oldest.added_at < clock_timestamp() - make_interval(secs => $3::float8 * 86400)
                            or oldest.bytes_before < relayed.kept_bytes - $4
                        )
                        returning oldest.bytes
                    ), less as (
                        update relay set kept_bytes = kept_bytes - (select coalesce(sum(bytes), 0) from gone)
                        where owner = $1 and exists (select from gone)
                    )
                    select count(*) from gone
                    """,
                    self._owner,
                    _FORGOTTEN_AT_ONCE,
                    self._keep.days,
                    self._keep.bytes,
                    _ROW_BYTES,
                )

    def _compare_soon(self) -> None:
        self._must_compare = True
        self._woken.set()


def _ping_subject(owner: str) -> str:
    return f"kfp.ping.{owner}"
