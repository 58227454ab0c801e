"""Creations that a client repeats under one Idempotency-Key make one run."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.component.run.conftest import MANIFEST, Answer, Client, World

REQUEST = {"name": "once", "pipeline_spec": {"workflow_manifest": MANIFEST}}


async def create(client: Client, key: str, body: Any = REQUEST) -> Answer:
    return await client.send("POST", "/runs", body, headers={"Idempotency-Key": key})


async def test_a_repeated_creation_is_given_the_answer_of_then(world: World) -> None:
    other = await world.start_replica()
    first = await create(world.client, "k-1")
    await world.observe(first.body["run"]["id"], "Running")

    again = await create(other, "k-1")

    assert (first.status, again.status) == (200, 200)
    assert again.content == first.content
    assert (await world.client.call("GET", "/runs")).body["total_size"] == 1
    assert await world.facts(first.body["run"]["id"]) == ["created", "started"]


async def test_creations_at_the_same_moment_under_one_key_make_one_run(world: World) -> None:
    other = await world.start_replica()
    named = {"workflow_manifest": MANIFEST.replace('"generateName":"two-steps-"', '"name":"fixed"')}
    body = REQUEST | {"pipeline_spec": named}

    answers = await asyncio.gather(*(create(client, "k", body) for client in (world.client, other) for _ in range(8)))

    assert {answer.status for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert await world.database.fetchval("select count(*) from runs") == 1


async def test_a_key_that_came_with_another_request_is_refused(world: World) -> None:
    first = await create(world.client, "k")

    answer = await create(world.client, "k", REQUEST | {"name": "another"})

    assert (answer.status, answer.message) == (409, "The Idempotency-Key k was used before with another request.")
    assert (await world.client.call("GET", "/runs")).body["runs"] == [first.body["run"]]


async def test_another_key_or_none_makes_another_run(world: World) -> None:
    answers = [await create(world.client, "a"), await create(world.client, "b")]
    answers += [await world.client.call("POST", "/runs", REQUEST) for _ in range(2)]

    assert len({answer.body["run"]["id"] for answer in answers}) == 4


async def test_what_was_refused_may_be_tried_again_under_the_same_key(world: World) -> None:
    refused = await create(world.client, "k", {"name": "once"})
    assert refused.status == 400
    assert (await create(world.client, "k")).status == 200


async def test_a_key_is_forgotten_after_a_day(world: World) -> None:
    first = await create(world.client, "k")
    await create(world.client, "other")
    await world.database.execute("update idempotency_keys set kept_at = kept_at - interval '23 hours 59 minutes'")
    assert (await create(world.client, "k")).body["run"]["id"] == first.body["run"]["id"]

    await world.database.execute("update idempotency_keys set kept_at = kept_at - interval '2 minutes'")
    second = await create(world.client, "k", REQUEST | {"name": "tomorrow"})

    assert second.status == 200
    assert second.body["run"]["id"] != first.body["run"]["id"]
    rows = await world.database.fetch("select key, answer from idempotency_keys")
    assert [(row["key"], row["answer"]) for row in rows] == [("k", second.content)]


async def test_a_run_that_was_deleted_meanwhile_is_not_made_again(world: World) -> None:
    first = await create(world.client, "k")
    await world.client.call("DELETE", f"/runs/{first.body['run']['id']}")

    again = await create(world.client, "k")

    assert (again.status, again.content) == (200, first.content)
    assert (await world.client.call("GET", "/runs")).body == {}


async def test_what_is_kept_of_a_large_answer_is_small(world: World) -> None:
    text = "".join(f"line {number} of a long script\n" for number in range(20_000))
    manifest = MANIFEST.replace("{{workflow.uid}}", json.dumps(text)[1:-1])
    answer = await create(world.client, "k", REQUEST | {"pipeline_spec": {"workflow_manifest": manifest}})

    kept = await world.database.fetchval("select pg_column_size(answer) from idempotency_keys")

    assert answer.status == 200
    assert len(answer.content) > 1_000_000
    assert kept < len(answer.content) / 4


@pytest.mark.parametrize("key", ["", "with a blank", "k" * 256, "schlüssel"])
async def test_a_key_that_cannot_be_one_is_refused(world: World, key: str) -> None:
    answer = await create(world.client, key)

    assert (answer.status, answer.message) == (400, "The Idempotency-Key must be 1 to 255 visible ASCII characters.")
    assert (await world.client.call("GET", "/runs")).body == {}
