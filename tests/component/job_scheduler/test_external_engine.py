"""Jobs that another engine's scheduler fires: its agent says how they stand there (API specification, section 12.4)."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

import pytest

from services.job_scheduler.domain import EngineName
from shared.bearer import digest_of
from tests.component.job_scheduler.conftest import JOB, World
from tests.support.lists import ListRoute, predicate
from tests.support.service import V1, Client, Reply, status_without_the_body

TOKEN = "the agent's token"
JOBS = ListRoute(path="/jobs", items="jobs", model="Job")
CHAIN = "Report scheduled workflow failed.: "


@dataclass
class Agent:
    client: Client

    async def create(self, **fields: Any) -> dict[str, Any]:
        """A job of the external engine."""
        return dict(await self.client.post("/jobs", {**JOB, **fields}))

    async def report(self, document: Any, token: str = TOKEN) -> Reply:
        return await self.post(json.dumps(document), token)

    async def post(self, body: Any, token: str = TOKEN) -> Reply:
        headers = {"Authorization": f"Bearer {token}"}
        return await self.client.call("POST", f"{V1}/scheduledworkflows", json=body, headers=headers)


def scheduled(job_id: str, *, condition: str | None = "Enabled", **spec: Any) -> dict[str, Any]:
    """The scheduler's object, as it says it."""
    conditions = [{"type": condition, "status": "True", "reason": condition}] if condition else []
    return {
        "metadata": {"name": "theirs-x7k2p", "namespace": "elsewhere", "uid": job_id, "labels": {"a": "b"}},
        "spec": {"enabled": True, "trigger": {}} | spec,
        "status": {"conditions": conditions, "trigger": {"nextTriggeredTime": None}},
    }


@pytest.fixture
async def agent(world: World) -> Agent:
    return Agent(await world.start_replica(engine=EngineName.EXTERNAL, agent_token_sha256=digest_of(TOKEN)))


async def test_a_job_is_as_its_scheduler_says(world: World, agent: Agent) -> None:
    job = await agent.create(enabled=True, no_catchup=True)
    assert (await world.get(job["id"]))["status"] == "NO_STATUS"
    reported = scheduled(
        job["id"],
        condition="Disabled",
        enabled=False,
        maxConcurrency=3,
        noCatchup=False,
        trigger={"cronSchedule": {"startTime": "2026-01-02T03:04:05Z", "cron": "0 30 2 * * *"}},
        workflow={"parameters": [{"name": "whom", "value": "you"}], "spec": {"entrypoint": "main"}},
    )

    for _ in range(2):
        answer = await agent.report(reported)
        assert (answer.status, answer.json) == (200, {})

    shown = await world.get(job["id"])
    assert "enabled" not in shown
    assert "no_catchup" not in shown
    assert (shown["status"], shown["max_concurrency"]) == ("Disabled", "3")
    assert shown["trigger"] == {"cron_schedule": {"start_time": "2026-01-02T03:04:05Z", "cron": "0 30 2 * * *"}}
    assert shown["pipeline_spec"]["parameters"] == [{"name": "whom", "value": "you"}]
    row = await world.row(job["id"])
    assert (row["object_name"], row["namespace"], row["engine"]) == ("theirs-x7k2p", "elsewhere", "external")
    assert row["updated_at"] > row["created_at"]
    assert await world.facts(job["id"]) == ["created", "disabled"]


async def test_jobs_are_found_by_the_status_that_their_scheduler_tells(world: World, agent: Agent) -> None:
    silent, told = await agent.create(name="silent"), await agent.create(name="told")
    await agent.report(scheduled(told["id"], condition="Disabled"))
    for status, job in (("NO_STATUS", silent), ("Disabled", told)):
        found = await JOBS.names(agent.client, filter=predicate("EQUALS", "status", string_value=status))
        assert found == [job["name"]]
        assert (await world.get(job["id"]))["status"] == status


async def test_what_is_left_out_has_the_defaults_of_the_scheduler(world: World, agent: Agent) -> None:
    job = await agent.create()
    for given, concurrency in ((None, "1"), (0, "1"), (11, "10")):
        await agent.report(scheduled(job["id"], condition=None, trigger=None, maxConcurrency=given))
        shown = await world.get(job["id"])
        assert (shown["max_concurrency"], shown["trigger"], shown["status"]) == (concurrency, {}, "NO_STATUS")
        assert shown["enabled"] is True
    await agent.report({"metadata": scheduled(job["id"])["metadata"]})
    assert "enabled" not in await world.get(job["id"])
    assert await world.facts(job["id"]) == ["created", "enabled", "disabled"]


async def test_nobody_but_the_agent_reports(world: World, agent: Agent) -> None:
    job = await agent.create(enabled=True)
    reported = scheduled(job["id"], enabled=False)
    for client, token in ((agent.client, "x"), (agent.client, ""), (world.client, TOKEN)):
        answer = await Agent(client).report(reported, token)
        assert (answer.status, answer.json["code"]) == (403, 7)
    assert await status_without_the_body(agent.client.url, f"{V1}/scheduledworkflows") == 403
    assert (await world.get(job["id"]))["enabled"] is True


async def test_a_job_that_is_fired_here_has_no_other_scheduler(world: World, agent: Agent) -> None:
    job = await world.create(enabled=True)

    answer = await agent.report(scheduled(job["id"], enabled=False))

    assert (answer.status, answer.json["code"]) == (400, 3)
    message = answer.json["details"][0]["error_message"]
    assert message.startswith(f"Job {job['id']} is fired by the scheduler of this installation")
    assert await world.get(job["id"]) == job | {"status": "Enabled"}
    assert await world.facts(job["id"]) == ["created"]


async def test_what_is_no_report_of_a_job_is_refused_as_the_specification_says(world: World, agent: Agent) -> None:
    first, second = await agent.create(), await agent.create()
    assert (await agent.report(scheduled(first["id"]))).status == 200
    taken = await agent.report(scheduled(second["id"]))
    assert (taken.status, taken.json["code"]) == (409, 6)
    nobodys = str(uuid.uuid4())

    def without(*names: str) -> dict[str, Any]:
        document = scheduled(first["id"])
        return document | {
            "metadata": {name: value for name, value in document["metadata"].items() if name not in names}
        }

    cron = {"cronSchedule": {"cron": "whenever"}}
    refusals: list[tuple[Any, str]] = [
        (
            scheduled(nobodys),
            f"There is no job corresponding to this scheduled workflow: {nobodys}/elsewhere/theirs-x7k2p",
        ),
        (without("name", "namespace"), "The resource must have a name: {"),
        (without("namespace", "uid"), "The resource must have a namespace: {"),
        (without("uid"), "The resource must have a UID: {"),
        ([], "Could not unmarshal scheduled workflow: json: cannot unmarshal array"),
        (
            scheduled(first["id"], enabled="yes"),
            "Could not unmarshal scheduled workflow: json: cannot unmarshal string",
        ),
        (scheduled(first["id"], condition="Merry"), "Could not unmarshal scheduled workflow: 'Merry' is not"),
        (scheduled(first["id"], trigger=cron), "Schedule cron is not a supported format"),
        (scheduled(first["id"], trigger={"periodicSchedule": {}}), "Found invalid period schedule interval 0."),
        (
            scheduled(first["id"], workflow={"parameters": [{"name": "a\x00"}]}),
            "Could not unmarshal scheduled workflow: ",
        ),
    ]
    for document, message in refusals:
        answer = await agent.report(document)
        assert (answer.status, answer.json["code"]) == (400, 3)
        assert answer.json["error"].startswith(f"{CHAIN}Invalid input error: {message}")
    for body in ({}, 5, scheduled(first["id"])):
        answer = await agent.post(body)
        assert (answer.status, answer.json["code"], "details" in answer.json) == (400, 3, False)
    assert (await world.get(first["id"]))["status"] == "Enabled"
