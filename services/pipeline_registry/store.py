"""Every SQL statement of the pipeline registry."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shared.database import Connection, Row, Transaction
from shared.listing import Column, Kind, Listing
from shared.references import ResourceType

from .domain import Parameter, Pipeline, PipelineId, Version, VersionId

PIPELINE_NAME_KEY = "pipelines_name_key"
VERSION_NAME_KEY = "pipeline_versions_pipeline_id_name_key"

_NAMESPACE = "''::text"
"""There is one, and it has no name."""

PIPELINES = Listing(
    model="Pipeline",
    table="pipelines",
    columns="id, name, description, parameters, default_version_id, revision, created_by, created_at",
    fields={
        "id": Column("id"),
        "name": Column("name"),
        "created_at": Column("created_at", Kind.TIMESTAMP),
        "description": Column("description"),
        "namespace": Column(_NAMESPACE),
    },
    references={ResourceType.NAMESPACE: _NAMESPACE},
)

VERSIONS = Listing(
    model="PipelineVersion",
    table="pipeline_versions",
    columns="id, pipeline_id, name, description, code_source_url, parameters, manifest_digest, created_by, created_at",
    fields={
        "id": Column("id"),
        "name": Column("name"),
        "created_at": Column("created_at", Kind.TIMESTAMP),
        "status": Column("'READY'::text"),  # Others have no row yet, or none any more.
    },
)


# Pipelines.


async def insert_pipeline(
    tx: Transaction,
    pipeline_id: PipelineId,
    name: str,
    description: str,
    parameters: Sequence[Parameter],
    default_version_id: VersionId,
    created_by: str,
) -> Pipeline:
    """Raises ConstraintViolated(PIPELINE_NAME_KEY) where the name is taken."""
    row = await tx.fetchrow(
        """
        insert into pipelines (id, name, description, parameters, default_version_id, created_by)
        values ($1, $2, $3, $4, $5, $6)
        returning id, name, description, parameters, default_version_id, revision, created_by, created_at
        """,
        pipeline_id,
        name,
        description,
        _to_json(parameters),
        default_version_id,
        created_by,
    )
    assert row is not None
    return to_pipeline(row)


async def find_pipeline(connection: Connection, pipeline_id: str) -> Pipeline | None:
    row = await connection.fetchrow(
        """
        select id, name, description, parameters, default_version_id, revision, created_by, created_at
        from pipelines where id = $1
        """,
        pipeline_id,
    )
    return None if row is None else to_pipeline(row)


async def lock_pipeline(tx: Transaction, pipeline_id: str) -> Pipeline | None:
    row = await tx.fetchrow(
        """
        select id, name, description, parameters, default_version_id, revision, created_by, created_at
        from pipelines where id = $1 for update
        """,
        pipeline_id,
    )
    return None if row is None else to_pipeline(row)


async def is_pipeline_name_taken(connection: Connection, name: str) -> bool:
    return bool(await connection.fetchval("select exists (select from pipelines where name = $1)", name))


async def set_default(tx: Transaction, pipeline_id: PipelineId, version_id: VersionId | None) -> Pipeline:
    row = await tx.fetchrow(
        """
        update pipelines set default_version_id = $2, revision = revision + 1 where id = $1
        returning id, name, description, parameters, default_version_id, revision, created_by, created_at
        """,
        pipeline_id,
        version_id,
    )
    assert row is not None
    return to_pipeline(row)


async def delete_pipeline(tx: Transaction, pipeline_id: PipelineId) -> None:
    """Its versions go with it."""
    await tx.execute("delete from pipelines where id = $1", pipeline_id)


# Versions.


async def insert_version(
    tx: Transaction,
    version_id: VersionId,
    pipeline_id: PipelineId,
    name: str,
    description: str,
    code_source_url: str,
    parameters: Sequence[Parameter],
    manifest_digest: str,
    created_by: str,
) -> Version:
    """Raises ConstraintViolated(VERSION_NAME_KEY) where the pipeline has a version of this name.

    The version that comes with its pipeline is as old as the pipeline.
    """
    row = await tx.fetchrow(
        """
        insert into pipeline_versions
            (id, pipeline_id, name, description, code_source_url, parameters, manifest_digest, created_by, created_at)
        select $1, pipelines.id, $3, $4, $5, $6, $7, $8,
            case when $1 = pipelines.id then pipelines.created_at else clock_timestamp() end
        from pipelines where id = $2
        returning id, pipeline_id, name, description, code_source_url, parameters, manifest_digest, created_by,
            created_at
        """,
        version_id,
        pipeline_id,
        name,
        description,
        code_source_url,
        _to_json(parameters),
        manifest_digest,
        created_by,
    )
    assert row is not None
    return to_version(row)


async def find_version(connection: Connection, version_id: str) -> Version | None:
    row = await connection.fetchrow(
        """
        select id, pipeline_id, name, description, code_source_url, parameters, manifest_digest, created_by, created_at
        from pipeline_versions where id = $1
        """,
        version_id,
    )
    return None if row is None else to_version(row)


async def find_versions(connection: Connection, version_ids: Sequence[VersionId]) -> dict[VersionId, Version]:
    rows = await connection.fetch(
        """
        select id, pipeline_id, name, description, code_source_url, parameters, manifest_digest, created_by, created_at
        from pipeline_versions where id = any($1)
        """,
        list(version_ids),
    )
    return {version.id: version for version in map(to_version, rows)}


async def list_versions_of(tx: Transaction, pipeline_id: PipelineId) -> list[Version]:
    rows = await tx.fetch(
        """
        select id, pipeline_id, name, description, code_source_url, parameters, manifest_digest, created_by, created_at
        from pipeline_versions where pipeline_id = $1 order by created_at, id
        """,
        pipeline_id,
    )
    return [to_version(row) for row in rows]


async def is_version_name_taken(connection: Connection, pipeline_id: str, name: str) -> bool:
    return bool(
        await connection.fetchval(
            "select exists (select from pipeline_versions where pipeline_id = $1 and name = $2)", pipeline_id, name
        )
    )


async def find_newest_version_id(tx: Transaction, pipeline_id: PipelineId, but: VersionId) -> VersionId | None:
    newest: VersionId | None = await tx.fetchval(
        """
        select id from pipeline_versions where pipeline_id = $1 and id <> $2
        order by created_at desc, id desc limit 1
        """,
        pipeline_id,
        but,
    )
    return newest


async def delete_version(tx: Transaction, version_id: VersionId) -> None:
    await tx.execute("delete from pipeline_versions where id = $1", version_id)


# Objects.


async def doom(connection: Connection, keys: Sequence[str], *, within_seconds: float) -> None:
    await connection.execute(
        """
        insert into doomed_objects (key, due_at)
        select key, now() + $2::float8 * interval '1 second' from unnest($1::text[]) as key
        on conflict (key) do update set due_at = least(doomed_objects.due_at, excluded.due_at)
        """,
        list(keys),
        within_seconds,
    )


async def spare(tx: Transaction, key: str) -> bool:
    """Whether the object is safe now. One that is due may be gone already."""
    spared = await tx.fetchval("delete from doomed_objects where key = $1 and due_at > now() returning 1", key)
    return spared is not None


async def list_due(connection: Connection, *, at_most: int) -> list[str]:
    rows = await connection.fetch(
        "select key from doomed_objects where due_at <= now() order by due_at limit $1", at_most
    )
    return [row["key"] for row in rows]


async def forget_doomed(connection: Connection, keys: Sequence[str]) -> None:
    await connection.execute("delete from doomed_objects where key = any($1)", list(keys))


# Rows.


def to_pipeline(row: Row) -> Pipeline:
    return Pipeline(
        id=PipelineId(row["id"]),
        name=row["name"],
        description=row["description"],
        parameters=_from_json(row["parameters"]),
        default_version_id=row["default_version_id"],
        revision=row["revision"],
        created_by=row["created_by"],
        created_at=row["created_at"],
    )


def to_version(row: Row) -> Version:
    return Version(
        id=VersionId(row["id"]),
        pipeline_id=PipelineId(row["pipeline_id"]),
        name=row["name"],
        description=row["description"],
        code_source_url=row["code_source_url"],
        parameters=_from_json(row["parameters"]),
        manifest_digest=row["manifest_digest"],
        created_by=row["created_by"],
        created_at=row["created_at"],
    )


def _to_json(parameters: Sequence[Parameter]) -> str:
    return msgspec.json.encode(parameters).decode()


def _from_json(text: str) -> tuple[Parameter, ...]:
    return _decode_parameters(text)


_decode_parameters = msgspec.json.Decoder(tuple[Parameter, ...]).decode
