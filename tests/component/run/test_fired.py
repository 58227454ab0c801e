"""Runs that a job's slot makes (API specification, sections 11.7 and 12.2)."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec

from shared.contracts import events
from shared.contracts.states import (
    ExperimentId,
    ExperimentState,
    JobId,
    JobState,
    ParameterValue,
    RunId,
    RunState,
    RunStatus,
    TriggerState,
)
from tests.component.run.conftest import MANIFEST, World
from tests.component.run.test_following import applied

SLOT = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
JOB_ID = "11111111-1111-4111-8111-111111111111"


async def ordered(world: World, **fields: Any) -> TriggerState:
    """A slot of a job, as the job scheduler tells of it. Its manifest is in the object store alone."""
    index = fields.get("index", 7)
    given: dict[str, Any] = {
        "id": JOB_ID,
        "version": index + 1,
        "run_id": RunId(str(uuid.uuid4())),
        "slot": SLOT,
        "index": index,
        "name": "every night",
        "workflow_name": f"everynightx7k2p-{index}-1117443087",
        "namespace": "kubeflow",
        "experiment_id": ExperimentId("e1"),
        "experiment_name": "mill",
        "pipeline_id": "p1",
        "pipeline_version_id": "v1",
        "manifest_digest": await world.blobs.put_manifest(MANIFEST) if "manifest_digest" not in fields else "",
        "parameters": (ParameterValue(name="whom", value="[[Index]] for {{workflow.uid}}"),),
        "service_account": "miller",
        "created_by": "token:ci",
    }
    return TriggerState(**(given | fields))


async def tell(world: World, *triggers: TriggerState) -> None:
    for trigger in triggers:
        position = await world.peers.tell(events.JOB_TRIGGERED, trigger)
    await applied(world, position, owner="job-scheduler")


async def rejections(world: World) -> list[RunState]:
    rows = await world.database.fetch("select body from outbox where what = 'rejected' order by seq")
    return [msgspec.json.decode(row["body"], type=RunState) for row in rows]


async def test_a_slot_makes_one_run_that_shows_what_it_was_made_from_in_its_workflow_alone(world: World) -> None:
    trigger = await ordered(world)
    await tell(world, trigger, trigger)

    run = await world.client.get(trigger.run_id)
    shown = msgspec.json.decode(run["pipeline_spec"].pop("workflow_manifest"))
    parameters = [
        {"name": "greeting", "value": "hello"},
        # What was expanded is not expanded again.
        {"name": "whom", "value": f"[[Index]] for {trigger.run_id}"},
    ]
    assert run == {
        "id": trigger.run_id,
        "name": trigger.workflow_name,
        "pipeline_spec": {},
        "resource_references": [
            {"key": {"type": "EXPERIMENT", "id": "e1"}, "name": "mill", "relationship": "OWNER"},
            {"key": {"type": "JOB", "id": JOB_ID}, "name": "every night", "relationship": "CREATOR"},
        ],
        "created_at": run["created_at"],
        "scheduled_at": "2024-05-06T07:08:09Z",
        "finished_at": "1970-01-01T00:00:00Z",
    }
    assert shown["metadata"] == {"generateName": trigger.workflow_name}
    assert shown["spec"]["arguments"] == {"parameters": parameters}
    assert shown["spec"]["serviceAccountName"] == "miller"
    assert "status" not in shown

    workflow = await world.client.workflow(trigger.run_id)
    schedule = "scheduledworkflows.kubeflow.org/"
    assert workflow["spec"] == shown["spec"]
    assert (workflow["metadata"]["name"], workflow["metadata"]["uid"]) == (trigger.workflow_name, trigger.run_id)
    assert workflow["metadata"]["labels"] == {
        "pipeline/runid": trigger.run_id,
        f"{schedule}isOwnedByScheduledWorkflow": "true",
        f"{schedule}scheduledWorkflowName": "everynightx7k2p",
        f"{schedule}workflowEpoch": str(int(SLOT.timestamp())),
        f"{schedule}workflowIndex": "7",
    }
    assert "annotations" not in workflow["metadata"]

    row = await world.row(trigger.run_id)
    assert (row["created_by"], row["scheduled_at"], row["job_id"]) == ("token:ci", SLOT, JOB_ID)
    assert await world.facts(trigger.run_id) == ["created"]
    by_job = {"resource_reference_key.type": "JOB", "resource_reference_key.id": JOB_ID}
    listed = (await world.client.call("GET", "/runs", **by_job)).body
    assert [each["id"] for each in listed["runs"]] == [trigger.run_id]
    assert listed["total_size"] == 1
    assert [str(each.id) for each in await world.records.active()] == [trigger.run_id]


async def test_a_fired_run_outlives_its_job_and_keeps_its_looks(world: World) -> None:
    trigger = await ordered(world)
    await tell(world, trigger)
    before = await world.client.get(trigger.run_id)
    gone = JobState(
        id=JobId(JOB_ID),
        version=99,
        name="every night",
        experiment_id=ExperimentId("e1"),
        created_at=SLOT,
        updated_at=SLOT,
        is_deleted=True,
    )
    await applied(world, await world.peers.tell(events.JOB_DELETED, gone), owner="job-scheduler")
    after = await world.client.get(trigger.run_id)
    assert [each["key"]["type"] for each in after["resource_references"]] == ["EXPERIMENT"]
    assert after == before | {"resource_references": after["resource_references"]}


async def test_a_slot_that_can_have_no_run_is_refused_with_the_reason_and_others_are_not(world: World) -> None:
    deleted = ExperimentState(id="e2", version=2, name="gone", created_at=SLOT, is_deleted=True)
    await applied(world, await world.peers.tell(events.EXPERIMENT_DELETED, deleted))
    invalid = await world.blobs.put_manifest(MANIFEST.replace('"entrypoint":"main",', ""))
    other_kind = await world.blobs.put_manifest(MANIFEST.replace('"Workflow"', '"CronWorkflow"'))
    taken = (await world.client.create())["id"]
    taken_name = (await world.row(taken))["workflow_name"]
    refused = {
        "WorkflowSpecManifest every night not found.": await ordered(world, manifest_digest="0" * 64, index=1),
        "Experiment e2 not found.": await ordered(world, experiment_id=ExperimentId("e2"), index=2),
        "Failed to validate workflow for (everynightx7k2p-3-1117443087): spec.entrypoint is required": await ordered(
            world, manifest_digest=invalid, index=3
        ),
        "Failed to unmarshal workflow spec manifest. Unexpected resource type. Expected: Workflow. "
        "Received: CronWorkflow": await ordered(world, manifest_digest=other_kind, index=4),
        "Unrecognized input parameter: who": await ordered(
            world, parameters=(ParameterValue(name="who", value=""),), index=5
        ),
        f"Workflow[{taken_name}] has the name that the workflow of another run has.": await ordered(
            world, workflow_name=taken_name, index=6
        ),
    }
    good = await ordered(world)
    await tell(world, *refused.values(), good)

    assert [each.error for each in await rejections(world)] == list(refused)
    for state, trigger in zip(await rejections(world), refused.values(), strict=True):
        assert (state.id, state.job_id, state.scheduled_at) == (trigger.run_id, JOB_ID, SLOT)
        assert (state.status, state.version) == (RunStatus.ERROR, 1)
        assert (await world.client.call("GET", f"/runs/{trigger.run_id}")).status == 404
        assert await world.facts(trigger.run_id) == ["rejected"]
    assert await world.facts(good.run_id) == ["created"]


async def test_many_slots_are_made_at_once_and_those_told_again_make_no_other(world: World) -> None:
    triggers = [await ordered(world, index=index) for index in range(1, 61)]
    await tell(world, *triggers)
    assert await world.database.fetchval("select count(*) from runs") == 60
    assert (await world.client.call("GET", "/runs")).body["total_size"] == 60
    await tell(world, *triggers)
    assert await world.database.fetchval("select count(*) from runs") == 60
    assert (await world.client.call("GET", "/runs")).body["total_size"] == 60
    assert await rejections(world) == []


async def test_a_run_goes_for_the_one_that_has_its_place_whether_that_is_made_or_not(world: World) -> None:
    first = await ordered(world, index=1)
    second = await ordered(world, index=2, replaces=(first.run_id, RunId("nobody")))
    refused = await ordered(world, index=3, manifest_digest="gone", replaces=(second.run_id, first.run_id))
    await tell(world, first, second, second, refused)

    assert await world.facts(first.run_id) == ["created", "terminating"]
    assert await world.facts(second.run_id) == ["created", "terminating"]
    assert [each.id for each in await rejections(world)] == [refused.run_id]
    assert (await world.client.get(first.run_id))["status"] == "Terminating"
