"""The event door of the metrics service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from shared.contracts.events import RUN_CREATED, RUN_DELETED, FactKind
from shared.contracts.states import RunState
from shared.database import Transaction
from shared.subscriptions import Done, Fact, Handler, Outcome, Together

from .usecases import forget_run, know_runs


async def _know_runs(tx: Transaction, facts: Sequence[Fact[RunState]]) -> Outcome:
    await know_runs(tx, [fact.state for fact in facts])
    return Done()


async def _forget_run(tx: Transaction, fact: Fact[RunState]) -> Outcome:
    await forget_run(tx, fact.state)
    return Done()


HANDLERS: Final[Mapping[FactKind[Any], Handler]] = {RUN_CREATED: Together(_know_runs), RUN_DELETED: _forget_run}
