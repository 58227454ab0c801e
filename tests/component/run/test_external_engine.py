"""Runs that another engine drives: nothing of them is the controller's business, and its agent reports how they go."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from services.run.domain import EngineName
from shared.bearer import digest_of
from shared.contracts import events
from shared.contracts.states import Metric
from tests.component.run.conftest import DEFAULT_EXPERIMENT, V1, Answer, Client, World
from tests.component.run.test_following import applied
from tests.component.run.test_following import report as metrics_of
from tests.component.run.test_jobs import NIGHTLY
from tests.component.run.test_life import node
from tests.support.service import status_without_the_body

TOKEN = "the agent's token"
STARTED, ENDED = "2026-01-02T03:04:05Z", "2026-01-02T03:04:09Z"
MALFORMED = "Report workflow failed.: Invalid input error: "


@dataclass
class Agent:
    """The agent of an external engine, at a replica that is configured for it."""

    client: Client
    world: World

    async def report(self, run_id: str, phase: str = "", *, spec: Any = None, **status: Any) -> Answer:
        """What stands there of the workflow of a run that is known here."""
        name = (await self.world.row(run_id))["workflow_name"]
        return await self.send(workflow(run_id, name, spec=spec, status={"phase": phase} | status))

    async def send(self, document: Any, token: str = TOKEN) -> Answer:
        return await self.post(msgspec.json.encode(document).decode(), token)

    async def post(self, body: Any, token: str = TOKEN) -> Answer:
        return await self.client.send("POST", "/workflows", body, headers={"Authorization": f"Bearer {token}"})


def workflow(run_id: str, name: str, *, spec: Any = None, status: Any = None, **metadata: Any) -> dict[str, Any]:
    named = {"name": name, "namespace": "elsewhere", "uid": "u", "labels": {"pipeline/runid": run_id}}
    return {"metadata": named | metadata, "spec": spec or {"entrypoint": "main"}, "status": status}


def of_job(run_id: str, name: str, job_id: str = "nightly", *, status: Any = None) -> dict[str, Any]:
    """As the scheduler of the engine makes it: one workflow for a slot of a job."""
    labels = {"pipeline/runid": run_id, "scheduledworkflows.kubeflow.org/workflowEpoch": "1767323045"}
    owner = {"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow", "name": "nightly", "uid": job_id}
    spec = {
        "entrypoint": "main",
        "serviceAccountName": "theirs",
        "arguments": {"parameters": [{"name": "day", "value": "20260102"}]},
        "templates": [{"name": "main", "container": {"image": "busybox", "command": ["echo"]}}],
    }
    return workflow(
        run_id,
        name,
        spec=spec,
        status=status or {"phase": "Running", "startedAt": STARTED},
        labels=labels,
        ownerReferences=[owner],
        creationTimestamp="2026-01-02T03:04:06Z",
    )


def nodes(*each: Mapping[str, Any]) -> dict[str, Any]:
    return {str(one["id"]): one for one in each}


@pytest.fixture
async def agent(world: World) -> Agent:
    client = await world.start_replica(engine=EngineName.EXTERNAL, agent_token_sha256=digest_of(TOKEN))
    return Agent(client, world)


async def test_a_run_keeps_the_engine_it_was_created_for_and_the_controller_leaves_others_alone(
    world: World, agent: Agent
) -> None:
    theirs = (await agent.client.create())["id"]
    ours = (await world.client.create())["id"]

    assert [(await world.row(run_id))["engine"] for run_id in (theirs, ours)] == ["external", "embedded"]
    assert (await world.records.due(10)).submissions == (ours,)
    assert [run.id for run in await world.records.active()] == [ours]
    assert (await world.client.call("POST", f"/runs/{theirs}/terminate")).status == 200
    assert (await world.records.due(10)).terminations == ()


async def test_nobody_but_the_agent_reports(world: World, agent: Agent) -> None:
    run_id = (await agent.client.create())["id"]
    name = (await world.row(run_id))["workflow_name"]
    theirs = workflow(run_id, name, status={"phase": "Succeeded"})
    for client, token in (
        (agent.client, "x"),
        (agent.client, ""),
        (agent.client, digest_of(TOKEN)),
        (world.client, TOKEN),
    ):
        answer = await Agent(client, world).send(theirs, token)
        assert (answer.status, answer.body["code"]) == (403, 7)
        assert answer.message == "Reports are accepted from the persistence agent alone."
    assert "status" not in await world.client.get(run_id)


async def test_a_stranger_is_refused_before_the_body_is_read(agent: Agent) -> None:
    assert await status_without_the_body(agent.client.base, f"{V1}/workflows") == 403


async def test_a_run_lives_by_the_reports_of_its_engine(world: World, agent: Agent) -> None:
    run = await agent.client.create()
    run_id = run["id"]
    assert (await agent.report(run_id)).body == {}
    assert "status" not in await world.client.get(run_id)
    a, b = node("a", "Succeeded"), node("b", "Running")
    await agent.report(run_id, "Running", startedAt=STARTED, nodes=nodes(a, b))
    await applied(
        world, await metrics_of(world, run_id, Metric(node_id="a", name="accuracy", number=0.5)), owner="metrics"
    )
    # An engine with many nodes shows none; one that has forgotten a node has forgotten it.
    for shown in (None, nodes(b)):
        assert (await agent.report(run_id, "Running", startedAt=STARTED, nodes=shown)).body == {}
    assert (await world.client.workflow(run_id))["status"]["nodes"] == nodes(b)

    ended = node("b", "Failed")
    final = {"startedAt": STARTED, "finishedAt": ENDED, "message": "child failed", "nodes": nodes(ended)}
    for _ in range(2):
        assert (await agent.report(run_id, "Failed", **final)).body == {}
    assert (await agent.report(run_id, "Running", startedAt=STARTED, nodes=nodes(b))).body == {}

    run = await world.client.get(run_id)
    assert (run["status"], run["finished_at"]) == ("Failed", ENDED)
    assert [metric["name"] for metric in run["metrics"]] == ["accuracy"]
    status = (await world.client.workflow(run_id))["status"]
    assert (status["phase"], status["message"], status["nodes"]) == ("Failed", "child failed", nodes(ended))
    assert await world.facts(run_id) == ["created", "started", "failed"]


async def test_of_a_run_that_is_driven_here_nobody_else_reports(world: World, agent: Agent) -> None:
    run_id = (await world.client.create())["id"]

    answer = await agent.report(run_id, "Succeeded", startedAt=STARTED, finishedAt=ENDED)

    assert (answer.status, answer.body["code"]) == (400, 3)
    assert answer.message.startswith(f"Run {run_id} is driven by the engine of this installation")
    assert "status" not in await world.client.get(run_id)
    assert await world.facts(run_id) == ["created"]


async def test_what_is_no_report_of_a_run_is_refused_as_the_specification_says(world: World, agent: Agent) -> None:
    run_id = (await agent.client.create())["id"]
    name = (await world.row(run_id))["workflow_name"]
    nobodys = str(uuid.uuid4())
    refusals = (
        (workflow(run_id, name, uid=""), 400, MALFORMED + "The workflow must have a UID: "),
        (workflow(run_id, name, labels={}), 400, f"{MALFORMED}Workflow[{name}] missing the Run ID label"),
        (workflow(run_id, "other"), 400, f"{MALFORMED}Workflow[other] has the Run ID label of run {run_id}"),
        (workflow(nobodys, "w"), 404, f"Report workflow failed.: ResourceNotFoundError: Run {nobodys} not found."),
        (of_job(nobodys, "w"), 404, "Report workflow failed.: ResourceNotFoundError: Job nightly not found."),
        (of_job(nobodys, "A b"), 400, "Report workflow failed.: InvalidInputError: Failed to create a workflow"),
    )
    for document, status, error in refusals:
        answer = await agent.send(document)
        assert (answer.status, answer.body["error"][: len(error)]) == (status, error)
    bodies: list[Any] = [{}, [], 5, workflow(run_id, name)]
    for body in bodies:
        answer = await agent.post(body)
        assert (answer.status, answer.body["code"]) == (400, 3)
        assert "cannot unmarshal" in answer.body["error"]
    assert await world.facts(run_id) == ["created"]


async def test_a_job_of_the_engine_makes_runs_that_its_reports_create_once(world: World, agent: Agent) -> None:
    job = msgspec.structs.replace(NIGHTLY, experiment_id=DEFAULT_EXPERIMENT, created_by="token:ci")
    world.peers.jobs["nightly"] = job
    run_id, name = str(uuid.uuid4()), "nightly-1-42"

    answers = await asyncio.gather(*(agent.send(of_job(run_id, name)) for _ in range(6)))
    assert [answer.body for answer in answers] == [{}] * 6
    over = {"phase": "Succeeded", "startedAt": STARTED, "finishedAt": ENDED, "nodes": nodes(node("a", "Succeeded"))}
    await agent.send(of_job(run_id, name, status=over))

    run = await world.client.get(run_id)
    manifest = msgspec.json.decode(run["pipeline_spec"].pop("workflow_manifest"))
    assert run == {
        "id": run_id,
        "name": name,
        "pipeline_spec": {},
        "resource_references": [
            {"key": {"type": "EXPERIMENT", "id": DEFAULT_EXPERIMENT}, "name": "Default", "relationship": "OWNER"},
            {"key": {"type": "JOB", "id": "nightly"}, "name": "every night", "relationship": "CREATOR"},
        ],
        "created_at": "2026-01-02T03:04:06Z",
        "scheduled_at": STARTED,
        "finished_at": ENDED,
        "status": "Succeeded",
    }
    assert manifest["metadata"] == {"generateName": name}
    assert (manifest["apiVersion"], manifest["spec"]["serviceAccountName"]) == ("argoproj.io/v1alpha1", "theirs")
    shown = await world.client.workflow(run_id)
    assert shown["metadata"]["name"] == name
    assert shown["spec"]["serviceAccountName"] == "theirs"
    assert shown["spec"]["arguments"]["parameters"] == [{"name": "day", "value": "20260102"}]
    assert shown["status"]["nodes"] == nodes(node("a", "Succeeded"))
    assert await world.facts(run_id) == ["created", "started", "succeeded"]
    row = await world.row(run_id)
    assert (row["engine"], row["namespace"], row["job_id"]) == ("external", "elsewhere", "nightly")
    assert row["created_by"] == "token:ci"


async def test_a_name_is_that_of_one_run(world: World, agent: Agent) -> None:
    world.peers.jobs["nightly"] = NIGHTLY
    for run_id, status in ((str(uuid.uuid4()), 200), (str(uuid.uuid4()), 409)):
        answer = await agent.send(of_job(run_id, "nightly-1-42"))
        assert answer.status == status


async def test_an_installation_without_another_engine_takes_no_runs_from_one(world: World) -> None:
    world.peers.jobs["nightly"] = NIGHTLY
    client = await world.start_replica(agent_token_sha256=digest_of(TOKEN))
    run_id = str(uuid.uuid4())

    answer = await Agent(client, world).send(of_job(run_id, "nightly-1-42"))

    assert (answer.status, answer.message) == (404, f"Run {run_id} not found.")


async def test_a_deleted_run_leaves_nothing_and_no_report_brings_it_back(world: World, agent: Agent) -> None:
    world.peers.jobs["nightly"] = NIGHTLY
    run_id = str(uuid.uuid4())
    status = {"phase": "Running", "nodes": nodes(node("a", "Running"))}
    seen = of_job(run_id, "nightly-1-42", status=status)
    assert (await agent.send(seen)).status == 200

    assert (await world.client.call("DELETE", f"/runs/{run_id}")).status == 200

    assert (await world.records.due(10)).is_empty
    assert await world.database.fetchval("select count(*) from nodes") == 0
    assert (await agent.send(seen)).status == 404
    assert (await world.client.call("GET", f"/runs/{run_id}")).status == 404
    assert await world.facts(run_id) == ["created", "started", "deleted"]

    gone = msgspec.structs.replace(world.peers.jobs.pop("nightly"), version=2, is_deleted=True)
    await applied(world, await world.peers.tell(events.JOB_DELETED, gone), owner="job-scheduler")
    assert await world.database.fetchval("select count(*) from deleted_runs") == 0
    assert (await agent.send(seen)).message == "Job nightly not found."


async def test_a_stop_is_shown_whoever_asked_for_it(world: World, agent: Agent) -> None:
    asked_here, asked_there = [(await agent.client.create())["id"] for _ in range(2)]
    for run_id in (asked_here, asked_there):
        await agent.report(run_id, "Running", startedAt=STARTED)
    await world.client.call("POST", f"/runs/{asked_here}/terminate")
    assert (await world.client.workflow(asked_here))["spec"]["activeDeadlineSeconds"] == 0

    for run_id in (asked_here, asked_there):
        for _ in range(2):
            await agent.report(run_id, "Running", startedAt=STARTED, spec={"activeDeadlineSeconds": 0})
        assert (await world.client.get(run_id))["status"] == "Terminating"
        await agent.report(run_id, "Failed", finishedAt=ENDED, spec={"activeDeadlineSeconds": 0})
        assert (await world.client.get(run_id))["status"] == "Failed"
        assert await world.facts(run_id) == ["created", "started", "terminating", "failed"]


async def test_a_run_with_nodes_of_foreign_kinds_is_not_retried(world: World, agent: Agent) -> None:
    run_id = (await agent.client.create())["id"]
    foreign = node("a", "Failed", type="Plugin", startedAt=STARTED, finishedAt=ENDED)
    await agent.report(run_id, "Failed", finishedAt=ENDED, nodes=nodes(foreign))

    answer = await world.client.call("POST", f"/runs/{run_id}/retry")

    assert (answer.status, answer.body["code"]) == (409, 10)
    assert "Invalid enum value 'Plugin'" in answer.body["error"]
    assert (await world.client.get(run_id))["status"] == "Failed"


async def test_the_end_of_an_attempt_does_not_end_the_next_one(world: World, agent: Agent) -> None:
    run_id = (await agent.client.create())["id"]
    failed = node("a", "Failed", startedAt=STARTED, finishedAt=ENDED)
    final = {"startedAt": STARTED, "finishedAt": ENDED, "nodes": nodes(failed)}
    await agent.report(run_id, "Failed", **final)
    assert (await world.client.call("POST", f"/runs/{run_id}/retry")).status == 200

    assert (await agent.report(run_id, "Failed", **final)).body == {}
    assert (await world.client.get(run_id))["status"] == "Running"

    await agent.report(run_id, "Succeeded", startedAt=STARTED, finishedAt="2999-01-01T00:00:00Z")
    assert (await world.client.get(run_id))["status"] == "Succeeded"
    assert await world.facts(run_id) == ["created", "failed", "retried", "succeeded"]
