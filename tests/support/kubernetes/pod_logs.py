"""What containers wrote. There is no kubelet: whoever plays the pod's part hands it in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

import msgspec

from tests.support.kubernetes.resources import PODS
from tests.support.kubernetes.statuses import Refusal, bad_request
from tests.support.kubernetes.store import Document, Name, Store


class LogRequest(msgspec.Struct, frozen=True, kw_only=True):
    container: str = ""
    follow: bool = False
    since: datetime | None = None
    limit_bytes: int | None = None
    tail_lines: int | None = None
    timestamps: bool = False


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    at: datetime
    text: bytes
    """With its end, or what there is of it."""


class PodLogs:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._lines: dict[tuple[str, str], list[_Line]] = {}
        """By the pod's uid and the container."""

    def write(self, pod: Document, container: str, text: bytes) -> None:
        now = datetime.now(UTC)
        lines = self._lines.setdefault((pod["metadata"]["uid"], container), [])
        lines += [_Line(at=now, text=line) for line in text.splitlines(keepends=True)]

    async def read(self, pod: Document, asked: LogRequest) -> AsyncGenerator[bytes, None]:
        """Until the end of the log; with `follow` that is the pod's."""
        lines = self._lines.setdefault((pod["metadata"]["uid"], container_of(pod, asked.container)), [])
        position = max(0, len(lines) - asked.tail_lines) if asked.tail_lines is not None else 0
        left = asked.limit_bytes
        while True:
            # Looked at first: what is written before the pod is over is read after.
            is_over, version = self._is_over(pod), self._store.version
            chunk = b"".join(_shown(line, asked) for line in lines[position:])[:left]
            position = len(lines)
            if chunk:
                yield chunk
            left = None if left is None else left - len(chunk)
            if is_over or not asked.follow or left == 0 or is_nowhere(pod):
                return
            await self._news(version)

    async def _news(self, version: int) -> None:
        """Until something may have been written: nobody tells, but whoever writes a log is seldom silent otherwise."""
        try:
            async with asyncio.timeout(0.02):
                await self._store.past(version)
        except TimeoutError:
            return

    def _is_over(self, pod: Document) -> bool:
        meta = pod["metadata"]
        now: Name = (meta["namespace"], meta["name"])
        found = self._store.find(PODS, now)
        return found is None or found["metadata"]["uid"] != meta["uid"] or _phase(found) in ("Succeeded", "Failed")


def container_of(pod: Document, asked: str) -> str:
    """The container whose log is meant. Raises Refusal where there is none, or its kubelet has not started it yet."""
    meta, names = pod["metadata"], [each["name"] for each in _containers(pod)]
    if not asked and len(pod["spec"]["containers"]) > 1:
        among = " ".join(each["name"] for each in pod["spec"]["containers"])
        raise bad_request(f"a container name must be specified for pod {meta['name']}, choose one of: [{among}]")
    container = asked or pod["spec"]["containers"][0]["name"]
    if container not in names:
        raise bad_request(f"container {container} is not valid for pod {meta['name']}")
    if _phase(pod) == "Pending" and not is_nowhere(pod):
        why = f'container "{container}" in pod "{meta["name"]}" is waiting to start: ContainerCreating'
        raise Refusal(400, why)
    return container


def is_nowhere(pod: Document) -> bool:
    """It has no kubelet yet that could be asked."""
    return _phase(pod) == "Pending" and not pod["spec"].get("nodeName")


def _containers(pod: Document) -> list[Document]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def _phase(pod: Document) -> str:
    return str(pod.get("status", {}).get("phase", ""))


def _shown(line: _Line, asked: LogRequest) -> bytes:
    if asked.since is not None and line.at < asked.since:
        return b""
    return f"{line.at.isoformat().replace('+00:00', 'Z')} ".encode() + line.text if asked.timestamps else line.text
