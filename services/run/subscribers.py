"""The event door of the run service: what others' facts change here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared import replica
from shared.contracts import events
from shared.contracts.events import FactKind
from shared.contracts.states import ExperimentState, JobState, MetricsState, PipelineVersionState, TriggerState
from shared.database import Transaction
from shared.subscriptions import Applying, Done, Fact, Fetching, Handler, Outcome, Together

from .domain import Metric
from .usecases import EXPERIMENT, PIPELINE_VERSION, Runs


def handlers(runs: Runs) -> Mapping[FactKind[Any], Handler]:
    async def keep_experiment(tx: Transaction, fact: Fact[ExperimentState]) -> Outcome:
        await replica.keep(tx, EXPERIMENT, fact.state, is_deleted=fact.state.is_deleted)
        return Done()

    async def archive_with_experiment(tx: Transaction, fact: Fact[ExperimentState]) -> Outcome:
        await replica.keep(tx, EXPERIMENT, fact.state)
        await runs.archive_experiment(tx, fact.state.id)
        return Done()

    async def keep_version(tx: Transaction, fact: Fact[PipelineVersionState]) -> Outcome:
        await replica.keep(tx, PIPELINE_VERSION, fact.state, is_deleted=fact.state.is_deleted)
        return Done()

    async def keep_metrics(tx: Transaction, facts: Sequence[Fact[MetricsState]]) -> Outcome:
        metrics = [
            Metric(
                run_id=fact.state.id,
                node_id=metric.node_id,
                name=metric.name,
                number=metric.number,
                format=metric.format.value,
            )
            for fact in facts
            for metric in fact.state.metrics
        ]
        await runs.keep_metrics(tx, metrics)
        return Done()

    async def drafts_of_slots(facts: Sequence[Fact[TriggerState]]) -> Applying:
        drafts = await runs.drafts_of_slots([(fact.state, fact.message.traceparent) for fact in facts])

        async def make(tx: Transaction) -> Outcome:
            await runs.make_of_slots(tx, drafts)
            for fact in facts:
                for replaced in fact.state.replaces:
                    await runs.follow_replacement(tx, replaced)
            return Done()

        return make

    async def forget_job(tx: Transaction, fact: Fact[JobState]) -> Outcome:
        await runs.forget_job(tx, fact.state.id)
        return Done()

    return {
        events.EXPERIMENT_CREATED: keep_experiment,
        events.EXPERIMENT_ARCHIVED: archive_with_experiment,
        events.EXPERIMENT_UNARCHIVED: keep_experiment,
        events.EXPERIMENT_DELETED: keep_experiment,
        events.JOB_DELETED: forget_job,
        events.JOB_TRIGGERED: Fetching(drafts_of_slots),
        events.METRICS_REPORTED: Together(keep_metrics),
        events.PIPELINE_VERSION_CREATED: keep_version,
        events.PIPELINE_VERSION_DELETED: keep_version,
    }
