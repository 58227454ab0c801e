"""What other services' facts change in runs, and what others may ask."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from shared.contracts import events
from shared.contracts.questions import GET_RUN, ById
from shared.contracts.states import (
    ExperimentState,
    Metric,
    MetricFormat,
    MetricsState,
    PipelineId,
    PipelineVersionState,
    StorageState,
)
from shared.errors import NotFound
from shared.subscriptions import until_applied
from tests.component.run.conftest import MANIFEST, World
from tests.component.run.test_refusals import reference


async def test_an_archived_experiment_takes_its_runs_along_and_gives_none_back(world: World) -> None:
    mine, other = world.peers.has_experiment("mine"), world.peers.has_experiment("other")
    ids = [(await world.client.create(resource_references=[reference("EXPERIMENT", mine)]))["id"] for _ in range(3)]
    stranger = (await world.client.create(resource_references=[reference("EXPERIMENT", other)]))["id"]
    await world.client.call("POST", f"/runs/{ids[0]}:archive")

    await applied(world, await tell(world, mine, 2, StorageState.ARCHIVED))
    assert {(await world.client.get(run_id)).get("storage_state") for run_id in ids} == {"STORAGESTATE_ARCHIVED"}
    assert "storage_state" not in await world.client.get(stranger)
    assert [await world.facts(run_id) for run_id in ids] == [["created", "archived"]] * 3
    listed = await world.client.call("GET", "/runs", **archived_in(mine), page_size="1")
    assert listed.body["total_size"] == 3

    await applied(world, await tell(world, mine, 3, StorageState.AVAILABLE))
    assert (await world.client.get(ids[0]))["storage_state"] == "STORAGESTATE_ARCHIVED"
    await world.client.create(resource_references=[reference("EXPERIMENT", mine)])


async def test_a_version_is_run_without_asking_once_its_fact_has_come_and_refused_once_it_is_gone(world: World) -> None:
    digest = await world.blobs.put_manifest(MANIFEST)
    world.peers.has_version("p1", "v1", digest)

    async def tell(version: int, *, is_deleted: bool) -> None:
        state = PipelineVersionState(
            id="v1",
            version=version,
            name="v1 name",
            pipeline_id=PipelineId("p1"),
            manifest_digest=digest,
            created_at=datetime.now(UTC),
            is_deleted=is_deleted,
        )
        kind = events.PIPELINE_VERSION_DELETED if is_deleted else events.PIPELINE_VERSION_CREATED
        await applied(world, await world.peers.tell(kind, state), owner="pipeline-registry")

    async def create() -> int:
        body = {"name": "a run", "resource_references": [reference("PIPELINE_VERSION", "v1", "CREATOR")]}
        answer = await world.client.call("POST", "/runs", body)
        if answer.status == 200:
            assert "v1 name" in [each.get("name") for each in answer.body["run"]["resource_references"]]
        return answer.status

    assert await create() == 200
    assert world.peers.asked.count("pipeline-registry.get-version") == 1
    await tell(1, is_deleted=False)
    assert await create() == 200
    assert world.peers.asked.count("pipeline-registry.get-version") == 1
    del world.peers.versions["v1"]
    await tell(2, is_deleted=True)
    assert await create() == 404


async def test_archiving_is_idempotent_and_can_be_undone(world: World) -> None:
    run_id = (await world.client.create())["id"]
    for _ in range(2):
        assert (await world.client.call("POST", f"/runs/{run_id}:archive")).body == {}
    assert (await world.client.get(run_id))["storage_state"] == "STORAGESTATE_ARCHIVED"
    for _ in range(2):
        assert (await world.client.call("POST", f"/runs/{run_id}:unarchive")).body == {}
    assert "storage_state" not in await world.client.get(run_id)
    assert await world.facts(run_id) == ["created", "archived", "unarchived"]


async def test_reported_metrics_show_in_the_run_and_the_first_value_stays(world: World) -> None:
    run_id = (await world.client.create())["id"]
    await applied(
        world,
        await report(
            world,
            run_id,
            Metric(node_id="b", name="loss", number=0, format=MetricFormat.RAW),
            Metric(node_id="a", name="acc", number=0.5, format=MetricFormat.PERCENTAGE),
        ),
        owner="metrics",
    )
    position = await report(world, run_id, Metric(node_id="a", name="acc", number=0.9))
    await applied(world, position, owner="metrics")

    metrics = (await world.client.get(run_id))["metrics"]
    assert metrics == [
        {"name": "acc", "node_id": "a", "number_value": 0.5, "format": "PERCENTAGE"},
        {"name": "loss", "node_id": "b", "number_value": 0.0, "format": "RAW"},
    ]
    assert (await world.client.call("GET", "/runs")).body["runs"][0]["metrics"] == metrics


async def test_metrics_of_an_unknown_run_are_dropped(world: World) -> None:
    await applied(world, await report(world, "gone", Metric(node_id="a", name="x", number=1)), owner="metrics")
    assert await world.database.fetchval("select count(*) from run_metrics") == 0


async def test_others_may_ask_for_a_run(world: World) -> None:
    run_id = (await world.client.create(name="asked for"))["id"]
    bus = world.peers.buses["metrics"]
    state = await bus.ask(GET_RUN, ById(id=run_id), within_seconds=5)
    assert (state.name, state.attempt, state.version) == ("asked for", 1, 1)
    with pytest.raises(NotFound, match=r"Run nope not found\."):
        await bus.ask(GET_RUN, ById(id="nope"), within_seconds=5)


async def tell(world: World, experiment_id: str, version: int, state: StorageState) -> int:
    kind = events.EXPERIMENT_ARCHIVED if state is StorageState.ARCHIVED else events.EXPERIMENT_UNARCHIVED
    fact = ExperimentState(
        id=experiment_id, version=version, name="e", storage_state=state, created_at=datetime.now(UTC)
    )
    return await world.peers.tell(kind, fact)


async def report(world: World, run_id: str, *metrics: Metric) -> int:
    return await world.peers.tell(events.METRICS_REPORTED, MetricsState(id=run_id, version=1, metrics=metrics))


async def applied(world: World, position: int, *, owner: str = "experiment") -> None:
    assert await until_applied(world.peers.buses[owner], ["run"], owner, position, within_seconds=10)


def archived_in(experiment_id: str) -> dict[str, str]:
    predicate = '{"predicates":[{"op":"EQUALS","key":"storage_state","string_value":"STORAGESTATE_ARCHIVED"}]}'
    return {
        "filter": predicate,
        "resource_reference_key.type": "EXPERIMENT",
        "resource_reference_key.id": experiment_id,
    }
