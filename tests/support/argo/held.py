"""A workflow as the controller holds it: the latest that is known of the object, and how it is written."""

from __future__ import annotations

import asyncio
import base64
import gzip
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import aiohttp
import msgspec

from tests.support.kubernetes.client import Answer, ApiClient

PHASE = "workflows.argoproj.io/phase"
COMPLETED = "workflows.argoproj.io/completed"
FINAL = ("Succeeded", "Failed", "Error")

_AGAIN_SECONDS = 0.05
_LARGEST_BYTES = 1024 * 1024
"""Of an object whose nodes are not compressed."""


class Gone(Exception):
    """There is no such object any more."""


class Held:
    def __init__(self, api: ApiClient, document: dict[str, Any]) -> None:
        self.document = document
        self._api = api
        self._changed = asyncio.Event()

    # What is known

    @property
    def uid(self) -> str:
        return str(self.document["metadata"]["uid"])

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.document["metadata"]["namespace"])

    @property
    def spec(self) -> dict[str, Any]:
        return dict(self.document["spec"])

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.document.get("status") or {})

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.document["metadata"].get("labels") or {})

    @property
    def annotations(self) -> dict[str, str]:
        return dict(self.document["metadata"].get("annotations") or {})

    @property
    def nodes(self) -> dict[str, dict[str, Any]]:
        if compressed := self.status.get("compressedNodes"):
            unpacked: dict[str, dict[str, Any]] = msgspec.json.decode(gzip.decompress(base64.b64decode(compressed)))
            return unpacked
        return dict(self.status.get("nodes") or {})

    @property
    def is_open(self) -> bool:
        is_completed = self.labels.get(COMPLETED) == "true"
        is_going = "deletionTimestamp" in self.document["metadata"]
        return not is_completed and not is_going and self.status.get("phase") not in FINAL

    @property
    def is_stopped(self) -> bool:
        """Somebody wants its end."""
        return self.spec.get("activeDeadlineSeconds") == 0 or bool(self.spec.get("shutdown"))

    def see(self, document: dict[str, Any]) -> None:
        """Take in what may be older than what is known."""
        if _version(document) > _version(self.document):
            self.document = document
            self._changed.set()
            self._changed = asyncio.Event()

    async def until(self, holds: Callable[[Held], bool]) -> None:
        while not holds(self):
            await self._changed.wait()

    # How it is written

    async def write(
        self,
        *,
        nodes: Mapping[str, Mapping[str, Any]] | None = None,
        phase: str | None = None,
        message: str | None = None,
        **status: Any,
    ) -> None:
        """As Argo does: the whole object over the version that is known, and once more where that was not the latest.

        `nodes` are those that changed. A final phase ends the workflow. Raises Gone.
        """
        while True:
            document = self._written(nodes or {}, phase, message, status)
            answer = await patiently(lambda: self._api.put(self.path, document))  # noqa: B023 - called at once
            if answer.status == 404 or (answer.status == 409 and "UID in precondition" in answer.message):
                raise Gone(self.name)
            if answer.status != 409:
                self.see(answer.ok())
                return
            latest = await patiently(lambda: self._api.get(self.path))
            if latest.status == 404 or latest.document["metadata"]["uid"] != self.uid:
                raise Gone(self.name)
            self.see(latest.ok())

    @property
    def path(self) -> str:
        return f"/apis/argoproj.io/v1alpha1/namespaces/{self.namespace}/workflows/{self.name}"

    def _written(
        self,
        nodes: Mapping[str, Mapping[str, Any]],
        phase: str | None,
        message: str | None,
        changes: Mapping[str, Any],
    ) -> dict[str, Any]:
        status = {**self.status, "nodes": {**self.nodes, **nodes}, **changes}
        status.pop("compressedNodes", None)
        status.setdefault("startedAt", now())
        status.setdefault("finishedAt", None)
        labels = self.labels
        if message is not None:
            status["message"] = message
            if not message:
                del status["message"]
        if phase is not None:
            status["phase"] = labels[PHASE] = phase
        if phase in FINAL:
            labels[COMPLETED] = "true"
            status["finishedAt"] = changes.get("finishedAt") or now()
            status["conditions"] = [{"type": "Completed", "status": "True"}]
        document = {
            **self.document,
            "metadata": {**self.document["metadata"], "labels": labels},
            "status": status,
        }
        return _compressed(document) if len(msgspec.json.encode(document)) > _LARGEST_BYTES else document


async def patiently(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """As often as it takes where the server cannot be reached, or has no time."""
    while True:
        try:
            answer = await ask()
        except aiohttp.ClientError:
            await asyncio.sleep(_AGAIN_SECONDS)
            continue
        if answer.status not in (429, 503, 504):
            return answer
        await asyncio.sleep(_AGAIN_SECONDS)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _compressed(document: dict[str, Any]) -> dict[str, Any]:
    status = dict(document["status"])
    packed = gzip.compress(msgspec.json.encode(status.pop("nodes")))
    return {**document, "status": {**status, "compressedNodes": base64.b64encode(packed).decode()}}


def _version(document: dict[str, Any]) -> int:
    return int(document["metadata"]["resourceVersion"])
