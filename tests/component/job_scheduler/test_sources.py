"""Where a job's manifest, account and references come from (API specification, sections 6 and 9.3)."""

from __future__ import annotations

from shared.contracts import events
from tests.component.job_scheduler.conftest import (
    DEFAULT_EXPERIMENT,
    MANIFEST,
    World,
    experiment_state,
    reference,
)

DEFAULT = {"key": {"type": "EXPERIMENT", "id": DEFAULT_EXPERIMENT}, "name": "Default", "relationship": "OWNER"}


async def test_a_pipeline_id_means_its_default_version_and_says_so(world: World) -> None:
    digest = await world.blobs.put_manifest(MANIFEST)
    world.peers.has_version("p", "old", digest)
    world.peers.has_version("p", "new", digest)

    job = await world.create(pipeline_spec={"pipeline_id": "p"})

    assert job["pipeline_spec"] == {"pipeline_id": "p", "pipeline_name": "p name", "workflow_manifest": MANIFEST}
    version = {"key": {"type": "PIPELINE_VERSION", "id": "new"}, "name": "new name", "relationship": "CREATOR"}
    # What the server adds follows in its own order; what is read later stands in storage order.
    assert job["resource_references"] == [version, DEFAULT]
    assert (await world.get(job["id"]))["resource_references"] == [DEFAULT, version]


async def test_a_job_keeps_what_it_was_made_of(world: World) -> None:
    """A later default, another name, a deletion: a job means what it meant."""
    world.peers.has_version("p", "old", await world.blobs.put_manifest(MANIFEST))
    job = await world.create(pipeline_spec={"pipeline_id": "p"})
    world.peers.has_version("p", "new", await world.blobs.put_manifest(MANIFEST.replace("busybox", "alpine")))
    world.peers.versions.pop("old")
    again = await world.get(job["id"])
    assert again["pipeline_spec"] == job["pipeline_spec"]
    assert [each["name"] for each in again["resource_references"]] == ["Default", "old name"]


async def test_a_version_alone_is_run_and_leaves_the_pipeline_unnamed(world: World) -> None:
    world.peers.has_version("p", "v", await world.blobs.put_manifest(MANIFEST))
    world.peers.has_experiment("mine", "my own")
    references = [reference("PIPELINE_VERSION", "v", "CREATOR"), reference("EXPERIMENT", "mine")]
    job = await world.create(pipeline_spec=None, resource_references=references)
    assert job["pipeline_spec"] == {"workflow_manifest": MANIFEST}
    assert [each["name"] for each in job["resource_references"]] == ["v name", "my own"]


async def test_a_version_wins_over_its_pipelines_default(world: World) -> None:
    world.peers.has_version("p", "old", await world.blobs.put_manifest(MANIFEST))
    world.peers.has_version("p", "new", await world.blobs.put_manifest(MANIFEST.replace("busybox", "alpine")))
    references = [reference("PIPELINE_VERSION", "old", "CREATOR")]
    job = await world.create(pipeline_spec={"pipeline_id": "p"}, resource_references=references)
    assert job["pipeline_spec"]["workflow_manifest"] == MANIFEST
    assert job["pipeline_spec"]["pipeline_name"] == "p name"


async def test_parameters_come_back_as_they_were_sent(world: World) -> None:
    parameters = [{"name": "whom", "value": "[[ScheduledTime]]"}, {"name": "greeting"}, {"name": "whom", "value": "2"}]
    job = await world.create(pipeline_spec={"workflow_manifest": MANIFEST, "parameters": parameters})
    assert (await world.get(job["id"]))["pipeline_spec"]["parameters"] == parameters


async def test_the_service_account_is_the_requests_then_the_manifests(world: World) -> None:
    own = MANIFEST.replace('"entrypoint"', '"serviceAccountName":"theirs","entrypoint"')
    job = await world.create(pipeline_spec={"workflow_manifest": own}, service_account="asked")
    assert job["service_account"] == "asked"
    job = await world.create(pipeline_spec={"workflow_manifest": own})
    assert job["service_account"] == "theirs"


async def test_a_known_experiment_is_not_asked_for_and_an_unknown_one_is(world: World) -> None:
    await world.peers.experiment.tell(events.EXPERIMENT_CREATED, experiment_state("told", "told"))
    await world.peers.experiment.until_applied_by("job-scheduler")
    # The owner would refuse it: it is our copy that says yes.
    job = await world.create(resource_references=[reference("EXPERIMENT", "told")])
    assert job["resource_references"][0]["name"] == "told"
    world.peers.has_experiment("fresh", "of this moment")
    job = await world.create(resource_references=[reference("EXPERIMENT", "fresh")])
    assert job["resource_references"][0]["name"] == "of this moment"
