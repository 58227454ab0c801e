"""Every SQL statement of the metrics service."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from shared.database import Transaction

from .domain import Key, Metric, RunId

RUN = "run"
"""The kind of the replicas that tell which runs there are."""


class Existence(Enum):
    ALIVE = "alive"
    DELETED = "deleted"
    UNHEARD_OF = "unheard of"


async def lock_run(tx: Transaction, run_id: str) -> None:
    """Until the transaction ends nobody else records metrics of the run, or purges them.

    There is no row to lock: the run is another service's, and its replica may not have come yet.
    """
    await tx.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", run_id)


async def run_existence(tx: Transaction, run_id: str) -> Existence:
    """What the replica says. Only after `lock_run` it stays true for the rest of the transaction."""
    is_deleted = await tx.fetchval("select is_deleted from replicas where kind = $1 and id = $2", RUN, run_id)
    if is_deleted is None:
        return Existence.UNHEARD_OF
    return Existence.DELETED if is_deleted else Existence.ALIVE


async def record(tx: Transaction, run_id: RunId, metrics: Sequence[Metric]) -> tuple[set[Key], int]:
    """Record those that are new. Returns their keys and the run's version, which rises where there are any."""
    row = await tx.fetchrow(
        """
        with recorded as (
            insert into metrics (run_id, node_id, name, number, format)
            select $1, node_id, name, number, format
            from unnest($2::text[], $3::text[], $4::float8[], $5::text[]) as given (node_id, name, number, format)
            on conflict do nothing
            returning node_id, name
        ), counted as (
            insert into reported_runs (run_id, version)
            select $1, 1 where exists (select from recorded)
            on conflict (run_id) do update set version = reported_runs.version + 1
            returning version
        )
        select array(select node_id from recorded) as node_ids, array(select name from recorded) as names,
            coalesce((select version from counted), 0) as version
        """,
        run_id,
        [metric.node_id for metric in metrics],
        [metric.name for metric in metrics],
        [metric.number for metric in metrics],
        [metric.format.value for metric in metrics],
    )
    assert row is not None
    return set(zip(row["node_ids"], row["names"], strict=True)), row["version"]


async def purge(tx: Transaction, run_id: str) -> None:
    await tx.execute(
        "with forgotten as (delete from reported_runs where run_id = $1) delete from metrics where run_id = $1", run_id
    )
