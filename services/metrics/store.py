"""Every SQL statement of the metrics service."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import msgspec

from shared.contracts.events import FactKind
from shared.contracts.states import Metric as PublicMetric
from shared.contracts.states import MetricsState
from shared.database import Connection, Transaction
from shared.telemetry import current_traceparent

from .domain import Key, Metric, RunId

RUN = "run"
"""The kind of the replicas that tell which runs there are."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    is_alive: bool
    """Whether the run exists; nothing is recorded where it does not."""
    keys: frozenset[Key]
    fact_id: UUID | None
    """Of the last fact that tells of them; None where nothing was recorded."""


async def lock_run(tx: Transaction, run_id: str) -> None:
    """For a run without a replica, which could be locked: until the transaction ends none comes and goes."""
    await tx.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", run_id)


async def record(
    connection: Connection,
    run_id: RunId,
    metrics: Sequence[Metric],
    fact: FactKind[MetricsState],
    public: Sequence[PublicMetric],
    *,
    most_in_a_fact: int,
    is_known: bool,
) -> Recorded:
    """Record those that are new and tell of them, where the run is alive by its replica or, without one, `is_known`;
    one statement, so all or nothing.

    `public`: each metric as facts carry it. The replica stays locked until the commit: who deletes it waits, and then
    finds what was recorded here. The version's row, which is locked before a fact is written, puts the facts of one run
    in order.
    """
    row = await connection.fetchrow(
        """
        with replica as (
            select is_deleted from replicas where kind = 'run' and id = $1 for share
        ), alive as (
            select coalesce((select not is_deleted from replica), $2) as is_alive
        ), given as (
            select * from unnest($3::text[], $4::text[], $5::float8[], $6::text[], $7::text[])
                with ordinality as given (node_id, name, number, format, public, nth)
        ), recorded as (
            -- By key: reports of one run that cross never wait for each other in a circle.
            insert into metrics (run_id, node_id, name, number, format)
            select $1, node_id, name, number, format from given
            where (select is_alive from alive)
            order by node_id collate "C", name collate "C"
            on conflict do nothing
            returning node_id, name
        ), counted as (
            insert into reported_runs (run_id, version)
            select $1, 1 where exists (select from recorded)
            on conflict (run_id) do update set version = reported_runs.version + 1
            returning version
        ), numbered as (
            select public, nth, (row_number() over (order by nth) - 1) / $8 as part
            from recorded join given using (node_id, name)
        ), told as (
            insert into outbox (type, owner, what, resource_id, body, traceparent)
            select $9, $10, $11, $1,
                convert_to(
                    json_build_object(
                        'id', $1::text,
                        'version', counted.version,
                        'metrics', json_agg(public::json order by nth)
                    )::text,
                    'UTF8'
                ),
                $12
            from numbered cross join counted group by part, counted.version order by part
            returning id, seq
        )
        select (select is_alive from alive) as is_alive,
            array(select node_id from recorded) as node_ids, array(select name from recorded) as names,
            (select id from told order by seq desc limit 1) as fact_id
        """,
        run_id,
        is_known,
        [metric.node_id for metric in metrics],
        [metric.name for metric in metrics],
        [metric.number for metric in metrics],
        [metric.format.value for metric in metrics],
        [msgspec.json.encode(each).decode() for each in public],
        most_in_a_fact,
        fact.type,
        fact.owner,
        fact.what,
        current_traceparent(),
    )
    assert row is not None
    keys = frozenset(zip(row["node_ids"], row["names"], strict=True))
    return Recorded(is_alive=row["is_alive"], keys=keys, fact_id=row["fact_id"])


async def purge(tx: Transaction, run_id: str) -> None:
    await tx.execute(
        "with forgotten as (delete from reported_runs where run_id = $1) delete from metrics where run_id = $1", run_id
    )
