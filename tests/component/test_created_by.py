"""Whoever the gateway says has asked for something is on record as its maker, in every service that makes anything."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import msgspec
import pytest

from services.experiment.app import create_app as experiment_app
from services.experiment.settings import Settings as ExperimentSettings
from services.job_scheduler.app import create_app as scheduler_app
from services.job_scheduler.settings import Settings as SchedulerSettings
from services.pipeline_registry.app import create_app as registry_app
from services.pipeline_registry.settings import Settings as RegistrySettings
from services.run.app import create_app as run_app
from services.run.settings import Settings as RunSettings
from shared.database import Database
from shared.identity import HEADER, Caller, Signer
from shared.settings import variable_of
from shared.web import Service
from tests.support.servers import ObjectStoreAccess
from tests.support.service import V1, Client, serving

KEY = "a key that gateway and services share"
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
TABLES = {
    "experiment": ("experiments",),
    "pipeline-registry": ("pipelines", "pipeline_versions"),
    "run": ("runs",),
    "job-scheduler": ("jobs",),
}


class House:
    """Four services that believe the identity that comes with a request."""

    def __init__(self, clients: Mapping[str, Client], database_urls: Mapping[str, str]) -> None:
        self._clients = clients
        self._database_urls = database_urls
        self._signer = Signer(KEY)

    async def create_everything(self, subject: str) -> None:
        """An experiment, a pipeline with two versions, a run and a job, all called as their maker."""
        await self.ask("experiment", "POST", "/experiments", subject, json={"name": subject})
        pipeline = await self.upload("/pipelines/upload", subject, name=subject)
        await self.upload("/pipelines/upload_version", subject, name="second", pipelineid=pipeline["id"])
        spec = {"workflow_manifest": MANIFEST}
        await self.ask("run", "POST", "/runs", subject, json={"name": subject, "pipeline_spec": spec})
        # One without a schedule would fire as soon as it is enabled, and tell of that.
        yearly = {"cron_schedule": {"cron": "0 0 0 1 1 *"}}
        job = {"name": subject, "pipeline_spec": spec, "max_concurrency": "1", "trigger": yearly}
        await self.ask("job-scheduler", "POST", "/jobs", subject, json=job)

    async def upload(self, path: str, subject: str, **query: str) -> Any:
        form = aiohttp.FormData()
        form.add_field("uploadfile", MANIFEST.encode(), filename="mine.yaml")
        return await self.ask("pipeline-registry", "POST", path, subject, query=query, data=form)

    async def ask(self, service: str, method: str, path: str, subject: str, **how: Any) -> Any:
        headers = {HEADER: self._signer.header_for(Caller(subject=subject, name="whoever"))}
        answer = await self._clients[service].call(method, V1 + path, headers=headers, **how)
        assert answer.status == 200, answer.body
        assert "created_by" not in answer.body.decode()
        return answer.json

    async def names(self, service: str, kind: str, subject: str, op: str, value: str) -> list[str]:
        predicates = [{"key": "created_by", "op": op, "string_value": value}]
        query = {"filter": json.dumps({"predicates": predicates})}
        found = await self.ask(service, "GET", f"/{kind}", subject, query=query)
        return sorted(each["name"] for each in found.get(kind, ()))

    async def rows(self, service: str) -> dict[str, list[str]]:
        """Per table, who made its rows, the first first."""
        async with _database(self._database_urls, service) as database:
            return {
                table: [
                    row["created_by"]
                    for row in await database.fetch(f"select created_by from {table} order by created_at")
                ]
                for table in TABLES[service]
            }

    async def facts(self, service: str) -> list[tuple[str, str | None]]:
        async with _database(self._database_urls, service) as database:
            rows = await database.fetch("select what, body from outbox order by seq")
            return [(row["what"], msgspec.json.decode(row["body"]).get("created_by")) for row in rows]


@pytest.fixture
async def house(
    database_urls: Mapping[str, str],
    nats_urls: Mapping[str, str],
    object_store_access: ObjectStoreAccess,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[House]:
    def at(owner: str) -> dict[str, Any]:
        return {"database_url": database_urls[owner.replace("-", "_")], "nats_url": nats_urls[owner]}

    store: dict[str, Any] = {
        "object_store_url": object_store_access.endpoint_url,
        "object_store_access_key": object_store_access.access_key,
        "object_store_secret_key": object_store_access.secret_key,
        "object_store_bucket": object_store_access.bucket,
    }
    services: Mapping[str, Callable[[], Service]] = {
        "experiment": lambda: experiment_app(ExperimentSettings(**at("experiment"))),
        "pipeline-registry": lambda: registry_app(RegistrySettings(**at("pipeline-registry"), **store)),
        "run": lambda: run_app(RunSettings(**at("run"), **store)),
        "job-scheduler": lambda: scheduler_app(SchedulerSettings(**at("job-scheduler"), **store)),
    }
    monkeypatch.setenv(variable_of("identity_key"), KEY)
    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(serving(create())) for name, create in services.items()}
        yield House(clients, database_urls)


async def test_every_record_and_every_fact_says_who_made_it(house: House) -> None:
    for subject in ("token:ci", "oidc:4711"):
        await house.create_everything(subject)

    # Nobody has made the default experiment: it is there with the first who needs one.
    assert sorted((await house.rows("experiment"))["experiments"]) == ["", "oidc:4711", "token:ci"]
    assert await house.rows("pipeline-registry") == {
        "pipelines": ["token:ci", "oidc:4711"],
        "pipeline_versions": ["token:ci", "token:ci", "oidc:4711", "oidc:4711"],
    }
    assert await house.rows("run") == {"runs": ["token:ci", "oidc:4711"]}
    assert await house.rows("job-scheduler") == {"jobs": ["token:ci", "oidc:4711"]}

    made = [("created", "token:ci"), ("created", "oidc:4711")]
    assert [each for each in await house.facts("experiment") if each != ("created", None)] == made
    assert await house.facts("run") == made
    assert await house.facts("job-scheduler") == made
    assert await house.facts("pipeline-registry") == [
        (what, subject)
        for subject in ("token:ci", "oidc:4711")
        for what in ("created", "version-created", "version-created", "default-changed")
    ]

    for service, kind in (("run", "runs"), ("job-scheduler", "jobs")):
        assert await house.names(service, kind, "oidc:4711", "EQUALS", "token:ci") == ["token:ci"]
        assert await house.names(service, kind, "oidc:4711", "NOT_EQUALS", "token:ci") == ["oidc:4711"]
        assert await house.names(service, kind, "oidc:4711", "IS_SUBSTRING", ":") == ["oidc:4711", "token:ci"]


async def test_who_changes_a_record_does_not_become_its_maker(house: House) -> None:
    await house.create_everything("token:ci")
    experiments = (await house.ask("experiment", "GET", "/experiments", "token:ci"))["experiments"]
    experiment_id = next(each["id"] for each in experiments if each["name"] == "token:ci")
    (run,) = (await house.ask("run", "GET", "/runs", "token:ci"))["runs"]
    (job,) = (await house.ask("job-scheduler", "GET", "/jobs", "token:ci"))["jobs"]

    await house.ask("experiment", "POST", f"/experiments/{experiment_id}:archive", "token:other")
    await house.ask("run", "POST", f"/runs/{run['id']}:archive", "token:other")
    await house.ask("job-scheduler", "POST", f"/jobs/{job['id']}/enable", "token:other")

    assert (await house.facts("experiment"))[-1] == ("archived", "token:ci")
    assert (await house.facts("run"))[-1] == ("archived", "token:ci")
    assert (await house.facts("job-scheduler"))[-1] == ("enabled", "token:ci")


def _database(urls: Mapping[str, str], service: str) -> _Opened:
    return _Opened(Database(urls[service.replace("-", "_")], name="test", max_size=1))


class _Opened:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def __aenter__(self) -> Database:
        return await self._database.open()

    async def __aexit__(self, *_: object) -> None:
        await self._database.close()
