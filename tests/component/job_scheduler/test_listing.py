"""Lists of jobs: what they are sorted and filtered by (API specification, section 5)."""

from __future__ import annotations

from tests.component.job_scheduler.conftest import MANIFEST, World, reference
from tests.support.lists import NAMES, ListRoute, obeys_the_rules_of_lists, predicate

JOBS = ListRoute(path="/jobs", items="jobs", model="Job")


def of(kind: str, resource_id: str) -> dict[str, str]:
    return {"resource_reference_key.type": kind, "resource_reference_key.id": resource_id}


async def test_no_jobs_are_an_empty_object(world: World) -> None:
    assert await world.client.get("/jobs") == {}


async def test_lists_of_jobs_obey_the_rules_of_lists(world: World) -> None:
    for name in NAMES:
        await world.create(name=name)
    await obeys_the_rules_of_lists(world.client, JOBS)


async def test_a_token_is_good_at_every_replica(world: World) -> None:
    for name in NAMES:
        await world.create(name=name)
    first = await world.client.get("/jobs", page_size="4")
    assert await JOBS.names(world.replica, page_token=first["next_page_token"]) == NAMES[4:]


async def test_jobs_are_filtered_by_what_they_refer_to(world: World) -> None:
    world.peers.has_version("p", "v", await world.blobs.put_manifest(MANIFEST))
    world.peers.has_experiment("mine", "mine")
    parent = await world.create(name="mine", resource_references=[reference("EXPERIMENT", "mine")])
    await world.create(
        name="versioned",
        pipeline_spec={"pipeline_id": "p"},
        resource_references=[reference("JOB", parent["id"], "CREATOR")],
    )
    assert await JOBS.names(world.client, **of("EXPERIMENT", "mine")) == ["mine"]
    assert await JOBS.names(world.client, **of("PIPELINE_VERSION", "v")) == ["versioned"]
    assert await JOBS.names(world.client, **of("JOB", parent["id"])) == ["versioned"]
    elsewhere = [reference("PIPELINE_VERSION", "v", "OWNER"), reference("NAMESPACE", "elsewhere")]
    await world.create(name="owned", resource_references=elsewhere)
    assert await JOBS.names(world.client, **of("PIPELINE_VERSION", "v")) == ["versioned", "owned"]
    assert await JOBS.names(world.client, **of("NAMESPACE", "kubeflow")) == ["mine", "versioned", "owned"]
    assert await world.client.get("/jobs", **of("NAMESPACE", "elsewhere")) == {}
    for kind in ("EXPERIMENT", "JOB", "PIPELINE_VERSION", "NAMESPACE"):
        assert await world.client.get("/jobs", **of(kind, "nope")) == {}
    for kind in ("PIPELINE", "UNKNOWN_RESOURCE_TYPE"):
        assert await JOBS.refusal(world.client, **of(kind, "x")) == f"Unsupported resource type: {kind}"
    refusal = await JOBS.refusal(world.client, **{"resource_reference_key.id": "mine"})
    assert refusal == "Unsupported resource type: UNKNOWN_RESOURCE_TYPE"


async def test_the_pipeline_sorts_and_filters_under_both_of_its_names(world: World) -> None:
    for pipeline in ("b", "a"):
        world.peers.has_version(pipeline, f"v-{pipeline}", await world.blobs.put_manifest(MANIFEST))
        await world.create(name=f"of {pipeline}", pipeline_spec={"pipeline_id": pipeline})
    await world.create(name="of none")
    for key in ("package_id", "pipeline_id"):
        assert await JOBS.names(world.client, sort_by=key) == ["of none", "of a", "of b"]
        assert await JOBS.pages(world.client, 1, sort_by=f"{key} desc") == [["of b"], ["of a"], ["of none"]]
        assert await JOBS.names(world.client, filter=predicate("EQUALS", key, string_value="b")) == ["of b"]
        others = await JOBS.names(world.client, filter=predicate("NOT_EQUALS", key, string_value="b"))
        assert others == ["of a", "of none"]


async def test_jobs_are_filtered_by_more_than_the_original_knows(world: World) -> None:
    world.peers.has_version("p", "v", await world.blobs.put_manifest(MANIFEST))
    world.peers.has_experiment("mine", "mine")
    await world.create(name="once", trigger=None, enabled=True, pipeline_spec={"pipeline_id": "p"})
    await world.create(name="on", enabled=True, resource_references=[reference("EXPERIMENT", "mine")])
    await world.create(name="off", trigger={"cron_schedule": {"cron": "@daily"}})

    async def where(key: str, value: str) -> list[str]:
        return await JOBS.names(world.client, filter=predicate("EQUALS", key, string_value=value))

    shown = {job["name"]: job["status"] for job in (await world.client.get("/jobs"))["jobs"]}
    assert len(set(shown.values())) == 3
    for name, status in shown.items():
        assert await where("status", status) == [name]
    assert await JOBS.names(world.client, sort_by="status") == sorted(shown, key=lambda name: shown[name])
    assert await where("experiment_id", "mine") == ["on"]
    assert await where("pipeline_id", "p") == ["once"]
    assert await where("pipeline_id", "") == ["on", "off"]


async def test_other_fields_of_a_job_neither_sort_nor_filter(world: World) -> None:
    for key in ("enabled", "updated_at", "description", "storage_state", "metric:x"):
        assert await JOBS.refusal(world.client, sort_by=key) == f'Invalid sorting field: "{key}" on listable type Job'
        refusal = await JOBS.refusal(world.client, filter=predicate("EQUALS", key, string_value="x"))
        assert refusal == f'no support for filtering on unrecognized field "{key}"'
