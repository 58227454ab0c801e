"""Traffic of all kinds through a gateway: clients that create, read, change and delete until they are told to stop.

What fails is noted and not raised, so that a test may say which failures it expects; what was accepted is noted as
well, to be looked for afterwards.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from gateway.table import EXTENSION_PREFIX
from tests.coverage.operations import V1, name_of
from tests.support.api import FINAL, workflow_of
from tests.support.eventually import eventually
from tests.support.hooks import aiohttp_session

CLIENTS = 7

_LAST_OPERATION = "X1"
_POLL_SECONDS = 0.1
_RUN_ENDS_WITHIN_SECONDS = 60


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    operation: str
    method: str
    said: str


class Traffic:
    """All clients together. `accepted` are the paths of what was created and left, `deleted` of what was deleted."""

    def __init__(self, url: str, session: Callable[..., aiohttp.ClientSession] = aiohttp_session) -> None:
        self._url = url
        self._session = session
        self._is_over = False
        self.in_flight = 0
        self.last_answer_at = time.monotonic()
        self.sent: Counter[str] = Counter()
        self.seconds: list[float] = []
        """How long each answer took that was the one wanted."""
        self.failures: list[Failure] = []
        self.experiments: list[str] = []
        self.accepted: list[str] = []
        self.deleted: list[str] = []

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """All clients at work: before the block one has asked for all it can, after it everybody has left."""
        async with asyncio.TaskGroup() as group:
            for client in (self.keep_alive, self.anew, self.quick):
                for _ in range(2):
                    group.create_task(client())
            group.create_task(self.runs())
            try:
                await eventually(self._is_complete, within_seconds=60)
                yield
            finally:
                self._is_over = True

    def stop(self) -> None:
        """Clients end what they have begun, and leave."""
        self._is_over = True

    async def _is_complete(self) -> bool:
        return self.sent[_LAST_OPERATION] > 0

    async def keep_alive(self) -> None:
        """One client on one connection, as far as the gateway keeps it."""
        await self._come_and_go(self._visit, aiohttp.TCPConnector(limit=1))

    async def anew(self) -> None:
        """One client that opens a connection for each request."""
        await self._come_and_go(self._visit, aiohttp.TCPConnector(force_close=True))

    async def quick(self) -> None:
        """One client that asks each service for what it has at hand, and creates and reports something in between."""
        await self._come_and_go(self._pass, aiohttp.TCPConnector(limit=1))

    async def runs(self) -> None:
        """One client that has runs run, to their end."""
        await self._come_and_go(self._see_runs_through, aiohttp.TCPConnector(limit=1))

    async def verify(self) -> None:
        """Everything that was accepted is there, and nothing that was deleted."""
        async with self._session() as session:
            for wanted, paths in ((200, self.accepted), (404, self.deleted)):
                statuses = await asyncio.gather(*(_status(session, self._url + path) for path in paths))
                assert {path: status for path, status in zip(paths, statuses, strict=True) if status != wanted} == {}

    async def _come_and_go(self, visit: Callable[[_Client], Awaitable[None]], connector: aiohttp.TCPConnector) -> None:
        async with self._session(connector=connector) as session:
            while not self._is_over:
                try:
                    await visit(_Client(self, session, self._url))
                except _Failed:
                    continue

    async def _pass(self, client: _Client) -> None:
        await client.get(f"{V1}/experiments/{await self._experiment(client)}")
        metrics = [{"name": "speed", "node_id": "mill", "number_value": 0.5}]
        for kind in ("pipelines", "runs", "jobs"):
            await client.get(f"{V1}/{kind}?page_size=1")
        for run in [path for path in self.accepted if "/runs/" in path][:1]:
            await client.post(f"{run}:reportMetrics", {"metrics": metrics})
        await client.get(f"{EXTENSION_PREFIX}webhooks?page_size=1")

    async def _experiment(self, client: _Client) -> str:
        name = f"traffic-{uuid.uuid4().hex}"
        experiment: str = (await client.post(f"{V1}/experiments", {"name": name}))["id"]
        self.experiments.append(experiment)
        self.accepted.append(f"{V1}/experiments/{experiment}")
        return experiment

    async def _visit(self, client: _Client) -> None:
        """Nearly all there is to ask for, once."""
        experiment = await self._experiment(client)
        name = f"traffic-{experiment}"
        await client.get(f"{V1}/experiments/{experiment}")
        await client.get(f"{V1}/experiments?page_size=3&sort_by=created_at%20desc")

        pipeline = await client.upload(f"{V1}/pipelines/upload?name={name}", _workflow("sleep", "60"))
        self.accepted.append(f"{V1}/pipelines/{pipeline['id']}")
        await client.get(f"{V1}/pipelines/{pipeline['id']}")
        await client.get(f"{V1}/pipelines/{pipeline['id']}/templates")
        await client.get(f"{V1}/pipelines?page_size=3")
        version = await client.upload(
            f"{V1}/pipelines/upload_version?name=second&pipelineid={pipeline['id']}", _workflow("sleep", "61")
        )
        await client.post(f"{V1}/pipelines/{pipeline['id']}/default_version/{version['id']}")
        await client.get(f"{V1}/pipeline_versions/{version['id']}")
        await client.get(f"{V1}/pipeline_versions/{version['id']}/templates")
        await client.get(f"{V1}/pipeline_versions?resource_key.type=PIPELINE&resource_key.id={pipeline['id']}")
        await client.delete(f"{V1}/pipeline_versions/{pipeline['default_version']['id']}")

        references = [
            {"key": {"type": "EXPERIMENT", "id": experiment}, "relationship": "OWNER"},
            {"key": {"type": "PIPELINE_VERSION", "id": version["id"]}, "relationship": "CREATOR"},
        ]
        run = (await client.post(f"{V1}/runs", {"name": name, "resource_references": references}))["run"]["id"]
        await client.get(f"{V1}/runs/{run}")
        of_experiment = f"resource_reference_key.type=EXPERIMENT&resource_reference_key.id={experiment}"
        await client.get(f"{V1}/runs?{of_experiment}")
        metrics = [{"name": "speed", "node_id": "mill", "number_value": 0.5}]
        await client.post(f"{V1}/runs/{run}:reportMetrics", {"metrics": metrics})
        await client.post(f"{V1}/runs/{run}/terminate")
        await client.post(f"{V1}/runs/{run}:archive")
        await client.post(f"{V1}/runs/{run}:unarchive")
        await client.delete(f"{V1}/runs/{run}")
        self.deleted.append(f"{V1}/runs/{run}")

        trigger = {"cron_schedule": {"cron": "0 0 3 * * *"}}
        asked = {"name": name, "max_concurrency": "1", "trigger": trigger, "resource_references": references}
        job = (await client.post(f"{V1}/jobs", asked))["id"]
        self.accepted.append(f"{V1}/jobs/{job}")
        await client.get(f"{V1}/jobs/{job}")
        await client.post(f"{V1}/jobs/{job}/enable")
        await client.post(f"{V1}/jobs/{job}/disable")
        await client.get(f"{V1}/jobs?page_size=3")

        hook = {"name": name, "url": "https://hooks.example/", "facts": ["lost"]}
        webhook = f"{EXTENSION_PREFIX}webhooks/{(await client.post(f'{EXTENSION_PREFIX}webhooks', hook))['id']}"
        await client.get(webhook)
        await client.post(f"{webhook}:pause")
        await client.post(f"{webhook}:resume")
        await client.get(f"{webhook}/deliveries")
        await client.get(f"{EXTENSION_PREFIX}webhooks")
        await client.delete(webhook)
        self.deleted.append(webhook)

        await client.post(f"{V1}/experiments/{experiment}:archive")
        await client.post(f"{V1}/experiments/{experiment}:unarchive")
        await client.get(f"{EXTENSION_PREFIX}engine")
        await client.get(f"{V1}/healthz")

    async def _see_runs_through(self, client: _Client) -> None:
        """One that succeeds, and one that is tried again."""
        run, detail = await self._run(client, "echo", "the mill turns")
        (node,) = workflow_of(detail)["status"]["nodes"]
        await client.get(f"{V1}/runs/{run}/nodes/{node}/log", is_json=False)
        assert detail["run"]["status"] == "Succeeded", detail["run"]

        run, detail = await self._run(client, "false")
        assert detail["run"]["status"] == "Failed", detail["run"]
        await client.post(f"{V1}/runs/{run}/retry")
        detail = await self._end_of(client, run)
        assert detail["run"]["status"] == "Failed", detail["run"]

    async def _run(self, client: _Client, *command: str) -> tuple[str, Any]:
        asked = {"name": command[0], "pipeline_spec": {"workflow_manifest": _workflow(*command)}}
        run = (await client.post(f"{V1}/runs", asked))["run"]["id"]
        self.accepted.append(f"{V1}/runs/{run}")
        return run, await self._end_of(client, run)

    async def _end_of(self, client: _Client, run: str) -> Any:
        async with asyncio.timeout(_RUN_ENDS_WITHIN_SECONDS):
            while True:
                detail = await client.get(f"{V1}/runs/{run}")
                if detail["run"].get("status") in FINAL:
                    return detail
                await asyncio.sleep(_POLL_SECONDS)


async def _status(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(url) as answer:
        await answer.read()
        return answer.status


class _Failed(Exception):
    """Noted already; whatever would have followed is left out."""


class _Client:
    def __init__(self, traffic: Traffic, session: aiohttp.ClientSession, url: str) -> None:
        self._traffic = traffic
        self._session = session
        self._url = url

    async def get(self, path: str, *, is_json: bool = True) -> Any:
        said = await self._call("GET", path)
        return msgspec.json.decode(said) if is_json else said

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return msgspec.json.decode(await self._call("POST", path, data=None if body is None else json.dumps(body)))

    async def delete(self, path: str) -> None:
        await self._call("DELETE", path)

    async def upload(self, path: str, package: str) -> Any:
        form = aiohttp.FormData()
        form.add_field("uploadfile", package.encode(), filename="package.yaml")
        return msgspec.json.decode(await self._call("POST", path, data=form))

    async def _call(self, method: str, path: str, **how: Any) -> bytes:
        operation = name_of(method, path) or path
        self._traffic.sent[operation] += 1
        self._traffic.in_flight += 1
        begin = time.perf_counter()
        try:
            async with self._session.request(method, self._url + path, **how) as answer:
                said = await answer.read()
        except aiohttp.ClientError as error:
            raise self._failed(operation, method, repr(error)) from error
        finally:
            self._traffic.in_flight -= 1
            self._traffic.last_answer_at = time.monotonic()
        if answer.status != 200:
            raise self._failed(operation, method, f"{answer.status} {said.decode(errors='replace')[:500]}")
        self._traffic.seconds.append(time.perf_counter() - begin)
        return said

    def _failed(self, operation: str, method: str, said: str) -> _Failed:
        self._traffic.failures.append(Failure(operation=operation, method=method, said=said))
        return _Failed(said)


def _workflow(*command: str) -> str:
    template = {"name": "main", "container": {"image": "alpine", "command": list(command)}}
    return json.dumps(
        {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"generateName": "traffic-"},
            "spec": {"entrypoint": "main", "templates": [template]},
        }
    )
