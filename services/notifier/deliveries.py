"""The verbs of deliveries: facts that a webhook wants are written down, and sent until they are taken.

Any number of replicas may do all of it at once. What waits for one webhook about one resource of one owner is a queue:
its first delivery is tried by whoever claims the queue, and what is behind it waits until that one was taken or given
up. A claim expires, and whoever held it longer is not heard: what was sent by then is sent again, under the same id.
No transaction is open while something is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections import Counter
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from prometheus_client import Counter as Count
from prometheus_client import Histogram

from shared import clock, telemetry
from shared.bus import Message
from shared.database import Connection, Database, Transaction
from shared.errors import Unavailable
from shared.figures import MOST_COUNTED, schema_gauge

from . import store, telling
from .domain import DeliveryStatus, Result, WebhookId
from .sending import Sender
from .store import Claimed as Claimed
from .store import Waiting, Watching
from .usecases import send

_FORGOTTEN_AT_ONCE = 1000
_GRACE_SECONDS = 15.0
"""Between the end of an attempt and that of its claim: for writing down how it went."""

_STEPS = "node"

_log = logging.getLogger(__name__)
_attempts = Count(
    "headrace_webhook_attempts_total",
    "Deliveries that were tried; `outcome` is delivered, again (it is tried later) or gave-up.",
    ("outcome",),
    registry=telemetry.metrics,
)
_delays = Histogram(
    "headrace_webhook_delivery_delay_seconds",
    "From the writing down of a delivery to the receiver's answer that it was taken.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300, 3600, 6 * 3600, 26 * 3600),
    registry=telemetry.metrics,
)
_waiting = schema_gauge("headrace_webhook_deliveries_waiting", "Deliveries that are not over.")


class Deliveries:
    def __init__(
        self,
        database: Database,
        sender: Sender,
        *,
        most: int,
        most_each: int,
        send_seconds: float,
        delays_seconds: Sequence[float],
        pause_after_hours: float,
        keep_days: float,
    ) -> None:
        """`most` are tried at once, and `most_each` of one webhook."""
        self._database = database
        self._sender = sender
        self._most = most
        self._most_each = most_each
        self._claim_seconds = send_seconds + _GRACE_SECONDS
        self._delays_seconds = delays_seconds
        self._pause_after_hours = pause_after_hours
        self._keep_days = keep_days
        self._is_ending = False
        self._busy: Counter[WebhookId] = Counter()
        self._watching: WeakKeyDictionary[Transaction, list[Watching]] = WeakKeyDictionary()

    async def take(self, tx: Transaction, message: Message) -> bool:
        """Write down whom a fact is to be delivered to. Whether there is somebody."""
        watching = self._watching.get(tx)
        if watching is None:
            # Once for all facts of a transaction, and after they came: nobody is overlooked who was there before them.
            watching = self._watching[tx] = await store.list_watching(tx)
        if not watching:
            return False
        told = telling.told(message)
        new = [
            Waiting(
                id=str(uuid.uuid4()),
                webhook_id=each.webhook_id,
                event_id=message.id,
                type=message.type,
                owner=message.owner,
                subject=message.resource_id,
                position=message.position,
                event=told.event,
            )
            for each in watching
            if message.time > each.since and _is_wanted(each, told)
        ]
        return bool(new) and await store.insert_deliveries(tx, new) > 0

    async def claim(self) -> list[Claimed]:
        """What is due, as far as there is room for it; each must be tried."""
        room = self._most - self._busy.total()
        if room <= 0 or self._is_ending:
            return []
        async with self._database.transaction() as tx:
            queues = await store.claim(
                tx, most=room, most_each=self._most_each, busy=self._busy, seconds=self._claim_seconds
            )
            claimed = await store.list_first(tx, queues) if queues else []
        self._busy.update(each.queue.webhook_id for each in claimed)
        return claimed

    async def seconds_until_due(self) -> float | None:
        """Not positive where something is due that there is room for; None where nothing is going to be."""
        if self._busy.total() >= self._most:
            return None
        full = [webhook_id for webhook_id, number in self._busy.items() if number >= self._most_each]
        return await store.seconds_until_due(self._database, besides=full)

    async def attempt(self, claimed: Claimed) -> bool:
        """Send it, and write down how that went. Whether there may be something to claim now."""
        webhook_id = claimed.queue.webhook_id
        try:
            has_more = await self._record(claimed, await self._sent(claimed))
        except Unavailable as outage:
            # The claim expires, and somebody sends it again.
            _log.warning("what became of a delivery is not kept: %s", outage)
            has_more = False
        except asyncio.CancelledError:
            # Whoever sends it again need not wait for the claim to expire.
            with contextlib.suppress(Unavailable):
                await store.release(self._database, claimed)
            raise
        finally:
            was_full = self._busy[webhook_id] >= self._most_each or self._busy.total() >= self._most
            self._busy -= Counter((webhook_id,))
        return has_more or was_full

    def end(self) -> None:
        """Begin nothing more: what is being tried has until the process ends."""
        self._is_ending = True

    async def forget(self) -> None:
        """What is older than deliveries are kept."""
        while await store.forget_finished(self._database, days=self._keep_days, most=_FORGOTTEN_AT_ONCE):
            pass
        async with self._database.transaction() as tx:
            stale = await store.lock_stale(tx, days=self._keep_days, most=_FORGOTTEN_AT_ONCE)
            if stale:
                await store.forget_stale(tx, stale, days=self._keep_days)
        await store.forget_idle(self._database)

    async def _sent(self, claimed: Claimed) -> Result:
        try:
            return await send(self._sender, claimed.target, claimed.event_id, claimed.event)
        except Exception as error:  # noqa: BLE001 - what is wrong with one delivery must not stop the others
            _log.error("delivery %s cannot be sent", claimed.id, exc_info=error)
            return Result(reason="It cannot be sent, and the log of the notifier says why.")

    async def show(self, connection: Connection) -> None:
        """For the metrics. Raises Unavailable."""
        _waiting.labels("notifier").set(await store.count_waiting(connection, MOST_COUNTED))

    async def _record(self, claimed: Claimed, result: Result) -> bool:
        """Whether more waits in its queue, and is due."""
        if result.is_success:
            _attempts.labels("delivered").inc()
            _delays.observe(max((clock.now() - claimed.made_at).total_seconds(), 0))
            if claimed.is_failing:
                await store.note_success(self._database, claimed.queue.webhook_id)
            return bool(await store.finish(self._database, claimed, DeliveryStatus.DELIVERED, result))
        is_paused = await store.note_failure(
            self._database,
            claimed.queue.webhook_id,
            self._pause_reason(result),
            is_gone=result.is_gone,
            pause_after_seconds=self._pause_after_hours * 3600,
        )
        delay_seconds = next(iter(self._delays_seconds[claimed.tries :]), None)
        if delay_seconds is None and not is_paused:
            _attempts.labels("gave-up").inc()
            return bool(await store.finish(self._database, claimed, DeliveryStatus.GAVE_UP, result))
        _attempts.labels("again").inc()
        await store.try_later(self._database, claimed, result, delay_seconds=delay_seconds or 0)
        return False

    def _pause_reason(self, result: Result) -> str:
        if result.is_gone:
            return "The receiver answers 410: it wants no more."
        return f"Nothing was taken for {self._pause_after_hours:g} hours. The last attempt: {result.reason}"


def _is_wanted(by: Watching, told: telling.Told) -> bool:
    """Of single steps only those hear who ask for them: a run may have thousands."""
    if told.owner == _STEPS and _STEPS not in by.wanted.owners:
        return False
    return by.wanted.takes(told.owner, told.what, told.resource_id, told.about)
