"""The controller process as it is wired for Argo Workflows: on a cluster of which a test plays Argo's part."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.run import controller_app
from services.run.domain import EngineName
from services.run.engine import Submission, WorkflowName
from services.run.engine.argo import ArgoEngine
from services.run.engine.argo.cluster import Cluster
from services.run.engine.shards import ALL, shard_of
from services.run.reading import MOST_WORKFLOW_BYTES
from services.run.settings import ControllerSettings
from shared.errors import Unavailable
from tests.component.run.conftest import World
from tests.contract.engine.argo_by_hand import argo_by_hand, node
from tests.contract.engine.recorder import Run
from tests.support.eventually import eventually
from tests.support.kubernetes import FakeKubernetes


class ControllerProcess:
    """Its application, from its start to its orderly end, in a task of its own."""

    def __init__(self, world: World, nats_url: str, kubeconfig: Path) -> None:
        told = msgspec.structs.asdict(world.settings) | {"nats_url": nats_url, "engine": EngineName.ARGO}
        self._settings = ControllerSettings(**told, kubeconfig=str(kubeconfig), poll_seconds=0.2, compare_seconds=5)
        self._started = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        async with controller_app.create_app(self._settings).lifespan():
            self._started.set()
            await self._stopping.wait()

    async def until_started(self) -> None:
        async with asyncio.timeout(30):
            await self._started.wait()

    async def stop(self) -> None:
        self._stopping.set()
        await self._task


async def test_a_run_goes_from_its_creation_to_its_end_whichever_controller_is_there(
    world: World, nats_urls: dict[str, str], tmp_path: Path
) -> None:
    client = await world.start_replica(engine=EngineName.ARGO)
    async with FakeKubernetes.serving() as fake, argo_by_hand(fake) as argo:
        kubeconfig = fake.kubeconfig(tmp_path)
        first = ControllerProcess(world, nats_urls["run-controller"], kubeconfig)
        run_id = (await client.create())["id"]
        run = Run(name=WorkflowName((await world.row(run_id))["workflow_name"]), run_id=run_id, workflow={})
        found = await argo.until_there(run)
        assert found["metadata"]["labels"]["headrace.dev/shard"] == str(shard_of(run_id))
        assert found["spec"]["podMetadata"]["labels"] == {"pipeline/runid": run_id}
        await argo.shows(run, "Running", node(run))

        async def is_running() -> bool:
            return str((await client.get(run_id)).get("status")) == "Running"

        await eventually(is_running, within_seconds=30)
        second = ControllerProcess(world, nats_urls["run-controller"], kubeconfig)
        await second.until_started()
        await first.stop()
        await argo.shows(run, "Succeeded", node(run, phase="Succeeded"))
        await argo.until_marked(run)
        await second.stop()
    assert (await client.get(run_id))["status"] == "Succeeded"
    assert await world.facts(run_id) == ["created", "started", "succeeded"]


_STRANGE: tuple[dict[str, Any], ...] = (
    {"id": "a\x00"},
    {"id": "a" * 5000},
    {"phase": "Run\x00ning"},
    {"type": ["Pod"]},
    {"phase": "Succeeded", "startedAt": "2026-01-01T10:00:00", "finishedAt": "2126-01-01T10:00:00"},
)
"""What no record could hold, and times without their zone."""


async def test_objects_that_say_what_no_record_could_hold_stop_nobody(
    world: World, nats_urls: dict[str, str], tmp_path: Path
) -> None:
    """Whoever may write to a workflow, such as its own steps, may write anything."""
    client = await world.start_replica(engine=EngineName.ARGO)
    async with FakeKubernetes.serving() as fake, argo_by_hand(fake) as argo:
        controller = ControllerProcess(world, nats_urls["run-controller"], fake.kubeconfig(tmp_path))
        made = [(await client.create())["id"] for _ in (*_STRANGE, "sound")]
        runs = [
            Run(name=WorkflowName((await world.row(run_id))["workflow_name"]), run_id=run_id, workflow={})
            for run_id in made
        ]
        for run, strange in zip(runs, _STRANGE, strict=False):
            await argo.shows(run, "Running", node(run), node(run, ".a") | strange, startedAt="2026-01-01T10:00:00")
        for run in runs:
            await argo.shows(run, "Succeeded", node(run, phase="Succeeded"))
            await argo.until_marked(run)
        await controller.stop()
    assert [(await client.get(run_id))["status"] for run_id in made] == ["Succeeded"] * len(made)


async def test_an_engine_whose_shard_is_another_controllers_by_now_asks_the_cluster_for_nothing(tmp_path: Path) -> None:
    """Whatever stands in its queue still: nobody has told it to forget that yet."""
    name = WorkflowName("two-steps-abcde")
    labels = {"pipeline/runid": "r", "headrace.dev/shard": str(shard_of("r"))}

    def workflow(name: str) -> dict[str, Any]:
        made_as = {"headrace.dev/made-as": f"kubeflow/{name}"}
        metadata = {"name": name, "namespace": "kubeflow", "labels": labels, "annotations": made_as}
        return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": metadata, "spec": {}}

    held = set(ALL)
    asked: asyncio.Queue[int] = asyncio.Queue()

    def holds(shard: int) -> bool:
        asked.put_nowait(shard)
        return shard in held

    async with FakeKubernetes.serving() as fake, argo_by_hand(fake) as argo:
        cluster = Cluster.from_settings(kubeconfig=str(fake.kubeconfig(tmp_path)))
        engine = ArgoEngine(cluster, namespaces=("kubeflow",), holds=holds, most_workflow_bytes=MOST_WORKFLOW_BYTES)
        working = asyncio.create_task(engine.run())
        await engine.known()
        held.remove(shard_of("r"))
        await engine.submit(Submission(workflow_name=name, run_id="r", workflow=workflow(name)))
        async with asyncio.timeout(30):
            assert await asked.get() == shard_of("r")
        await argo.create(workflow("other"))
        with pytest.raises(Unavailable, match="another controller's by now"):
            await engine.terminate(WorkflowName("other"))
        working.cancel()
        await asyncio.wait([working])
        await engine.close()
        assert (fake.requests.of("POST", "/workflows"), fake.requests.of("PATCH")) == (1, 0)


async def test_workflows_of_another_installation_are_left_alone(
    world: World, nats_urls: dict[str, str], tmp_path: Path
) -> None:
    """Its records know them. It says who it is by one label alone, and shares the namespace."""
    client = await world.start_replica(engine=EngineName.ARGO)
    async with FakeKubernetes.serving() as fake, argo_by_hand(fake) as argo:
        others = {name: Run(name=WorkflowName(name), run_id=f"run-{name}", workflow={}) for name in ("runs", "is-over")}
        for name, run in others.items():
            labels = {
                "pipeline/runid": run.run_id,
                "headrace.dev/shard": str(shard_of(run.run_id)),
                "headrace.dev/installation": "another",
                **({"pipeline/persistedFinalState": "true"} if name == "is-over" else {}),
            }
            annotations = {
                "headrace.dev/made-as": f"kubeflow/{name}",
                "headrace.dev/recorded-at": "2020-01-01T00:00:00+00:00",
            }
            metadata = {"name": name, "namespace": "kubeflow", "labels": labels, "annotations": annotations}
            document = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": metadata, "spec": {}}
            await argo.create(document)
        controller = ControllerProcess(world, nats_urls["run-controller"], fake.kubeconfig(tmp_path))
        await controller.until_started()
        run_id = (await client.create())["id"]
        run = Run(name=WorkflowName((await world.row(run_id))["workflow_name"]), run_id=run_id, workflow={})
        await argo.shows(run, "Running", node(run))
        await argo.shows(others["runs"], "Running", node(others["runs"]))
        await argo.shows(run, "Succeeded", node(run, phase="Succeeded"))
        await argo.until_marked(run)
        await controller.stop()

        for run in others.values():
            assert await argo.object(run) is not None
