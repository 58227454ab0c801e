"""The controller: sees every workflow that is open, lets a brain live its life, and starts over after anything."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any, Protocol

import aiohttp

from tests.support.argo.held import Gone, Held
from tests.support.kubernetes.client import ApiClient, Refused

_log = logging.getLogger(__name__)

_GROUP = "/apis/argoproj.io/v1alpha1"
_PAGE = "500"
_AGAIN_SECONDS = 0.05
"""After which a server that could not be reached is tried again."""


class Brain(Protocol):
    """What is left to whoever decides what becomes of a workflow."""

    async def work(self) -> None:
        """What has to go on beside all workflows, until cancelled."""

    async def live(self, workflow: Held) -> None:
        """From wherever the workflow is to its end. Cancelled where the controller restarts, or the object is gone."""

    async def forget(self, workflow: Held) -> None:
        """The object is gone: so is everything that is being done for it."""


class StandInArgo:
    def __init__(self, api: ApiClient, brain: Brain, *, namespace: str = "") -> None:
        """Of one namespace, or of all."""
        self.failures: list[Exception] = []
        """Of brains; there have to be none at the end."""
        self._api = api
        self._brain = brain
        self._path = f"{_GROUP}/namespaces/{namespace}/workflows" if namespace else f"{_GROUP}/workflows"
        self._held: dict[str, Held] = {}
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Task[None]] = {}
        """By the path of the object: another of the same name begins after it."""
        self._working: asyncio.Task[None] | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def working(cls, api: ApiClient, brain: Brain, *, namespace: str = "") -> AsyncIterator[StandInArgo]:
        argo = cls(api, brain, namespace=namespace)
        argo.start()
        try:
            yield argo
        finally:
            await argo.stop()
        if argo.failures:
            raise ExceptionGroup("the stand-in for Argo failed", argo.failures)

    def start(self) -> None:
        self._working = asyncio.create_task(self._work(), name="stand-in for Argo")

    async def stop(self) -> None:
        """At once, and without a memory of what it did."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.wait([self._working])
            self._working = None

    async def restart(self) -> None:
        await self.stop()
        self.start()

    # At work

    async def _work(self) -> None:
        thinking = asyncio.create_task(self._think(), name="brain of the stand-in for Argo")
        try:
            while True:
                with contextlib.suppress(aiohttp.ClientError, Refused, TimeoutError):
                    await self._follow(await self._list())
                await asyncio.sleep(_AGAIN_SECONDS)
        finally:
            await _stopped(*self._lives.values(), *self._ends.values())
            await _stopped(thinking)
            self._lives.clear()
            self._ends.clear()
            self._held.clear()

    async def _think(self) -> None:
        try:
            await self._brain.work()
        except Exception as error:
            _log.exception("the brain of the stand-in for Argo")
            self.failures.append(error)

    async def _list(self) -> str:
        """Take in everything there is; the version of the list."""
        seen: set[str] = set()
        query = {"limit": _PAGE}
        while True:
            answer = await self._api.get(self._path, **query)
            if answer.status != 200:
                raise Refused(answer.status, answer.message)
            for document in answer.document["items"]:
                seen.add(document["metadata"]["uid"])
                self._see(document)
            metadata = answer.document["metadata"]
            if not metadata.get("continue"):
                break
            query["continue"] = metadata["continue"]
        for uid in self._held.keys() - seen:
            self._lose(uid)
        return str(metadata["resourceVersion"])

    async def _follow(self, version: str) -> None:
        """Take in what happens, until the watch ends or breaks or begins too late."""
        async with self._api.watch(self._path, resourceVersion=version) as events:
            async for event in events:
                if event.type == "ERROR":
                    return
                if event.type == "DELETED":
                    self._lose(event.object["metadata"]["uid"])
                elif event.type in ("ADDED", "MODIFIED"):
                    self._see(event.object)

    def _see(self, document: dict[str, Any]) -> None:
        uid = document["metadata"]["uid"]
        held = self._held.get(uid)
        if held is None:
            held = self._held[uid] = Held(self._api, document)
        else:
            held.see(document)
        if held.is_open and uid not in self._lives:
            self._lives[uid] = asyncio.create_task(self._live(held), name=f"life of {held.name}")

    def _lose(self, uid: str) -> None:
        held, life = self._held.pop(uid, None), self._lives.pop(uid, None)
        if held is not None:
            end = asyncio.create_task(self._end(held, life, self._ends.get(held.path)), name=f"end of {held.name}")
            self._ends[held.path] = end
            end.add_done_callback(lambda _: self._ended(held.path, end))

    async def _live(self, held: Held) -> None:
        uid = held.uid
        try:
            if (end := self._ends.get(held.path)) is not None:
                await asyncio.wait([end])
            try:
                await self._brain.live(held)
            except* Gone:  # Alone, or out of a group of tasks.
                pass
        except Exception as error:
            _log.exception("the life of %s", held.name)
            self.failures.append(error)
            return
        # It may have been opened again before this life was over.
        if held.is_open and uid in self._held:
            self._lives[uid] = asyncio.create_task(self._live(held), name=f"life of {held.name}")
        else:
            self._lives.pop(uid, None)

    def _ended(self, path: str, end: asyncio.Task[None]) -> None:
        if self._ends.get(path) is end:
            del self._ends[path]

    async def _end(self, held: Held, life: asyncio.Task[None] | None, earlier: asyncio.Task[None] | None) -> None:
        """Of one whose object is gone, after its life and the end of an earlier one of its name."""
        try:
            if life is not None:
                await _stopped(life)
            if earlier is not None:
                await asyncio.wait([earlier])
            await self._brain.forget(held)
        except Exception as error:
            _log.exception("the end of %s", held.name)
            self.failures.append(error)


async def _stopped(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
