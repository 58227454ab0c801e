"""The namespace of a test, in the words of the tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from tests.support.kubernetes.client import ApiClient, Event

WORKFLOWS = "/apis/argoproj.io/v1alpha1/workflows"
"""Of all namespaces."""


class Place:
    def __init__(self, *, api: ApiClient, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self.workflows = f"/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows"
        self.pods = f"/api/v1/namespaces/{namespace}/pods"
        self.configmaps = f"/api/v1/namespaces/{namespace}/configmaps"

    def of(self, name: str) -> str:
        return f"{self.workflows}/{name}"

    async def create(self, name: str, labels: dict[str, str] | None = None, **parts: Any) -> dict[str, Any]:
        return (await self.api.post(self.workflows, workflow(name, labels, **parts))).ok()

    async def create_pod(self, name: str, **metadata: Any) -> dict[str, Any]:
        return (await self.api.post(self.pods, pod(name, **metadata))).ok()

    async def names(self, path: str = "", **query: str) -> list[str]:
        found = (await self.api.get(path or self.workflows, **query)).ok()
        return [each["metadata"]["name"] for each in found["items"]]

    async def version(self) -> str:
        """The present."""
        return (await self.api.get(self.workflows)).version

    @contextlib.asynccontextmanager
    async def watching(self, path: str = "", *, accept: str = "application/json", **query: str) -> AsyncIterator[Seen]:
        query.setdefault("timeoutSeconds", "60")
        async with self.api.watch(path or self.workflows, accept=accept, **query) as events:
            yield Seen(events)

    async def remove(self) -> None:
        for path in (self.workflows, self.pods, self.configmaps):
            await self._release(path)
            await self.api.delete(path)
        namespace = f"/api/v1/namespaces/{self.namespace}"
        await self.api.delete(namespace)
        # Where no controller empties it, nobody else says that it is empty.
        left = await self.api.get(namespace)
        if left.status == 200:
            await self.api.put(f"{namespace}/finalize", {**left.document, "spec": {"finalizers": []}})

    async def _release(self, path: str) -> None:
        """Nothing holds on any more to what a failed test has left."""
        for each in (await self.api.get(path)).document.get("items", ()):
            if each["metadata"].get("finalizers"):
                await self.api.merge(f"{path}/{each['metadata']['name']}", {"metadata": {"finalizers": None}})


class Seen:
    """What a watch tells."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events

    async def next(self) -> Event:
        async with asyncio.timeout(20):
            return await anext(self._events)

    async def take(self, count: int) -> list[tuple[str, str]]:
        """Type and name of so many."""
        events = [await self.next() for _ in range(count)]
        return [(event.type, event.name) for event in events]

    async def rest(self) -> list[Event]:
        """Until its end, which has to come."""
        events = []
        with contextlib.suppress(StopAsyncIteration):
            while True:
                events.append(await self.next())
        return events


def workflow(name: str, labels: dict[str, str] | None = None, **parts: Any) -> dict[str, Any]:
    metadata = {"name": name, **({"labels": labels} if labels else {}), **parts.pop("metadata", {})}
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": metadata, "spec": {}, **parts}


def pod(name: str, **metadata: Any) -> dict[str, Any]:
    spec = {
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "containers": [{"name": "main", "image": "busybox"}, {"name": "wait", "image": "argoexec"}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **metadata}, "spec": spec}
