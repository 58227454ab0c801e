"""The event door of the job scheduler: what others' facts change here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared import replica
from shared.contracts import events
from shared.contracts.events import FactKind
from shared.contracts.states import ExperimentState, PipelineVersionState, RunState
from shared.database import Transaction
from shared.subscriptions import Done, Fact, Handler, Outcome

from .domain import Ending
from .reactions import Reactions
from .slots import Slots
from .usecases import EXPERIMENT, Jobs


def handlers(jobs: Jobs, slots: Slots, reactions: Reactions) -> Mapping[FactKind[Any], Handler]:
    async def keep_experiment(tx: Transaction, fact: Fact[ExperimentState]) -> Outcome:
        await replica.keep(tx, EXPERIMENT, fact.state, is_deleted=fact.state.is_deleted)
        return Done()

    async def disable_with_experiment(tx: Transaction, fact: Fact[ExperimentState]) -> Outcome:
        await replica.keep(tx, EXPERIMENT, fact.state)
        await jobs.disable_of_experiment(tx, fact.state.id)
        return Done()

    async def free(tx: Transaction, fact: Fact[RunState]) -> Outcome:
        await slots.free(tx, fact.state)
        return Done()

    async def end(tx: Transaction, fact: Fact[RunState]) -> Outcome:
        await slots.free(tx, fact.state)
        await reactions.note(tx, fact.state, Ending(fact.kind.what), fact.message.time)
        return Done()

    async def keep_version(tx: Transaction, fact: Fact[PipelineVersionState]) -> Outcome:
        await reactions.keep_version(tx, fact.state)
        return Done()

    async def occupy(tx: Transaction, fact: Fact[RunState]) -> Outcome:
        await slots.occupy(tx, fact.state)
        return Done()

    async def reject(tx: Transaction, fact: Fact[RunState]) -> Outcome:
        await slots.reject(tx, fact.state)
        return Done()

    return {
        events.EXPERIMENT_CREATED: keep_experiment,
        events.EXPERIMENT_ARCHIVED: disable_with_experiment,
        events.EXPERIMENT_UNARCHIVED: keep_experiment,
        events.EXPERIMENT_DELETED: keep_experiment,
        events.PIPELINE_VERSION_CREATED: keep_version,
        events.PIPELINE_VERSION_DELETED: keep_version,
        events.RUN_SUCCEEDED: end,
        events.RUN_FAILED: end,
        events.RUN_ERROR: end,
        events.RUN_SKIPPED: end,
        events.RUN_DELETED: free,
        events.RUN_REJECTED: reject,
        events.RUN_RETRIED: occupy,
    }
