"""The job scheduler on real backing services, with its peers faked at the bus."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from services.job_scheduler.app import create_app
from services.job_scheduler.settings import Settings
from shared.blobs import Blobs
from shared.bus import Bus
from shared.contracts.events import FactKind
from shared.contracts.questions import (
    CHECK_MANIFEST,
    GET_DEFAULT_EXPERIMENT,
    GET_DEFAULT_VERSION,
    GET_EXPERIMENT,
    GET_RUN,
    GET_RUN_VALUES,
    GET_VERSION,
    AppliedAnswer,
    AppliedRequest,
    ById,
    ManifestAnswer,
    ManifestRequest,
    Nothing,
    ValuesAnswer,
    ValuesRequest,
    VersionAnswer,
    VersionRequest,
    applied,
)
from shared.contracts.states import (
    ExperimentId,
    ExperimentState,
    JobId,
    PipelineId,
    PipelineVersionId,
    RunState,
    TriggerState,
)
from shared.database import Database, Row
from shared.errors import InvalidInput, NotFound, Unavailable
from tests.support.eventually import eventually
from tests.support.peers import Peer, open_buses
from tests.support.servers import ObjectStoreAccess
from tests.support.service import Client, serving

DEFAULT_EXPERIMENT = "e-default"

MANIFEST = msgspec.json.encode(
    {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "two-steps-"},
        "spec": {
            "entrypoint": "main",
            "arguments": {"parameters": [{"name": "greeting", "value": "hello"}, {"name": "whom"}]},
            "templates": [{"name": "main", "container": {"image": "busybox", "command": ["echo"]}}],
        },
    }
).decode()

JOB: Mapping[str, Any] = {
    "name": "a job",
    "pipeline_spec": {"workflow_manifest": MANIFEST},
    "max_concurrency": "1",
    "trigger": {"periodic_schedule": {"interval_second": "60"}},
}


@dataclass
class Peers:
    """The other services, as far as the job scheduler sees them."""

    buses: dict[str, Bus]
    experiment: Peer
    registry: Peer
    run: Peer
    blobs: Blobs
    experiments: dict[str, ExperimentState] = field(default_factory=dict)
    versions: dict[str, VersionAnswer] = field(default_factory=dict)
    defaults: dict[str, str | None] = field(default_factory=dict)
    waited: list[AppliedRequest] = field(default_factory=list)
    has_applied: bool = True
    """Whether runs are made as fast as they are ordered."""
    runs: dict[str, RunState] = field(default_factory=dict)
    values: dict[str, str | float] | None = field(default_factory=dict)
    """What any run has left: outputs by step and name, and metrics. None: nobody can tell."""

    async def answer(self) -> None:
        experiment, registry, run = (self.buses[name] for name in ("experiment", "pipeline-registry", "run"))
        await experiment.answer(GET_EXPERIMENT, self._experiment)
        await experiment.answer(GET_DEFAULT_EXPERIMENT, self._default_experiment)
        await registry.answer(GET_VERSION, self._version)
        await registry.answer(GET_DEFAULT_VERSION, self._default_version)
        await run.answer(CHECK_MANIFEST, self._check_manifest)
        await run.answer(applied("run"), self._applied)
        await run.answer(GET_RUN, self._run)
        await run.answer(GET_RUN_VALUES, self._values)

    def has_experiment(self, experiment_id: str, name: str) -> None:
        self.experiments[experiment_id] = experiment_state(experiment_id, name)

    def has_version(self, pipeline_id: str, version_id: str, digest: str) -> None:
        """The newest one is the default."""
        self.versions[version_id] = VersionAnswer(
            version_id=PipelineVersionId(version_id),
            version_name=f"{version_id} name",
            pipeline_id=PipelineId(pipeline_id),
            pipeline_name=f"{pipeline_id} name",
            manifest_digest=digest,
        )
        self.defaults[pipeline_id] = version_id

    async def _experiment(self, question: ById) -> ExperimentState:
        if question.id not in self.experiments:
            raise NotFound.of("Experiment", question.id)
        return self.experiments[question.id]

    async def _default_experiment(self, _: Nothing) -> ExperimentState:
        return self.experiments[DEFAULT_EXPERIMENT]

    async def _version(self, question: VersionRequest) -> VersionAnswer:
        if question.version_id not in self.versions:
            raise NotFound.of("Version", question.version_id)
        version = self.versions[question.version_id]
        if question.pipeline_id not in (None, version.pipeline_id):
            raise InvalidInput("pipeline ID should be parent of pipeline version.")
        return version

    async def _default_version(self, question: ById) -> VersionAnswer:
        if question.id not in self.defaults:
            raise NotFound.of("Pipeline", question.id)
        version_id = self.defaults[question.id]
        if version_id is None:
            raise InvalidInput("No pipeline version.")
        return self.versions[version_id]

    async def _check_manifest(self, question: ManifestRequest) -> ManifestAnswer:
        workflow = msgspec.json.decode(await self.blobs.get_manifest(question.manifest_digest))
        if workflow.get("kind", "Workflow") != "Workflow":
            return ManifestAnswer(malformation=f"Unexpected resource type: {workflow['kind']}")
        spec = workflow.get("spec") or {}
        declared = {each["name"] for each in spec.get("arguments", {}).get("parameters", ())}
        return ManifestAnswer(
            refusal="" if spec.get("entrypoint") else "spec.entrypoint is required",
            unrecognized=next((name for name in question.parameters if name not in declared), None),
            service_account=spec.get("serviceAccountName", "pipeline-runner"),
        )

    async def _applied(self, question: AppliedRequest) -> AppliedAnswer:
        self.waited.append(question)
        return AppliedAnswer(is_applied=self.has_applied)

    async def _run(self, question: ById) -> RunState:
        if question.id not in self.runs:
            raise NotFound.of("Run", question.id)
        return self.runs[question.id]

    async def _values(self, question: ValuesRequest) -> ValuesAnswer:
        if self.values is None:
            raise Unavailable("Ask again.")
        try:
            return ValuesAnswer(
                outputs=tuple(str(self.values[f"{each.node}.{each.name}"]) for each in question.outputs),
                metrics=tuple(float(self.values[name]) for name in question.metrics),
            )
        except KeyError as missing:
            raise InvalidInput(f"Run {question.run_id} has no {missing}.") from missing


@dataclass
class World:
    """Everything around the service under test: two replicas of it, or more, on one database."""

    client: Client
    replica: Client
    start_replica: Callable[..., Awaitable[Client]]
    """With further settings."""
    peers: Peers
    database: Database
    blobs: Blobs

    async def create(self, **fields: Any) -> dict[str, Any]:
        """A job like JOB unless the fields say otherwise; the reply."""
        return dict(await self.client.post("/jobs", {**JOB, **fields}))

    async def get(self, job_id: str) -> dict[str, Any]:
        return dict(await self.client.get(f"/jobs/{job_id}"))

    async def extended(self, job_id: str) -> dict[str, Any]:
        """With what the original does not have."""
        answer = await self.client.call("GET", f"/apis/headrace/v1/jobs/{job_id}")
        assert answer.status == 200, answer.body
        return dict(answer.json)

    async def facts(self, job_id: str) -> list[str]:
        """What the service has told of a job, in order."""
        rows = await self.database.fetch("select what from outbox where resource_id = $1 order by seq", job_id)
        return [row["what"] for row in rows]

    async def triggers(self, job_id: str) -> list[TriggerState]:
        """What was ordered of the run service, in order."""
        rows = await self.database.fetch(
            "select body from outbox where resource_id = $1 and what = 'triggered' order by seq", job_id
        )
        return [msgspec.json.decode(row["body"], type=TriggerState) for row in rows]

    async def triggered(self, job_id: str, times: int) -> list[TriggerState]:
        """As soon as it is that many."""

        async def those() -> list[TriggerState]:
            found = await self.triggers(job_id)
            return found if len(found) >= times else []

        return await eventually(those)

    async def tell_of_run(self, kind: FactKind[RunState], trigger: TriggerState, version: int, **fields: Any) -> None:
        """A fact about the run of a slot; returns after it was applied."""
        await self.peers.run.tell(kind, run_of(trigger, version, **fields))
        await self.peers.run.until_applied_by("job-scheduler")

    async def row(self, job_id: str) -> Row:
        row = await self.database.fetchrow("select * from jobs where id = $1", job_id)
        assert row is not None
        return row


def experiment_state(experiment_id: str, name: str = "e", version: int = 1, **fields: Any) -> ExperimentState:
    return ExperimentState(
        id=ExperimentId(experiment_id), version=version, name=name, created_at=datetime.now(UTC), **fields
    )


def run_of(trigger: TriggerState, version: int, **fields: Any) -> RunState:
    return RunState(
        id=trigger.run_id,
        version=version,
        name=trigger.workflow_name,
        experiment_id=trigger.experiment_id,
        job_id=JobId(trigger.id),
        created_at=datetime.now(UTC),
        scheduled_at=trigger.slot,
        **fields,
    )


def reference(kind: str, resource_id: str, relationship: str = "OWNER") -> dict[str, Any]:
    return {"key": {"type": kind, "id": resource_id}, "relationship": relationship}


@pytest.fixture
async def world(
    database_urls: Mapping[str, str], nats_urls: Mapping[str, str], object_store_access: ObjectStoreAccess
) -> AsyncIterator[World]:
    blobs = Blobs(
        object_store_access.endpoint_url,
        access_key=object_store_access.access_key,
        secret_key=object_store_access.secret_key,
        bucket=object_store_access.bucket,
    )
    buses = await open_buses(nats_urls, "experiment", "pipeline-registry", "run")
    experiment, registry, run = (Peer(owner, bus) for owner, bus in buses.items())
    peers = Peers(buses, experiment, registry, run, blobs)
    peers.has_experiment(DEFAULT_EXPERIMENT, "Default")
    await peers.answer()
    settings = Settings(
        database_url=database_urls["job_scheduler"],
        nats_url=nats_urls["job-scheduler"],
        object_store_url=object_store_access.endpoint_url,
        object_store_access_key=object_store_access.access_key,
        object_store_secret_key=object_store_access.secret_key,
        object_store_bucket=object_store_access.bucket,
        ask_seconds=1,
    )
    database = await Database(settings.database_url, name="test", max_size=4).open()
    async with contextlib.AsyncExitStack() as replicas:

        async def start_replica(**further: Any) -> Client:
            app = create_app(msgspec.structs.replace(settings, **further))
            return await replicas.enter_async_context(serving(app))

        yield World(
            client=await start_replica(),
            replica=await start_replica(),
            start_replica=start_replica,
            peers=peers,
            database=database,
            blobs=blobs,
        )
    await asyncio.gather(*(bus.close() for bus in buses.values()))
    await database.close()
    blobs.close()
