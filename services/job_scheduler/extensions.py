"""The verbs that the original API does not have, beside `usecases.py`, the verbs of the API."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from shared.bus import Bus
from shared.contracts import events
from shared.database import Database, Transaction
from shared.identity import caller_subject
from shared.outbox import Outbox

from . import domain, firing, schedule, store
from .domain import CronTrigger, EngineName, FieldChange, Job, JobChange, Revision, View
from .usecases import Jobs, check_handover, check_trigger, check_zone, to_state, wake_tickers

REVISIONS_KEPT = 100
"""How many changes of a job are remembered."""
MOST_FORESEEN = 100
"""How many slots are foreseen at once."""

_USUALLY_FORESEEN = 10


class Extensions:
    def __init__(
        self, database: Database, outbox: Outbox, bus: Bus, jobs: Jobs, *, shortest_interval_seconds: int
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._bus = bus
        self._jobs = jobs
        self._shortest_interval_seconds = shortest_interval_seconds

    async def preview(self, job_id: str, count: int) -> tuple[Job, tuple[datetime, ...]]:
        """The next slots that fire, as if the job were enabled; 0 is a usual number of them."""
        domain.check_foreseen(count, MOST_FORESEEN)
        job = await self._get(job_id)
        now = await store.now(self._database)
        return job, schedule.preview(firing.standing_of(job), now, count or _USUALLY_FORESEEN)

    async def update(self, job_id: str, change: JobChange) -> View:
        """Runs that are alive go on as they are. A schedule that is changed counts from now on: what is due by the
        former one is not fired any more, and nothing is made up for by the new one."""
        await self._check(await self._get(job_id), change)
        async with self._database.transaction() as tx:
            before = await store.lock(tx, job_id)
            if before is None:
                raise domain.unknown(job_id)
            after = domain.changed(before, change)
            fields = domain.differences(before, after)
            if fields:
                await self._write(tx, before, after, fields)
        return await self._jobs.get(job_id)

    async def history(self, job_id: str) -> tuple[Revision, ...]:
        """The newest change first."""
        await self._get(job_id)
        return await store.list_revisions(self._database, job_id)

    async def backfill(
        self, job_id: str, since: datetime | None, until: datetime | None, *, is_dry: bool
    ) -> tuple[Job, tuple[datetime, ...]]:
        """Ask for the slots of a time that has passed. Returns those that will have a run: not those that have had one
        lately, nor those that wait already. They wait for room, whether the job is enabled or not."""
        async with self._database.transaction() as tx:
            job = await store.lock(tx, job_id)
            if job is None:
                raise domain.unknown(job_id)
            if job.engine is EngineName.EXTERNAL:
                raise domain.fired_elsewhere(job.id)
            domain.check_has_slots(job.trigger)
            now = await store.now(tx)
            until = until or now
            since = domain.check_range(since, until, now)
            standing = firing.standing_of(job)
            domain.check_number_of_slots(schedule.count_between(standing, since, until))
            slots = schedule.slots_between(standing, since, until, domain.MOST_SLOTS)
            if is_dry:
                return job, await store.without_known(tx, job.id, slots)
            tx.after_commit(self._wake)
            return job, await store.insert_pending(tx, job.id, slots)

    async def give_up_backfill(self, job_id: str) -> None:
        """What has not fired yet is not fired any more."""
        async with self._database.transaction() as tx:
            job = await store.lock(tx, job_id)
            if job is None:
                raise domain.unknown(job_id)
            await store.delete_pending(tx, job.id)

    async def _check(self, job: Job, change: JobChange) -> None:
        if job.engine is EngineName.EXTERNAL:
            raise domain.fired_elsewhere(job.id)
        if change.name is not None:
            domain.check_name(change.name)
        if change.max_concurrency is not None:
            domain.check_max_concurrency(change.max_concurrency)
        if change.trigger is not None:
            domain.check_is_scheduled(change.trigger)
            check_trigger(change.trigger, self._shortest_interval_seconds)
        if change.time_zone is not None:
            check_zone(change.time_zone)
        domain.check_missed_window(change.missed_window_seconds)
        domain.check_pause_on_failures(change.pause_on_failures or 0)
        if change.parameters is not None:
            domain.check_parameters_size(change.parameters)
            await self._jobs.check_parameters(change.parameters, job.manifest_digest)
        after = domain.changed(job, change)
        check_handover(after.trigger, after.parameters)
        if after.trigger != job.trigger:
            await self._jobs.check_loop(after)

    async def _write(self, tx: Transaction, before: Job, job: Job, fields: tuple[FieldChange, ...]) -> None:
        # A zone means nothing to what is no expression.
        is_moved = isinstance(job.trigger, CronTrigger) and before.time_zone != job.time_zone
        if is_moved or before.trigger != job.trigger:
            now = (await store.now(tx)).astimezone(UTC).replace(microsecond=0)
            job = msgspec.structs.replace(job, last_slot=max(now, job.last_slot or now))
            await store.restart_causes(tx, job.id)
        job = await store.update(tx, msgspec.structs.replace(job, next_slot_at=firing.first_slot(job)))
        await store.insert_revision(tx, job, caller_subject(), fields, REVISIONS_KEPT)
        await self._outbox.add(tx, events.JOB_UPDATED, to_state(job))
        tx.after_commit(self._wake)

    async def _wake(self) -> None:
        await wake_tickers(self._bus)

    async def _get(self, job_id: str) -> Job:
        job = await store.find(self._database, job_id)
        if job is None:
            raise domain.unknown(job_id)
        return job
