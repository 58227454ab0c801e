"""The life of a run, from its creation over what is observed of it to its end."""

from __future__ import annotations

import asyncio
import base64
import uuid
from datetime import UTC, datetime

import msgspec

from tests.component.run.conftest import DEFAULT_EXPERIMENT, MANIFEST, World

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ENDED = datetime(2026, 1, 2, 3, 4, 9, tzinfo=UTC)


def node(node_id: str, phase: str, **fields: object) -> dict[str, object]:
    return {"id": node_id, "name": node_id, "displayName": node_id, "type": "Pod", "phase": phase} | fields


async def test_a_creation_answers_with_the_run_and_the_workflow_it_will_be(world: World) -> None:
    answer = await world.client.call(
        "POST",
        "/runs",
        {
            "name": "first",
            "description": "what for",
            "pipeline_spec": {"workflow_manifest": MANIFEST, "parameters": [{"name": "whom", "value": "world"}]},
        },
    )

    assert answer.status == 200
    run = answer.body["run"]
    assert str(uuid.UUID(run["id"])) == run["id"]
    created_at = run.pop("created_at")
    assert created_at.endswith("Z")
    assert "." not in created_at
    assert run == {
        "id": run["id"],
        "name": "first",
        "description": "what for",
        "pipeline_spec": {"workflow_manifest": MANIFEST, "parameters": [{"name": "whom", "value": "world"}]},
        "resource_references": [
            {"key": {"type": "EXPERIMENT", "id": DEFAULT_EXPERIMENT}, "name": "Default", "relationship": "OWNER"}
        ],
        "service_account": "pipeline-runner",
        "scheduled_at": "1970-01-01T00:00:00Z",
        "finished_at": "1970-01-01T00:00:00Z",
    }
    workflow = msgspec.json.decode(answer.body["pipeline_runtime"]["workflow_manifest"])
    assert workflow["metadata"]["name"].startswith("two-steps-")
    assert len(workflow["metadata"]["name"]) == len("two-steps-") + 5
    assert workflow["metadata"]["labels"] == {"pipeline/runid": run["id"]}
    assert workflow["spec"]["templates"][0]["container"]["command"] == ["echo", run["id"]]
    assert workflow["spec"]["arguments"]["parameters"] == [
        {"name": "greeting", "value": "hello"},
        {"name": "whom", "value": "world"},
    ]
    assert await world.facts(run["id"]) == ["created"]


async def test_a_run_is_read_from_a_replica_that_did_not_create_it(world: World) -> None:
    other = await world.start_replica()
    run = await world.client.create()

    assert await other.get(run["id"]) == run
    listed = await other.call("GET", "/runs")
    assert listed.body == {"runs": [run], "total_size": 1}


async def test_a_run_lives_from_submission_to_success(world: World) -> None:
    run_id = (await world.client.create())["id"]
    assert (await world.records.due(10)).submissions == (run_id,)

    submission = await world.records.submission(run_id)
    assert submission is not None
    assert submission.workflow["metadata"]["uid"] == run_id
    assert submission.nodes == ()
    await world.records.mark_submitted(run_id, submission.attempt)
    assert (await world.records.due(10)).is_empty
    (active,) = await world.records.active()
    assert (active.id, active.has_started) == (run_id, False)

    name = submission.workflow_name
    await world.observe(run_id, "Running", started_at=STARTED, nodes=(node(name, "Running"),))
    running = await world.client.workflow(run_id)
    assert running["status"]["phase"] == "Running"
    assert running["status"]["startedAt"] == "2026-01-02T03:04:05Z"
    assert running["status"]["finishedAt"] is None
    assert running["status"]["nodes"] == {name: node(name, "Running")}

    await world.observe(run_id, "Succeeded", started_at=STARTED, finished_at=ENDED, nodes=(node(name, "Succeeded"),))
    run = await world.client.get(run_id)
    assert run["status"] == "Succeeded"
    assert run["finished_at"] == "2026-01-02T03:04:09Z"
    ended = await world.client.workflow(run_id)
    assert (ended["apiVersion"], ended["kind"]) == ("argoproj.io/v1alpha1", "Workflow")
    assert ended["status"]["conditions"] == [{"type": "Completed", "status": "True"}]
    assert ended["metadata"]["labels"]["workflows.argoproj.io/completed"] == "true"
    assert ended["status"]["artifactRepositoryRef"]["artifactRepository"]["s3"]["bucket"] == world.blobs.bucket
    assert await world.facts(run_id) == ["created", "started", "succeeded"]
    assert await world.records.active() == ()


async def test_an_observation_that_is_repeated_or_late_changes_nothing(world: World) -> None:
    run_id = (await world.client.create())["id"]
    assert await world.observe(run_id, "Running", started_at=STARTED)
    assert await world.observe(run_id, "Running", started_at=STARTED)
    version = (await world.row(run_id))["version"]
    assert await world.observe(run_id, "Pending")
    assert (await world.row(run_id))["version"] == version
    assert await world.observe(run_id, "Failed", message="child failed", finished_at=ENDED)

    assert await world.observe(run_id, "Failed", message="told again", finished_at=ENDED), "its end is on record"
    assert not await world.observe(run_id, "Succeeded", finished_at=ENDED)
    assert not await world.observe(run_id, "Running", started_at=STARTED)
    assert not await world.observe(run_id, "Running", attempt=2)
    assert (await world.client.get(run_id))["status"] == "Failed"
    assert (await world.client.workflow(run_id))["status"]["message"] == "child failed"
    assert await world.facts(run_id) == ["created", "started", "failed"]


async def test_a_run_that_waits_is_pending_with_its_reason_and_nobody_is_told(world: World) -> None:
    run_id = (await world.client.create())["id"]
    assert await world.observe(run_id, "Pending", message="position 2 in the queue")
    assert await world.observe(run_id, "Pending", message="position 1 in the queue")

    run = await world.client.get(run_id)
    assert (run["status"], "error" in run) == ("Pending", False)
    status = (await world.client.workflow(run_id))["status"]
    assert (status["phase"], status["message"]) == ("Pending", "position 1 in the queue")
    assert (status["startedAt"], "nodes" in status) == (None, False)
    version = (await world.row(run_id))["version"]
    assert await world.observe(run_id, "Pending", message="position 1 in the queue")
    assert (await world.row(run_id))["version"] == version

    assert await world.observe(run_id, "Running", started_at=STARTED)
    assert "message" not in (await world.client.workflow(run_id))["status"]
    assert await world.facts(run_id) == ["created", "started"]


async def test_why_a_run_waited_is_no_message_of_what_becomes_of_it(world: World) -> None:
    run_id = (await world.client.create())["id"]
    await world.observe(run_id, "Pending", message="position 2 in the queue")
    await world.client.call("POST", f"/runs/{run_id}:archive")
    await world.client.call("POST", f"/runs/{run_id}/terminate")
    assert await world.observe(run_id, "Pending", message="position 1 in the queue")

    run = await world.client.get(run_id)
    assert run["status"] == "Terminating"
    assert "message" not in (await world.client.workflow(run_id))["status"]
    told = await world.database.fetch("select what, body from outbox where resource_id = $1 order by seq", run_id)
    assert [row["what"] for row in told] == ["created", "archived", "terminating"]
    assert not any("error" in msgspec.json.decode(row["body"]) for row in told)


async def test_a_complete_observation_replaces_the_nodes_on_record(world: World) -> None:
    run_id = (await world.client.create())["id"]
    await world.observe(run_id, "Running", nodes=(node("a", "Running"), node("b", "Running")))
    await world.observe(run_id, "Running", nodes=(node("b", "Succeeded"), node("c", "Running")), is_complete=True)

    nodes = (await world.client.workflow(run_id))["status"]["nodes"]
    assert {node_id: each["phase"] for node_id, each in nodes.items()} == {"b": "Succeeded", "c": "Running"}


async def test_what_a_step_wrote_is_shown_as_it_was(world: World) -> None:
    run_id = (await world.client.create())["id"]
    odd = node("a", "Succeeded", outputs={"parameters": [{"name": "x", "value": "nul \x00 and {{workflow.uid}}"}]})
    await world.observe(run_id, "Running", message="with a nul \x00", nodes=(odd,))

    assert (await world.client.workflow(run_id))["status"]["nodes"]["a"] == odd


async def test_a_vanished_workflow_ends_its_run_as_an_error_without_open_nodes(world: World) -> None:
    run_id = (await world.client.create())["id"]
    await world.observe(run_id, "Running", nodes=(node("a", "Succeeded"), node("b", "Running")))
    await world.observe(run_id, "Running", is_vanished=True)

    assert (await world.client.get(run_id))["status"] == "Error"
    status = (await world.client.workflow(run_id))["status"]
    assert {each["phase"] for each in status["nodes"].values()} == {"Succeeded", "Error"}
    assert "vanished" in status["message"]
    assert await world.facts(run_id) == ["created", "started", "error", "lost"]


async def test_a_termination_shows_at_once_and_holds_until_the_end(world: World) -> None:
    run_id = (await world.client.create())["id"]
    await world.records.mark_submitted(run_id, 1)
    await world.observe(run_id, "Running", started_at=STARTED)

    assert (await world.client.call("POST", f"/runs/{run_id}/terminate")).body == {}
    (termination,) = (await world.records.due(10)).terminations
    assert termination.run_id == run_id
    await world.records.mark_terminated(run_id, termination.attempt)
    assert (await world.records.due(10)).is_empty
    await world.observe(run_id, "Running", started_at=STARTED)
    assert (await world.client.get(run_id))["status"] == "Terminating"
    workflow = await world.client.workflow(run_id)
    assert workflow["spec"]["activeDeadlineSeconds"] == 0
    assert workflow["status"]["phase"] == "Running"

    again = await world.client.call("POST", f"/runs/{run_id}/terminate")
    assert (again.status, again.message) == (400, f"Failed to terminate run {run_id}. Row not found.")
    await world.observe(run_id, "Failed", message="terminated", finished_at=ENDED)
    assert (await world.client.get(run_id))["status"] == "Failed"
    assert await world.facts(run_id) == ["created", "started", "terminating", "failed"]


async def test_a_run_terminated_before_its_start_is_submitted_as_terminating(world: World) -> None:
    run_id = (await world.client.create())["id"]
    await world.client.call("POST", f"/runs/{run_id}/terminate")

    due = await world.records.due(10)
    assert (due.submissions, due.terminations) == ((run_id,), ())
    submission = await world.records.submission(run_id)
    assert submission is not None
    assert submission.is_terminating


async def test_a_run_that_no_engine_takes_ends_as_an_error(world: World) -> None:
    run_id = (await world.client.create())["id"]

    assert await world.records.fail(run_id, 1, "the name is taken")
    assert not await world.records.fail(run_id, 1, "the name is taken")
    assert (await world.client.get(run_id))["status"] == "Error"
    assert (await world.records.due(10)).is_empty


async def test_a_deleted_run_is_gone_at_once_and_its_remains_are_erased_later(world: World) -> None:
    run_id = (await world.client.create())["id"]
    name = (await world.row(run_id))["workflow_name"]
    await world.observe(run_id, "Running", nodes=(node("a", "Running"),))

    assert (await world.client.call("DELETE", f"/runs/{run_id}")).body == {}
    assert (await world.client.call("GET", f"/runs/{run_id}")).status == 404
    assert (await world.client.call("GET", "/runs")).body == {}
    again = await world.client.call("DELETE", f"/runs/{run_id}")
    assert again.status == 404
    assert again.body["error"] == (
        f"Delete run failed: Check run exist failed: ResourceNotFoundError: Run {run_id} not found."
    )
    due = await world.records.due(10)
    assert due.submissions == ()
    assert [(each.run_id, each.workflow_name) for each in due.erasures] == [(run_id, name)]
    await world.records.mark_erased(run_id)
    assert (await world.records.due(10)).is_empty
    assert await world.database.fetchval("select count(*) from nodes") == 0
    assert await world.facts(run_id) == ["created", "started", "deleted"]


async def test_creations_at_the_same_moment_are_all_recorded_under_names_of_their_own(world: World) -> None:
    manifest = MANIFEST.replace('"generateName":"two-steps-"', '"name":"fixed"')
    runs = await asyncio.gather(
        *(world.client.create(name=f"r{n}", pipeline_spec={"workflow_manifest": manifest}) for n in range(12))
    )

    names = {(await world.row(run["id"]))["workflow_name"] for run in runs}
    assert len(names) == 12
    assert "fixed" in names
    listed = await world.client.call("GET", "/runs", page_size="5")
    assert listed.body["total_size"] == 12
    assert await world.database.fetchval("select count(*) from manifests") == 1
    assert await world.blobs.exists(f"manifests/{(await world.row(runs[0]['id']))['manifest_digest']}")


async def test_the_last_artifact_of_a_name_is_read_as_it_is_stored(world: World) -> None:
    data = bytes(range(256)) * 3001  # Chunks of it do not end at a multiple of three.
    await world.blobs.put("artifacts/w/a/model.tgz", data)
    run_id = (await world.client.create())["id"]
    artifacts = [
        {"name": "model", "s3": {"key": "artifacts/w/a/other.tgz"}},
        {"name": "model", "s3": {"key": "artifacts/w/a/model.tgz"}},
        {"name": "model", "s3": {"key": ""}},
        {"name": "gone", "s3": {"key": "artifacts/w/a/gone.tgz"}},
        {"name": "raw", "raw": {"data": "x"}},
    ]
    await world.observe(run_id, "Running", nodes=(node("a", "Succeeded", outputs={"artifacts": artifacts}),))

    read = await world.client.call("GET", f"/runs/{run_id}/nodes/a/artifacts/model:read")
    assert read.status == 200
    assert base64.b64decode(read.body["data"]) == data
    assert (await world.client.call("GET", f"/runs/{run_id}/nodes/a/artifacts/gone:read")).body == {}
    for unknown in ("nodes/a/artifacts/raw", "nodes/a/artifacts/nothing", "nodes/b/artifacts/model"):
        answer = await world.client.call("GET", f"/runs/{run_id}/{unknown}:read")
        assert (answer.status, answer.message) == (404, f"artifact runs/{run_id}/{unknown} not found.")
    answer = await world.client.call("GET", "/runs/nope/nodes/a/artifacts/model:read")
    assert (answer.status, answer.message) == (404, "Run nope not found.")
