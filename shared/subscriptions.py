"""Facts arrive at a service: in order per owner, in batches, each applied exactly once.

A subscriber is a durable pull consumer per owner it listens to. One replica is active at a time, by a lease.
Many facts, one transaction, one acknowledgement: the transaction also moves the cursor, so neither a redelivery
nor a rebuilt stream applies anything twice. A batch that fails is replayed fact by fact.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, assert_never
from uuid import UUID

import msgspec
from prometheus_client import Counter, Histogram

from shared import clock, dead_letters, telemetry
from shared.bus import ACK_WAIT_SECONDS, Bus, BusError, Consumer, Delivery, Message
from shared.contracts.events import FactKind
from shared.contracts.questions import (
    AppliedAnswer,
    AppliedRequest,
    ById,
    DeadAnswer,
    DeadLetterAnswer,
    DeadRequest,
    Nothing,
    RepeatRequest,
    applied,
    dead,
    dead_letter,
    discard_dead,
    repeat,
    retry_dead,
)
from shared.contracts.states import State
from shared.database import Connection, Database, Transaction
from shared.errors import NotFound, Refusal, Unavailable, WrongState
from shared.leases import Lease, LeaseLost
from shared.outbox import Positions
from shared.telemetry import continue_trace

B = TypeVar("B", bound=State)

_log = logging.getLogger(__name__)
_facts = Counter(
    "headrace_facts_taken_total",
    "Facts behind which a subscriber's cursor has moved: applied, or put aside as dead.",
    ("subscriber", "owner", "outcome"),
    registry=telemetry.metrics,
)
_batches = Histogram(
    "headrace_subscriber_batch_duration_seconds",
    "Of the transaction that applies a batch of facts, where it went through.",
    ("subscriber", "owner"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
    registry=telemetry.metrics,
)
_delays = Histogram(
    "headrace_fact_apply_delay_seconds",
    "From a fact's commit to its being applied; of the oldest of each batch.",
    ("subscriber", "owner"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300, 3600),
    registry=telemetry.metrics,
)

_BATCH = 200
_FETCH_SECONDS = 2.0  # A request that a stopped replica left standing takes facts for that long.
_TRIES_BEFORE_DEAD = 5
_GAP_SECONDS = 15.0  # More than the broker waits for an acknowledgement: what a stopped replica held is back by then.
_REPEAT_SECONDS = 2.0
_RETRY_SECONDS = 1.0
_LOOK_SECONDS, _LOOK_ELSEWHERE_SECONDS = 0.2, 0.02
_FINISH_SECONDS = 1.5  # Less than it takes until whoever stops the tasks of a process asks a second time.


@dataclass(frozen=True, slots=True)
class Done:
    """The fact was applied."""


@dataclass(frozen=True, slots=True)
class Later:
    """Something the handler needs is out; the same fact comes again, for as long as it takes."""

    seconds: float = _RETRY_SECONDS


@dataclass(frozen=True, slots=True)
class Dead:
    """The fact makes no sense here; it is put aside and the rest goes on."""

    reason: str


Outcome = Done | Later | Dead


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact(Generic[B]):
    """A fact as a handler sees it."""

    kind: FactKind[B]
    state: B
    message: Message


Applying = Callable[[Transaction], Awaitable[Outcome]]
"""What a fact changes here, in a transaction."""


@dataclass(frozen=True, slots=True)
class Fetching:
    """A handler that needs something of others: `fetch` gets it before the transaction opens, and what it returns
    applies the facts. It is given as many as follow each other, and may fetch for some that are then found to be
    applied already."""

    fetch: Callable[[Sequence[Fact[Any]]], Awaitable[Applying]]


@dataclass(frozen=True, slots=True)
class Together:
    """A handler that takes as many facts as follow each other, where one statement does for all of them."""

    apply: Callable[[Transaction, Sequence[Fact[Any]]], Awaitable[Outcome]]


Handler = Callable[[Transaction, Fact[Any]], Awaitable[Outcome]] | Fetching | Together


@dataclass(slots=True)
class _Progress:
    """What this process knows of one cursor, so that `applied` need not poll while the consumer is here."""

    position: int = 0
    gap_since: float = 0
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)
    is_ours: bool = False
    """Whether this process follows the owner, and so hears of every move."""

    async def reaches(self, position: int) -> bool:
        """Whether it does before it is time to look at the row: another process may move it, or have taken over."""
        async with self.moved:
            try:
                async with asyncio.timeout(_LOOK_SECONDS if self.is_ours else _LOOK_ELSEWHERE_SECONDS):
                    return await self.moved.wait_for(lambda: self.position >= position)
            except TimeoutError:
                return False


class Subscriber:
    """All subscriptions of one service. `run` drives them; `applied` answers how far they are."""

    def __init__(
        self,
        name: str,
        database: Database,
        bus: Bus,
        handlers: Mapping[FactKind[Any], Handler],
        *,
        lease_seconds: float = 5.0,
        before_commit: Callable[[], Awaitable[None]] | None = None,
        before_acknowledging: Callable[[], Awaitable[None]] | None = None,
        retry_seconds: float = _RETRY_SECONDS,
        gap_seconds: float = _GAP_SECONDS,
        ack_wait_seconds: float = ACK_WAIT_SECONDS,
    ) -> None:
        """The two `before_…` are crash points for tests."""
        self._name = name
        self._database = database
        self._bus = bus
        self._handlers = {kind.type: (kind, handler) for kind, handler in handlers.items()}
        self._takes_several = {
            kind.type: isinstance(handler, Fetching | Together) for kind, handler in handlers.items()
        }
        self._owners = sorted({kind.owner for kind in handlers})
        self._lease_seconds = lease_seconds
        self._before_commit = before_commit
        self._before_acknowledging = before_acknowledging
        self._retry_seconds = retry_seconds
        self._gap_seconds = gap_seconds
        self._ack_wait_seconds = ack_wait_seconds
        self._progress = {owner: _Progress() for owner in self._owners}

    async def run(self) -> None:
        """Answer what is asked about that and apply facts, until cancelled."""
        await self._bus.answer(applied(self._name), self.applied)
        await self._bus.answer(dead(self._name), self.dead)
        await self._bus.answer(dead_letter(self._name), self.dead_letter)
        await self._bus.answer(retry_dead(self._name), self.retry_dead)
        await self._bus.answer(discard_dead(self._name), self.discard_dead)
        async with asyncio.TaskGroup() as group:
            for owner in self._owners:
                group.create_task(self._follow(owner), name=f"{self._name} follows {owner}")

    async def applied(self, request: AppliedRequest) -> AppliedAnswer:
        """Whether the cursor has reached a position, waiting up to the asked time. Any replica can tell."""
        if request.owner not in self._progress:
            return AppliedAnswer(is_applied=True)
        progress = self._progress[request.owner]
        try:
            async with asyncio.timeout(request.within_seconds):
                # Who follows the owner hears of each move; for others the row alone says what another process did.
                is_applied = progress.is_ours and await progress.reaches(request.position)
                while not is_applied:
                    progress.position = max(progress.position, await self._cursor(self._database, request.owner))
                    is_applied = await progress.reaches(request.position)
        except (TimeoutError, Unavailable):
            return AppliedAnswer(is_applied=False)
        return AppliedAnswer(is_applied=True)

    async def dead(self, request: DeadRequest) -> DeadAnswer:
        """What was given up on and waits for somebody. Any replica can tell."""
        return DeadAnswer(
            letters=await dead_letters.list_oldest(self._database, self._name, request.most, behind=request.behind),
            count=await dead_letters.count(self._database, self._name),
        )

    async def dead_letter(self, request: ById) -> DeadLetterAnswer:
        """Raises NotFound."""
        found = await dead_letters.find(self._database, self._name, request.id)
        if found is None:
            raise NotFound.of("Dead letter", request.id)
        letter, message = found
        return DeadLetterAnswer(letter=letter, body=message.body)

    async def retry_dead(self, request: ById) -> Nothing:
        """Apply a dead fact after all, in one transaction with its letter's end; any replica can do it.

        The cursor passed it long ago, so it comes behind facts that followed it: whoever asks wants that, and handlers
        go by the versions of what they hear of. Raises NotFound, WrongState where it is given up on again, Unavailable.
        """
        found = await dead_letters.find(self._database, self._name, request.id)
        if found is None:
            raise NotFound.of("Dead letter", request.id)
        _, message = found
        reason = await self._apply_dead(message)
        if reason is not None:
            await dead_letters.note_try(self._database, self._name, message.id, reason)
            raise WrongState(f"The {self._name} service gives up on {message.type} {message.id} again: {reason}")
        _log.info("%s has applied %s %s after all", self._name, message.type, message.resource_id)
        return Nothing()

    async def discard_dead(self, request: ById) -> Nothing:
        """Forget a dead fact that nobody is going to apply. Raises NotFound."""
        async with self._database.transaction() as tx:
            if not await dead_letters.delete(tx, self._name, request.id):
                raise NotFound.of("Dead letter", request.id)
        _log.info("%s has discarded the dead letter %s", self._name, request.id)
        return Nothing()

    async def _apply_dead(self, message: Message) -> str | None:
        """Why it is dead still; None when it was applied. Raises NotFound, Unavailable."""
        try:
            apply = await self._applying(self._handled([message]))
            async with self._database.transaction() as tx:
                if not await dead_letters.delete(tx, self._name, message.id):
                    raise NotFound.of("Dead letter", message.id)
                with continue_trace(message.traceparent, "apply dead letter", kind="consumer"):
                    outcome = await apply(tx)
                if not isinstance(outcome, Done):
                    raise _NotYet(outcome)
        except _NotYet as not_yet:
            if isinstance(not_yet.outcome, Dead):
                return not_yet.outcome.reason
            raise Unavailable(f"The {self._name} service cannot apply it now.") from not_yet
        except (NotFound, Unavailable):
            raise
        except Exception as error:  # noqa: BLE001 - the handler's bug is still there, and so is the letter
            return repr(error)
        return None

    async def _follow(self, owner: str) -> None:
        lease = Lease(self._database, f"subscription:{self._name}:{owner}", seconds=self._lease_seconds)
        complaint = ""
        while True:
            try:
                async with lease.hold():
                    consumer = await self._bus.consumer(
                        f"{self._name}--{owner}", owner, ack_wait_seconds=self._ack_wait_seconds
                    )
                    try:
                        await self._note(owner, await self._cursor(self._database, owner))
                        self._progress[owner].is_ours = True
                        await self._consume(owner, lease, consumer)
                    finally:
                        self._progress[owner].is_ours = False
                        await consumer.close()
            except LeaseLost:
                _log.info("%s: another replica follows %s now", self._name, owner)
            except (Unavailable, BusError) as error:
                # Once for each outage: the waiting repeats itself.
                level = logging.DEBUG if str(error) == complaint else logging.WARNING
                _log.log(level, "%s waits for facts of %s: %s", self._name, owner, error)
                complaint = str(error)
                await self._declare_streams()
                await asyncio.sleep(self._retry_seconds)

    async def _declare_streams(self) -> None:
        """The broker may have lost its store; whoever notices first declares the streams again."""
        try:
            await self._bus.declare_streams()
        except BusError as error:
            _log.debug("streams: %s", error)

    async def _consume(self, owner: str, lease: Lease, consumer: Consumer) -> None:
        while True:
            deliveries = await consumer.fetch(_BATCH, within_seconds=_FETCH_SECONDS)
            if not deliveries:
                await lease.confirm()
                continue
            try:
                await self._apply_before_leaving(owner, lease, deliveries)
            except BaseException:
                # Whoever follows next gets them at once; those acknowledged already are not touched by it.
                for delivery in deliveries:
                    await delivery.give_back()
                raise

    async def _apply_before_leaving(self, owner: str, lease: Lease, deliveries: Sequence[Delivery]) -> None:
        """Who is told to leave meanwhile finishes the batch in hand, unless that takes long: an outage may."""
        applying = asyncio.create_task(self._apply(owner, lease, deliveries), name=f"{self._name} applies {owner}")
        try:
            await asyncio.shield(applying)
        except asyncio.CancelledError:
            await asyncio.wait([applying], timeout=_FINISH_SECONDS)
            applying.cancel()
            await asyncio.gather(applying, return_exceptions=True)
            raise

    async def _apply(self, owner: str, lease: Lease, deliveries: Sequence[Delivery]) -> None:
        """All of them in one transaction; where that does not go through, one by one."""
        deliveries = sorted(deliveries, key=lambda delivery: delivery.message.position)
        try:
            applied_count = await self._apply_batch(owner, lease, [delivery.message for delivery in deliveries])
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - which fact it was shows when they come one by one
            if not isinstance(error, _NotYet):
                _log.info("%s: a batch of %s failed, replaying it one by one: %r", self._name, owner, error)
            applied_count = await self._apply_one_by_one(owner, lease, deliveries)
        if self._before_acknowledging is not None:
            await self._before_acknowledging()
        for delivery in deliveries[:applied_count]:
            await delivery.acknowledge()
        if applied_count < len(deliveries):
            await self._wait_out_gap(owner, lease, deliveries[applied_count:])

    async def _apply_batch(self, owner: str, lease: Lease, messages: Sequence[Message]) -> int:
        """Apply messages in one transaction, up to a gap in the positions. Returns how many that were."""
        count = 0
        started = time.perf_counter()
        groups = []
        for group in grouped(messages, self._takes_several, self._progress[owner].position):
            handled = self._handled(group)
            groups.append((group, handled, await self._applying(handled)))
        async with self._database.transaction() as tx:
            cursor = await self._fenced_cursor(tx, owner, lease)
            for group, handled, apply in groups:
                first, last = group[0], group[-1]
                if first.position < 1:
                    raise _NotYet(Dead("it has no position"))
                if first.position > cursor + 1:
                    break
                if last.position > cursor:
                    if first.position <= cursor:
                        raise _NotYet(Later(0))  # Some of them are applied: one by one it shows which.
                    if handled:
                        await self._apply_group(tx, handled, apply)
                    cursor = last.position
                count += len(group)
            await self._move_cursor(tx, owner, cursor)
            if self._before_commit is not None:
                await self._before_commit()
        await self._note(owner, cursor)
        if count:
            _facts.labels(self._name, owner, "applied").inc(count)
            _batches.labels(self._name, owner).observe(time.perf_counter() - started)
            _delays.labels(self._name, owner).observe(max((clock.now() - messages[0].time).total_seconds(), 0))
        return count

    async def _apply_group(self, tx: Transaction, group: Sequence[Message], apply: Applying) -> None:
        first = group[0]
        seen: dict[str, str | int] = {"headrace.subscriber": self._name, "headrace.facts": len(group)}
        with continue_trace(first.traceparent, f"apply {first.owner} {first.what}", kind="consumer", attributes=seen):
            outcome = await apply(tx)
        if not isinstance(outcome, Done):
            raise _NotYet(outcome)

    async def _apply_one_by_one(self, owner: str, lease: Lease, deliveries: Sequence[Delivery]) -> int:
        for nth, delivery in enumerate(deliveries):
            if not await self._apply_one(owner, lease, delivery.message, extend=deliveries[nth:]):
                return nth
        return len(deliveries)

    async def _apply_one(self, owner: str, lease: Lease, message: Message, *, extend: Sequence[Delivery]) -> bool:
        """Until it is applied or put aside; False at a gap.

        Outages are Later for ever; nonsense is Dead after the fifth try.
        """
        tries = 0
        while True:
            outcome: Outcome
            try:
                return await self._apply_batch(owner, lease, [message]) == 1
            except LeaseLost:
                raise
            except Unavailable as error:
                _log.info("%s: %s %s waits: %s", self._name, message.type, message.resource_id, error)
                outcome = Later(self._retry_seconds)
            except _NotYet as not_yet:
                outcome = not_yet.outcome
            except Exception as error:  # noqa: BLE001 - a handler's bug must not stop the facts behind it
                tries += 1
                _log.warning("%s: try %d of %s %s: %r", self._name, tries, message.type, message.resource_id, error)
                is_last = tries >= _TRIES_BEFORE_DEAD
                outcome = Dead(repr(error)) if is_last else Later(self._retry_seconds * tries / _TRIES_BEFORE_DEAD)
            match outcome:
                case Done():
                    return True
                case Later(seconds):
                    await asyncio.sleep(seconds)
                case Dead(reason):
                    if await self._put_aside(owner, lease, message, reason, max(tries, 1)):
                        return True
                    await asyncio.sleep(self._retry_seconds)
                case _:
                    assert_never(outcome)
            for delivery in extend:
                await delivery.extend()

    async def _wait_out_gap(self, owner: str, lease: Lease, deliveries: Sequence[Delivery]) -> None:
        """Positions are missing before these: a stopped replica holds them, the bus lost them, or they are too old.

        The first comes to an end by itself. For the others the owner is asked: what it still has it publishes again,
        and only what it has no more is passed over.
        """
        loop = asyncio.get_running_loop()
        progress = self._progress[owner]
        cursor = await self._cursor(self._database, owner)
        # A new subscription begins where the owner's retention ends; that is no reason to wait.
        patience_seconds = self._gap_seconds if cursor else 0.0
        progress.gap_since = progress.gap_since or loop.time()
        if loop.time() - progress.gap_since >= patience_seconds:
            progress.gap_since = loop.time()
            first = await self._first_repeated(owner, cursor + 1)
            if first > cursor + 1:
                _log.error("%s: the facts %d to %d of %s are gone for good", self._name, cursor + 1, first - 1, owner)
                await self._set_cursor(owner, lease, min(first, deliveries[0].message.position) - 1)
                return await self._apply(owner, lease, deliveries)
        for delivery in deliveries:
            await delivery.give_back(delay_seconds=self._retry_seconds)
        return None

    async def _first_repeated(self, owner: str, position: int) -> int:
        try:
            answer = await self._bus.ask(
                repeat(owner), RepeatRequest(position=position), within_seconds=_REPEAT_SECONDS
            )
        except Refusal as error:
            _log.warning("%s: %s does not say whether it has position %d: %s", self._name, owner, position, error)
            return position
        return answer.position

    def _handled(self, messages: Sequence[Message]) -> list[Message]:
        return [message for message in messages if message.type in self._handlers]

    async def _applying(self, group: Sequence[Message]) -> Applying:
        """`group`: facts of one kind; none where nobody here listens to them."""
        if not group:
            return _settled(Done())
        kind, handler = self._handlers[group[0].type]
        try:
            facts = [
                Fact(kind=kind, state=msgspec.json.decode(message.body, type=kind.body), message=message)
                for message in group
            ]
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            return _settled(Dead(f"the body does not read as {kind.type}: {error}"))
        if isinstance(handler, Fetching):
            return await handler.fetch(facts)
        if isinstance(handler, Together):
            several = handler.apply
            return lambda tx: several(tx, facts)
        plain, (fact,) = handler, facts
        return lambda tx: plain(tx, fact)

    async def _put_aside(self, owner: str, lease: Lease, message: Message, reason: str, tries: int) -> bool:
        _log.error("%s gives up on %s %s: %s", self._name, message.type, message.resource_id, reason)
        try:
            await self._bus.publish_dead(self._name, message, reason, tries)
        except BusError as error:
            _log.warning("%s: %s", self._name, error)
            return False
        async with self._database.transaction() as tx:
            await lease.fence(tx)
            await dead_letters.insert(tx, self._name, message, reason, tries)
            await self._move_cursor(tx, owner, message.position)
        await self._note(owner, message.position)
        _facts.labels(self._name, owner, "dead").inc()
        return True

    async def _set_cursor(self, owner: str, lease: Lease, position: int) -> None:
        async with self._database.transaction() as tx:
            await lease.fence(tx)
            await self._move_cursor(tx, owner, position)
        await self._note(owner, position)

    async def _cursor(self, connection: Database | Transaction, owner: str) -> int:
        position: int | None = await connection.fetchval(
            "select position from cursors where subscriber = $1 and owner = $2", self._name, owner
        )
        return position or 0

    async def _fenced_cursor(self, tx: Transaction, owner: str, lease: Lease) -> int:
        """As `Lease.fence`, and the cursor with it: one round trip for what every batch begins with."""
        position: int | None = await tx.fetchval(
            """
            select coalesce((select position from cursors where subscriber = $4 and owner = $5), 0)
            from leases where name = $1 and holder = $2 and epoch = $3 for share
            """,
            *lease.proof,
            self._name,
            owner,
        )
        if position is None:
            raise LeaseLost(lease.name)
        return position

    async def _move_cursor(self, tx: Transaction, owner: str, position: int) -> None:
        await tx.execute(
            """
            insert into cursors (subscriber, owner, position) values ($1, $2, $3)
            on conflict (subscriber, owner) do update set position = excluded.position
            where cursors.position < excluded.position
            """,
            self._name,
            owner,
            position,
        )

    async def _note(self, owner: str, position: int) -> None:
        progress = self._progress[owner]
        if position > progress.position:
            progress.position = position
            progress.gap_since = 0
        async with progress.moved:
            progress.moved.notify_all()


def grouped(messages: Sequence[Message], takes_several: Mapping[str, bool], position: int) -> list[list[Message]]:
    """What is applied together: facts that follow each other, as far as one handler takes them or nobody listens.

    `takes_several`: of each type that is listened to, whether its handler does. What is known to be applied, up to
    `position`, is not mixed with what is not.
    """
    groups: list[list[Message]] = []
    heard = ""
    for message in messages:
        is_next = bool(groups) and groups[-1][-1].position + 1 == message.position != position + 1
        is_heard = message.type in takes_several
        if is_next and (not is_heard or not heard or (heard == message.type and takes_several[heard])):
            groups[-1].append(message)
        else:
            groups.append([message])
            heard = ""
        if is_heard:
            heard = message.type
    return groups


def _settled(outcome: Outcome) -> Applying:
    async def settled(_: Transaction) -> Outcome:
        return outcome

    return settled


class _NotYet(Exception):
    """The batch cannot be committed as it stands: one fact wants to come later, or is dead."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


async def until_applied(
    bus: Bus, subscribers: Sequence[str], owner: str, position: int, *, within_seconds: float
) -> bool:
    """Read your own writes: whether every subscriber has applied the fact in time. Never raises for slowness."""

    async def ask(subscriber: str) -> bool:
        request = AppliedRequest(owner=owner, position=position, within_seconds=within_seconds)
        try:
            answer = await bus.ask(applied(subscriber), request, within_seconds=within_seconds + 0.25)
        except Refusal as refusal:
            _log.debug("%s does not say what it applied: %s", subscriber, refusal)
            return False
        return answer.is_applied

    return all(await asyncio.gather(*(ask(subscriber) for subscriber in subscribers)))


async def until_published_and_applied(
    bus: Bus,
    connection: Connection,
    fact_id: UUID,
    subscribers: Sequence[str],
    owner: str,
    *,
    within_seconds: float,
) -> bool:
    """Like `until_applied`, for a fact that was committed just now and whose position is not known yet."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_seconds
    try:
        position = await Positions(connection).of(fact_id, within_seconds=within_seconds)
    except Unavailable:
        return False
    if position is None:
        return False
    left_seconds = max(0.0, deadline - loop.time())
    return await until_applied(bus, subscribers, owner, position, within_seconds=left_seconds)
