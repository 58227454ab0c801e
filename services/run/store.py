"""Every SQL statement of the run service."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from shared.database import Connection, Row, Transaction
from shared.listing import Column, Kind, Listing
from shared.outbox import Entry
from shared.references import ResourceType as KeyType
from shared.shards import Proof

from .domain import (
    TERMINABLE,
    EngineName,
    Metric,
    Parameter,
    Reference,
    Run,
    RunId,
    Status,
    StorageState,
    WorkflowName,
)

WORKFLOW_NAME_KEY = "runs_workflow_name_key"
ID_KEY = "runs_pkey"

_COLUMNS = (
    "id, name, description, storage_state, status, error, experiment_id, namespace, resource_references, pipeline_id, "
    "pipeline_name, pipeline_version_id, job_id, service_account, parameters, manifest_digest, engine, workflow_name, "
    "attempt, taken_attempt, version, created_by, traceparent, created_at, scheduled_at, trigger_depth, started_at, "
    "finished_at, retried_at, terminate_requested_at"
)

LISTING = Listing(
    model="Run",
    table="runs",
    columns=_COLUMNS,
    fields={
        "id": Column("id", Kind.TEXT),
        "name": Column("name", Kind.TEXT),
        "created_at": Column("created_at", Kind.TIMESTAMP),
        "description": Column("description", Kind.TEXT),
        # One-off runs have none and show the epoch, which is what they compare as.
        "scheduled_at": Column("coalesce(scheduled_at, 'epoch')", Kind.TIMESTAMP),
        "storage_state": Column(
            "storage_state",
            Kind.TEXT,
            stored={
                "STORAGESTATE_AVAILABLE": StorageState.AVAILABLE.value,
                "STORAGESTATE_ARCHIVED": StorageState.ARCHIVED.value,
            },
        ),
        "status": Column("status", Kind.TEXT),
        # Beyond the API of the original. Runs that have not finished are neither before nor after anything.
        "experiment_id": Column("experiment_id", Kind.TEXT),
        "pipeline_id": Column("pipeline_id", Kind.TEXT, is_nullable=True),
        "created_by": Column("nullif(created_by, '')", Kind.TEXT, is_nullable=True),
        "finished_at": Column("finished_at", Kind.TIMESTAMP, is_nullable=True),
    },
    references={
        KeyType.EXPERIMENT: "experiment_id",
        KeyType.JOB: "job_id",
        KeyType.PIPELINE_VERSION: "pipeline_version_id",
        KeyType.NAMESPACE: "namespace",
    },
    families={
        # Several nodes may report one name: the largest counts.
        "metric:": Column(
            "(select max(number) from run_metrics where run_id = runs.id and run_metrics.name = {})",
            Kind.NUMBER,
            is_nullable=True,
        )
    },
)


# Runs.


async def insert(connection: Connection, run: Run, created: Entry, *, created_at: datetime | None = None) -> datetime:
    """The run, its share of the kept counts, and the fact that it was created; one statement, so all or nothing.

    Returns when it was created, which is now unless somebody knows better: the run and the fact as they are given do
    not. Raises ConstraintViolated(WORKFLOW_NAME_KEY) where the workflow's name is taken.
    """
    inserted_at: datetime = await connection.fetchval(
        """
        with inserted as (
            insert into runs (
                id, name, description, experiment_id, namespace, resource_references, pipeline_id, pipeline_name,
                pipeline_version_id, job_id, service_account, parameters, manifest_digest, engine, workflow_name,
                traceparent, scheduled_at, created_by, trigger_depth, created_at
            )
            values (
                $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
                coalesce($25, clock_timestamp())
            )
            returning created_at
        ), counted as (
            insert into run_count_deltas (experiment_id, storage_state, delta) values ($4, 'available', 1)
        ), told as (
            insert into outbox (type, owner, what, resource_id, body, traceparent)
            select $20, $21, $22, $1,
                convert_to(($23::jsonb || jsonb_build_object('created_at', created_at))::text, 'UTF8'), $24
            from inserted
        )
        select created_at from inserted
        """,
        run.id,
        run.name,
        run.description,
        run.experiment_id,
        run.namespace,
        msgspec.json.encode(run.references).decode(),
        run.pipeline_id,
        run.pipeline_name,
        run.pipeline_version_id,
        run.job_id,
        run.service_account,
        msgspec.json.encode(run.parameters).decode(),
        run.manifest_digest,
        run.engine.value,
        run.workflow_name,
        run.traceparent,
        run.scheduled_at,
        run.created_by,
        run.trigger_depth,
        created.type,
        created.owner,
        created.what,
        created.body.decode(),
        created.traceparent,
        created_at,
    )
    return inserted_at


async def insert_fired(tx: Transaction, runs: Sequence[tuple[Run, Entry]]) -> set[RunId]:
    """As `insert`, for runs that jobs have fired: those whose id and whose workflow's name were not there before."""
    rows = await tx.fetch(
        """
        with fired as materialized (
            select * from unnest(
                $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::text[], $11::text[], $12::text[], $13::timestamptz[], $14::text[], $15::text[]
            ) with ordinality as fired (
                id, name, experiment_id, namespace, resource_references, job_id, service_account, parameters,
                manifest_digest, engine, workflow_name, traceparent, scheduled_at, created_by, body, nth
            )
        ), inserted as (
            insert into runs (
                id, name, experiment_id, namespace, resource_references, job_id, service_account, parameters,
                manifest_digest, engine, workflow_name, traceparent, scheduled_at, created_by
            )
            select id, name, experiment_id, namespace, resource_references::jsonb, job_id, service_account,
                parameters::jsonb, manifest_digest, engine, workflow_name, traceparent, scheduled_at, created_by
            from fired order by nth
            on conflict do nothing
            returning id, created_at, experiment_id
        ), counted as (
            insert into run_count_deltas (experiment_id, storage_state, delta)
            select experiment_id, 'available', count(*)::integer from inserted group by experiment_id
        ), told as (
            insert into outbox (type, owner, what, resource_id, body, traceparent)
            select $16, $17, $18, inserted.id,
                convert_to((body::jsonb || jsonb_build_object('created_at', created_at))::text, 'UTF8'), traceparent
            from inserted join fired using (id) order by nth
        )
        select id from inserted
        """,
        [run.id for run, _ in runs],
        [run.name for run, _ in runs],
        [run.experiment_id for run, _ in runs],
        [run.namespace for run, _ in runs],
        [msgspec.json.encode(run.references).decode() for run, _ in runs],
        [run.job_id for run, _ in runs],
        [run.service_account for run, _ in runs],
        [msgspec.json.encode(run.parameters).decode() for run, _ in runs],
        [run.manifest_digest for run, _ in runs],
        [run.engine.value for run, _ in runs],
        [run.workflow_name for run, _ in runs],
        [run.traceparent for run, _ in runs],
        [run.scheduled_at for run, _ in runs],
        [run.created_by for run, _ in runs],
        [created.body.decode() for _, created in runs],
        runs[0][1].type,
        runs[0][1].owner,
        runs[0][1].what,
    )
    return {RunId(row["id"]) for row in rows}


async def find(connection: Connection, run_id: str) -> Run | None:
    row = await connection.fetchrow(f"select {_COLUMNS} from runs where id = $1", run_id)  # noqa: S608
    return None if row is None else to_run(row)


async def lock(tx: Transaction, run_id: str) -> Run | None:
    row = await tx.fetchrow(
        f"select {_COLUMNS} from runs where id = $1 for no key update",  # noqa: S608
        run_id,
    )
    return None if row is None else to_run(row)


async def exists(connection: Connection, run_id: str) -> bool:
    return await connection.fetchval("select 1 from runs where id = $1", run_id) is not None


async def set_storage_state(tx: Transaction, run_id: str, state: StorageState) -> Run | None:
    """The run as it is now; None where it is unknown or was in this state already."""
    row = await tx.fetchrow(
        f"""
        with moved as (
            update runs set storage_state = $2, version = version + 1
            where id = $1 and storage_state <> $2
            returning {_COLUMNS}
        ), counted as (
            insert into run_count_deltas (experiment_id, storage_state, delta)
            select experiment_id, state, case when state = $2 then 1 else -1 end
            from moved, (values ('available'), ('archived')) as states (state)
        )
        select * from moved
        """,  # noqa: S608
        run_id,
        state.value,
    )
    return None if row is None else to_run(row)


async def archive_experiment(tx: Transaction, experiment_id: str) -> list[Run]:
    """Archive every run of an experiment. Returns those that were not archived before."""
    rows = await tx.fetch(
        f"""
        with moved as (
            update runs set storage_state = 'archived', version = version + 1
            where experiment_id = $1 and storage_state = 'available'
            returning {_COLUMNS}
        ), counted as (
            insert into run_count_deltas (experiment_id, storage_state, delta)
            select $1, state, case when state = 'archived' then moved_count else -moved_count end
            from (select count(*) as moved_count from moved) as total,
                 (values ('available'), ('archived')) as states (state)
            where moved_count > 0
        )
        select * from moved
        """,  # noqa: S608
        experiment_id,
    )
    return [to_run(row) for row in rows]


async def forget_job(tx: Transaction, job_id: str) -> None:
    """Runs of a deleted job stay, and refer to it no longer."""
    await tx.execute(
        """
        with forgotten as (delete from deleted_runs where job_id = $1)
        update runs set
            job_id = null,
            resource_references = jsonb_path_query_array(resource_references, '$[*] ? (@.type != "JOB")')
        where job_id = $1
        """,
        job_id,
    )


async def terminate(tx: Transaction, run_id: str) -> Run | None:
    """The run, now terminating; None where it is unknown or its state forbids it."""
    row = await tx.fetchrow(
        f"""
        update runs set
            status = 'Terminating', error = '', terminate_requested_at = clock_timestamp(), version = version + 1
        where id = $1 and status = any($2)
        returning {_COLUMNS}
        """,  # noqa: S608
        run_id,
        [status.value for status in TERMINABLE],
    )
    return None if row is None else to_run(row)


async def retry(tx: Transaction, run_id: RunId) -> Run:
    """Begin the next attempt: running again, and due for submission."""
    row = await tx.fetchrow(
        f"""
        update runs set
            status = 'Running',
            error = '',
            attempt = attempt + 1,
            started_at = coalesce(started_at, clock_timestamp()),
            finished_at = null,
            retried_at = clock_timestamp(),
            submitted_at = null,
            terminate_requested_at = null,
            terminate_sent_at = null,
            version = version + 1
        where id = $1
        returning {_COLUMNS}
        """,  # noqa: S608
        run_id,
    )
    assert row is not None, "the caller holds its lock"
    return to_run(row)


async def catch_up(tx: Transaction, run_id: RunId, attempt: int) -> Run:
    """It has been retried, as somebody else knows."""
    row = await tx.fetchrow(
        f"""
        update runs set
            attempt = $2, retried_at = coalesce(retried_at, clock_timestamp()), version = version + 1
        where id = $1
        returning {_COLUMNS}
        """,  # noqa: S608
        run_id,
        attempt,
    )
    assert row is not None, "the caller holds its lock"
    return to_run(row)


async def advance(
    tx: Transaction,
    run_id: RunId,
    status: Status,
    error: str,
    *,
    started_at: datetime | None,
    finished_at: datetime | None,
) -> Run:
    """Write what was observed. The database's clock fills in what the engine did not say and the status demands."""
    row = await tx.fetchrow(
        f"""
        update runs set
            status = $2,
            error = $3,
            started_at = coalesce(started_at, $4, case when $5 then clock_timestamp() end),
            finished_at = case when $6 then coalesce($7, clock_timestamp()) end,
            version = version + 1
        where id = $1
        returning {_COLUMNS}
        """,  # noqa: S608
        run_id,
        status.value,
        error,
        started_at,
        status is Status.RUNNING,
        status.is_final,
        finished_at,
    )
    assert row is not None, "the caller holds its lock"
    return to_run(row)


async def set_taken(tx: Transaction, run_id: str, attempt: int) -> None:
    """It is no state that anybody is told of."""
    await tx.execute("update runs set taken_attempt = $2 where id = $1", run_id, attempt)


async def delete(tx: Transaction, run_id: str) -> Run | None:
    """Remove the run; what is left of it is noted for erasure. No step takes over anything of it from now on."""
    row = await tx.fetchrow(
        f"""
        with gone as (
            delete from runs where id = $1
            returning {_COLUMNS}
        ), counted as (
            insert into run_count_deltas (experiment_id, storage_state, delta)
            select experiment_id, storage_state, -1 from gone
        ), noted as (
            insert into erasures (run_id, workflow_name, engine) select id, workflow_name, engine from gone
        ), uncached as (
            delete from step_cache where run_id = $1
        )
        select * from gone
        """,  # noqa: S608
        run_id,
    )
    return None if row is None else to_run(row)


async def remember_deleted(tx: Transaction, run_id: str, job_id: str) -> None:
    """Until the job is forgotten."""
    await tx.execute("insert into deleted_runs (run_id, job_id) values ($1, $2)", run_id, job_id)


async def was_deleted(connection: Connection, run_id: str) -> bool:
    return await connection.fetchval("select 1 from deleted_runs where run_id = $1", run_id) is not None


# Nodes.


class NodeFact(msgspec.Struct, frozen=True, kw_only=True):
    """A fact about a node, but for whose run it is; told where the node is not in that phase on record."""

    node_id: str
    phase: str
    entry: Entry


async def upsert_nodes(tx: Transaction, run_id: str, nodes: Sequence[tuple[str, str, str]]) -> None:
    """Id, phase and JSON text of the nodes that changed."""
    await tx.execute(
        """
        insert into nodes (run_id, id, phase, body)
        select $1, * from unnest($2::text[], $3::text[], $4::json[])
        on conflict (run_id, id) do update
        set phase = excluded.phase, body = excluded.body, changed_at = excluded.changed_at
        where nodes.body::text <> excluded.body::text
        """,
        run_id,
        [node_id for node_id, _, _ in nodes],
        [phase for _, phase, _ in nodes],
        [body for _, _, body in nodes],
    )


async def tell_of_nodes(tx: Transaction, run_id: str, told: Sequence[NodeFact]) -> None:
    """Add facts about nodes that are in another phase now than on record; before the record of them is written."""
    await tx.execute(
        """
        insert into outbox (type, owner, what, resource_id, body, traceparent)
        select told.type, told.owner, told.what, runs.id,
            convert_to((
                told.body::jsonb || jsonb_strip_nulls(jsonb_build_object(
                    'experiment_id', runs.experiment_id, 'pipeline_id', runs.pipeline_id,
                    'pipeline_version_id', runs.pipeline_version_id, 'job_id', runs.job_id
                ))
            )::text, 'UTF8'),
            runs.traceparent
        from runs
        cross join unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
            with ordinality as told (node_id, phase, type, owner, what, body, nth)
        left join nodes on nodes.run_id = runs.id and nodes.id = told.node_id
        where runs.id = $1 and nodes.phase is distinct from told.phase
        order by nth
        """,
        run_id,
        *_columns_of(told),
    )


async def upsert_nodes_of_open(
    connection: Connection,
    run_id: str,
    attempt: int,
    workflow_name: str,
    status: Status,
    error: str,
    nodes: Sequence[tuple[str, str, str]],
    told: Sequence[NodeFact],
    proof: Proof | None = None,
) -> bool:
    """As `tell_of_nodes` and `upsert_nodes`, where the run has started, is not over, and is as described, and the proof
    holds, if there is one; False where it is not.

    One statement by itself: this is what a step costs in the database.
    """
    return bool(
        await connection.fetchval(
            """
            with same as materialized (
                select id, experiment_id, pipeline_id, pipeline_version_id, job_id, traceparent from runs
                where id = $1 and attempt = $2 and workflow_name = $3 and status = $4 and error = $5
                  and started_at is not null and finished_at is null
                  and ($15::text is null or exists (
                      select from shards where name = $15 and shard = $16 and holder = $17 and epoch = $18 for share
                  ))
                for no key update
            ), written as (
                insert into nodes (run_id, id, phase, body)
                select same.id, changed.* from same, unnest($6::text[], $7::text[], $8::json[]) as changed
                on conflict (run_id, id) do update
                set phase = excluded.phase, body = excluded.body, changed_at = excluded.changed_at
                where nodes.body::text <> excluded.body::text
            ), told as (
                insert into outbox (type, owner, what, resource_id, body, traceparent)
                select told.type, told.owner, told.what, same.id,
                    convert_to((
                        told.body::jsonb || jsonb_strip_nulls(jsonb_build_object(
                            'experiment_id', same.experiment_id, 'pipeline_id', same.pipeline_id,
                            'pipeline_version_id', same.pipeline_version_id, 'job_id', same.job_id
                        ))
                    )::text, 'UTF8'),
                    same.traceparent
                from same
                cross join unnest($9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[])
                    with ordinality as told (node_id, phase, type, owner, what, body, nth)
                left join nodes on nodes.run_id = same.id and nodes.id = told.node_id
                where nodes.phase is distinct from told.phase
                order by nth
            )
            select exists (select from same)
            """,
            run_id,
            attempt,
            workflow_name,
            status.value,
            error,
            [node_id for node_id, _, _ in nodes],
            [phase for _, phase, _ in nodes],
            [body for _, _, body in nodes],
            *_columns_of(told),
            *((proof.name, proof.shard, proof.holder, proof.epoch) if proof else (None, None, None, None)),
        )
    )


def _columns_of(told: Sequence[NodeFact]) -> tuple[list[str], ...]:
    return (
        [fact.node_id for fact in told],
        [fact.phase for fact in told],
        [fact.entry.type for fact in told],
        [fact.entry.owner for fact in told],
        [fact.entry.what for fact in told],
        [fact.entry.body.decode() for fact in told],
    )


async def delete_other_nodes(tx: Transaction, run_id: str, kept: Iterable[str]) -> None:
    await tx.execute("delete from nodes where run_id = $1 and id <> all($2::text[])", run_id, list(kept))


async def delete_nodes(tx: Transaction, run_id: str, gone: Iterable[str]) -> None:
    await tx.execute("delete from nodes where run_id = $1 and id = any($2::text[])", run_id, list(gone))


async def list_nodes(connection: Connection, run_id: str) -> list[tuple[str, str]]:
    """Id and JSON text of every node."""
    rows = await connection.fetch("select id, body from nodes where run_id = $1 order by id", run_id)
    return [(row["id"], row["body"]) for row in rows]


async def list_open_nodes(tx: Transaction, run_id: str) -> list[str]:
    rows = await tx.fetch("select body from nodes where run_id = $1 and phase in ('Pending', 'Running')", run_id)
    return [row["body"] for row in rows]


async def find_node(connection: Connection, run_id: str, node_id: str) -> str | None:
    body: str | None = await connection.fetchval(
        "select body from nodes where run_id = $1 and id = $2", run_id, node_id
    )
    return body


class RunNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node with what is known of its run. Without a body there is no such node."""

    workflow_name: str
    is_final: bool
    body: str | None


async def find_run_node(connection: Connection, run_id: str, node_id: str) -> RunNode | None:
    row = await connection.fetchrow(
        """
        select workflow_name, finished_at is not null as is_final, body
        from runs left join nodes on nodes.run_id = runs.id and nodes.id = $2
        where runs.id = $1
        """,
        run_id,
        node_id,
    )
    if row is None:
        return None
    return RunNode(workflow_name=row["workflow_name"], is_final=row["is_final"], body=row["body"])


# Manifests.


async def find_manifests(connection: Connection, digests: Sequence[str]) -> list[tuple[str, str]]:
    rows = await connection.fetch("select digest, body from manifests where digest = any($1::text[])", list(digests))
    return [(row["digest"], row["body"]) for row in rows]


async def has_manifest(connection: Connection, digest: str) -> bool:
    return await connection.fetchval("select 1 from manifests where digest = $1", digest) is not None


async def insert_manifest(connection: Connection, digest: str, body: str) -> None:
    await connection.execute(
        "insert into manifests (digest, body) values ($1, $2) on conflict (digest) do nothing", digest, body
    )


# Metrics.


async def insert_metrics(tx: Transaction, metrics: Sequence[Metric]) -> None:
    """The first value of a metric stays. Metrics of runs that are gone are dropped: nobody would erase them."""
    await tx.execute(
        """
        insert into run_metrics (run_id, node_id, name, number, format)
        select * from unnest($1::text[], $2::text[], $3::text[], $4::double precision[], $5::text[])
            as reported (run_id, node_id, name, number, format)
        where run_id in (select id from runs where id = any($6::text[]))
        on conflict (run_id, node_id, name) do nothing
        """,
        [metric.run_id for metric in metrics],
        [metric.node_id for metric in metrics],
        [metric.name for metric in metrics],
        [metric.number for metric in metrics],
        [metric.format for metric in metrics],
        list({metric.run_id for metric in metrics}),
    )


async def count_metrics_of_others(connection: Connection, run_id: str, node_id: str) -> int:
    """How many metrics the other nodes of the run have."""
    count: int = await connection.fetchval(
        "select count(*) from run_metrics where run_id = $1 and node_id <> $2", run_id, node_id
    )
    return count


async def list_metrics(connection: Connection, run_ids: Sequence[str]) -> list[Metric]:
    rows = await connection.fetch(
        """
        select run_id, node_id, name, number, format from run_metrics where run_id = any($1::text[])
        order by run_id, node_id, name
        """,
        list(run_ids),
    )
    return [
        Metric(
            run_id=row["run_id"],
            node_id=row["node_id"],
            name=row["name"],
            number=row["number"],
            format=row["format"],
        )
        for row in rows
    ]


# What steps have left, for steps that are the same.


async def find_step_outputs(connection: Connection, key: str, max_age_seconds: float | None) -> str | None:
    body: str | None = await connection.fetchval(
        """
        select outputs from step_cache
        where key = $1
          and ($2::double precision is null or kept_at >= clock_timestamp() - make_interval(secs => $2))
        """,
        key,
        max_age_seconds,
    )
    return body


async def upsert_step_outputs(connection: Connection, key: str, run_id: str, outputs: str) -> None:
    """The last one that ended counts. Those of a run that is gone are dropped: nobody would erase them."""
    await connection.execute(
        """
        insert into step_cache (key, run_id, outputs)
        select $1, $2, $3::json where exists (select from runs where id = $2)
        on conflict (key) do update
        set run_id = excluded.run_id, outputs = excluded.outputs, kept_at = excluded.kept_at
        """,
        key,
        run_id,
        outputs,
    )


# What an engine has to be told, by who holds these shards of its runs. Nobody tells an external one anything.
# The engine stands in the text: each has partial indexes, which a plan finds by what it is called.

_IS_OF_SHARDS = "get_byte(decode(md5({}), 'hex'), 0) % 64 = any($1::integer[])"
"""`engine.shards.shard_of` in the database's words."""
_HAS_ITS_NAME = """not exists (
              select from erasures where erasures.engine = runs.engine and erasures.workflow_name = runs.workflow_name
          )"""
"""The workflow of a deleted run is gone whose name the run has taken over. Two that go by one name are none."""


async def list_unsubmitted(
    connection: Connection, engine: EngineName, shards: Collection[int], limit: int
) -> list[RunId]:
    rows = await connection.fetch(
        f"""
        select id from runs
        where engine = '{engine.value}' and submitted_at is null and finished_at is null
          and {_IS_OF_SHARDS.format("id")}
          and {_HAS_ITS_NAME}
        order by created_at, id limit $2
        """,  # noqa: S608
        list(shards),
        limit,
    )
    return [RunId(row["id"]) for row in rows]


async def list_terminations(
    connection: Connection, engine: EngineName, shards: Collection[int], limit: int
) -> list[tuple[RunId, WorkflowName, int]]:
    """Run, workflow and attempt."""
    rows = await connection.fetch(
        f"""
        select id, workflow_name, attempt from runs
        where engine = '{engine.value}' and terminate_requested_at is not null and terminate_sent_at is null
          and finished_at is null and submitted_at is not null and {_IS_OF_SHARDS.format("id")}
        order by terminate_requested_at, id limit $2
        """,  # noqa: S608
        list(shards),
        limit,
    )
    return [(RunId(row["id"]), WorkflowName(row["workflow_name"]), row["attempt"]) for row in rows]


async def list_erasures(
    connection: Connection, engine: EngineName, shards: Collection[int], limit: int
) -> list[tuple[RunId, WorkflowName]]:
    rows = await connection.fetch(
        f"""
        select run_id, workflow_name from erasures
        where engine = '{engine.value}' and {_IS_OF_SHARDS.format("run_id")}
        order by requested_at, run_id limit $2
        """,  # noqa: S608
        list(shards),
        limit,
    )
    return [(RunId(row["run_id"]), WorkflowName(row["workflow_name"])) for row in rows]


async def list_active(
    connection: Connection, engine: EngineName, shards: Collection[int], after: str, limit: int
) -> list[tuple[RunId, datetime, bool]]:
    """Run, when it was created, and whether it has started."""
    rows = await connection.fetch(
        f"""
        select id, created_at, started_at is not null as has_started from runs
        where engine = '{engine.value}' and finished_at is null and id > $2 and {_IS_OF_SHARDS.format("id")}
          and {_HAS_ITS_NAME}
        order by id limit $3
        """,  # noqa: S608
        list(shards),
        after,
        limit,
    )
    return [(RunId(row["id"]), row["created_at"], row["has_started"]) for row in rows]


async def set_submitted(connection: Connection, run_id: str, attempt: int, is_to_run: bool) -> None:
    await connection.execute(
        """
        update runs set
            submitted_at = coalesce(submitted_at, clock_timestamp()),
            terminate_sent_at = case when $3 then null else terminate_sent_at end
        where id = $1 and attempt = $2 and (submitted_at is null or ($3 and terminate_sent_at is not null))
        """,
        run_id,
        attempt,
        is_to_run,
    )


async def set_terminate_sent(connection: Connection, run_id: str, attempt: int) -> None:
    await connection.execute(
        """
        update runs set terminate_sent_at = clock_timestamp()
        where id = $1 and attempt = $2 and terminate_requested_at is not null and terminate_sent_at is null
        """,
        run_id,
        attempt,
    )


async def erase(connection: Connection, run_id: str) -> None:
    """What a deleted run left behind, what its last steps may have kept meanwhile, and the note of it."""
    await connection.execute(
        """
        with nodes_gone as (delete from nodes where run_id = $1),
             metrics_gone as (delete from run_metrics where run_id = $1),
             cached_gone as (delete from step_cache where run_id = $1)
        delete from erasures where run_id = $1
        """,
        run_id,
    )


async def find_installation(connection: Connection) -> str:
    return str(await connection.fetchval("select id from installation"))


# Kept counts.


async def kept_count(connection: Connection, equalities: Mapping[str, str]) -> int | None:
    """How many runs have these values; None where no such count is kept."""
    if not equalities.keys() <= {"experiment_id", "storage_state"}:
        return None
    experiment_id, storage_state = equalities.get("experiment_id"), equalities.get("storage_state")
    total = await connection.fetchval(
        """
        select coalesce(sum(amount), 0)::bigint from (
            select total from run_counts
            where experiment_id = coalesce($1::text, '') and ($2::text is null or storage_state = $2)
            union all
            select delta from run_count_deltas
            where ($1::text is null or experiment_id = $1) and ($2::text is null or storage_state = $2)
        ) as amounts (amount)
        """,
        # No experiment is called by the empty text, and it stands for all of them in the table.
        "\ufffd" if experiment_id == "" else experiment_id,
        storage_state,
    )
    return int(total)


async def list_open(connection: Connection) -> list[tuple[str, int, float]]:
    """Of the statuses that are not final: the status, how many runs have it, and the age of the oldest in seconds.

    An index by status holds all of that; what it costs grows with the runs that are open, not with those there are.
    """
    rows = await connection.fetch(
        """
        select status, count(*) as runs, extract(epoch from clock_timestamp() - min(created_at))::float8 as oldest
        from runs where status in ('', 'Pending', 'Running', 'Terminating') group by status
        """
    )
    return [(row["status"], row["runs"], row["oldest"]) for row in rows]


async def fold_counts(connection: Connection) -> None:
    """Add the deltas up. One replica at a time: two would wait for each other's rows."""
    await connection.execute(
        """
        with turn as materialized (
            select pg_try_advisory_xact_lock(hashtext(current_schema() || '.run_counts')) as is_ours
        ), taken as (
            delete from run_count_deltas where (select is_ours from turn)
            returning experiment_id, storage_state, delta
        )
        insert into run_counts (experiment_id, storage_state, total)
        select coalesce(experiment_id, ''), storage_state, sum(delta)
        from taken group by grouping sets ((experiment_id, storage_state), (storage_state))
        on conflict (experiment_id, storage_state) do update set total = run_counts.total + excluded.total
        """
    )


# Rows.

_references = msgspec.json.Decoder(tuple[Reference, ...]).decode
_parameters = msgspec.json.Decoder(tuple[Parameter, ...]).decode


def to_run(row: Row) -> Run:
    return Run(
        id=RunId(row["id"]),
        name=row["name"],
        description=row["description"],
        storage_state=StorageState(row["storage_state"]),
        status=Status(row["status"]),
        error=row["error"],
        experiment_id=row["experiment_id"],
        namespace=row["namespace"],
        references=_references(row["resource_references"]),
        pipeline_id=row["pipeline_id"],
        pipeline_name=row["pipeline_name"],
        pipeline_version_id=row["pipeline_version_id"],
        job_id=row["job_id"],
        service_account=row["service_account"],
        parameters=_parameters(row["parameters"]),
        manifest_digest=row["manifest_digest"],
        engine=EngineName(row["engine"]),
        workflow_name=WorkflowName(row["workflow_name"]),
        attempt=row["attempt"],
        taken_attempt=row["taken_attempt"],
        version=row["version"],
        created_by=row["created_by"],
        traceparent=row["traceparent"],
        created_at=row["created_at"],
        scheduled_at=row["scheduled_at"],
        trigger_depth=row["trigger_depth"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        retried_at=row["retried_at"],
        terminate_requested_at=row["terminate_requested_at"],
    )
