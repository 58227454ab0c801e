"""The text that a step wrote: from the controller while it runs, afterwards from the object store.

The engine holds the text until it is archived, which may be after the record has named the object, and before the run
is over. So whoever looks in turn at record, archive and engine misses nothing in between: an engine that knows nothing
of a step means that the record is about to tell more, or that the archive has it by now.
Where a cluster archives no texts, they are there for as long as the pods are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

import msgspec

from shared.blobs import Blobs, NoSuchObject
from shared.bus import Bus
from shared.contracts.questions import READ_LOG, LogAnswer, LogRequest
from shared.database import Database
from shared.errors import Unavailable

from . import domain, store
from .engine import Engine, NodeId, WorkflowName

MOST_BYTES = 256 * 1024
"""Of one answer; in JSON it takes a third more, and a message on the bus holds a megabyte."""
_WAIT_SECONDS = 1.0
_PAUSE_SECONDS = 0.2


class _Step(msgspec.Struct, frozen=True, kw_only=True):
    workflow_name: str
    node_id: str
    key: str | None
    """Of the archived text."""
    is_over: bool
    is_of_final_run: bool


class StepLogs:
    """What any replica of the service can read of any step."""

    def __init__(self, database: Database, bus: Bus, blobs: Blobs, *, ask_seconds: float) -> None:
        self._database = database
        self._bus = bus
        self._blobs = blobs
        self._ask_seconds = ask_seconds

    async def check(self, run_id: str, node_id: str) -> None:
        """Raises NotFound."""
        await self._get(run_id, node_id)

    async def open(self, run_id: str, node_id: str, *, follow: bool) -> AsyncIterator[bytes]:
        """What there is now; with `follow`, all of it until the step is over.

        Raises NotFound, and Unavailable, before the first chunk. One who follows waits for outages.
        """
        step = await self._get(run_id, node_id)
        if follow:
            return self._follow(run_id, step)
        chunks = self._so_far(run_id, step)
        return _with_first(await anext(chunks, b""), chunks)

    async def _so_far(self, run_id: str, step: _Step) -> AsyncGenerator[bytes, None]:
        offset = 0
        while step.key is None and not step.is_over:
            text = await self._ask(step, offset)
            if text:
                yield text
                offset += len(text)
            if 0 < len(text) < MOST_BYTES:
                return
            found = await self._find(run_id, step.node_id)
            if found is None or (not text and found == step):
                return
            step = found
        async for chunk in self._archived(step, offset):
            yield chunk

    async def _follow(self, run_id: str, step: _Step | None) -> AsyncGenerator[bytes, None]:
        offset = 0
        while step is not None and step.key is None and not step.is_over:
            text = b""
            with suppress(Unavailable):
                text = await self._ask(step, offset, within_seconds=_WAIT_SECONDS)
            if text:
                yield text
                offset += len(text)
            else:
                await asyncio.sleep(_PAUSE_SECONDS)
            with suppress(Unavailable):
                step = await self._find(run_id, step.node_id)
        while step is not None:
            try:
                async for chunk in self._archived(step, offset):
                    yield chunk
                    offset += len(chunk)
                return
            except Unavailable:
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _archived(self, step: _Step, offset: int) -> AsyncGenerator[bytes, None]:
        if step.key is None:
            # Nobody archives it; an engine that keeps what is over for a while may have it still.
            with suppress(Unavailable):
                while text := await self._ask(step, offset):
                    yield text
                    offset += len(text)
            return
        try:
            async for chunk in self._stored(step.key, offset):
                yield chunk
        except NoSuchObject:
            if not step.is_of_final_run:
                async for chunk in self._on_its_way(step, step.key, offset):
                    yield chunk

    async def _on_its_way(self, step: _Step, key: str, offset: int) -> AsyncGenerator[bytes, None]:
        """An engine may go on with a run before it has archived a text, and keeps it until it has."""
        while text := await self._ask(step, offset):
            yield text
            offset += len(text)
        with suppress(NoSuchObject):
            async for chunk in self._stored(key, offset):
                yield chunk

    async def _stored(self, key: str, offset: int) -> AsyncGenerator[bytes, None]:
        """Raises NoSuchObject before the first chunk."""
        async with aclosing(self._blobs.stream(key, offset=offset)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _ask(self, step: _Step, offset: int, *, within_seconds: float = 0) -> bytes:
        request = LogRequest(
            workflow_name=step.workflow_name, node_id=step.node_id, offset=offset, within_seconds=within_seconds
        )
        return (await self._bus.ask(READ_LOG, request, within_seconds=within_seconds + self._ask_seconds)).text

    async def _get(self, run_id: str, node_id: str) -> _Step:
        step = await self._find(run_id, await self._leaf(run_id, node_id))
        if step is None:
            raise domain.log_unknown(run_id, node_id)
        return step

    async def _leaf(self, run_id: str, node_id: str) -> str:
        """The step itself, or the last attempt of one that is retried: attempts have texts of their own."""
        found = await store.find_run_node(self._database, run_id, node_id)
        if found is None:
            raise domain.unknown(run_id)
        node = _node(found.body)
        children = node.get("children") or ()
        return str(children[-1]) if node.get("type") == "Retry" and children else node_id

    async def _find(self, run_id: str, node_id: str) -> _Step | None:
        found = await store.find_run_node(self._database, run_id, node_id)
        if found is None or found.body is None:
            return None
        node = _node(found.body)
        return _Step(
            workflow_name=found.workflow_name,
            node_id=node_id,
            key=_key(node),
            is_of_final_run=found.is_final,
            is_over=found.is_final or node.get("type") != "Pod" or node.get("phase") not in ("Pending", "Running"),
        )


async def answer(engine: Engine, asked: LogRequest) -> LogAnswer:
    """The controller's side: what its engine holds. Raises Unavailable."""
    text = await _some(engine, asked, follow=False)
    if not text and asked.within_seconds > 0:
        try:
            async with asyncio.timeout(asked.within_seconds):
                text = await _some(engine, asked, follow=True)
        except TimeoutError:
            pass
    return LogAnswer(text=text[:MOST_BYTES])


async def _some(engine: Engine, asked: LogRequest, *, follow: bool) -> bytes:
    """As much as one answer holds; one who follows takes what comes first."""
    name, node_id = WorkflowName(asked.workflow_name), NodeId(asked.node_id)
    text = b""
    async with aclosing(engine.logs(name, node_id, follow=follow, offset=asked.offset)) as chunks:
        async for chunk in chunks:
            text += chunk
            if follow or len(text) >= MOST_BYTES:
                break
    return text


def _node(body: str | None) -> dict[str, Any]:
    node: dict[str, Any] = {} if body is None else msgspec.json.decode(body)
    return node


def _key(node: dict[str, Any]) -> str | None:
    for artifact in (node.get("outputs") or {}).get("artifacts") or ():
        key = (artifact.get("s3") or {}).get("key")
        if artifact.get("name") == domain.LOG_ARTIFACT and key:
            return str(key)
    return None


async def _with_first(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    if first:
        yield first
    async with aclosing(rest):
        async for chunk in rest:
            yield chunk
