"""Every SQL statement of the metrics service."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shared.database import Transaction

from .domain import Key, Metric, RunId

RUN = "run"
"""The kind of the replicas that tell which runs there are."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    is_alive: bool
    """Whether the run exists; nothing is recorded where it does not."""
    keys: frozenset[Key]
    version: int
    """The run's, which rises where something was recorded."""


async def lock_run(tx: Transaction, run_id: str) -> None:
    """For a run without a replica, which could be locked: until the transaction ends none comes and goes."""
    await tx.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", run_id)


async def record(tx: Transaction, run_id: RunId, metrics: Sequence[Metric], *, is_known: bool) -> Recorded:
    """Record those that are new, where the run is alive by its replica or, without one, `is_known`.

    The replica stays locked for the transaction: who deletes it waits, and then finds what was recorded here. The
    version's row puts the facts of one run in order.
    """
    row = await tx.fetchrow(
        """
        with replica as (
            select is_deleted from replicas where kind = 'run' and id = $1 for share
        ), alive as (
            select coalesce((select not is_deleted from replica), $2) as is_alive
        ), recorded as (
            insert into metrics (run_id, node_id, name, number, format)
            select $1, node_id, name, number, format
            from unnest($3::text[], $4::text[], $5::float8[], $6::text[]) as given (node_id, name, number, format)
            where (select is_alive from alive)
            on conflict do nothing
            returning node_id, name
        ), counted as (
            insert into reported_runs (run_id, version)
            select $1, 1 where exists (select from recorded)
            on conflict (run_id) do update set version = reported_runs.version + 1
            returning version
        )
        select (select is_alive from alive) as is_alive,
            array(select node_id from recorded) as node_ids, array(select name from recorded) as names,
            coalesce((select version from counted), 0) as version
        """,
        run_id,
        is_known,
        [metric.node_id for metric in metrics],
        [metric.name for metric in metrics],
        [metric.number for metric in metrics],
        [metric.format.value for metric in metrics],
    )
    assert row is not None
    keys = frozenset(zip(row["node_ids"], row["names"], strict=True))
    return Recorded(is_alive=row["is_alive"], keys=keys, version=row["version"])


async def purge(tx: Transaction, run_id: str) -> None:
    await tx.execute(
        "with forgotten as (delete from reported_runs where run_id = $1) delete from metrics where run_id = $1", run_id
    )
