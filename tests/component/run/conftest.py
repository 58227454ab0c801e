"""The run service on real backing services, with its peers faked at the bus."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
import msgspec
import pytest
import uvicorn

from infra.embedded.ports import free_ports
from services.run import compose, reading
from services.run.app import create_app
from services.run.domain import EngineName
from services.run.engine import Observation
from services.run.engine import WorkflowName as EngineWorkflowName
from services.run.manifests import Manifests
from services.run.records import Records
from services.run.settings import Settings
from shared.blobs import Blobs
from shared.bus import Bus, Message
from shared.contracts.events import FactKind
from shared.contracts.questions import (
    GET_DEFAULT_EXPERIMENT,
    GET_DEFAULT_VERSION,
    GET_EXPERIMENT,
    GET_JOB,
    GET_VERSION,
    ById,
    Nothing,
    VersionAnswer,
    VersionRequest,
)
from shared.contracts.states import (
    ExperimentId,
    ExperimentState,
    JobState,
    NodeState,
    PipelineId,
    PipelineVersionId,
    State,
)
from shared.database import Database, Row
from shared.errors import InvalidInput, NotFound
from shared.outbox import Outbox
from shared.readers import Readers
from tests.support.hooks import aiohttp_session
from tests.support.prompt_server import PromptServer, as_in_production
from tests.support.servers import ObjectStoreAccess

V1 = "/apis/v1beta1"
DEFAULT_EXPERIMENT = "e-default"

MANIFEST = msgspec.json.encode(
    {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "two-steps-"},
        "spec": {
            "entrypoint": "main",
            "arguments": {"parameters": [{"name": "greeting", "value": "hello"}, {"name": "whom"}]},
            "templates": [
                {"name": "main", "container": {"image": "busybox", "command": ["echo", "{{workflow.uid}}"]}},
            ],
        },
    }
).decode()


@dataclass
class Peers:
    """The other services, as far as the run service sees them."""

    buses: dict[str, Bus]
    experiments: dict[str, ExperimentState] = field(default_factory=dict)
    jobs: dict[str, JobState] = field(default_factory=dict)
    versions: dict[str, VersionAnswer] = field(default_factory=dict)
    defaults: dict[str, str | None] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)

    async def answer(self) -> None:
        await self.buses["experiment"].answer(GET_EXPERIMENT, self._experiment)
        await self.buses["experiment"].answer(GET_DEFAULT_EXPERIMENT, self._default_experiment)
        await self.buses["job-scheduler"].answer(GET_JOB, self._job)
        await self.buses["pipeline-registry"].answer(GET_VERSION, self._version)
        await self.buses["pipeline-registry"].answer(GET_DEFAULT_VERSION, self._default_version)

    def has_experiment(self, name: str, experiment_id: str | None = None) -> str:
        experiment_id = experiment_id or str(uuid.uuid4())
        self.experiments[experiment_id] = ExperimentState(
            id=ExperimentId(experiment_id), version=1, name=name, created_at=datetime.now(UTC)
        )
        return experiment_id

    def has_version(self, pipeline_id: str, version_id: str, digest: str, *, is_default: bool = True) -> None:
        self.versions[version_id] = VersionAnswer(
            version_id=PipelineVersionId(version_id),
            version_name=f"{version_id} name",
            pipeline_id=PipelineId(pipeline_id),
            pipeline_name=f"{pipeline_id} name",
            manifest_digest=digest,
        )
        if is_default:
            self.defaults[pipeline_id] = version_id

    async def tell(self, kind: FactKind[State], state: State) -> int:
        """Publish a fact as its owner would; returns its position."""
        position = self.positions[kind.owner] = self.positions.get(kind.owner, 0) + 1
        bus = self.buses[kind.owner]
        await bus.declare_streams()
        accepted = await bus.publish(
            [
                Message(
                    id=str(uuid.uuid4()),
                    type=kind.type,
                    owner=kind.owner,
                    what=kind.what,
                    resource_id=state.id,
                    position=position,
                    time=datetime.now(UTC),
                    traceparent="",
                    body=msgspec.json.encode(state),
                )
            ]
        )
        assert accepted == 1
        return position

    async def _experiment(self, question: ById) -> ExperimentState:
        self.asked.append("experiment.get")
        if question.id not in self.experiments:
            raise NotFound.of("Experiment", question.id)
        return self.experiments[question.id]

    async def _default_experiment(self, _: Nothing) -> ExperimentState:
        self.asked.append("experiment.get-default")
        return self.experiments[DEFAULT_EXPERIMENT]

    async def _job(self, question: ById) -> JobState:
        if question.id not in self.jobs:
            raise NotFound.of("Job", question.id)
        return self.jobs[question.id]

    async def _version(self, question: VersionRequest) -> VersionAnswer:
        self.asked.append("pipeline-registry.get-version")
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


@dataclass
class Answer:
    status: int
    content: bytes

    @property
    def body(self) -> Any:
        return msgspec.json.decode(self.content)

    @property
    def message(self) -> str:
        return str(self.body["details"][0]["error_message"])


@dataclass
class Client:
    """One replica over HTTP."""

    session: aiohttp.ClientSession
    base: str

    async def call(self, method: str, path: str, body: Any = None, **query: str) -> Answer:
        return await self.send(method, path, body, query=query)

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        data = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        url = f"{self.base}{V1}{path}"
        async with self.session.request(method, url, data=data, params=query, headers=headers) as response:
            return Answer(response.status, await response.read())

    async def create(self, **fields: Any) -> dict[str, Any]:
        """A run of MANIFEST unless the fields say otherwise; the reply's `run`."""
        body = {"name": "a run", "pipeline_spec": {"workflow_manifest": MANIFEST}} | fields
        answer = await self.call("POST", "/runs", body)
        assert answer.status == 200, answer.body
        return dict(answer.body["run"])

    async def get(self, run_id: str) -> dict[str, Any]:
        answer = await self.call("GET", f"/runs/{run_id}")
        assert answer.status == 200, answer.body
        return dict(answer.body["run"])

    async def workflow(self, run_id: str) -> dict[str, Any]:
        answer = await self.call("GET", f"/runs/{run_id}")
        return dict(msgspec.json.decode(answer.body["pipeline_runtime"]["workflow_manifest"]))


@dataclass
class World:
    """Everything around the service under test. `records` is what a controller would hold."""

    client: Client
    start_replica: Callable[..., Awaitable[Client]]
    """With further settings, where they are given."""
    peers: Peers
    settings: Settings
    database: Database
    blobs: Blobs
    records: Records
    manifests: Manifests
    records_of: Callable[[EngineName], Records]
    """What a controller of another engine would hold."""

    async def facts(self, run_id: str) -> list[str]:
        """What the service has told of a run, in order."""
        rows = await self.database.fetch(
            "select what from outbox where owner = 'run' and resource_id = $1 order by seq", run_id
        )
        return [row["what"] for row in rows]

    async def node_facts(self, run_id: str) -> list[tuple[str, NodeState]]:
        """What it has told of the steps of a run, in order."""
        rows = await self.database.fetch(
            "select what, body from outbox where owner = 'node' and resource_id = $1 order by seq", run_id
        )
        return [(row["what"], msgspec.json.decode(row["body"], type=NodeState)) for row in rows]

    async def row(self, run_id: str) -> Row:
        row = await self.database.fetchrow("select * from runs where id = $1", run_id)
        assert row is not None
        return row

    async def observe(self, run_id: str, phase: str, **details: Any) -> bool:
        """Play the controller: record what an engine would show of the run."""
        row = await self.row(run_id)
        given: dict[str, Any] = {
            "workflow_name": EngineWorkflowName(row["workflow_name"]),
            "run_id": run_id,
            "attempt": row["attempt"],
            "phase": phase,
        }
        return await self.records.record(Observation(**(given | details)))


async def until(condition: Callable[[], Awaitable[bool]], *, within_seconds: float = 10) -> None:
    """A bounded wait for what another task is about to do."""
    async with asyncio.timeout(within_seconds):
        while not await condition():  # noqa: ASYNC110 - what changes is a row, not an object
            await asyncio.sleep(0.01)


@pytest.fixture
async def world(
    database_urls: dict[str, str], nats_urls: dict[str, str], object_store_access: ObjectStoreAccess
) -> AsyncIterator[World]:
    buses = {
        owner: Bus(nats_urls[owner], name=owner)
        for owner in ("experiment", "pipeline-registry", "metrics", "run-controller", "job-scheduler")
    }
    await asyncio.gather(*(bus.open() for bus in buses.values()))
    peers = Peers(buses)
    peers.has_experiment("Default", DEFAULT_EXPERIMENT)
    await peers.answer()

    servers: list[tuple[uvicorn.Server, asyncio.Task[None]]] = []
    session = aiohttp_session()

    settings = Settings(
        database_url=database_urls["run"],
        nats_url=nats_urls["run"],
        object_store_url=object_store_access.endpoint_url,
        object_store_access_key=object_store_access.access_key,
        object_store_secret_key=object_store_access.secret_key,
        object_store_bucket=object_store_access.bucket,
        fold_counts_seconds=0.05,
    )

    async def start_replica(**further: Any) -> Client:
        (port,) = free_ports(1)
        app = create_app(msgspec.structs.replace(settings, **further))
        server = PromptServer(
            as_in_production(app, host="127.0.0.1", port=port, log_config=None, lifespan="on", ws="none")
        )
        task = asyncio.create_task(server.serve())
        servers.append((server, task))

        async def started() -> bool:
            assert not task.done(), "the service did not start"
            return server.started

        await until(started, within_seconds=30)
        return Client(session, f"http://127.0.0.1:{port}")

    database = await Database(database_urls["run"], name="test", max_size=4).open()
    blobs = Blobs(
        object_store_access.endpoint_url,
        access_key=object_store_access.access_key,
        secret_key=object_store_access.secret_key,
        bucket=object_store_access.bucket,
    )
    readers = Readers(reading.WORK, settings.manifest_limits)
    manifests = Manifests(
        database,
        blobs,
        compose.Rules(),
        readers,
        settings.runner,
        cache_bytes=1_000_000,
        large_bytes=settings.large_manifest_bytes,
    )

    def records_of(engine: EngineName) -> Records:
        return Records(database, Outbox("run"), manifests, nodes=Outbox("node"), engine=engine)

    client = await start_replica()
    yield World(
        client=client,
        start_replica=start_replica,
        peers=peers,
        settings=settings,
        database=database,
        blobs=blobs,
        records=records_of(EngineName.EMBEDDED),
        manifests=manifests,
        records_of=records_of,
    )

    for server, _ in servers:
        server.should_exit = True
    await asyncio.gather(*(task for _, task in servers))
    await session.close()
    await readers.close()
    await asyncio.gather(*(bus.close() for bus in buses.values()))
    await database.close()
    blobs.close()
