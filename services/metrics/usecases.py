"""The verbs of the metrics service. Knows rules and rows; knows neither HTTP nor what a run does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from uuid import UUID

import msgspec

from shared import replica
from shared.bus import Bus
from shared.contracts import events
from shared.contracts.questions import GET_RUN, ById
from shared.contracts.states import Metric as PublicMetric
from shared.contracts.states import MetricFormat, RunState
from shared.database import Connection, Database, Transaction
from shared.errors import NotFound
from shared.outbox import Outbox, Positions
from shared.subscriptions import until_applied

from . import domain, store
from .domain import Metric, Outcome, RunId, Status

FOLLOWERS: Final = ("run",)
"""Who shows metrics to a client that has just reported them."""

MOST_IN_A_FACT: Final = 200
"""The longest metric takes less than a KiB of JSON: a fact stays below 256 KiB."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    outcomes: tuple[Outcome, ...]
    """One for each metric of the request, in its order."""
    position: int
    """Of the last fact that tells of them; 0 where nothing new was recorded."""


class Metrics:
    def __init__(
        self, database: Database, outbox: Outbox, bus: Bus, *, ask_seconds: float, applied_wait_seconds: float
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._positions = Positions(database)
        self._bus = bus
        self._ask_seconds = ask_seconds
        self._applied_wait_seconds = applied_wait_seconds

    async def report(self, run_id: str, metrics: Sequence[Metric], *, until_seen: bool) -> Report:
        """Record what is valid and new. Raises NotFound for a run that does not exist.

        `until_seen`: return when the run service shows them, or after a bounded wait.
        """
        refused = {nth: why for nth, metric in enumerate(metrics) if (why := domain.why_invalid(metric))}
        first = _first_of_each([metric for nth, metric in enumerate(metrics) if nth not in refused])
        recorded = await self._record(run_id, first)
        outcomes = tuple(
            _invalid(metric, refused[nth])
            if nth in refused
            else _accepted(metric)
            if metric is first[metric.key] and metric.key in recorded.keys
            else _duplicate(metric)
            for nth, metric in enumerate(metrics)
        )
        position = await self._position(recorded.fact_id, until_seen=until_seen) if recorded.fact_id else 0
        return Report(outcomes=outcomes, position=position)

    async def _record(self, run_id: str, metrics: Mapping[domain.Key, Metric]) -> store.Recorded:
        recorded = await self._try_record(self._database, run_id, metrics, is_known=False)
        if not recorded.is_alive:
            await self._ask_for(run_id)
            async with self._database.transaction() as tx:
                await store.lock_run(tx, run_id)
                recorded = await self._try_record(tx, run_id, metrics, is_known=True)
        if not recorded.is_alive:
            raise domain.unknown_run(run_id)
        if recorded.fact_id is not None:
            await self._outbox.wake()
        return recorded

    async def _try_record(
        self, connection: Connection, run_id: str, metrics: Mapping[domain.Key, Metric], *, is_known: bool
    ) -> store.Recorded:
        """`is_known`: the run's owner said just now that it exists."""
        return await store.record(
            connection,
            RunId(run_id),
            list(metrics.values()),
            events.METRICS_REPORTED,
            [_to_public(metric) for metric in metrics.values()],
            most_in_a_fact=MOST_IN_A_FACT,
            is_known=is_known,
        )

    async def _ask_for(self, run_id: str) -> None:
        try:
            await self._bus.ask(GET_RUN, ById(id=run_id), within_seconds=self._ask_seconds)
        except NotFound as refusal:
            raise domain.unknown_run(run_id) from refusal

    async def _position(self, fact_id: UUID, *, until_seen: bool) -> int:
        """0 where the relay is too slow."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._applied_wait_seconds
        position = await self._positions.of(fact_id, within_seconds=self._applied_wait_seconds)
        if position is None:
            return 0
        if until_seen:
            left_seconds = max(0.0, deadline - loop.time())
            await until_applied(self._bus, FOLLOWERS, self._outbox.owner, position, within_seconds=left_seconds)
        return position


async def know_runs(tx: Transaction, runs: Sequence[RunState]) -> None:
    """Runs that there are now."""
    await replica.keep_all(tx, store.RUN, runs)


async def forget_run(tx: Transaction, run: RunState) -> None:
    """A run that was deleted, and what it reported."""
    await store.lock_run(tx, run.id)  # A report under way has ended, and the next one sees the deletion.
    await replica.keep(tx, store.RUN, run, is_deleted=True)
    await store.purge(tx, run.id)


def _first_of_each(metrics: Iterable[Metric]) -> dict[domain.Key, Metric]:
    first: dict[domain.Key, Metric] = {}
    for metric in metrics:
        first.setdefault(metric.key, metric)
    return first


def _accepted(metric: Metric) -> Outcome:
    return Outcome(metric=metric, status=Status.OK)


def _invalid(metric: Metric, why: str) -> Outcome:
    return Outcome(metric=metric, status=Status.INVALID_ARGUMENT, message=why)


def _duplicate(metric: Metric) -> Outcome:
    return Outcome(metric=metric, status=Status.DUPLICATE_REPORTING, message=domain.duplicate(metric))


def _to_public(metric: Metric) -> PublicMetric:
    return PublicMetric(
        node_id=metric.node_id, name=metric.name, number=metric.number, format=MetricFormat(metric.format.value)
    )
