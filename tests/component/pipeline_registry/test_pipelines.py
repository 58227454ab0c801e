"""What can be done with pipelines and versions once they are there."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from shared.blobs import Blobs
from shared.bus import Bus
from shared.contracts.questions import (
    GET_DEFAULT_VERSION,
    GET_VERSION,
    ById,
    Parameter,
    VersionAnswer,
    VersionRequest,
)
from shared.contracts.states import PipelineId, PipelineVersionId
from shared.database import Database
from shared.errors import InvalidInput, NotFound
from tests.support.eventually import eventually
from tests.support.lists import NAMES, ListRoute, obeys_the_rules_of_lists, predicate
from tests.support.packages import PIPELINE
from tests.support.service import Client

from .conftest import Replica, send, upload, upload_version


async def told(database: Database) -> list[tuple[str, str, int]]:
    rows = await database.fetch("select what, resource_id, body from outbox order by seq")
    return [(row["what"], row["resource_id"], int(re.findall(rb'"version":(\d+)', row["body"])[0])) for row in rows]


async def object_is_gone(blobs: Blobs, version_id: str) -> None:
    async def is_gone() -> bool:
        return not await blobs.exists(f"pipelines/{version_id}")

    await eventually(is_gone)


async def test_pipelines_obey_the_rules_of_lists(registry: Client) -> None:
    route = ListRoute(path="/pipelines", items="pipelines", model="Pipeline")
    for name in NAMES:
        await upload(registry, name)
    await obeys_the_rules_of_lists(registry, route)
    first = (await registry.get("/pipelines", page_size="1"))["pipelines"][0]
    assert first == await registry.get(f"/pipelines/{first['id']}"), "with its default version"


async def test_versions_obey_the_rules_of_lists(registry: Client) -> None:
    pipeline = await upload(registry, NAMES[0])
    await upload(registry, "another")
    for name in NAMES[1:]:
        await upload_version(registry, pipeline["id"], name)
    route = ListRoute(
        path="/pipeline_versions",
        items="versions",
        model="PipelineVersion",
        always={"resource_key.id": pipeline["id"], "resource_key.type": "PIPELINE"},
    )
    await obeys_the_rules_of_lists(registry, route)
    assert await route.names(registry, filter=predicate("EQUALS", "status", string_value="READY")) == NAMES
    assert await route.names(registry, sort_by="status desc", page_size="2")


async def test_a_list_of_versions_needs_a_pipeline_that_exists(registry: Client) -> None:
    status, body = await registry.refused("GET", "/pipeline_versions")
    assert (status, body["details"][0]["error_message"]) == (400, "ResourceKey must be set in the input")
    status, body = await registry.refused("GET", "/pipeline_versions", **{"resource_key.id": "unknown"})
    assert (status, body["details"][0]["error_message"]) == (404, "Pipeline unknown not found.")
    status, body = await registry.refused("GET", "/pipeline_versions", **{"resource_key.type": "PIPELINE"})
    assert (status, body["details"][0]["error_message"]) == (404, "Pipeline  not found.")


async def test_of_the_key_of_versions_only_the_id_counts(registry: Client) -> None:
    pipeline = await upload(registry)
    for kind in ({}, {"resource_key.type": "UNKNOWN_RESOURCE_TYPE"}, {"resource_key.type": "JOB"}):
        found = await registry.get("/pipeline_versions", **{"resource_key.id": pipeline["id"]}, **kind)
        assert [version["id"] for version in found["versions"]] == [pipeline["id"]]
    other = {"resource_reference_key.type": "JOB", "resource_reference_key.id": "x"}
    found = await registry.get("/pipeline_versions", **{"resource_key.id": pipeline["id"]}, **other)
    assert found["total_size"] == 1, "which is the key of other lists"


async def test_pipelines_are_listed_by_namespace_or_by_nothing(registry: Client) -> None:
    await upload(registry)
    key = "resource_reference_key"
    for of_namespace in ({f"{key}.id": ""}, {}):
        found = await registry.get("/pipelines", **{f"{key}.type": "NAMESPACE"}, **of_namespace)
        assert found["total_size"] == 1, "pipelines belong to the namespace that has no name"
    assert await registry.get("/pipelines", **{f"{key}.type": "NAMESPACE", f"{key}.id": "kubeflow"}) == {}
    kinds = ("EXPERIMENT", "JOB", "PIPELINE", "PIPELINE_VERSION", "UNKNOWN_RESOURCE_TYPE")
    for other in (*({f"{key}.type": kind} for kind in kinds), {f"{key}.id": "x"}):
        status, body = await registry.refused("GET", "/pipelines", **other, page_size="-1", filter="x", sort_by="x")
        assert status == 400
        assert body["details"][0]["error_message"] == (
            "Invalid resource references for pipelines. ListPipelines requires filtering by namespace."
        )


@pytest.mark.parametrize(
    ("method", "path", "chain"),
    [
        ("GET", "/pipelines/unknown", "Get pipeline failed.: ResourceNotFoundError: Pipeline unknown"),
        (
            "DELETE",
            "/pipelines/unknown",
            "Delete pipelines failed.: Delete pipeline failed: ResourceNotFoundError: Pipeline unknown",
        ),
        (
            "GET",
            "/pipelines/unknown/templates",
            "Get pipeline template failed.: ResourceNotFoundError: Pipeline unknown",
        ),
        ("GET", "/pipelines/", "Get pipeline failed.: ResourceNotFoundError: Pipeline "),
        ("GET", "/pipeline_versions/unknown", "Get pipeline version failed.: ResourceNotFoundError: Version unknown"),
        (
            "DELETE",
            "/pipeline_versions/unknown",
            "Failed to get Pipeline Version.: ResourceNotFoundError: Version unknown",
        ),
        (
            "GET",
            "/pipeline_versions/unknown/templates",
            "Get pipeline template failed.: Get pipeline version template failed: "
            "ResourceNotFoundError: Version unknown",
        ),
    ],
)
async def test_what_is_unknown_is_a_404(registry: Client, method: str, path: str, chain: str) -> None:
    status, body = await registry.refused(method, path)
    assert (status, body["code"]) == (404, 5)
    assert body["error"] == f"{chain} not found."


async def test_a_deleted_pipeline_is_gone_with_its_versions_objects_and_name(
    registry: Client, blobs: Blobs, database: Database
) -> None:
    pipeline = await upload(registry)
    version = await upload_version(registry, pipeline["id"], "v2")
    assert await registry.delete(f"/pipelines/{pipeline['id']}") == {}
    for path in (f"/pipelines/{pipeline['id']}", f"/pipeline_versions/{version['id']}"):
        assert (await registry.refused("GET", path))[0] == 404
    await object_is_gone(blobs, pipeline["id"])
    await object_is_gone(blobs, version["id"])
    await upload(registry)
    assert (await told(database))[:7] == [
        ("created", pipeline["id"], 1),
        ("version-created", pipeline["id"], 1),
        ("version-created", version["id"], 1),
        ("default-changed", pipeline["id"], 2),
        ("version-deleted", pipeline["id"], 2),
        ("version-deleted", version["id"], 2),
        ("deleted", pipeline["id"], 3),
    ]


async def test_objects_are_erased_by_whoever_lives_after_a_deletion(
    registry: Client, replica: Replica, blobs: Blobs, database: Database
) -> None:
    pipeline = await upload(registry)
    await database.execute(
        "insert into doomed_objects values ($1, now()), ('pipelines/absent', now())", f"pipelines/{pipeline['id']}"
    )
    await object_is_gone(blobs, pipeline["id"])
    assert await registry.get(f"/pipelines/{pipeline['id']}/templates") == {}, "a lost object reads as no template"


async def test_the_newest_version_left_takes_the_place_of_a_deleted_default(registry: Client, blobs: Blobs) -> None:
    pipeline = await upload(registry)
    versions = [await upload_version(registry, pipeline["id"], f"v{nth}") for nth in range(3)]

    async def default() -> Any:
        return (await registry.get(f"/pipelines/{pipeline['id']}")).get("default_version", {}).get("name")

    await registry.delete(f"/pipeline_versions/{versions[1]['id']}")
    assert await default() == "v2", "another's deletion leaves it alone"
    await registry.delete(f"/pipeline_versions/{versions[2]['id']}")
    assert await default() == "v0"
    await registry.delete(f"/pipeline_versions/{versions[0]['id']}")
    await registry.delete(f"/pipeline_versions/{pipeline['id']}")
    assert await default() is None
    await object_is_gone(blobs, pipeline["id"])
    assert await registry.get(f"/pipelines/{pipeline['id']}/templates") == {}
    await upload_version(registry, pipeline["id"], "v0")
    assert await default() == "v0"


async def test_the_default_is_set_to_one_of_the_pipelines_own_versions(registry: Client, database: Database) -> None:
    one, two = await upload(registry, "one"), await upload(registry, "two")
    version = await upload_version(registry, one["id"], "v2")
    path = f"/pipelines/{one['id']}/default_version"
    for _ in range(2):
        assert await registry.post(f"{path}/{one['id']}") == {}
    assert (await registry.get(f"/pipelines/{one['id']}"))["default_version"]["id"] == one["id"]
    assert [what for what, _, _ in await told(database)].count("default-changed") == 2
    status, body = await registry.refused("POST", f"{path}/{two['id']}")
    assert (status, body["details"][0]["error_message"]) == (
        400,
        "pipeline ID should be parent of pipeline version.",
    )
    assert (await registry.refused("POST", f"{path}/unknown"))[0] == 404
    assert (await registry.refused("POST", f"/pipelines/unknown/default_version/{version['id']}"))[0] == 404


async def test_deleting_a_pipeline_while_versions_arrive_leaves_none_behind(
    registry: Client, replica: Replica, database: Database
) -> None:
    pipeline = await upload(registry)
    async with replica() as other:
        answers = await asyncio.gather(
            *(send(other, route="upload_version", pipelineid=pipeline["id"], name=f"v{nth}") for nth in range(6)),
            registry.call("DELETE", f"/apis/v1beta1/pipelines/{pipeline['id']}"),
        )
    assert {answer.status for answer in answers} <= {200, 400}
    assert await database.fetchval("select count(*) from pipeline_versions") == 0


async def test_others_may_ask_for_a_version(registry: Client, asker: Bus, blobs: Blobs) -> None:
    pipeline = await upload(registry)
    version = await upload_version(registry, pipeline["id"], "v2")
    answer = await asker.ask(
        GET_VERSION,
        VersionRequest(version_id=PipelineVersionId(pipeline["id"]), pipeline_id=PipelineId(pipeline["id"])),
        within_seconds=5,
    )
    assert answer == VersionAnswer(
        version_id=PipelineVersionId(pipeline["id"]),
        version_name="hello",
        pipeline_id=PipelineId(pipeline["id"]),
        pipeline_name="hello",
        manifest_digest=answer.manifest_digest,
        parameters=(
            Parameter(name="greeting", value="hello"),
            Parameter(name="count", value="3"),
            Parameter(name="whom"),
        ),
    )
    assert '"kind":"Workflow"' in await blobs.get_manifest(answer.manifest_digest)
    default = await asker.ask(GET_DEFAULT_VERSION, ById(id=pipeline["id"]), within_seconds=5)
    assert (default.version_id, default.manifest_digest) == (version["id"], answer.manifest_digest)


async def test_questions_without_an_answer_are_refused(registry: Client, asker: Bus) -> None:
    one, two = await upload(registry, "one"), await upload(registry, "two")
    foreign = VersionRequest(version_id=PipelineVersionId(one["id"]), pipeline_id=PipelineId(two["id"]))
    with pytest.raises(InvalidInput, match=r"pipeline ID should be parent of pipeline version\."):
        await asker.ask(GET_VERSION, foreign, within_seconds=5)
    with pytest.raises(NotFound, match="Version unknown not found"):
        await asker.ask(GET_VERSION, VersionRequest(version_id=PipelineVersionId("unknown")), within_seconds=5)
    with pytest.raises(NotFound, match="Pipeline unknown not found"):
        await asker.ask(GET_DEFAULT_VERSION, ById(id="unknown"), within_seconds=5)
    await registry.delete(f"/pipeline_versions/{one['id']}")
    with pytest.raises(InvalidInput, match=r"No pipeline version\."):
        await asker.ask(GET_DEFAULT_VERSION, ById(id=one["id"]), within_seconds=5)


async def test_the_template_is_what_was_uploaded(registry: Client) -> None:
    commented = f"# mine\n{PIPELINE}\n# end\n"
    pipeline = await upload(registry, content=commented)
    assert await registry.get(f"/pipeline_versions/{pipeline['id']}/templates") == {"template": commented}
    assert await registry.get(f"/pipeline_versions/{pipeline['id']}") == pipeline["default_version"]
