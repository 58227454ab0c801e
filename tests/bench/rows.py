"""Rows by the million, as a year of use would have left them: written set by set, by the services' own roles.

What the services keep beside their rows, such as counts, is written too. Nothing is told to anybody: no fact, no
replica, so only what reads these tables alone can be measured on them.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from pathlib import Path

import asyncpg
import msgspec
import yaml

RUNS = 1_000_000
EXPERIMENTS_WITH_RUNS = 200
NAMED_EXPERIMENTS = 100_000
LEAST_MANIFESTS = 50

STEMS = (
    *("churn forecast", "train ranker", "nightly embeddings", "fraud scoring", "demand by store", "ad click model"),
    *("image triage", "speech cleanup", "price elasticity", "user cohorts", "search relevance", "sensor drift"),
    *("claims intake", "basket analysis", "route planning", "credit limits", "topic labels", "video tagging"),
    *("stock levels", "turbine wear"),
)
"""What people call their work; every name begins with one of them."""

_PIPELINES = Path(__file__).parents[1] / "pipelines"
_TIME_OF_COMPILATION = "pipelines.kubeflow.org/pipeline_compilation_time"

LARGEST_EXPERIMENT = str(uuid.UUID(hex=hashlib.md5(b"experiment 0").hexdigest()))
"""The id of the one that the skew gives a sixth of all runs."""


def manifests() -> dict[str, str]:
    """Digest → text, as the API keeps it: every compiled pipeline of the collection, and each compiled once more."""
    texts = {}
    for file in sorted(_PIPELINES.rglob("*.yaml")):
        workflow = yaml.load(file.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        for time in (None, "2026-05-04T10:20:30.405060"):
            if time is not None:
                workflow["metadata"].setdefault("annotations", {})[_TIME_OF_COMPILATION] = time
            text = msgspec.json.encode(workflow).decode()
            texts[hashlib.sha256(text.encode()).hexdigest()] = text
    assert len(texts) >= LEAST_MANIFESTS, f"only {len(texts)} manifests"
    return texts


async def load_runs(pool: asyncpg.Pool) -> None:
    """`pool` connects as the run service's role. All runs are over; none of their engine objects is left."""
    texts = manifests()
    async with pool.acquire() as connection:
        indexes = await _take_indexes_off(connection, "runs")
        await connection.executemany("insert into manifests (digest, body) values ($1, $2)", list(texts.items()))
        await connection.execute("select setseed(0.25)")
        await connection.execute(
            """
            insert into runs (
                id, name, description, storage_state, status, error, experiment_id, namespace, resource_references,
                pipeline_id, pipeline_name, pipeline_version_id, service_account, parameters, manifest_digest,
                workflow_name, traceparent, created_at, started_at, finished_at, submitted_at
            )
            select
                md5('run ' || n)::uuid::text, stem || to_char(at, ' YYYY-MM-DD HH24-MI-SS'), '',
                case when chance_of_archive < 0.15 then 'archived' else 'available' end,
                status, case when status = 'Failed' then 'a step ended with 1' else '' end,
                experiment_id, 'kubeflow',
                jsonb_build_array(
                    jsonb_build_object(
                        'type', 'EXPERIMENT', 'id', experiment_id, 'name', 'experiment of many', 'relationship', 'OWNER'
                    ),
                    jsonb_build_object(
                        'type', 'PIPELINE_VERSION', 'id', digest, 'name', stem, 'relationship', 'CREATOR'
                    )
                ),
                left(digest, 36), stem, right(digest, 36), 'pipeline-runner',
                '[{"name": "learning-rate", "value": "0.1"}, {"name": "epochs", "value": "12"}]',
                digest, 'pipeline-' || n, '', at, at + interval '1 second', at + interval '40 seconds', at
            from (
                select
                    n, now() - interval '365 days' + n * interval '30 seconds' as at, random() as chance_of_archive,
                    (array['Failed', 'Error', 'Skipped', 'Succeeded'])[least(4, 1 + (20 * random())::integer)]
                        as status,
                    $1::text[] as stems, 1 + (power(random(), 3) * (cardinality($1::text[]) - 1))::integer as stem_at,
                    1 + (power(random(), 3) * (cardinality($2::text[]) - 1))::integer as manifest_at,
                    floor(power(random(), 3) * $3::integer)::integer as experiment_at
                from generate_series(1, $4::integer) as n
            ) as drawn,
            lateral (
                select
                    stems[stem_at] as stem, ($2::text[])[manifest_at] as digest,
                    md5('experiment ' || experiment_at)::uuid::text as experiment_id
            ) as named
            """,
            list(STEMS),
            list(texts),
            EXPERIMENTS_WITH_RUNS,
            RUNS,
            timeout=120,
        )
        await connection.execute(
            """
            insert into run_metrics (run_id, node_id, name, number, format)
            select md5('run ' || n)::uuid::text, 'node', 'accuracy', n % 1000 / 1000.0, 'PERCENTAGE'
            from generate_series(1, $1::integer, 10) as n
            """,
            RUNS,
        )
        await connection.execute(
            """
            insert into run_count_deltas (experiment_id, storage_state, delta)
            select experiment_id, storage_state, count(*) from runs group by experiment_id, storage_state
            """
        )
    await _put_indexes_on(pool, indexes)
    await pool.execute("vacuum (analyze) runs")


async def load_experiments(pool: asyncpg.Pool) -> None:
    """`pool` connects as the experiment service's role."""
    await pool.execute(
        """
        insert into experiments (id, name, created_at)
        select
            md5('experiment ' || n)::uuid::text,
            ($1::text[])[1 + n % cardinality($1::text[])] || ' ' || md5(n::text),
            now() - interval '365 days' + n * interval '300 seconds'
        from generate_series(0, $2::integer - 1) as n
        """,
        list(STEMS),
        NAMED_EXPERIMENTS,
        timeout=60,
    )
    await pool.execute("vacuum (analyze) experiments")


async def _take_indexes_off(connection: asyncpg.pool.PoolConnectionProxy, table: str) -> list[str]:
    """An index built over all rows is done in a tenth of the time. What brings them back."""
    rows = await connection.fetch(
        """
        select indexrelid::regclass::text as name, conname as constraint,
            case when conname is null then pg_get_indexdef(indexrelid)
                else format(
                    'alter table %s add constraint %I %s', indrelid::regclass, conname, pg_get_constraintdef(c.oid)
                )
            end as definition
        from pg_index left join pg_constraint as c on conindid = indexrelid
        where indrelid = $1::text::regclass
        order by conname is null
        """,
        table,
    )
    for row in rows:
        await connection.execute(
            f"alter table {table} drop constraint {row['constraint']}"
            if row["constraint"]
            else f"drop index {row['name']}"
        )
    return [row["definition"] for row in rows]


async def _put_indexes_on(pool: asyncpg.Pool, definitions: list[str]) -> None:
    """Two at a time; constraints, which are made alone, stand first."""
    left = list(reversed(definitions))

    async def build() -> None:
        async with pool.acquire() as connection:
            await connection.execute("set maintenance_work_mem = '192MB'")
            while left:
                await connection.execute(left.pop(), timeout=90)

    await asyncio.gather(build(), build())
