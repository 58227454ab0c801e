"""The verbs of webhooks: who is told of what, where, and what became of it."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from shared.addresses import FORBIDDEN, Reach
from shared.clock import now
from shared.contracts.events import FACTS
from shared.database import Database
from shared.errors import InvalidInput
from shared.idempotency import Keep, keep_nothing
from shared.identity import caller_subject
from shared.listing import ListRequest, Page

from . import domain, store
from .domain import Attempt, Delivery, Format, NewWebhook, Result, Wanted, Webhook
from .sending import Sender, new_secret

FORMER_SECRET_HOURS: Final = 24
"""How long deliveries are signed by the former secret as well."""
MOST_ATTEMPTS_SHOWN: Final = 50

_OWNERS = frozenset(kind.owner for kind in FACTS.values())
_WHATS = frozenset(kind.what for kind in FACTS.values())
_TEST_TYPE = "kfp.webhook.test.v1"


class Webhooks:
    def __init__(
        self, database: Database, sender: Sender, reach: Reach, *, on_due: Callable[[], Awaitable[None]]
    ) -> None:
        """`on_due` is called when something may be sent earlier than was thought."""
        self._database = database
        self._sender = sender
        self._reach = reach
        self._on_due = on_due

    async def create(self, asked: NewWebhook, keep: Keep[tuple[Webhook, str]] = keep_nothing) -> tuple[Webhook, str]:
        """The webhook and its secret, which nobody is told again."""
        self._check(asked)
        secret = new_secret()
        async with self._database.transaction() as tx:
            if await store.count(tx) >= domain.MOST_WEBHOOKS:
                raise domain.too_many_webhooks()
            created = await store.insert(tx, str(uuid.uuid4()), asked, secret, caller_subject()), secret
            await keep(tx, created)
        return created

    async def list(self, asked: ListRequest) -> Page[Webhook]:
        return await store.WEBHOOKS.page(self._database, store.WEBHOOKS.query(asked), store.to_webhook)

    async def get(self, webhook_id: str) -> Webhook:
        webhook = await store.find(self._database, webhook_id)
        if webhook is None:
            raise domain.unknown_webhook(webhook_id)
        return webhook

    async def change(self, webhook_id: str, change: Callable[[Webhook], NewWebhook]) -> Webhook:
        """What waits already is sent to where the webhook leads then."""
        async with self._database.transaction() as tx:
            webhook = await store.lock(tx, webhook_id)
            if webhook is None:
                raise domain.unknown_webhook(webhook_id)
            asked = change(webhook)
            self._check(asked)
            return await store.update(tx, webhook_id, asked)

    async def delete(self, webhook_id: str) -> None:
        if not await store.delete(self._database, webhook_id):
            raise domain.unknown_webhook(webhook_id)

    async def rotate(self, webhook_id: str) -> str:
        """The new secret. For a while, deliveries are signed by the former one as well."""
        secret = new_secret()
        if not await store.rotate(self._database, webhook_id, secret, former_hours=FORMER_SECRET_HOURS):
            raise domain.unknown_webhook(webhook_id)
        return secret

    async def pause(self, webhook_id: str) -> None:
        """What happens meanwhile waits."""
        if not await store.pause(self._database, webhook_id, "Somebody has paused it."):
            raise domain.unknown_webhook(webhook_id)

    async def resume(self, webhook_id: str) -> None:
        async with self._database.transaction() as tx:
            if not await store.resume(tx, webhook_id):
                raise domain.unknown_webhook(webhook_id)
            tx.after_commit(self._on_due)

    async def test(self, webhook_id: str) -> Result:
        """Send an event that tells of nothing, now and once; how that went is told and not kept."""
        target = await store.find_target(self._database, webhook_id)
        if target is None:
            raise domain.unknown_webhook(webhook_id)
        event_id = str(uuid.uuid4())
        return await send(self._sender, target, event_id, _test_event(event_id, webhook_id))

    async def list_deliveries(self, webhook_id: str, asked: ListRequest) -> Page[Delivery]:
        await self.get(webhook_id)
        query = store.DELIVERIES.query(asked, only={"webhook_id": webhook_id})
        return await store.DELIVERIES.page(self._database, query, store.to_delivery)

    async def get_delivery(self, webhook_id: str, delivery_id: str) -> tuple[Delivery, tuple[Attempt, ...]]:
        """With its latest attempts."""
        delivery = await store.find_delivery(self._database, webhook_id, delivery_id)
        if delivery is None:
            raise domain.unknown_delivery(delivery_id)
        return delivery, tuple(await store.list_attempts(self._database, delivery_id, MOST_ATTEMPTS_SHOWN))

    async def redeliver(self, webhook_id: str, delivery_id: str) -> None:
        """Send it again, or now where it waits."""
        async with self._database.transaction() as tx:
            await store.lock_queue(tx, delivery_id)
            if not await store.redeliver(tx, webhook_id, delivery_id):
                raise domain.unknown_delivery(delivery_id)
            tx.after_commit(self._on_due)

    def _check(self, asked: NewWebhook) -> None:
        _check_words(asked.wanted)
        if not self._reach.passes_as_written(asked.url):
            raise domain.not_public(asked.url, FORBIDDEN)


async def send(sender: Sender, target: store.Target, event_id: str, event: bytes) -> Result:
    """One attempt, in the webhook's format."""
    match target.format:
        case Format.CLOUDEVENTS:
            return await sender.send(target.url, event_id, event, "application/cloudevents+json", target.secrets)
        case Format.SLACK:
            body = msgspec.json.encode({"text": domain.slack_text(event)})
            return await sender.send(target.url, event_id, body, "application/json", target.secrets)


def _check_words(wanted: Wanted) -> None:
    """A word that nothing is told by would wait for ever."""
    for field, given, known in (("resources", wanted.owners, _OWNERS), ("facts", wanted.whats, _WHATS)):
        if unknown := sorted(given - known):
            raise InvalidInput(f"{field}: {unknown[0]!r} is not known; there are {', '.join(sorted(known))}.")


def _test_event(event_id: str, webhook_id: str) -> bytes:
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": event_id,
        "type": _TEST_TYPE,
        "source": "/headrace/notifier",
        "subject": webhook_id,
        "time": now(),
        "datacontenttype": "application/json",
        "data": {"id": webhook_id, "name": "This is a test."},
    }
    return msgspec.json.encode(event)
