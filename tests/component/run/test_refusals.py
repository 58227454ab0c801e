"""What is refused, with which words, and that it leaves nothing behind (API specification, sections 6, 9.2 and 9.3)."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from shared.pipeline_spec import LONGEST_SHOWN
from tests.component.run.conftest import MANIFEST, World

EMPTY_NAME = "The run name is empty. Please specify a valid name."
NO_SOURCE = "Please specify a pipeline by providing a (workflow manifest) or (pipeline id or/and pipeline version)."
TWO_SOURCES = "Please don't specify a pipeline version or pipeline ID when you specify a workflow manifest."
TOO_LONG = "The input parameter length exceed maximum size of 10000."
DUPLICATE = "A run refers to at most one resource of each type."
CHECKED = "Validate create run request failed.: "
CREATING = "Failed to create a new run.: "


def reference(kind: str, resource_id: str, relationship: str = "OWNER") -> dict[str, Any]:
    return {"key": {"type": kind, "id": resource_id}, "relationship": relationship}


def manifest(**changes: Any) -> dict[str, str]:
    return {"workflow_manifest": msgspec.json.encode(msgspec.json.decode(MANIFEST) | changes).decode()}


INLINE = {"workflow_manifest": MANIFEST}
LONG = "n" * 600_000
OF_NO_ACCOUNT = manifest(spec={"serviceAccountName": LONG})
VERSION = reference("PIPELINE_VERSION", "v1", "CREATOR")

REFUSED: dict[str, tuple[Any, int, str | None, str]] = {
    "an empty body": (b"", 400, EMPTY_NAME, CHECKED),
    "no name": ({"pipeline_spec": INLINE}, 400, EMPTY_NAME, CHECKED),
    "a name that no index holds": (
        {"name": "n" * 2001, "pipeline_spec": INLINE},
        400,
        "The run name is longer than 2000 bytes. Please specify a shorter one.",
        CHECKED,
    ),
    "a pipeline of which nobody can be asked": (
        {"name": "n", "pipeline_spec": {"pipeline_id": LONG}},
        400,
        "The pipeline id is longer than 2000 bytes. Please specify a shorter one.",
        CHECKED,
    ),
    "a reference of which nobody can be asked": (
        {"name": "n", "pipeline_spec": INLINE, "resource_references": [reference("EXPERIMENT", LONG)]},
        400,
        "The id of the EXPERIMENT is longer than 2000 bytes. Please specify a shorter one.",
        CHECKED,
    ),
    "a service account that no cluster has": (
        {"name": "n", "pipeline_spec": INLINE, "service_account": LONG},
        400,
        "The service account is longer than 2000 bytes. Please specify a shorter one.",
        CHECKED,
    ),
    "a manifest's service account that no cluster has": (
        {"name": "n", "pipeline_spec": OF_NO_ACCOUNT},
        400,
        f"Invalid argo workflow format. Workflow: {OF_NO_ACCOUNT['workflow_manifest'][:LONGEST_SHOWN]}…",
        CHECKED,
    ),
    "no source": ({"name": "n"}, 400, NO_SOURCE, CHECKED),
    "an empty source": ({"name": "n", "pipeline_spec": {}}, 400, NO_SOURCE, CHECKED),
    "a version that is only owned": (
        {"name": "n", "resource_references": [reference("PIPELINE_VERSION", "v1")]},
        400,
        NO_SOURCE,
        CHECKED,
    ),
    "manifest and pipeline": ({"name": "n", "pipeline_spec": INLINE | {"pipeline_id": "p"}}, 400, TWO_SOURCES, CHECKED),
    "manifest and version": (
        {"name": "n", "pipeline_spec": INLINE, "resource_references": [VERSION]},
        400,
        TWO_SOURCES,
        CHECKED,
    ),
    "no JSON": (
        {"name": "n", "pipeline_spec": {"workflow_manifest": "a: b"}},
        400,
        "Invalid argo workflow format. Workflow: a: b",
        CHECKED,
    ),
    "no object": (
        {"name": "n", "pipeline_spec": {"workflow_manifest": "[1]"}},
        400,
        "Invalid argo workflow format. Workflow: [1]",
        CHECKED,
    ),
    "a spec that is none": (
        {"name": "n", "pipeline_spec": {"workflow_manifest": '{"spec":1}'}},
        400,
        'Invalid argo workflow format. Workflow: {"spec":1}',
        CHECKED,
    ),
    "an unknown pipeline": (
        {"name": "n", "pipeline_spec": {"pipeline_id": "nope"}},
        404,
        "Pipeline nope not found.",
        CHECKED + "Get pipelineId failed.: ",
    ),
    "an unknown version": (
        {"name": "n", "resource_references": [reference("PIPELINE_VERSION", "nope", "CREATOR")]},
        404,
        "Version nope not found.",
        CHECKED + "Get pipelineVersionId failed.: ",
    ),
    "a version of another pipeline": (
        {"name": "n", "pipeline_spec": {"pipeline_id": "p2"}, "resource_references": [VERSION]},
        400,
        "pipeline ID should be parent of pipeline version.",
        CHECKED,
    ),
    "a pipeline without a version": (
        {"name": "n", "pipeline_spec": {"pipeline_id": "empty"}},
        400,
        "No pipeline version.",
        CHECKED,
    ),
    "parameters too long": (
        {"name": "n", "pipeline_spec": INLINE | {"parameters": [{"name": "greeting", "value": "<" * 1667}]}},
        400,
        TOO_LONG,
        CHECKED,
    ),
    "a package that is gone": (
        {"name": "n", "resource_references": [VERSION]},
        404,
        "WorkflowSpecManifest n not found.",
        CREATING + "Failed to fetch workflow spec.: ",
    ),
    "another kind": (
        {"name": "n", "pipeline_spec": manifest(kind="CronWorkflow")},
        400,
        "Failed to unmarshal workflow spec manifest. "
        "Unexpected resource type. Expected: Workflow. Received: CronWorkflow",
        CREATING,
    ),
    "another version of the API": (
        {"name": "n", "pipeline_spec": manifest(apiVersion="v1")},
        400,
        "Failed to unmarshal workflow spec manifest. "
        "Unsupported argo version. Expected: argoproj.io/v1alpha1. Received: v1",
        CREATING,
    ),
    "an undeclared parameter": (
        {"name": "n", "pipeline_spec": INLINE | {"parameters": [{"name": "Whom", "value": "x"}]}},
        400,
        "Unrecognized input parameter: Whom",
        CREATING + "Failed to verify parameters.: ",
    ),
    "an unknown experiment": (
        {"name": "n", "pipeline_spec": INLINE, "resource_references": [reference("EXPERIMENT", "nope")]},
        404,
        "Experiment nope not found.",
        CREATING,
    ),
    "an invalid workflow": (
        {"name": "n", "pipeline_spec": manifest(spec={})},
        400,
        "Failed to validate workflow for (n): spec.entrypoint is required",
        CREATING,
    ),
    "a workflow's name that is none": (
        {"name": "n", "pipeline_spec": manifest(metadata={"generateName": "../../etc/"})},
        400,
        None,
        CREATING,
    ),
    "a reference to a pipeline": (
        {"name": "n", "pipeline_spec": INLINE, "resource_references": [reference("PIPELINE", "p")]},
        400,
        "Unsupported resource type: PIPELINE",
        CREATING,
    ),
    "a reference without a key": (
        {"name": "n", "pipeline_spec": INLINE, "resource_references": [{"relationship": "OWNER"}]},
        400,
        "Unsupported resource type: UNKNOWN_RESOURCE_TYPE",
        CREATING,
    ),
    "a reference without a relationship": (
        {"name": "n", "pipeline_spec": INLINE, "resource_references": [{"key": {"type": "NAMESPACE", "id": "x"}}]},
        400,
        "Unsupported resource relationship: UNKNOWN_RELATIONSHIP",
        CREATING,
    ),
    "a reference to an unknown job": (
        {"name": "n", "pipeline_spec": INLINE, "resource_references": [reference("JOB", "nope", "CREATOR")]},
        404,
        "Job nope not found.",
        CREATING,
    ),
    "two references of a type": (
        {
            "name": "n",
            "pipeline_spec": INLINE,
            "resource_references": [reference("NAMESPACE", "a"), reference("NAMESPACE", "b")],
        },
        400,
        DUPLICATE,
        CREATING,
    ),
    "a second generation's configuration": (
        {
            "name": "n",
            "pipeline_spec": INLINE
            | {"parameters": [{"name": "whom"}], "runtime_config": {"parameters": {"whom": {"string_value": "x"}}}},
        },
        400,
        "Please don't specify both parameters and runtime config.",
        "",
    ),
}


async def test_every_refusal_has_its_words_and_leaves_no_run(world: World) -> None:
    world.peers.has_version("p1", "v1", "0" * 64)
    world.peers.has_version("p2", "v2", "0" * 64)
    world.peers.defaults["empty"] = None

    for case, (body, status, message, chain) in REFUSED.items():
        answer = await world.client.call("POST", "/runs", body)
        assert answer.status == status, (case, answer.body)
        assert answer.body["code"] == (3 if status == 400 else 5), case
        assert message is None or answer.message == message, case
        assert answer.body["error"].startswith(chain), (case, answer.body["error"])
        assert answer.body["error"] == answer.body["message"] == answer.body["details"][0]["error_details"], case

    assert await world.database.fetchval("select count(*) from runs") == 0
    assert await world.database.fetchval("select count(*) from outbox") == 0
    assert await world.database.fetchval("select count(*) from manifests") == 0


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"name":5}', b'{"resource_references":[{"key":{"type":"FOO"}}]}', b"\xff"]
)
async def test_what_is_no_request_is_refused_without_details(world: World, body: bytes) -> None:
    answer = await world.client.call("POST", "/runs", body)
    assert (answer.status, answer.body["code"]) == (400, 3)
    assert "details" not in answer.body


async def test_the_checks_come_in_the_order_of_the_specification(world: World) -> None:
    """Every request here breaks two rules; the earlier one is told."""
    spec = INLINE | {"parameters": [{"name": "nope", "value": "x" * 10_000}]}
    tests: list[tuple[Any, str]] = [
        ({"name": "", "pipeline_spec": {"workflow_manifest": "x"}}, EMPTY_NAME),
        ({"name": "n", "pipeline_spec": spec | {"pipeline_id": "nope"}}, TWO_SOURCES),
        ({"name": "n", "pipeline_spec": spec}, TOO_LONG),
        (
            {
                "name": "n",
                "pipeline_spec": INLINE | {"parameters": [{"name": "nope"}]},
                "resource_references": [reference("EXPERIMENT", "nope")],
            },
            "Unrecognized input parameter: nope",
        ),
        (
            {
                "name": "n",
                "pipeline_spec": manifest(spec={}),
                "resource_references": [reference("EXPERIMENT", "nope")],
            },
            "Experiment nope not found.",
        ),
        (
            {"name": "n", "pipeline_spec": manifest(spec={}), "resource_references": [reference("PIPELINE", "p")]},
            "Failed to validate workflow for (n): spec.entrypoint is required",
        ),
    ]
    for body, message in tests:
        assert (await world.client.call("POST", "/runs", body)).message == message


async def test_verbs_on_unknown_runs_say_so(world: World) -> None:
    for method, path, chain in (
        ("GET", "/runs/nope", ""),
        ("GET", "/runs/no%20such%22run", ""),
        ("DELETE", "/runs/nope", "Delete run failed: Check run exist failed: "),
        ("POST", "/runs/nope/terminate", "Terminate run failed: Check run exist failed: "),
        ("POST", "/runs/nope:archive", ""),
        ("POST", "/runs/nope:unarchive", ""),
    ):
        answer = await world.client.call(method, path)
        assert answer.status == 404, path
        assert answer.body["error"].startswith(f"{chain}ResourceNotFoundError: Run no"), path
    assert (await world.client.call("GET", "/runs/")).message == "Run  not found."


async def test_a_peer_that_does_not_answer_is_a_503(world: World) -> None:
    await world.peers.buses["pipeline-registry"].close()
    answer = await world.client.call("POST", "/runs", {"name": "n", "pipeline_spec": {"pipeline_id": "p"}})
    assert (answer.status, answer.body["code"]) == (503, 14)
    assert (await world.client.create())["name"] == "a run"


async def test_routes_beside_the_runs(world: World) -> None:
    for path in ("/visualizations", "/visualizations/", "/visualizations/ns"):
        answer = await world.client.call("POST", path)
        assert (answer.status, answer.body["code"]) == (501, 12)
    assert (await world.client.call("GET", "/auth")).message == "Namespace is empty. Please specify a valid namespace."
    answer = await world.client.call("GET", "/auth", namespace="kubeflow")
    assert answer.message == "Resources not specified. Please specify a valid resources."
    answer = await world.client.call("GET", "/auth", namespace="kubeflow", resources="VIEWERS")
    assert answer.message == "Verb not specified. Please specify a valid verb."
    answer = await world.client.call("GET", "/auth", namespace="kubeflow", resources="VIEWERS", verb="1")
    assert (answer.status, answer.body) == (200, {})


async def test_terminations_at_the_same_moment_are_granted_once(world: World) -> None:
    run_id = (await world.client.create())["id"]
    answers = await asyncio.gather(*(world.client.call("POST", f"/runs/{run_id}/terminate") for _ in range(6)))
    assert sorted(answer.status for answer in answers) == [200, 400, 400, 400, 400, 400]
    assert await world.facts(run_id) == ["created", "terminating"]
