"""The verbs of time: slots that have come are fired, each once, and freed when their runs are over.

Any number of replicas may do all of it at once. What is due is decided by the database's clock, and who fires it by
whose transaction holds the job's row. That transaction writes the slot and the fact of it, and talks to nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec
from prometheus_client import Counter, Histogram

from shared import telemetry
from shared.bus import Bus
from shared.contracts import events, states
from shared.contracts.questions import GET_RUN, ById
from shared.contracts.states import MissedState, ParameterValue, RunState, RunStatus, TriggerState
from shared.database import Connection, Database, Transaction
from shared.errors import NotFound
from shared.figures import schema_gauge
from shared.macros import Occasion, expand
from shared.outbox import Entry, Outbox
from shared.subscriptions import until_applied
from shared.telemetry import continue_trace

from . import domain, firing, store
from .causes import Cause
from .domain import Job, ResourceType
from .firing import Firing, Plan
from .schedule import Range
from .usecases import to_state, wake_tickers

SLOTS_KEPT = 100
"""How many slots of a job are remembered beyond those that are open."""

_RUNS = "run"
"""Who makes the runs."""
_CHECKED_AT_ONCE = 100

_log = logging.getLogger(__name__)
_fired = Counter(
    "headrace_job_slots_fired_total",
    "Slots that runs were ordered for; `cause` is schedule, backfill or run.",
    ("cause",),
    registry=telemetry.metrics,
)
_passed_over = Counter(
    "headrace_job_slots_missed_total", "Slots that were passed over for good.", registry=telemetry.metrics
)
_lateness = Histogram(
    "headrace_job_slot_lateness_seconds",
    "From a slot's time to the transaction that fires it, where no earlier slot of its job is caught up on.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300, 3600),
    registry=telemetry.metrics,
)
_overdue = schema_gauge(
    "headrace_job_slots_overdue_seconds",
    "How long the oldest slot is due that nobody has fired; 0 where there is none.",
)


class Slots:
    def __init__(self, database: Database, outbox: Outbox, bus: Bus, *, ask_seconds: float) -> None:
        self._database = database
        self._outbox = outbox
        self._bus = bus
        self._ask_seconds = ask_seconds

    async def fire(self, limit: int) -> int:
        """Fire what is due of at most so many jobs. Returns of how many."""
        async with self._database.transaction() as tx:
            now, jobs = await store.lock_due(tx, limit)
            planned = [(job, plan) for job in jobs if (plan := await self._planned(tx, job, now))]
            if planned:
                await self.write(tx, now, planned)
        for _, plan in planned:
            count_slots("schedule", plan)
            if len(plan.firings) == 1:
                _lateness.observe(max((now - plan.firings[0].slot).total_seconds(), 0))
        return len(jobs)

    async def fire_backfills(self, limit: int) -> int:
        """Fire slots of the past that were asked for, of at most so many jobs, as far as there is room. Returns of how
        many."""
        async with self._database.transaction() as tx:
            now, jobs = await store.lock_backfilling(tx, limit)
            planned = [
                (
                    job,
                    firing.plan_backfill(
                        job, await store.take_pending(tx, job.id, job.max_concurrency - job.active_runs)
                    ),
                )
                for job in jobs
            ]
            if planned:
                await self.write(tx, now, planned)
        for _, plan in planned:
            count_slots("backfill", plan)
        return len(jobs)

    async def show(self, connection: Connection) -> None:
        """For the metrics. Raises Unavailable."""
        seconds = await store.seconds_until_due(connection)
        _overdue.labels("job-scheduler").set(0 if seconds is None else max(-seconds, 0))

    async def seconds_until_due(self) -> float | None:
        """Not positive where something is due already; None where nothing is going to be."""
        return await store.seconds_until_due(self._database)

    async def free(self, tx: Transaction, run: RunState) -> None:
        """A run is over, or gone."""
        if run.job_id is None or run.scheduled_at is None:
            return
        is_due_earlier = await store.close_slot(tx, run.job_id, run.scheduled_at, run.id, run.version)
        if is_due_earlier is not None and not run.is_deleted:
            await self._count(tx, run.job_id, run.scheduled_at, run)
        if is_due_earlier:
            tx.after_commit(self._wake)

    async def occupy(self, tx: Transaction, run: RunState) -> None:
        """A run that was over is alive again, whether there is room for it or not."""
        if run.job_id is not None and run.scheduled_at is not None:
            await store.reopen_slot(tx, run.job_id, run.scheduled_at, run.id, run.version)

    async def reject(self, tx: Transaction, run: RunState) -> None:
        """There will be no run. Its job tells why, until the next slot comes."""
        await self.free(tx, run)
        if run.job_id is not None:
            await store.set_error(tx, run.job_id, run.error)

    async def check(self, older_than_seconds: float) -> int:
        """Free slots whose runs are over or unknown, though nobody has told. Returns how many.

        Of those only that were opened, or looked at, so long ago; what another replica looks at is left to it.
        Raises Unavailable.
        """
        taken = await store.take_open_slots(self._database, older_than_seconds, _CHECKED_AT_ONCE)
        position = max((slot.position for slot in taken), default=0)
        # A run that is not known yet may still be on its way.
        if not taken or not await until_applied(
            self._bus, (_RUNS,), self._outbox.owner, position, within_seconds=self._ask_seconds
        ):
            return 0
        freed = 0
        for slot in taken:
            over_at_version = await self._over_at_version(slot.run_id)
            if over_at_version == _ALIVE:
                continue
            async with self._database.transaction() as tx:
                is_freed = await store.close_slot(tx, slot.job_id, slot.slot, slot.run_id, over_at_version)
                if is_freed:
                    tx.after_commit(self._wake)
            if is_freed is not None:
                _log.warning("the slot %s of job %s was freed without a fact", slot.slot.isoformat(), slot.job_id)
                freed += 1
        return freed

    async def _count(self, tx: Transaction, job_id: str, slot: datetime, run: RunState) -> None:
        """A job may want to rest when its runs fail one after the other."""
        if run.status not in (RunStatus.FAILED, RunStatus.ERROR):
            await store.forget_failures(tx, job_id)
            return
        if await store.is_replaced(tx, job_id, slot, run.id):
            return
        job = await store.count_failure(tx, job_id)
        if job is None or not job.is_enabled or not 0 < job.pause_on_failures <= job.failures:
            return
        job = await store.pause(tx, job.id, domain.pause_reason(job.failures, run.id))
        await self._outbox.add(tx, events.JOB_DISABLED, to_state(job))

    async def _over_at_version(self, run_id: str) -> int | None:
        """`_ALIVE` where the run is not over, None where nobody knows it."""
        try:
            run = await self._bus.ask(GET_RUN, ById(id=run_id), within_seconds=self._ask_seconds)
        except NotFound:
            return None
        return run.version if run.status.is_final else _ALIVE

    async def _planned(self, tx: Transaction, job: Job, now: datetime) -> Plan | None:
        """None for a job that rests from now on: whatever is wrong with one schedule, the others go on."""
        try:
            return firing.plan(job, now)
        except Exception as error:  # noqa: BLE001 - a bug in one of them must not stop all
            _log.exception("job %s cannot be scheduled any more", job.id)
            await store.set_aside(tx, job.id, f"The schedule cannot be followed: {error!r}")
            return None

    async def write(self, tx: Transaction, now: datetime, planned: Sequence[tuple[Job, Plan]]) -> None:
        """The slots of jobs that this transaction holds, and the facts of them."""
        opened = await store.insert_slots(
            tx,
            [
                store.OpenedSlot(job_id=job.id, slot=each.slot, index=each.index, run_id=each.run_id)
                for job, plan in planned
                for each in plan.firings
            ],
        )
        # A slot that was there before, by a backfill, has its run already: nobody goes for it.
        replaced = {
            job.id: await store.replace_oldest(tx, job.id, each.run_id, job.max_concurrency - 1)
            for job, plan in planned
            for each in plan.firings
            if each.replaces and each.run_id in opened
        }
        told: list[Entry] = []
        advances: list[store.Advance] = []
        for job, plan in planned:
            firings = [each for each in plan.firings if each.run_id in opened]
            entries = self._entries(job, firings, plan, replaced.get(job.id, ()), now)
            told += entries
            advances.append(
                store.Advance(
                    job_id=job.id,
                    next_slot_at=plan.next_slot_at,
                    last_slot=plan.last_slot,
                    last_index=plan.last_index,
                    opened=len(firings),
                    facts=len(entries),
                )
            )
        await store.advance(tx, advances)
        await store.forget_slots(tx, [(each.job_id, each.last_index - SLOTS_KEPT) for each in advances])
        await self._outbox.add_all(tx, told)

    def _entries(
        self, job: Job, firings: list[Firing], plan: Plan, replaced: tuple[str, ...], now: datetime
    ) -> list[Entry]:
        entries: list[Entry] = []

        def give_up(slots: Range | None) -> None:
            if slots is not None:
                state = _missed(job, slots, job.version + len(entries) + 1)
                entries.append(self._outbox.entry(events.JOB_MISSED, state))

        for each in firings:
            # Nobody asked for it: every run begins a trace of its own.
            with continue_trace(None, "fire slot", attributes={"headrace.job_id": job.id}):
                give_up(each.missed)
                trigger = _trigger(job, each, replaced, now, job.version + len(entries) + 1)
                entries.append(self._outbox.entry(events.JOB_TRIGGERED, trigger, fact_id=UUID(each.run_id)))
        if plan.missed is not None:
            with continue_trace(None, "pass over slots", attributes={"headrace.job_id": job.id}):
                give_up(plan.missed)
        for cause, reason in plan.given_up:
            state = _given_up(job, cause, reason, job.version + len(entries) + 1)
            entries.append(self._outbox.entry(events.JOB_MISSED, state))
        return entries

    async def _wake(self) -> None:
        await wake_tickers(self._bus)


_ALIVE = 0


def count_slots(cause: str, plan: Plan) -> None:
    _fired.labels(cause).inc(len(plan.firings))
    ranges = (plan.missed, *(each.missed for each in plan.firings))
    _passed_over.inc(sum(each.count for each in ranges if each is not None) + len(plan.given_up))


def _trigger(job: Job, fired: Firing, replaced: tuple[str, ...], now: datetime, version: int) -> TriggerState:
    handover = fired.handover
    occasion = Occasion(run_id=fired.run_id, now=now, slot=fired.slot, index=fired.index)

    def value(text: str) -> str:
        # What a run hands over holds no macros, whatever it looks like.
        text = expand(text, occasion)
        return text if handover is None else handover.into(text)

    experiment = next((each for each in job.references if each.type is ResourceType.EXPERIMENT), None)
    return TriggerState(
        id=job.id,
        version=version,
        run_id=states.RunId(fired.run_id),
        slot=fired.slot,
        index=fired.index,
        name=job.name,
        workflow_name=domain.workflow_name(job.object_name, fired.index),
        namespace=job.namespace,
        experiment_id=states.ExperimentId(job.experiment_id),
        experiment_name=experiment.name if experiment is not None else "",
        pipeline_id=states.PipelineId(job.pipeline_id) if job.pipeline_id else None,
        pipeline_version_id=states.PipelineVersionId(job.pipeline_version_id) if job.pipeline_version_id else None,
        manifest_digest=job.manifest_digest,
        parameters=tuple(ParameterValue(name=each.name, value=value(each.value)) for each in job.parameters),
        service_account=job.service_account,
        engine=job.engine.value,
        replaces=tuple(states.RunId(each) for each in replaced),
        cause_run_id=None if handover is None else states.RunId(handover.cause.run.id),
        trigger_depth=0 if handover is None else handover.cause.run.trigger_depth + 1,
        created_by=job.created_by,
    )


def _missed(job: Job, slots: Range, version: int) -> MissedState:
    return MissedState(
        id=job.id,
        version=version,
        name=job.name,
        experiment_id=states.ExperimentId(job.experiment_id),
        count=slots.count,
        first=slots.first,
        last=slots.last,
    )


def _given_up(job: Job, cause: Cause, reason: str, version: int) -> MissedState:
    state = _missed(job, Range(count=1, first=cause.at, last=cause.at), version)
    return msgspec.structs.replace(state, reason=reason, cause_run_id=states.RunId(cause.run.id))
