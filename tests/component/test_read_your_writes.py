"""What a client has just done, it sees: every sequence that crosses services, each request at another replica."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from services.experiment.app import create_app as experiment_app
from services.experiment.settings import Settings as ExperimentSettings
from services.metrics.app import create_app as metrics_app
from services.metrics.settings import Settings as MetricsSettings
from services.pipeline_registry.app import create_app as registry_app
from services.pipeline_registry.settings import Settings as RegistrySettings
from services.run.app import create_app as run_app
from services.run.settings import Settings as RunSettings
from shared.web import Service
from tests.support.servers import ObjectStoreAccess
from tests.support.service import V1, Client, Reply, serving

ROUNDS = 8
"""A missing wait loses a round more often than not."""
PATIENT = {"applied_wait_seconds": 10.0}
"""A busy machine may be slow, and still answers after the change was applied."""
MANIFEST = json.dumps(
    {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "mine-"},
        "spec": {
            "entrypoint": "main",
            "templates": [{"name": "main", "container": {"image": "busybox", "command": ["true"]}}],
        },
    }
)


class Turns:
    """The replicas of one service, one after the other."""

    def __init__(self, replicas: list[Client]) -> None:
        self._replicas = itertools.cycle(replicas)

    @property
    def next(self) -> Client:
        return next(self._replicas)


class House:
    def __init__(self, experiments: Turns, runs: Turns, metrics: Turns, pipelines: Turns) -> None:
        self._experiments = experiments
        self._runs = runs
        self._metrics = metrics
        self._pipelines = pipelines

    async def create_experiment(self, name: str) -> str:
        return str((await self._experiments.next.post("/experiments", {"name": name}))["id"])

    async def archive_experiment(self, experiment_id: str) -> None:
        await self._experiments.next.post(f"/experiments/{experiment_id}:archive")

    async def delete_experiment(self, experiment_id: str) -> None:
        await self._experiments.next.delete(f"/experiments/{experiment_id}")

    async def try_run(self, experiment_id: str | None) -> Reply:
        body: dict[str, Any] = {"name": "mine", "pipeline_spec": {"workflow_manifest": MANIFEST}}
        if experiment_id is not None:
            key = {"type": "EXPERIMENT", "id": experiment_id}
            body["resource_references"] = [{"key": key, "relationship": "OWNER"}]
        return await self._runs.next.call("POST", f"{V1}/runs", json=body)

    async def upload(self, name: str) -> dict[str, Any]:
        form = aiohttp.FormData()
        form.add_field("uploadfile", MANIFEST.encode(), filename="mine.yaml")
        answer = await self._pipelines.next.call("POST", f"{V1}/pipelines/upload", query={"name": name}, data=form)
        assert answer.status == 200, answer.body
        return dict(answer.json)

    async def delete_pipeline(self, path: str) -> None:
        await self._pipelines.next.delete(path)

    async def try_version(self, version_id: str) -> Reply:
        reference = {"key": {"type": "PIPELINE_VERSION", "id": version_id}, "relationship": "CREATOR"}
        return await self._runs.next.call(
            "POST", f"{V1}/runs", json={"name": "mine", "resource_references": [reference]}
        )

    async def create_run(self, experiment_id: str | None = None) -> str:
        answer = await self.try_run(experiment_id)
        assert answer.status == 200, answer.body
        return str(answer.json["run"]["id"])

    async def get_run(self, run_id: str) -> dict[str, Any]:
        return dict((await self._runs.next.get(f"/runs/{run_id}"))["run"])

    async def list_runs(self, experiment_id: str) -> Any:
        query = {"resource_reference_key.type": "EXPERIMENT", "resource_reference_key.id": experiment_id}
        return await self._runs.next.get("/runs", **query)

    async def delete_run(self, run_id: str) -> None:
        await self._runs.next.delete(f"/runs/{run_id}")

    async def report(self, run_id: str, *names: str) -> Reply:
        metrics = [{"name": name, "node_id": "n", "number_value": 0.5} for name in names]
        return await self._metrics.next.call("POST", f"{V1}/runs/{run_id}:reportMetrics", json={"metrics": metrics})


@pytest.fixture
async def house(
    database_urls: Mapping[str, str], nats_urls: Mapping[str, str], object_store_access: ObjectStoreAccess
) -> AsyncIterator[House]:
    def at(owner: str) -> dict[str, Any]:
        return {"database_url": database_urls[owner.replace("-", "_")], "nats_url": nats_urls[owner], **PATIENT}

    store: dict[str, Any] = {
        "object_store_url": object_store_access.endpoint_url,
        "object_store_access_key": object_store_access.access_key,
        "object_store_secret_key": object_store_access.secret_key,
        "object_store_bucket": object_store_access.bucket,
    }
    services: tuple[Callable[[], Service], ...] = (
        lambda: experiment_app(ExperimentSettings(**at("experiment"))),
        lambda: run_app(RunSettings(**at("run"), **store)),
        lambda: metrics_app(MetricsSettings(**at("metrics"))),
        lambda: registry_app(RegistrySettings(**at("pipeline-registry"), **store)),
    )
    async with AsyncExitStack() as stack:
        turns = [Turns([await stack.enter_async_context(serving(create())) for _ in range(2)]) for create in services]
        yield House(*turns)


async def test_a_run_is_created_in_an_experiment_of_a_moment_ago_and_listed_at_once(house: House) -> None:
    for nth in range(ROUNDS):
        experiment_id = await house.create_experiment(f"e{nth}")
        ids = [await house.create_run(experiment_id) for _ in range(3)]

        listed = await house.list_runs(experiment_id)

        assert [run["id"] for run in listed["runs"]] == ids
        assert listed["total_size"] == 3
        assert (await house.get_run(ids[0]))["resource_references"][0]["name"] == f"e{nth}"


async def test_the_runs_of_an_experiment_are_archived_when_it_is_and_whenever_it_is_again(house: House) -> None:
    for nth in range(ROUNDS):
        experiment_id = await house.create_experiment(f"e{nth}")
        for newcomers, everyone in ((3, 3), (1, 4)):
            for _ in range(newcomers):
                await house.create_run(experiment_id)

            await house.archive_experiment(experiment_id)

            listed = await house.list_runs(experiment_id)
            assert [run.get("storage_state") for run in listed["runs"]] == ["STORAGESTATE_ARCHIVED"] * everyone


async def test_reported_metrics_show_in_the_run_at_once(house: House) -> None:
    for _ in range(ROUNDS):
        run_id = await house.create_run()

        answer = await house.report(run_id, "a", "b")

        assert [each["status"] for each in answer.json["results"]] == ["OK", "OK"]
        assert [each["name"] for each in (await house.get_run(run_id))["metrics"]] == ["a", "b"]


async def test_parallel_reports_of_one_metric_record_one(house: House) -> None:
    run_id = await house.create_run()

    answers = await asyncio.gather(*(house.report(run_id, "a") for _ in range(10)))

    outcomes = sorted(answer.json["results"][0]["status"] for answer in answers)
    assert outcomes == [*["DUPLICATE_REPORTING"] * 9, "OK"]
    assert len((await house.get_run(run_id))["metrics"]) == 1


async def test_no_run_is_created_in_an_experiment_that_was_just_deleted(house: House) -> None:
    for nth in range(ROUNDS):
        experiment_id = await house.create_experiment(f"e{nth}")
        run_id = await house.create_run(experiment_id)

        await house.delete_experiment(experiment_id)

        answer = await house.try_run(experiment_id)
        assert answer.status == 404, nth
        assert answer.json["details"][0]["error_message"] == f"Experiment {experiment_id} not found."
        assert (await house.get_run(run_id))["resource_references"][0]["name"] == f"e{nth}"


@pytest.mark.parametrize("path", ["/pipelines/{pipeline}", "/pipeline_versions/{version}"])
async def test_no_run_is_made_from_a_version_that_was_just_deleted(house: House, path: str) -> None:
    for nth in range(ROUNDS):
        pipeline = await house.upload(f"p{nth}")
        version_id = pipeline["default_version"]["id"]
        # From the second on it comes from the copy, or from the owner where the fact was slower.
        for _ in range(2):
            assert (await house.try_version(version_id)).status == 200, nth

        await house.delete_pipeline(path.format(pipeline=pipeline["id"], version=version_id))

        assert (await house.try_version(version_id)).status == 404, nth


async def test_nothing_is_reported_of_a_run_that_was_just_deleted(house: House) -> None:
    for nth in range(ROUNDS):
        run_id = await house.create_run()
        await house.report(run_id, "a")

        await house.delete_run(run_id)

        assert (await house.report(run_id, "b")).status == 404, nth


async def test_parallel_creations_of_runs_share_one_default_experiment(house: House) -> None:
    ids = await asyncio.gather(*(house.create_run() for _ in range(16)))

    assert len(set(ids)) == 16
    owners = {(await house.get_run(run_id))["resource_references"][0]["key"]["id"] for run_id in ids}
    assert len(owners) == 1
    assert (await house.list_runs(owners.pop()))["total_size"] == 16
