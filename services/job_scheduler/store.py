"""Every SQL statement of the job scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import assert_never

import msgspec

from shared.contracts.states import RunState
from shared.database import Connection, Row, Transaction
from shared.listing import Column, Kind, Listing
from shared.references import ResourceType as KeyType

from .causes import Cause, Link
from .domain import (
    CronTrigger,
    Ending,
    EngineName,
    FieldChange,
    Job,
    JobId,
    Missed,
    ObjectName,
    OneOff,
    Overlap,
    Parameter,
    PeriodicTrigger,
    Reference,
    Report,
    Revision,
    RunTrigger,
    Status,
    Trigger,
)

OBJECT_NAME_KEY = "jobs_object_name_key"

_COLUMNS = (
    "id, object_name, name, description, is_enabled, no_catchup, max_concurrency, trigger_kind, cron, "
    "interval_seconds, starts_at, ends_at, time_zone, missed, missed_window_seconds, pause_on_failures, overlap, "
    "experiment_id, namespace, resource_references, pipeline_id, pipeline_name, pipeline_version_id, "
    "referred_job_id, service_account, parameters, manifest_digest, engine, reported_status, next_slot_at, last_slot, "
    "last_index, active_runs, pending_slots, error, failures, pause_reason, version, created_by, created_at, "
    "updated_at, on_facts, on_pipeline_id, on_experiment_id, on_job_id, version_pipeline_id, pending_causes"
)

_PIPELINE_ID = Column("coalesce(pipeline_id, '')")

LISTING = Listing(
    model="Job",
    table="jobs",
    columns=_COLUMNS,
    fields={
        "id": Column("id"),
        "name": Column("name"),
        "created_at": Column("created_at", Kind.TIMESTAMP),
        "package_id": _PIPELINE_ID,
        # What the UI calls it; the original refuses its own UI.
        "pipeline_id": _PIPELINE_ID,
        # Beyond the API of the original, as for runs. The status is the one that `Job.status` tells.
        "experiment_id": Column("experiment_id"),
        "status": Column(
            f"case when engine = '{EngineName.EXTERNAL}' then coalesce(reported_status, '{Status.NO_STATUS}') "
            f"when trigger_kind = 'one-off' and last_index > 0 and active_runs = 0 then '{Status.SUCCEEDED}' "
            f"when trigger_kind = 'one-off' then '{Status.RUNNING}' "
            f"when is_enabled then '{Status.ENABLED}' else '{Status.DISABLED}' end"
        ),
        "created_by": Column("nullif(created_by, '')", is_nullable=True),
    },
    references={
        KeyType.EXPERIMENT: "experiment_id",
        KeyType.JOB: "referred_job_id",
        KeyType.PIPELINE_VERSION: "pipeline_version_id",
        KeyType.NAMESPACE: "namespace",
    },
)


async def insert(tx: Transaction, job: Job) -> Job:
    """The job, dated by the database.

    Raises ConstraintViolated(OBJECT_NAME_KEY) where the scheduler object's name is taken.
    """
    kind, cron, interval_seconds, starts_at, ends_at, *on = _trigger_columns(job.trigger)
    row = await tx.fetchrow(
        f"""
        with now as materialized (select clock_timestamp() as now)
        insert into jobs (
            id, object_name, name, description, is_enabled, no_catchup, max_concurrency, trigger_kind, cron,
            interval_seconds, starts_at, ends_at, experiment_id, namespace, resource_references, pipeline_id,
            pipeline_name, pipeline_version_id, referred_job_id, service_account, parameters, manifest_digest, engine,
            created_by, time_zone, missed, missed_window_seconds, pause_on_failures, overlap, on_facts, on_pipeline_id,
            on_experiment_id, on_job_id, version_pipeline_id, on_since, created_at, updated_at
        )
        select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
            $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, now, now, now
        from now
        returning {_COLUMNS}
        """,  # noqa: S608
        job.id,
        job.object_name,
        job.name,
        job.description,
        job.is_enabled,
        job.no_catchup,
        job.max_concurrency,
        kind,
        cron,
        interval_seconds,
        starts_at,
        ends_at,
        job.experiment_id,
        job.namespace,
        msgspec.json.encode(job.references).decode(),
        job.pipeline_id,
        job.pipeline_name,
        job.pipeline_version_id,
        job.referred_job_id,
        job.service_account,
        msgspec.json.encode(job.parameters).decode(),
        job.manifest_digest,
        job.engine.value,
        job.created_by,
        job.time_zone,
        job.missed,
        job.missed_window_seconds,
        job.pause_on_failures,
        job.overlap,
        *on,
        job.version_pipeline_id,
    )
    assert row is not None
    return to_job(row)


async def find(connection: Connection, job_id: str) -> Job | None:
    row = await connection.fetchrow(f"select {_COLUMNS} from jobs where id = $1", job_id)  # noqa: S608
    return None if row is None else to_job(row)


async def lock(tx: Transaction, job_id: str) -> Job | None:
    row = await tx.fetchrow(f"select {_COLUMNS} from jobs where id = $1 for no key update", job_id)  # noqa: S608
    return None if row is None else to_job(row)


async def exists(connection: Connection, job_id: str) -> bool:
    return await connection.fetchval("select 1 from jobs where id = $1", job_id) is not None


async def set_enabled(tx: Transaction, job_id: str, *, is_enabled: bool) -> Job | None:
    """The job as it is now; None where it is unknown or was so already."""
    row = await tx.fetchrow(
        f"""
        update jobs set
            is_enabled = $2, failures = 0, pause_reason = '', updated_at = clock_timestamp(), version = version + 1
        where id = $1 and is_enabled <> $2
        returning {_COLUMNS}
        """,  # noqa: S608
        job_id,
        is_enabled,
    )
    return None if row is None else to_job(row)


async def disable_of_experiment(tx: Transaction, experiment_id: str) -> list[Job]:
    """Disable every job of an experiment. Returns those that were enabled."""
    rows = await tx.fetch(
        f"""
        update jobs set is_enabled = false, updated_at = clock_timestamp(), version = version + 1
        where experiment_id = $1 and is_enabled
        returning {_COLUMNS}
        """,  # noqa: S608
        experiment_id,
    )
    return [to_job(row) for row in rows]


async def follow(tx: Transaction, report: Report) -> Job:
    """The job as it is reported.

    Raises ConstraintViolated(OBJECT_NAME_KEY) where the scheduler object's name is another job's.
    """
    kind, cron, interval_seconds, starts_at, ends_at, *_ = _trigger_columns(report.trigger)
    row = await tx.fetchrow(
        f"""
        update jobs set
            object_name = $2, namespace = $3, is_enabled = $4, no_catchup = $5, max_concurrency = $6,
            trigger_kind = $7, cron = $8, interval_seconds = $9, starts_at = $10, ends_at = $11, parameters = $12,
            reported_status = $13, updated_at = clock_timestamp(), version = version + 1
        where id = $1
        returning {_COLUMNS}
        """,  # noqa: S608
        report.job_id,
        report.object_name,
        report.namespace,
        report.is_enabled,
        report.no_catchup,
        report.max_concurrency,
        kind,
        cron,
        interval_seconds,
        starts_at,
        ends_at,
        msgspec.json.encode(report.parameters).decode(),
        report.status.value,
    )
    assert row is not None, "the caller holds its lock"
    return to_job(row)


async def set_next_slot(tx: Transaction, job_id: JobId, next_slot_at: datetime | None) -> None:
    await tx.execute("update jobs set next_slot_at = $2 where id = $1", job_id, next_slot_at)


async def delete(tx: Transaction, job_id: str) -> Job | None:
    """Remove the job with its slots and its history, and its mention in jobs that refer to it."""
    row = await tx.fetchrow(
        f"""
        with freed as (
            delete from slots where job_id = $1
        ), given_up as (
            delete from pending_slots where job_id = $1
        ), unmade as (
            delete from causes where job_id = $1
        ), forgotten as (
            delete from revisions where job_id = $1
        ), unmentioned as (
            update jobs set
                referred_job_id = null,
                resource_references = jsonb_path_query_array(resource_references, '$[*] ? (@.type != "JOB")')
            where referred_job_id = $1
        )
        delete from jobs where id = $1
        returning {_COLUMNS}
        """,  # noqa: S608
        job_id,
    )
    return None if row is None else to_job(row)


# Changes.


async def now(connection: Connection) -> datetime:
    at: datetime = await connection.fetchval("select clock_timestamp()")
    return at


async def update(tx: Transaction, job: Job) -> Job:
    """The job with what may be changed of it, and where its schedule stands then."""
    kind, cron, interval_seconds, starts_at, ends_at, *on = _trigger_columns(job.trigger)
    row = await tx.fetchrow(
        f"""
        update jobs set
            name = $2, description = $3, max_concurrency = $4, no_catchup = $5, trigger_kind = $6, cron = $7,
            interval_seconds = $8, starts_at = $9, ends_at = $10, time_zone = $11, missed = $12,
            missed_window_seconds = $13, parameters = $14, last_slot = $15, next_slot_at = $16,
            pause_on_failures = $17, overlap = $18, on_facts = $19, on_pipeline_id = $20, on_experiment_id = $21,
            on_job_id = $22,
            updated_at = clock_timestamp(), version = version + 1
        where id = $1
        returning {_COLUMNS}
        """,  # noqa: S608
        job.id,
        job.name,
        job.description,
        job.max_concurrency,
        job.no_catchup,
        kind,
        cron,
        interval_seconds,
        starts_at,
        ends_at,
        job.time_zone,
        job.missed,
        job.missed_window_seconds,
        msgspec.json.encode(job.parameters).decode(),
        job.last_slot,
        job.next_slot_at,
        job.pause_on_failures,
        job.overlap,
        *on,
    )
    assert row is not None, "the caller holds its lock"
    return to_job(row)


async def insert_revision(tx: Transaction, job: Job, changed_by: str, fields: Sequence[FieldChange], kept: int) -> None:
    """As of the job's version. Of older ones only so many are kept."""
    await tx.execute(
        """
        with old as (
            delete from revisions where job_id = $1 and version <= (
                select version from revisions where job_id = $1 order by version desc offset $5 - 1 limit 1
            )
        )
        insert into revisions (job_id, version, changed_by, fields) values ($1, $2, $3, $4)
        """,
        job.id,
        job.version,
        changed_by,
        msgspec.json.encode(fields).decode(),
        kept,
    )


async def list_revisions(connection: Connection, job_id: str) -> tuple[Revision, ...]:
    """The newest first."""
    rows = await connection.fetch(
        "select version, changed_at, changed_by, fields from revisions where job_id = $1 order by version desc", job_id
    )
    return tuple(
        Revision(
            version=row["version"],
            changed_at=row["changed_at"],
            changed_by=row["changed_by"],
            fields=_field_changes(row["fields"]),
        )
        for row in rows
    )


# Slots. Whoever changes slots of a job holds the job's row first.


async def lock_due(tx: Transaction, limit: int) -> tuple[datetime, list[Job]]:
    """Now, and jobs whose next slot has come by then, the longest waiting first; not those that another holds."""
    rows = await tx.fetch(
        f"""
        with clock as materialized (select clock_timestamp() as now)
        select clock.now, {_COLUMNS} from clock left join lateral (
            select {_COLUMNS} from jobs
            where is_enabled and (active_runs < max_concurrency or overlap <> 'queue') and next_slot_at is not null
              and next_slot_at <= clock.now
            order by next_slot_at, id limit $1 for no key update skip locked
        ) as due on true
        """,  # noqa: S608
        limit,
    )
    return rows[0]["now"], [to_job(row) for row in rows if row["id"] is not None]


async def seconds_until_due(connection: Connection) -> float | None:
    """By the database's clock; not positive where something is due already, None where nothing is going to be."""
    seconds: float | None = await connection.fetchval(
        """
        (
            select 0::float8 as seconds from jobs
            where pending_slots > 0 and active_runs < max_concurrency and pause_reason = '' limit 1
        ) union all (
            select 0 from jobs
            where pending_causes > 0 and is_enabled and (active_runs < max_concurrency or overlap <> 'queue') limit 1
        ) union all (
            select extract(epoch from next_slot_at - clock_timestamp())::float8 from jobs
            where is_enabled and (active_runs < max_concurrency or overlap <> 'queue') and next_slot_at is not null
            order by next_slot_at limit 1
        ) order by seconds limit 1
        """
    )
    return seconds


class OpenedSlot(msgspec.Struct, frozen=True, kw_only=True):
    job_id: JobId
    slot: datetime
    index: int
    run_id: str


async def insert_slots(tx: Transaction, slots: Sequence[OpenedSlot]) -> set[str]:
    """The runs of those that had not come before."""
    rows = await tx.fetch(
        """
        insert into slots (job_id, slot, index, run_id)
        select * from unnest($1::text[], $2::timestamptz[], $3::bigint[], $4::text[])
        on conflict do nothing
        returning run_id
        """,
        [each.job_id for each in slots],
        [each.slot for each in slots],
        [each.index for each in slots],
        [each.run_id for each in slots],
    )
    return {row["run_id"] for row in rows}


async def without_known(connection: Connection, job_id: JobId, slots: Sequence[datetime]) -> tuple[datetime, ...]:
    """Those that have not come yet and that nobody has asked for, in their order."""
    rows = await connection.fetch(
        """
        select slot from unnest($2::timestamptz[]) with ordinality as asked (slot, nth)
        where not exists (select 1 from slots where slots.job_id = $1 and slots.slot = asked.slot)
          and not exists (select 1 from pending_slots as other where other.job_id = $1 and other.slot = asked.slot)
        order by nth
        """,
        job_id,
        list(slots),
    )
    return tuple(row["slot"] for row in rows)


async def insert_pending(tx: Transaction, job_id: JobId, slots: Sequence[datetime]) -> tuple[datetime, ...]:
    """Those that have not come yet and that nobody has asked for, the oldest first."""
    rows = await tx.fetch(
        """
        with added as (
            insert into pending_slots (job_id, slot)
            select $1, slot from unnest($2::timestamptz[]) as asked (slot)
            where not exists (select 1 from slots where slots.job_id = $1 and slots.slot = asked.slot)
            on conflict do nothing
            returning slot
        ), counted as (
            update jobs set pending_slots = pending_slots + (select count(*) from added) where id = $1
        )
        select slot from added order by slot
        """,
        job_id,
        list(slots),
    )
    return tuple(row["slot"] for row in rows)


async def delete_pending(tx: Transaction, job_id: JobId) -> None:
    await tx.execute(
        """
        with gone as (delete from pending_slots where job_id = $1)
        update jobs set pending_slots = 0 where id = $1
        """,
        job_id,
    )


async def lock_backfilling(tx: Transaction, limit: int) -> tuple[datetime, list[Job]]:
    """Now, and jobs that have room for slots of the past; not those that another holds."""
    rows = await tx.fetch(
        f"""
        select {_COLUMNS} from jobs
        where pending_slots > 0 and active_runs < max_concurrency and pause_reason = ''
        order by id limit $1 for no key update skip locked
        """,  # noqa: S608
        limit,
    )
    return await now(tx), [to_job(row) for row in rows]


async def take_pending(tx: Transaction, job_id: JobId, limit: int) -> tuple[datetime, ...]:
    """The oldest ones, which are not pending any more."""
    rows = await tx.fetch(
        """
        with taken as (
            delete from pending_slots where job_id = $1 and slot in (
                select slot from pending_slots where job_id = $1 order by slot limit $2
            )
            returning slot
        ), counted as (
            update jobs set pending_slots = pending_slots - (select count(*) from taken) where id = $1
        )
        select slot from taken order by slot
        """,
        job_id,
        limit,
    )
    return tuple(row["slot"] for row in rows)


async def replace_oldest(tx: Transaction, job_id: JobId, run_id: str, but: int) -> tuple[str, ...]:
    """The runs of open slots that have to go for another one, so that only so many stay beside it.

    Those that have to go already do not count.
    """
    rows = await tx.fetch(
        """
        update slots set replaced_at = clock_timestamp()
        where job_id = $1 and index in (
            select index from slots
            where job_id = $1 and ended_at is null and replaced_at is null and run_id <> $2
            order by slot desc, index desc offset $3
        )
        returning slot, index, run_id
        """,
        job_id,
        run_id,
        but,
    )
    return tuple(row["run_id"] for row in sorted(rows, key=lambda row: (row["slot"], row["index"])))


async def is_replaced(connection: Connection, job_id: str, slot: datetime, run_id: str) -> bool:
    """Whether the slot's run had to go for that of a later one."""
    at = await connection.fetchval(
        "select replaced_at from slots where job_id = $1 and slot = $2 and run_id = $3", job_id, slot, run_id
    )
    return at is not None


class Advance(msgspec.Struct, frozen=True, kw_only=True):
    """How a job's schedule moves on."""

    job_id: JobId
    next_slot_at: datetime | None
    last_slot: datetime | None
    last_index: int
    opened: int
    """How many slots were opened."""
    facts: int
    """How many facts tell of it."""


async def advance(tx: Transaction, advances: Sequence[Advance]) -> None:
    await tx.execute(
        """
        update jobs set
            next_slot_at = moved.next_slot_at, last_slot = moved.last_slot, last_index = moved.last_index,
            active_runs = active_runs + moved.opened, version = version + moved.facts,
            error = case when moved.opened > 0 then '' else error end
        from unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::bigint[], $5::integer[], $6::integer[])
            as moved (job_id, next_slot_at, last_slot, last_index, opened, facts)
        where jobs.id = moved.job_id
        """,
        [each.job_id for each in advances],
        [each.next_slot_at for each in advances],
        [each.last_slot for each in advances],
        [each.last_index for each in advances],
        [each.opened for each in advances],
        [each.facts for each in advances],
    )


async def forget_slots(tx: Transaction, up_to: Sequence[tuple[JobId, int]]) -> None:
    """Those of a job with an index up to the given one, unless they are open."""
    await tx.execute(
        """
        delete from slots using unnest($1::text[], $2::bigint[]) as old (job_id, index)
        where slots.job_id = old.job_id and slots.index <= old.index and slots.ended_at is not null
        """,
        [job_id for job_id, _ in up_to],
        [index for _, index in up_to],
    )


async def close_slot(tx: Transaction, job_id: str, slot: datetime, run_id: str, run_version: int | None) -> bool | None:
    """The slot's run is over, as of a version of it; without one, because nobody knows it.

    Returns whether the job is due earlier by that, because it was waiting for a run to end; None where nothing changed.
    """
    was_waiting: bool | None = await tx.fetchval(
        """
        with job as materialized (
            select id, active_runs >= max_concurrency and (
                pending_slots > 0
                or is_enabled and overlap = 'queue' and (next_slot_at is not null or pending_causes > 0)
            ) as was_waiting
            from jobs where id = $1 for no key update
        ), closed as (
            update slots set ended_at = clock_timestamp(), run_version = coalesce($4, run_version) from job
            where job_id = job.id and slot = $2 and run_id = $3 and ended_at is null
              and ($4::bigint is null or run_version < $4)
            returning job_id
        )
        update jobs set active_runs = active_runs - 1 from job, closed where jobs.id = job.id
        returning job.was_waiting
        """,
        job_id,
        slot,
        run_id,
        run_version,
    )
    return was_waiting


async def reopen_slot(tx: Transaction, job_id: str, slot: datetime, run_id: str, run_version: int) -> None:
    """The slot's run is alive again."""
    await tx.execute(
        """
        with job as materialized (
            select id from jobs where id = $1 for no key update
        ), opened as (
            update slots set
                ended_at = null, replaced_at = null, run_version = $4, checked_at = clock_timestamp()
            from job
            where job_id = job.id and slot = $2 and run_id = $3 and ended_at is not null and run_version < $4
            returning job_id
        )
        update jobs set active_runs = active_runs + 1 from opened where jobs.id = opened.job_id
        """,
        job_id,
        slot,
        run_id,
        run_version,
    )


async def set_aside(tx: Transaction, job_id: JobId, error: str) -> None:
    """No slot of it comes any more."""
    await tx.execute("update jobs set next_slot_at = null, error = $2 where id = $1", job_id, error)


async def count_failure(tx: Transaction, job_id: str) -> Job | None:
    """One more in a row."""
    row = await tx.fetchrow(
        f"update jobs set failures = failures + 1 where id = $1 returning {_COLUMNS}",  # noqa: S608
        job_id,
    )
    return None if row is None else to_job(row)


async def forget_failures(tx: Transaction, job_id: str) -> None:
    await tx.execute("update jobs set failures = 0 where id = $1 and failures > 0", job_id)


async def pause(tx: Transaction, job_id: JobId, reason: str) -> Job:
    row = await tx.fetchrow(
        f"""
        update jobs set
            is_enabled = false, pause_reason = $2, updated_at = clock_timestamp(), version = version + 1
        where id = $1
        returning {_COLUMNS}
        """,  # noqa: S608
        job_id,
        reason,
    )
    assert row is not None, "the caller holds its lock"
    return to_job(row)


async def set_error(tx: Transaction, job_id: str, error: str) -> None:
    await tx.execute("update jobs set error = $2 where id = $1 and error <> $2", job_id, error)


class OpenSlot(msgspec.Struct, frozen=True, kw_only=True):
    job_id: JobId
    slot: datetime
    run_id: str
    position: int
    """Of the fact that it has come; 0 where that is too long ago to be kept."""


async def take_open_slots(connection: Connection, older_than_seconds: float, limit: int) -> list[OpenSlot]:
    """Open slots that nobody has looked at for so long, and whose facts have been published; the caller does, now."""
    rows = await connection.fetch(
        """
        with old as (
            select job_id, slot, run_id from slots
            where ended_at is null and checked_at < clock_timestamp() - make_interval(secs => $1)
            order by checked_at limit $2 for no key update skip locked
        ), taken as (
            update slots set checked_at = clock_timestamp() from old
            where slots.job_id = old.job_id and slots.slot = old.slot and slots.run_id = old.run_id
            returning slots.job_id, slots.slot, slots.run_id
        )
        select taken.job_id, taken.slot, taken.run_id, coalesce(outbox.position, 0) as position
        from taken left join outbox on outbox.id = taken.run_id::uuid
        where outbox.id is null or outbox.position is not null
        """,
        older_than_seconds,
        limit,
    )
    return [
        OpenSlot(job_id=JobId(row["job_id"]), slot=row["slot"], run_id=row["run_id"], position=row["position"])
        for row in rows
    ]


# Causes: ends of runs that trigger jobs. Whoever changes causes of a job holds the job's row first.

# What is not enabled, or has all the runs that it may have and lets others wait, is left alone.
_IS_CAUSED = "pending_causes > 0 and is_enabled and (active_runs < max_concurrency or overlap <> 'queue')"
_MOST_CAUSES = 1000
PIPELINE_VERSION = "pipeline-version"
"""The kind of the replicas that tell which pipeline a version is of."""


async def insert_causes(tx: Transaction, run: RunState, ending: Ending, at: datetime) -> int:
    """One for each job that the end of the run triggers, unless it is there already. Returns how many there are now.

    A run that a job has made is of the job's pipeline, and one that was made of a version is of the version's.
    """
    added: int = await tx.fetchval(
        """
        with run as materialized (
            select coalesce(
                $4::text, (select version_pipeline_id from jobs where id = $6::text),
                (select state ->> 'pipeline_id' from replicas where kind = $10 and id = $5::text)
            ) as pipeline_id
        ), triggered as materialized (
            select jobs.id from jobs, run
            where trigger_kind = 'run' and is_enabled and on_since < $8::timestamptz
              and on_facts && array[$3::text, 'ended']
              and (on_pipeline_id is null or on_pipeline_id = run.pipeline_id)
              and (on_experiment_id is null or on_experiment_id = $7)
              and (on_job_id is null or on_job_id = $6)
            order by jobs.id for no key update of jobs
        ), added as (
            insert into causes (job_id, run_id, attempt, at, run)
            select id, $1::text, $2::integer, $8, $9::jsonb from triggered
            on conflict do nothing
            returning job_id
        ), counted as (
            update jobs set pending_causes = pending_causes + 1 from added where jobs.id = added.job_id
        )
        select count(*) from added
        """,
        run.id,
        run.attempt,
        ending,
        run.pipeline_id,
        run.pipeline_version_id,
        run.job_id,
        run.experiment_id,
        at,
        msgspec.json.encode(run).decode(),
        PIPELINE_VERSION,
    )
    return added


async def list_caused(connection: Connection, limit: int) -> list[Job]:
    """Jobs of whose causes something is to be made."""
    rows = await connection.fetch(
        f"select {_COLUMNS} from jobs where {_IS_CAUSED} order by id limit $1",  # noqa: S608
        limit,
    )
    return [to_job(row) for row in rows]


async def lock_caused(tx: Transaction, job_ids: Sequence[JobId]) -> tuple[datetime, list[Job]]:
    """Now, and those of the jobs of which it still is so; not those that another holds."""
    rows = await tx.fetch(
        f"""
        select {_COLUMNS} from jobs where id = any($1::text[]) and {_IS_CAUSED}
        order by id for no key update skip locked
        """,  # noqa: S608
        list(job_ids),
    )
    return await now(tx), [to_job(row) for row in rows]


async def list_causes(connection: Connection, job_id: JobId) -> list[Cause]:
    """Those that wait, the oldest first."""
    rows = await connection.fetch(
        "select run, at from causes where job_id = $1 and decided_at is null order by at, run_id limit $2",
        job_id,
        _MOST_CAUSES,
    )
    return [Cause(run=_run(row["run"]), at=row["at"]) for row in rows]


async def settle_causes(tx: Transaction, job_id: JobId, settled: Sequence[Cause], kept: int) -> None:
    """Something was made of them, or will never be. Of those that are settled before only so many are kept."""
    await tx.execute(
        """
        with settled as (
            update causes set decided_at = clock_timestamp()
            from unnest($2::text[], $3::integer[]) as gone (run_id, attempt)
            where causes.job_id = $1 and causes.run_id = gone.run_id and causes.attempt = gone.attempt
              and decided_at is null
            returning 1
        ), forgotten as (
            delete from causes where job_id = $1 and decided_at is not null and decided_at <= (
                select decided_at from causes where job_id = $1 and decided_at is not null
                order by decided_at desc offset $4 limit 1
            )
        )
        update jobs set pending_causes = pending_causes - (select count(*) from settled) where id = $1
        """,
        job_id,
        [each.run.id for each in settled],
        [each.run.attempt for each in settled],
        kept,
    )


async def restart_causes(tx: Transaction, job_id: JobId) -> None:
    """What waits is dropped, and only runs that end from now on count."""
    await tx.execute(
        """
        with dropped as (delete from causes where job_id = $1 and decided_at is null)
        update jobs set pending_causes = 0, on_since = clock_timestamp() where id = $1
        """,
        job_id,
    )


async def list_links(connection: Connection) -> list[Link]:
    """All jobs that runs trigger."""
    rows = await connection.fetch(
        """
        select id, name, version_pipeline_id, experiment_id, on_facts, on_pipeline_id, on_experiment_id, on_job_id
        from jobs where trigger_kind = 'run' order by created_at, id
        """
    )
    return [
        Link(
            id=row["id"],
            name=row["name"],
            pipeline_id=row["version_pipeline_id"],
            experiment_id=row["experiment_id"],
            trigger=_to_run_trigger(row),
        )
        for row in rows
    ]


# Manifests.


async def find_manifests(connection: Connection, digests: Sequence[str]) -> dict[str, str]:
    rows = await connection.fetch("select digest, body from manifests where digest = any($1::text[])", list(digests))
    return {row["digest"]: row["body"] for row in rows}


async def insert_manifest(connection: Connection, digest: str, body: str) -> None:
    await connection.execute(
        "insert into manifests (digest, body) values ($1, $2) on conflict (digest) do nothing", digest, body
    )


# Rows.

_references = msgspec.json.Decoder(tuple[Reference, ...]).decode
_field_changes = msgspec.json.Decoder(tuple[FieldChange, ...]).decode
_parameters = msgspec.json.Decoder(tuple[Parameter, ...]).decode
_run = msgspec.json.Decoder(RunState).decode


def to_job(row: Row) -> Job:
    return Job(
        id=JobId(row["id"]),
        object_name=ObjectName(row["object_name"]),
        name=row["name"],
        description=row["description"],
        is_enabled=row["is_enabled"],
        no_catchup=row["no_catchup"],
        max_concurrency=row["max_concurrency"],
        trigger=_to_trigger(row),
        time_zone=row["time_zone"],
        missed=Missed(row["missed"]) if row["missed"] else None,
        missed_window_seconds=row["missed_window_seconds"],
        pause_on_failures=row["pause_on_failures"],
        overlap=Overlap(row["overlap"]),
        experiment_id=row["experiment_id"],
        namespace=row["namespace"],
        references=_references(row["resource_references"]),
        pipeline_id=row["pipeline_id"],
        pipeline_name=row["pipeline_name"],
        pipeline_version_id=row["pipeline_version_id"],
        version_pipeline_id=row["version_pipeline_id"],
        referred_job_id=row["referred_job_id"],
        service_account=row["service_account"],
        parameters=_parameters(row["parameters"]),
        manifest_digest=row["manifest_digest"],
        engine=EngineName(row["engine"]),
        reported_status=Status(row["reported_status"]) if row["reported_status"] else None,
        next_slot_at=row["next_slot_at"],
        last_slot=row["last_slot"],
        last_index=row["last_index"],
        active_runs=row["active_runs"],
        pending_slots=row["pending_slots"],
        pending_causes=row["pending_causes"],
        error=row["error"],
        failures=row["failures"],
        pause_reason=row["pause_reason"],
        version=row["version"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _to_trigger(row: Row) -> Trigger:
    match row["trigger_kind"]:
        case "cron":
            return CronTrigger(cron=row["cron"], starts_at=row["starts_at"], ends_at=row["ends_at"])
        case "periodic":
            return PeriodicTrigger(
                interval_seconds=row["interval_seconds"], starts_at=row["starts_at"], ends_at=row["ends_at"]
            )
        case "run":
            return _to_run_trigger(row)
        case _:
            return OneOff()


def _to_run_trigger(row: Row) -> RunTrigger:
    return RunTrigger(
        facts=tuple(Ending(fact) for fact in row["on_facts"]),
        pipeline_id=row["on_pipeline_id"],
        experiment_id=row["on_experiment_id"],
        job_id=row["on_job_id"],
    )


def _trigger_columns(trigger: Trigger) -> tuple[object, ...]:
    nothing_on = (None, None, None, None)
    match trigger:
        case OneOff():
            return "one-off", None, None, None, None, *nothing_on
        case CronTrigger(cron=cron, starts_at=starts_at, ends_at=ends_at):
            return "cron", cron, None, starts_at, ends_at, *nothing_on
        case PeriodicTrigger(interval_seconds=seconds, starts_at=starts_at, ends_at=ends_at):
            return "periodic", None, seconds, starts_at, ends_at, *nothing_on
        case RunTrigger(facts=facts, pipeline_id=pipeline_id, experiment_id=experiment_id, job_id=job_id):
            on = [fact.value for fact in facts], pipeline_id, experiment_id, job_id
            return "run", None, None, None, None, *on
        case _ as unreachable:
            assert_never(unreachable)
