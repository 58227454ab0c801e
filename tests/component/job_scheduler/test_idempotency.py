"""Creations that a client repeats under one Idempotency-Key make one job."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.component.job_scheduler.conftest import JOB, World
from tests.support.service import V1, Client, Reply


async def create(client: Client, key: str, **fields: Any) -> Reply:
    return await client.call("POST", f"{V1}/jobs", json={**JOB, **fields}, headers={"Idempotency-Key": key})


async def test_a_repeated_creation_is_given_the_answer_of_then_whatever_happened_since(world: World) -> None:
    first = await create(world.client, "k")
    job_id = first.json["id"]
    await world.client.post(f"/jobs/{job_id}/enable")
    assert (await create(world.replica, "k")).body == first.body
    assert await world.facts(job_id) == ["created", "enabled"]
    await world.client.delete(f"/jobs/{job_id}")
    again = await create(world.replica, "k")
    assert (again.status, again.body) == (200, first.body)
    assert await world.client.get("/jobs") == {}
    assert (await create(world.client, "another")).json["id"] != job_id


async def test_creations_at_the_same_moment_under_one_key_make_one_job(world: World) -> None:
    answers = await asyncio.gather(*(create(client, "k") for client in (world.client, world.replica) for _ in range(6)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert await world.database.fetchval("select count(*) from jobs") == 1


async def test_a_key_is_of_one_request_and_forgotten_with_a_refusal(world: World) -> None:
    assert (await create(world.client, "k", max_concurrency=0)).status == 400
    assert (await create(world.client, "k")).status == 200
    other = await create(world.client, "k", name="another")
    assert (other.status, other.json["code"]) == (409, 6)
    assert (await create(world.client, "no blanks")).status == 400
    assert await world.database.fetchval("select count(*) from jobs") == 1
