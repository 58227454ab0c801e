"""A job from its creation to its deletion (API specification, sections 10 and 11.5)."""

from __future__ import annotations

import asyncio
import re
import secrets
from datetime import datetime
from typing import Any

import msgspec
import pytest

from shared.contracts.questions import GET_JOB, ById
from shared.errors import NotFound
from tests.component.job_scheduler.conftest import DEFAULT_EXPERIMENT, JOB, MANIFEST, World, reference

MILLENNIUM = "2000-01-01T00:00:00Z"
ZERO_TIME = "0001-01-01T00:00:00Z"


def shown(job: dict[str, Any]) -> dict[str, Any]:
    """What does not differ from one job to the next."""
    return {key: value for key, value in job.items() if key not in ("id", "created_at", "updated_at")}


async def test_a_created_job_says_everything_once_and_is_read_the_same(world: World) -> None:
    job = await world.create(description="why", enabled=True, no_catchup=True)

    default = {"key": {"type": "EXPERIMENT", "id": DEFAULT_EXPERIMENT}, "name": "Default", "relationship": "OWNER"}
    assert shown(job) == {
        "name": "a job",
        "description": "why",
        "pipeline_spec": {"workflow_manifest": MANIFEST},
        "resource_references": [default],
        "service_account": "pipeline-runner",
        "max_concurrency": "1",
        "trigger": {"periodic_schedule": {"interval_second": "60"}},
        "status": "NO_STATUS",
        "enabled": True,
        "no_catchup": True,
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", job["created_at"])
    assert job["updated_at"] == job["created_at"]
    assert await world.get(job["id"]) == job | {"status": "Enabled"}
    assert (await world.replica.get("/jobs"))["jobs"] == [job | {"status": "Enabled"}]
    assert await world.facts(job["id"]) == ["created"]


TRIGGERS: dict[str, tuple[Any, Any]] = {
    "none": (None, {}),
    "an empty one": ({}, {}),
    "cron": ({"cron_schedule": {"cron": "0 0 * * * ?"}}, {"cron_schedule": {"cron": "0 0 * * * ?"}}),
    "cron, verbatim": ({"cronSchedule": {"cron": " @daily"[1:]}}, {"cron_schedule": {"cron": "@daily"}}),
    "cron with times, in UTC and whole seconds": (
        {
            "cron_schedule": {
                "cron": "1 2 3 4 5",
                "start_time": "2000-01-01T02:00:00.75+02:00",
                "end_time": "1999-01-01T00:00:00Z",
            }
        },
        {"cron_schedule": {"cron": "1 2 3 4 5", "start_time": MILLENNIUM, "end_time": "1999-01-01T00:00:00Z"}},
    ),
    "an interval as a number": (
        {"periodic_schedule": {"interval_second": 3600, "start_time": MILLENNIUM}},
        {"periodic_schedule": {"interval_second": "3600", "start_time": MILLENNIUM}},
    ),
    "the largest interval": (
        {"periodic_schedule": {"interval_second": str(2**63 - 1)}},
        {"periodic_schedule": {"interval_second": str(2**63 - 1)}},
    ),
    "the epoch is a time, and shown": (
        {"periodic_schedule": {"interval_second": 1, "start_time": "1970-01-01T00:00:00Z"}},
        {"periodic_schedule": {"interval_second": "1", "start_time": "1970-01-01T00:00:00Z"}},
    ),
    "Go's zero time is none": (
        {"cron_schedule": {"cron": "@daily", "start_time": ZERO_TIME, "end_time": ZERO_TIME}},
        {"cron_schedule": {"cron": "@daily"}},
    ),
    "a second later is one": (
        {"periodic_schedule": {"interval_second": 1, "end_time": "0001-01-01T00:00:01Z"}},
        {"periodic_schedule": {"interval_second": "1", "end_time": "0001-01-01T00:00:01Z"}},
    ),
}


async def test_every_trigger_comes_back_as_it_is_written(world: World) -> None:
    for case, (sent, returned) in TRIGGERS.items():
        job = await world.create(trigger=sent)
        assert job["trigger"] == returned, case
        assert (await world.get(job["id"]))["trigger"] == returned, case


async def test_a_missing_enabled_means_disabled_and_mode_means_nothing(world: World) -> None:
    job = await world.create(mode="ENABLED")
    assert "enabled" not in job
    assert not {"mode", "no_catchup"} & job.keys()
    assert (await world.get(job["id"]))["status"] == "Disabled"


async def test_a_job_without_a_trigger_is_running_until_it_has_run(world: World) -> None:
    for fields in ({"enabled": True}, {"enabled": False}):
        job = await world.create(trigger=None, **fields)
        assert (await world.get(job["id"]))["status"] == "Running"


async def test_enabling_and_disabling_are_idempotent_and_only_a_change_is_an_update(world: World) -> None:
    job_id = (await world.create())["id"]
    await world.database.execute("update jobs set updated_at = '2000-01-01T00:00:00Z'")

    assert await world.client.post(f"/jobs/{job_id}/disable") == {}
    assert (await world.get(job_id))["updated_at"] == MILLENNIUM

    for client in (world.client, world.replica):
        assert await client.post(f"/jobs/{job_id}/enable") == {}
    job = await world.get(job_id)
    assert (job["enabled"], job["status"]) == (True, "Enabled")
    assert job["updated_at"] > job["created_at"][:4]
    updated_at = (await world.row(job_id))["updated_at"]
    assert updated_at > datetime.fromisoformat(job["created_at"])

    await world.client.post(f"/jobs/{job_id}/enable")
    assert (await world.row(job_id))["updated_at"] == updated_at
    await world.client.post(f"/jobs/{job_id}/disable")
    assert "enabled" not in await world.get(job_id)
    assert await world.facts(job_id) == ["created", "enabled", "disabled"]
    assert (await world.row(job_id))["version"] == 3


async def test_switches_at_the_same_moment_make_one_fact(world: World) -> None:
    job_id = (await world.create())["id"]
    clients = (world.client, world.replica)
    await asyncio.gather(*(clients[nth % 2].post(f"/jobs/{job_id}/enable") for nth in range(8)))
    assert await world.facts(job_id) == ["created", "enabled"]


async def test_a_deleted_job_is_gone_after_its_runs_were_waited_for(world: World) -> None:
    parent = await world.create(name="parent")
    child = await world.create(name="child", resource_references=[reference("JOB", parent["id"], "CREATOR")])
    assert child["resource_references"][0]["name"] == "parent"

    assert await world.client.delete(f"/jobs/{parent['id']}") == {}

    assert [(each.owner, each.position) for each in world.peers.waited] == [("job-scheduler", 3)]
    assert await world.client.get("/jobs", **of("JOB", parent["id"])) == {}
    assert [each["key"]["type"] for each in (await world.get(child["id"]))["resource_references"]] == ["EXPERIMENT"]
    assert await world.facts(parent["id"]) == ["created", "deleted"]
    chains = {
        ("DELETE", f"/jobs/{parent['id']}"): "Delete job failed: ",
        ("GET", f"/jobs/{parent['id']}"): "",
        ("POST", f"/jobs/{parent['id']}/enable"): "Enable/Disable job failed: Check job exist failed: ",
        ("POST", f"/jobs/{parent['id']}/disable"): "Enable/Disable job failed: Check job exist failed: ",
    }
    for (method, path), chain in chains.items():
        for client in (world.client, world.replica):
            status, body = await client.refused(method, path)
            assert (status, body["code"]) == (404, 5)
            assert body["error"] == f"{chain}ResourceNotFoundError: Job {parent['id']} not found."
            assert body["details"][0]["error_message"] == f"Job {parent['id']} not found."


async def test_deletions_at_the_same_moment_succeed_once(world: World) -> None:
    job_id = (await world.create())["id"]
    clients = (world.client, world.replica)
    answers = await asyncio.gather(*(clients[n % 2].call("DELETE", f"/apis/v1beta1/jobs/{job_id}") for n in range(4)))
    assert sorted(answer.status for answer in answers) == [200, 404, 404, 404]
    assert await world.facts(job_id) == ["created", "deleted"]


async def test_creating_is_not_idempotent_and_names_are_free(world: World) -> None:
    jobs = await asyncio.gather(*(world.create(name="Hello World!") for _ in range(5)))
    assert len({job["id"] for job in jobs}) == 5
    rows = await world.database.fetch("select object_name from jobs")
    assert len({row["object_name"] for row in rows}) == 5
    assert all(re.fullmatch("helloworld[a-z0-9]{5}", row["object_name"]) for row in rows)
    nameless = await world.create(name="")
    assert "name" not in nameless
    assert (await world.row(nameless["id"]))["object_name"].startswith("job-")


async def test_what_only_the_server_says_is_ignored_in_requests(world: World) -> None:
    job = await world.create(id="mine", status="Succeeded", created_at=MILLENNIUM, updated_at=MILLENNIUM, error="no")
    assert job["id"] != "mine"
    assert (job["status"], job.get("error")) == ("NO_STATUS", None)
    assert not {job["created_at"], job["updated_at"]} & {MILLENNIUM}


async def test_others_may_ask_for_a_job(world: World) -> None:
    job = await world.create(enabled=True)
    bus = world.peers.buses["run"]
    state = await bus.ask(GET_JOB, ById(id=job["id"]), within_seconds=5)
    assert (state.name, state.is_enabled, state.experiment_id) == ("a job", True, DEFAULT_EXPERIMENT)
    with pytest.raises(NotFound, match=r"Job nope not found\."):
        await bus.ask(GET_JOB, ById(id="nope"), within_seconds=5)


async def test_both_spellings_of_the_names_and_numbers_as_text_are_read(world: World) -> None:
    camel = {
        "name": "camel",
        "pipelineSpec": {"workflowManifest": MANIFEST, "parameters": [{"name": "whom", "value": ""}]},
        "maxConcurrency": 10,
        "noCatchup": True,
        "serviceAccount": "asked",
        "resourceReferences": [{"key": {"type": 5, "id": "kubeflow"}, "relationship": 1}],
    }
    job = await world.client.post("/jobs", camel)
    assert (job["max_concurrency"], job["no_catchup"], job["service_account"]) == ("10", True, "asked")
    assert job["pipeline_spec"]["parameters"] == [{"name": "whom"}]
    assert job["resource_references"][0]["key"] == {"type": "NAMESPACE", "id": "kubeflow"}


async def test_the_manifest_is_in_the_object_store_word_for_word(world: World) -> None:
    spaced = msgspec.json.format(MANIFEST, indent=3)
    job = await world.create(pipeline_spec={"workflow_manifest": spaced})
    assert job["pipeline_spec"]["workflow_manifest"] == spaced
    assert await world.blobs.get_manifest((await world.row(job["id"]))["manifest_digest"]) == spaced
    assert (await world.get(job["id"]))["pipeline_spec"]["workflow_manifest"] == spaced
    assert JOB["pipeline_spec"]["workflow_manifest"] != spaced


def of(kind: str, resource_id: str) -> dict[str, str]:
    return {"resource_reference_key.type": kind, "resource_reference_key.id": resource_id}


async def test_a_taken_object_name_is_drawn_again_and_not_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three names are drawn for each creation.
    letters = iter("bbbbb" * 3 + "bbbbb" + "ccccc" * 2 + "bbbbb" * 3)
    monkeypatch.setattr(secrets, "choice", lambda _: next(letters))
    jobs = [await world.create(name="same") for _ in range(2)]
    names = [(await world.row(job["id"]))["object_name"] for job in jobs]
    assert names == ["samebbbbb", "sameccccc"]
    status, body = await world.client.refused("POST", "/jobs", {**JOB, "name": "same"})
    assert (status, body["code"]) == (409, 6)
    assert len((await world.client.get("/jobs"))["jobs"]) == 2
