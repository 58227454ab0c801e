"""Where a run's manifest, experiment and references come from (API specification, sections 6 and 9.3)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from shared.contracts import events
from shared.contracts.states import ExperimentState
from tests.component.run.conftest import DEFAULT_EXPERIMENT, MANIFEST, World, until
from tests.component.run.test_refusals import reference


async def test_a_pipeline_id_means_its_default_version_and_says_so(world: World) -> None:
    digest = await world.blobs.put_manifest(MANIFEST)
    world.peers.has_version("p", "old", digest)
    world.peers.has_version("p", "new", digest)

    run = await world.client.create(pipeline_spec={"pipeline_id": "p"})

    assert run["pipeline_spec"] == {"pipeline_id": "p", "pipeline_name": "p name", "workflow_manifest": MANIFEST}
    created_version = {
        "key": {"type": "PIPELINE_VERSION", "id": "new"},
        "name": "new name",
        "relationship": "CREATOR",
    }
    experiment = {
        "key": {"type": "EXPERIMENT", "id": DEFAULT_EXPERIMENT},
        "name": "Default",
        "relationship": "OWNER",
    }
    # What the server adds follows in its own order; what is read later stands in storage order.
    assert run["resource_references"] == [created_version, experiment]
    assert (await world.client.get(run["id"]))["resource_references"] == [experiment, created_version]
    assert (await world.row(run["id"]))["pipeline_version_id"] == "new"


async def test_a_version_alone_is_run_and_leaves_the_pipeline_unnamed(world: World) -> None:
    digest = await world.blobs.put_manifest(MANIFEST)
    world.peers.has_version("p", "v", digest)
    experiment_id = world.peers.has_experiment("mine")

    references = [reference("PIPELINE_VERSION", "v", "CREATOR"), reference("EXPERIMENT", experiment_id)]
    run = await world.client.create(pipeline_spec=None, resource_references=references)

    assert run["pipeline_spec"] == {"workflow_manifest": MANIFEST}
    assert [each["name"] for each in run["resource_references"]] == ["v name", "mine"]


async def test_of_several_versions_the_last_would_be_run_and_two_are_refused(world: World) -> None:
    digest = await world.blobs.put_manifest(MANIFEST)
    world.peers.has_version("p", "v", digest)
    references = [reference("PIPELINE_VERSION", name, "CREATOR") for name in ("nope", "v")]
    answer = await world.client.call("POST", "/runs", {"name": "n", "resource_references": references})
    assert answer.status == 404  # The last one was found; the conversion of the first fails.
    assert "Unable to convert resource references." in answer.body["error"]


async def test_a_known_experiment_is_not_asked_for(world: World) -> None:
    state = ExperimentState(id="told", version=1, name="told", created_at=datetime.now(UTC))
    await world.peers.tell(events.EXPERIMENT_CREATED, state)
    await until(lambda: _is_replicated(world, "told"))

    run = await world.client.create(resource_references=[reference("EXPERIMENT", "told")])

    assert run["resource_references"][0]["name"] == "told"
    assert world.peers.asked == []


async def test_an_experiment_of_this_moment_is_asked_for_before_refusing(world: World) -> None:
    experiment_id = world.peers.has_experiment("fresh")
    await world.client.create(resource_references=[reference("EXPERIMENT", experiment_id)])
    assert world.peers.asked == ["experiment.get"]


async def test_the_default_experiment_is_remembered_while_it_exists(world: World) -> None:
    state = ExperimentState(id=DEFAULT_EXPERIMENT, version=1, name="Default", created_at=datetime.now(UTC))
    await world.peers.tell(events.EXPERIMENT_CREATED, state)
    await until(lambda: _is_replicated(world, DEFAULT_EXPERIMENT))
    await world.client.create()
    await world.client.create()
    assert world.peers.asked == ["experiment.get-default"]

    gone = ExperimentState(
        id=DEFAULT_EXPERIMENT, version=2, name="Default", created_at=datetime.now(UTC), is_deleted=True
    )
    await world.peers.tell(events.EXPERIMENT_DELETED, gone)
    await until(lambda: _is_forgotten(world, DEFAULT_EXPERIMENT))
    await world.client.create()
    assert world.peers.asked == ["experiment.get-default"] * 2


async def test_the_service_account_is_the_requests_then_the_manifests_then_ours(world: World) -> None:
    own = MANIFEST.replace('"entrypoint"', '"serviceAccountName":"theirs","entrypoint"')
    usual = MANIFEST.replace('"entrypoint"', '"serviceAccountName":"pipeline-runner","entrypoint"')
    cases: list[tuple[dict[str, Any], str]] = [
        ({"pipeline_spec": {"workflow_manifest": own}, "service_account": "asked"}, "asked"),
        ({"pipeline_spec": {"workflow_manifest": own}}, "theirs"),
        ({"pipeline_spec": {"workflow_manifest": usual}}, "pipeline-runner"),
        ({}, "pipeline-runner"),
    ]
    for fields, account in cases:
        run = await world.client.create(**fields)
        assert run["service_account"] == account
        assert (await world.client.workflow(run["id"]))["spec"]["serviceAccountName"] == account


async def test_what_only_the_server_says_is_ignored_in_requests(world: World) -> None:
    run = await world.client.create(
        id="mine", status="Succeeded", storage_state="STORAGESTATE_ARCHIVED", created_at="2001-01-01T00:00:00Z"
    )
    assert run["id"] != "mine"
    assert not run.keys() & {"status", "storage_state"}
    assert not run["created_at"].startswith("2001")


async def _is_replicated(world: World, experiment_id: str) -> bool:
    return await world.database.fetchval("select 1 from replicas where id = $1", experiment_id) is not None


async def _is_forgotten(world: World, experiment_id: str) -> bool:
    return bool(await world.database.fetchval("select is_deleted from replicas where id = $1", experiment_id))
