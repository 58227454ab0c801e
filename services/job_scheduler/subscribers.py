"""The event door of the job scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from shared import replica
from shared.contracts.events import (
    EXPERIMENT_ARCHIVED,
    EXPERIMENT_CREATED,
    EXPERIMENT_DELETED,
    EXPERIMENT_UNARCHIVED,
    FactKind,
)
from shared.contracts.states import ExperimentState
from shared.database import Transaction
from shared.subscriptions import Done, Fact, Handler, Outcome

EXPERIMENT: Final = "experiment"
"""The kind of the replicas that tell which experiments there are."""


async def _know_experiment(tx: Transaction, fact: Fact[ExperimentState]) -> Outcome:
    await replica.keep(tx, EXPERIMENT, fact.state, is_deleted=fact.state.is_deleted)
    return Done()


HANDLERS: Final[Mapping[FactKind[Any], Handler]] = {
    EXPERIMENT_CREATED: _know_experiment,
    EXPERIMENT_ARCHIVED: _know_experiment,
    EXPERIMENT_UNARCHIVED: _know_experiment,
    EXPERIMENT_DELETED: _know_experiment,
}
