"""How Postgres finds a page among many pipelines: never by reading all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from services.pipeline_registry import store
from shared.database import Database
from shared.listing import Listing, ListRequest
from tests.support.lists import predicate
from tests.support.service import Client

MANY = 10_000


@pytest.fixture
async def crowded(database: Database) -> Database:
    """Many pipelines of one version each, and one pipeline of as many versions."""
    async with database.transaction() as tx:
        await tx.execute(
            """
            insert into pipelines (id, name, parameters, created_at)
            select 'p' || n, 'pipeline-' || md5(n::text), '[]', timestamptz '2026-01-01' + n * interval '1 second'
            from generate_series(1, $1::int) as n
            """,
            MANY,
        )
        await tx.execute(
            """
            insert into pipeline_versions (id, pipeline_id, name, parameters, manifest_digest, created_at)
            select kind || n, case kind when 'v' then 'p' || n else 'p1' end, kind || n, '[]', repeat('0', 64),
                timestamptz '2026-01-01' + n * interval '1 second'
            from generate_series(1, $1::int) as n, unnest(array['v', 'w']) as kind
            """,
            MANY,
        )
        await tx.execute("update pipelines set default_version_id = 'v' || substr(id, 2)")
    await database.execute("vacuum analyze pipelines, pipeline_versions")
    return database


async def plan_of(database: Database, listing: Listing, asked: ListRequest, **only: str) -> list[dict[str, Any]]:
    sql, arguments = listing.page_sql(listing.query(asked, only=only))
    (root,) = json.loads(await database.fetchval(f"explain (format json) {sql}", *arguments))
    return list(_nodes(root["Plan"]))


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for inner in node.get("Plans", []):
        yield from _nodes(inner)


def reads_all(plan: list[dict[str, Any]]) -> bool:
    return any(node["Node Type"] == "Seq Scan" for node in plan)


SORTS = ("", "created_at desc", "id", "name", "name desc")


@pytest.mark.parametrize("sort_by", [*SORTS, "namespace"])
async def test_a_page_of_pipelines_is_found_by_an_index_at_any_depth(
    registry: Client, crowded: Database, sort_by: str
) -> None:
    first = ListRequest(sort_by=sort_by, page_size=20)
    page = await store.PIPELINES.page(crowded, store.PIPELINES.query(first), store.to_pipeline)
    assert page.total_size == MANY
    for asked in (first, ListRequest(sort_by=sort_by, page_size=20, page_token=page.next_page_token)):
        plan = await plan_of(crowded, store.PIPELINES, asked)
        assert not reads_all(plan), plan
        assert all(node["Node Type"] != "Sort" for node in plan), plan


async def test_a_name_or_a_part_of_one_is_found_by_an_index(registry: Client, crowded: Database) -> None:
    name = await crowded.fetchval("select name from pipelines where id = 'p5000'")
    for operation, value in (
        ("EQUALS", name),
        ("IS_SUBSTRING", name[9:20]),
        ("IS_SUBSTRING", f"{name[9:20]}_%{name[25:]}"),
    ):
        asked = ListRequest(filter=predicate(operation, "name", string_value=value), page_size=20)
        plan = await plan_of(crowded, store.PIPELINES, asked)
        assert not reads_all(plan), plan
        page = await store.PIPELINES.page(crowded, store.PIPELINES.query(asked), store.to_pipeline)
        assert [pipeline.id for pipeline in page.rows] == ["p5000"]


@pytest.mark.parametrize("sort_by", ["", "created_at desc", "name", "name desc"])
async def test_a_page_of_versions_is_found_by_an_index(registry: Client, crowded: Database, sort_by: str) -> None:
    for pipeline_id in ("p1", "p5000"):
        asked = ListRequest(sort_by=sort_by, page_size=20)
        plan = await plan_of(crowded, store.VERSIONS, asked, pipeline_id=pipeline_id)
        assert not reads_all(plan), plan
