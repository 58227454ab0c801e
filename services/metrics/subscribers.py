"""The event door of the metrics service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from shared.contracts.events import RUN_CREATED, RUN_DELETED, FactKind
from shared.contracts.states import RunState
from shared.database import Transaction
from shared.subscriptions import Done, Fact, Handler, Outcome

from .usecases import know_run


async def _know_run(tx: Transaction, fact: Fact[RunState]) -> Outcome:
    await know_run(tx, fact.state)
    return Done()


HANDLERS: Final[Mapping[FactKind[Any], Handler]] = {RUN_CREATED: _know_run, RUN_DELETED: _know_run}
