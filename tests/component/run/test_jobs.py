"""What the job scheduler asks of runs, and what its facts change in them."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from shared.contracts import events
from shared.contracts.questions import CHECK_MANIFEST, ManifestAnswer, ManifestRequest
from shared.contracts.states import ExperimentId, JobState
from shared.errors import NotFound
from tests.component.run.conftest import MANIFEST, World
from tests.component.run.test_following import applied
from tests.component.run.test_refusals import reference

NIGHTLY = JobState(
    id="nightly",
    version=1,
    name="every night",
    experiment_id=ExperimentId("e"),
    created_at=datetime(2024, 1, 1, tzinfo=UTC),
    updated_at=datetime(2024, 1, 1, tzinfo=UTC),
)


async def check(world: World, manifest: str, *parameters: str) -> ManifestAnswer:
    request = ManifestRequest(manifest_digest=await world.blobs.put_manifest(manifest), parameters=parameters)
    return await world.peers.buses["job-scheduler"].ask(CHECK_MANIFEST, request, within_seconds=5)


async def test_a_manifest_is_checked_without_a_run(world: World) -> None:
    own_account = MANIFEST.replace('"entrypoint"', '"serviceAccountName":"theirs","entrypoint"')
    for manifest, account in ((MANIFEST, "pipeline-runner"), (own_account, "theirs")):
        answer = await check(world, manifest)
        assert answer == ManifestAnswer(service_account=account)
        # What was found valid once is not asked again, and is answered the same.
        assert await check(world, manifest) == answer
    assert await world.database.fetchval("select count(*) from runs") == 0


async def test_the_first_parameter_that_a_manifest_does_not_declare_is_named(world: World) -> None:
    assert (await check(world, MANIFEST, "whom", "greeting")).unrecognized is None
    assert (await check(world, MANIFEST, "whom", "Whom", "greetings")).unrecognized == "Whom"
    assert (await check(world, MANIFEST, "")).unrecognized == ""


async def test_a_manifest_that_creation_would_refuse_is_refused_with_the_reason(world: World) -> None:
    invalid = msgspec.json.decode(MANIFEST)
    invalid["spec"]["entrypoint"] = ""
    answer = await check(world, msgspec.json.encode(invalid).decode())
    assert (answer.refusal, answer.malformation) == ("spec.entrypoint is required", "")
    another_kind = MANIFEST.replace('"Workflow"', '"CronWorkflow"')
    answer = await check(world, another_kind)
    assert answer == ManifestAnswer(malformation="Unexpected resource type. Expected: Workflow. Received: CronWorkflow")
    assert "is not an object" in (await check(world, '{"spec":1}')).malformation


async def test_what_an_answer_quotes_of_a_manifest_leaves_room_for_the_answer(world: World) -> None:
    longer_than_a_message = "n" * 1_100_000
    answer = await check(world, MANIFEST.replace('"Workflow"', f'"{longer_than_a_message}"'))
    assert answer.malformation.startswith("Unexpected resource type. Expected: Workflow. Received: nnn")
    own_account = f'"serviceAccountName":"{longer_than_a_message}","entrypoint"'
    answer = await check(world, MANIFEST.replace('"entrypoint"', own_account))
    assert answer == ManifestAnswer(malformation="serviceAccountName is longer than 2000 bytes")


async def test_nothing_is_said_of_a_manifest_that_nobody_has(world: World) -> None:
    bus = world.peers.buses["job-scheduler"]
    with pytest.raises(NotFound, match="WorkflowSpecManifest 0000 not found"):
        await bus.ask(CHECK_MANIFEST, ManifestRequest(manifest_digest="0000"), within_seconds=5)


async def test_a_run_may_refer_to_a_job_and_forgets_it_with_its_deletion(world: World) -> None:
    world.peers.jobs["nightly"] = NIGHTLY
    references = [reference("JOB", "nightly", "CREATOR")]
    run = await world.client.create(resource_references=references)
    other = await world.client.create()
    by_job = {"resource_reference_key.type": "JOB", "resource_reference_key.id": "nightly"}
    assert run["resource_references"][0] == {
        "key": {"type": "JOB", "id": "nightly"},
        "name": "every night",
        "relationship": "CREATOR",
    }
    assert [each["id"] for each in (await world.client.call("GET", "/runs", **by_job)).body["runs"]] == [run["id"]]

    gone = msgspec.structs.replace(NIGHTLY, version=2, is_deleted=True)
    await applied(world, await world.peers.tell(events.JOB_DELETED, gone), owner="job-scheduler")

    kinds = [each["key"]["type"] for each in (await world.client.get(run["id"]))["resource_references"]]
    assert kinds == ["EXPERIMENT"]
    assert (await world.client.get(other["id"]))["resource_references"] == other["resource_references"]
    assert (await world.client.call("GET", "/runs", **by_job)).body == {}
