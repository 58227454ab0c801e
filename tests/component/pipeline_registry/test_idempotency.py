"""Creations of pipelines and versions that are repeated under an Idempotency-Key."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.database import Database
from tests.support.packages import PIPELINE
from tests.support.service import V1, Client, Reply

from .conftest import Replica, send, upload
from .site import Site, from_url, version_from_url


@pytest.fixture
async def registry(replica: Replica) -> Any:
    async with replica(fetch_any_network=True) as client:
        yield client


async def post(registry: Client, path: str, document: Any, key: str) -> Reply:
    return await registry.call("POST", f"{V1}{path}", json=document, headers={"Idempotency-Key": key})


async def test_a_pipeline_from_a_url_is_made_and_fetched_once(registry: Client, site: Site) -> None:
    first = await post(registry, "/pipelines", from_url(site.url(), name="mine"), "k")
    again = await post(registry, "/pipelines", from_url(site.url(), name="mine"), "k")
    assert (first.status, again.status) == (200, 200)
    assert again.body == first.body
    assert site.asked == ["/p.yaml"]
    other = await post(registry, "/pipelines", from_url(site.url(), name="other"), "k")
    assert (other.status, other.json["code"]) == (409, 6)
    assert (await registry.get("/pipelines"))["total_size"] == 1


async def test_a_version_from_a_url_is_made_once(registry: Client, site: Site) -> None:
    pipeline = await upload(registry)
    asked = version_from_url(site.url(), pipeline["id"], name="v2")
    first, again = [await post(registry, "/pipeline_versions", asked, "k") for _ in range(2)]
    assert (first.status, again.body) == (200, first.body)
    changed = await post(registry, "/pipeline_versions", {**asked, "name": "v3"}, "k")
    assert changed.status == 409


async def test_an_upload_is_repeated_whatever_delimits_its_parts(registry: Client) -> None:
    first, again = [await send(registry, key="k", name="mine") for _ in range(2)]
    assert (first.status, again.status) == (200, 200)
    assert again.body == first.body
    for answer in (
        await send(registry, key="k", name="other"),
        await send(registry, PIPELINE + "# changed", key="k", name="mine"),
        await send(registry, key="k", name="mine", file_name="other.yaml"),
    ):
        assert answer.status == 409, answer.body
        assert "The Idempotency-Key k was used before with another request." in answer.json["error_message"]
    taken = await send(registry, key="another", name="mine")
    assert taken.status == 500, "the name is taken, by another request"


async def test_an_uploaded_version_is_repeated(registry: Client) -> None:
    pipeline = await upload(registry)
    first, again = [
        await send(registry, key="k", route="upload_version", name="v2", pipelineid=pipeline["id"]) for _ in range(2)
    ]
    assert (first.status, again.body) == (200, first.body)


async def test_a_repetition_is_given_the_answer_of_then_whatever_happened_since(replica: Replica, site: Site) -> None:
    async with replica(fetch_any_network=True, applied_wait_seconds=0) as registry:

        async def create(pipeline_id: str) -> list[Reply]:
            of_version = version_from_url(site.url(), pipeline_id, name="by URL")
            return [
                await send(registry, key="k", name="mine"),
                await post(registry, "/pipelines", from_url(site.url(), name="other"), "k"),
                await send(registry, key="k", route="upload_version", name="v2", pipelineid=pipeline_id),
                await post(registry, "/pipeline_versions", of_version, "k"),
            ]

        parent = (await upload(registry, name="parent"))["id"]
        first = await create(parent)
        for pipeline in (await registry.get("/pipelines"))["pipelines"]:
            await registry.delete(f"/pipelines/{pipeline['id']}")
        again = await create(parent)

        assert {answer.status for answer in (*first, *again)} == {200}
        assert [answer.body for answer in again] == [answer.body for answer in first]
        assert await registry.get("/pipelines") == {}


async def test_repeated_at_the_same_moment_at_two_replicas_it_is_made_once(
    registry: Client, replica: Replica, database: Database
) -> None:
    async with replica() as other:
        answers = await asyncio.gather(*(send(each, key="k", name="same") for each in (registry, other) * 4))
    assert [answer.status for answer in answers] == [200] * 8, [answer.body for answer in answers]
    assert len({answer.body for answer in answers}) == 1
    assert await database.fetchval("select count(*) from pipelines") == 1


async def test_what_was_refused_may_be_tried_again_under_its_key(registry: Client, site: Site) -> None:
    site.files["/late.yaml"] = b"kind: Pod"
    asked = from_url(site.url("/late.yaml"))
    assert (await post(registry, "/pipelines", asked, "k")).status == 400
    site.files["/late.yaml"] = PIPELINE.encode()
    assert (await post(registry, "/pipelines", asked, "k")).status == 200


@pytest.mark.parametrize("key", ["", "a b", "k" * 256])
async def test_a_key_that_is_none_is_refused(registry: Client, site: Site, key: str) -> None:
    assert (await post(registry, "/pipelines", from_url(site.url()), key)).status == 400
    assert (await send(registry, key=key)).status == 400
