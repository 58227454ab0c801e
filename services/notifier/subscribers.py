"""The event door of the notifier: whatever happens may be somebody's to hear of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from shared.contracts.events import FACTS, FactKind
from shared.database import Transaction
from shared.subscriptions import Done, Fact, Handler, Outcome

from .deliveries import Deliveries


def handlers(deliveries: Deliveries, on_due: Callable[[], Awaitable[None]]) -> Mapping[FactKind[Any], Handler]:
    async def take(tx: Transaction, fact: Fact[Any]) -> Outcome:
        if await deliveries.take(tx, fact.message):
            tx.after_commit(on_due)
        return Done()

    return dict.fromkeys(FACTS.values(), take)
