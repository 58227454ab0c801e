"""Creations that a client repeats under one Idempotency-Key make one experiment."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from shared.database import Database
from tests.support.service import V1, Client, Reply

from .conftest import Replica


async def create(client: Client, key: str, name: str) -> Reply:
    body = json.dumps({"name": name})
    return await client.call("POST", f"{V1}/experiments", data=body, headers={"Idempotency-Key": key})


async def test_a_repeated_creation_is_no_conflict_of_names(experiments: Client, replica: Replica) -> None:
    async with replica() as other:
        answers: list[Any] = await asyncio.gather(
            *(create(client, "k", "mine") for client in (experiments, other) for _ in range(6))
        )
        answers.append(await create(other, "k", "mine"))

    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert (await create(experiments, "another", "mine")).status == 409


async def test_a_repetition_is_given_the_answer_of_then_whatever_happened_since(
    experiments: Client, replica: Replica
) -> None:
    first = await create(experiments, "k", "mine")
    async with replica(applied_wait_seconds=0) as other:
        await other.post(f"/experiments/{first.json['id']}:archive")
        assert (await create(other, "k", "mine")).body == first.body
        await other.delete(f"/experiments/{first.json['id']}")
        again = await create(other, "k", "mine")

    assert (again.status, again.body, again.headers["content-type"]) == (200, first.body, "application/json")
    listed = (await experiments.get("/experiments")).get("experiments", [])
    assert "mine" not in {each["name"] for each in listed}


async def test_a_key_that_came_with_another_request_is_refused(experiments: Client) -> None:
    await create(experiments, "k", "mine")

    answer = await create(experiments, "k", "yours")

    assert answer.status == 409
    assert answer.json["details"][0]["error_message"] == ("The Idempotency-Key k was used before with another request.")
    assert (await create(experiments, "other", "yours")).status == 200


async def test_a_refused_creation_keeps_no_key(experiments: Client, database: Database) -> None:
    await create(experiments, "first", "mine")
    assert (await create(experiments, "k", "mine")).status == 409

    assert await database.fetchval("select count(*) from idempotency_keys") == 1
    assert (await create(experiments, "k", "yours")).status == 200
