"""The stand-in for Argo as it carries workflows out: what can be read of them from the server alone."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from services.run.engine.embedded.driver import EmbeddedEngine
from tests.contract.engine.engines import RunnerProcess, open_blobs
from tests.contract.engine.manifests import c, dag, of, task, workflow
from tests.support.argo import Interpreting, StandInArgo
from tests.support.argo.held import COMPLETED, PHASE
from tests.support.eventually import eventually
from tests.support.kubernetes import FakeKubernetes
from tests.support.kubernetes.client import ApiClient, connected
from tests.support.servers import ObjectStoreAccess

WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/kubeflow/workflows"
PODS = "/api/v1/namespaces/kubeflow/pods"


@dataclass(kw_only=True)
class Cluster:
    api: ApiClient
    argo: StandInArgo
    runner: RunnerProcess
    bucket: str

    async def create(self, document: Mapping[str, Any], **metadata: Any) -> str:
        name = f"wf-{uuid.uuid4().hex[:8]}"
        made = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            **document,
            "metadata": {"name": name, "labels": {"pipeline/runid": str(uuid.uuid4())}, **metadata},
        }
        (await self.api.post(WORKFLOWS, made)).ok()
        return name

    async def get(self, name: str) -> dict[str, Any]:
        return (await self.api.get(f"{WORKFLOWS}/{name}")).ok()

    async def reached(self, name: str, phase: str, node: str = "") -> dict[str, Any]:
        """Until the workflow, or one of its nodes, is in this phase."""

        async def look() -> dict[str, Any] | None:
            seen = await self.get(name)
            its = by_name(seen).get(node, {}) if node else seen.get("status", {})
            return seen if its.get("phase") == phase else None

        found = await eventually(look, within_seconds=40)
        assert found is not None
        return found

    async def log(self, pod: str) -> str:
        """Without what the interpreter says of itself in front of it."""
        answer = await self.api.get(f"{PODS}/{pod}/log", container="main")
        assert answer.status == 200, answer.body
        return answer.body.decode().partition("is not used\n")[2]


@contextlib.asynccontextmanager
async def following(cluster: Cluster, pod: str, until: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
    """The log of a running pod, from what comes after these bytes on."""
    followed = cluster.api.stream(f"{PODS}/{pod}/log", container="main", follow="true")
    async with asyncio.timeout(40), contextlib.aclosing(followed):
        said = b""
        while not said.endswith(until):
            said += await anext(followed)
        yield followed


def by_name(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Nodes by the part of their name after the workflow's; the root is `.`."""
    name = document["metadata"]["name"]
    nodes = document.get("status", {}).get("nodes", {}).values()
    return {each["name"].removeprefix(name) or ".": each for each in nodes}


@pytest.fixture
async def cluster(shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess) -> AsyncIterator[Cluster]:
    blobs = await open_blobs(object_store_access)
    runner = shared_runner
    engine = EmbeddedEngine(
        runner.client(), blobs, steps_dir=runner.steps_dir, data_dir=runner.data_dir, most_steps=8, most_runs=100
    )
    with contextlib.closing(blobs):
        async with (
            FakeKubernetes.serving() as fake,
            connected(fake.url, fake.controller_token) as controller,
            StandInArgo.working(controller, Interpreting(controller, engine, blobs)) as argo,
            connected(fake.url, fake.token) as api,
        ):
            yield Cluster(api=api, argo=argo, runner=runner, bucket=blobs.bucket)


async def test_a_workflow_is_carried_out_and_told_of_as_argo_does(cluster: Cluster) -> None:
    main = dag(task("a", "make"), task("b", "say", "a", given={"text": of("a")}))
    make = c("echo hello | tee /tmp/o; cp /tmp/o /tmp/f", gives={"o": "/tmp/o"}, leaves={"f": "/tmp/f"})
    say = c("echo 'it said: {{inputs.parameters.text}}'", takes=["text"])
    name = await cluster.create(workflow(main, templates={"make": make, "say": say}))
    ended = await cluster.reached(name, "Succeeded")

    labels = ended["metadata"]["labels"]
    assert (labels[PHASE], labels[COMPLETED]) == ("Succeeded", "true")
    nodes = by_name(ended)
    assert {name: (node["type"], node["phase"]) for name, node in nodes.items()} == {
        ".": ("DAG", "Succeeded"),
        ".a": ("Pod", "Succeeded"),
        ".b": ("Pod", "Succeeded"),
    }
    artifacts = {each["name"]: each for each in nodes[".a"]["outputs"]["artifacts"]}
    assert set(artifacts) == {"f", "main-logs"}
    assert all(set(each["s3"]) == {"key"} for each in artifacts.values())
    assert ended["status"]["artifactRepositoryRef"]["artifactRepository"]["s3"]["bucket"] == cluster.bucket

    pods = {each["metadata"]["name"]: each for each in (await cluster.api.get(PODS)).ok()["items"]}
    assert set(pods) == {nodes[".a"]["id"], nodes[".b"]["id"]}
    assert {each["status"]["phase"] for each in pods.values()} == {"Succeeded"}
    assert {each["metadata"]["labels"][COMPLETED] for each in pods.values()} == {"true"}
    assert await cluster.log(nodes[".b"]["id"]) == "it said: hello\n"


async def test_the_log_of_a_running_pod_can_be_followed_until_the_workflow_is_stopped(cluster: Cluster) -> None:
    name = await cluster.create(workflow(c("echo begun; sleep 300")))
    await cluster.reached(name, "Running", ".")
    async with following(cluster, name, b"begun\n") as rest:
        (await cluster.api.merge(f"{WORKFLOWS}/{name}", {"spec": {"activeDeadlineSeconds": 0}})).ok()
        assert [chunk async for chunk in rest] == []
    ended = await cluster.reached(name, "Failed")
    assert (ended["status"]["message"], by_name(ended)["."]["phase"]) == ("terminated", "Failed")


async def test_a_retried_workflow_runs_what_had_failed_again(cluster: Cluster) -> None:
    main = dag(task("a", "good"), task("b", "bad", "a"))
    templates = {"good": c("true"), "bad": c("echo {{workflow.parameters.code}}; exit {{workflow.parameters.code}}")}
    arguments = {"parameters": [{"name": "code", "value": "3"}]}
    name = await cluster.create(workflow(main, templates=templates, arguments=arguments))
    ended = await cluster.reached(name, "Failed")
    before = by_name(ended)
    assert before[".b"]["message"] == "Error (exit code 3)"

    metadata, status = ended["metadata"], ended["status"]
    labels = {key: value for key, value in metadata["labels"].items() if key != COMPLETED}
    kept = {each["id"]: each for each in (before["."], before[".a"])}
    kept[name] = {**before["."], "phase": "Running", "finishedAt": None, "message": ""}
    again = {
        **ended,
        "metadata": {**metadata, "labels": labels, "annotations": {"headrace.dev/attempt": "2"}},
        "spec": {**ended["spec"], "arguments": {"parameters": [{"name": "code", "value": "0"}]}},
        "status": {**status, "phase": "Running", "message": "", "finishedAt": None, "nodes": kept},
    }
    await cluster.api.delete(f"{PODS}/{before['.b']['id']}")
    (await cluster.api.put(f"{WORKFLOWS}/{name}", again)).ok()
    after = by_name(await cluster.reached(name, "Succeeded"))
    assert after[".a"] == before[".a"]
    assert after[".b"]["phase"] == "Succeeded"
    assert await cluster.log(after[".b"]["id"]) == "0\n"


async def test_a_restarted_controller_finds_the_steps_that_run(cluster: Cluster) -> None:
    name = await cluster.create(workflow(c("echo begun; sleep 300")))
    await cluster.reached(name, "Running", ".")
    async with following(cluster, name, b"begun\n"):
        await cluster.argo.restart()
    (await cluster.api.merge(f"{WORKFLOWS}/{name}", {"spec": {"shutdown": "Terminate"}})).ok()
    await cluster.reached(name, "Failed")
    assert await cluster.log(name) == "begun\n"


async def test_nothing_runs_on_for_a_workflow_that_was_deleted(cluster: Cluster) -> None:
    run_id = str(uuid.uuid4())
    name = await cluster.create(workflow(c("sleep 300")), labels={"pipeline/runid": run_id})
    await cluster.reached(name, "Running", ".")
    await cluster.api.delete(f"{WORKFLOWS}/{name}")

    async def is_clear() -> bool:
        left = await cluster.runner.client().list_attempts()
        pods = (await cluster.api.get(PODS)).ok()["items"]
        return not pods and not [each for each in left if run_id in str(each)]

    await eventually(is_clear, within_seconds=40)
