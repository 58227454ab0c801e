"""Every SQL statement of the job scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import msgspec

from shared.database import Connection, Row, Transaction
from shared.listing import Column, Kind, Listing
from shared.references import ResourceType as KeyType

from .domain import (
    CronTrigger,
    EngineName,
    Job,
    JobId,
    ObjectName,
    OneOff,
    Parameter,
    PeriodicTrigger,
    Reference,
    Report,
    Status,
    Trigger,
)

OBJECT_NAME_KEY = "jobs_object_name_key"

_COLUMNS = (
    "id, object_name, name, description, is_enabled, no_catchup, max_concurrency, trigger_kind, cron, "
    "interval_seconds, starts_at, ends_at, experiment_id, namespace, resource_references, pipeline_id, pipeline_name, "
    "pipeline_version_id, referred_job_id, service_account, parameters, manifest_digest, engine, "
    "reported_status, version, created_by, created_at, updated_at"
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
    kind, cron, interval_seconds, starts_at, ends_at = _trigger_columns(job.trigger)
    row = await tx.fetchrow(
        f"""
        with now as materialized (select clock_timestamp() as now)
        insert into jobs (
            id, object_name, name, description, is_enabled, no_catchup, max_concurrency, trigger_kind, cron,
            interval_seconds, starts_at, ends_at, experiment_id, namespace, resource_references, pipeline_id,
            pipeline_name, pipeline_version_id, referred_job_id, service_account, parameters, manifest_digest, engine,
            created_by, created_at, updated_at
        )
        select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
            $23, $24, now, now
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
        update jobs set is_enabled = $2, updated_at = clock_timestamp(), version = version + 1
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
    kind, cron, interval_seconds, starts_at, ends_at = _trigger_columns(report.trigger)
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


async def delete(tx: Transaction, job_id: str) -> Job | None:
    """Remove the job, and its mention in jobs that refer to it."""
    row = await tx.fetchrow(
        f"""
        with unmentioned as (
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
_parameters = msgspec.json.Decoder(tuple[Parameter, ...]).decode


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
        experiment_id=row["experiment_id"],
        namespace=row["namespace"],
        references=_references(row["resource_references"]),
        pipeline_id=row["pipeline_id"],
        pipeline_name=row["pipeline_name"],
        pipeline_version_id=row["pipeline_version_id"],
        referred_job_id=row["referred_job_id"],
        service_account=row["service_account"],
        parameters=_parameters(row["parameters"]),
        manifest_digest=row["manifest_digest"],
        engine=EngineName(row["engine"]),
        reported_status=Status(row["reported_status"]) if row["reported_status"] else None,
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
        case _:
            return OneOff()


def _trigger_columns(trigger: Trigger) -> tuple[object, ...]:
    match trigger:
        case OneOff():
            return "one-off", None, None, None, None
        case CronTrigger(cron=cron, starts_at=starts_at, ends_at=ends_at):
            return "cron", cron, None, starts_at, ends_at
        case PeriodicTrigger(interval_seconds=seconds, starts_at=starts_at, ends_at=ends_at):
            return "periodic", None, seconds, starts_at, ends_at
        case _ as unreachable:
            assert_never(unreachable)
