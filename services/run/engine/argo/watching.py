"""A list and what happens after it, for ever: the objects with some labels in one scope, told in order.

Where a watch ends it is taken up at the version it has come to; where that version is forgotten, and now and then
anyway, everything is listed anew, page by page, and whoever listens can compare. Knows nothing of runs.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Protocol

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from shared.errors import Unavailable

from . import shapes
from .cluster import Cluster, Expired, Missing, Rejected, pauses

_log = logging.getLogger(__name__)

_STEADY_SECONDS = 0.5
"""A watch that lived so long has not failed."""
_RELIST_SECONDS = 600.0
"""What a watch misses for no reason that anybody knows is found by then."""


class Listener(Protocol):
    async def seen(self, seen: shapes.Seen) -> None:
        """An object as it is now. What is listed comes no faster than this returns."""

    async def deleted(self, metadata: shapes.Metadata) -> None:
        """An object is gone, or is none any more that was asked for."""

    async def listed(self, scope: str, objects: set[tuple[str, str]]) -> None:
        """These, by namespace and name, were all there were when the listing began."""


class _CutShort(Exception):
    """A watch ended as soon as it began."""


_pauses = pauses(multiplier=0.05, most_seconds=5)


async def follow(cluster: Cluster, scope: str, labels: str, listener: Listener, *, page: int = 100) -> None:
    """Until cancelled. `scope`: a namespace, or nothing for all of them. `labels`: what selects the objects."""
    following = _Following(cluster, scope, labels, listener, page)
    while True:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type((Unavailable, Missing, Rejected, _CutShort)),
            wait=_pauses,
            before_sleep=_log_outage,
        ):
            with attempt:
                await following.go_on()


def _log_outage(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    if not isinstance(error, _CutShort):
        _log.warning("workflows are not watched: %s", error)


class _Following:
    def __init__(self, cluster: Cluster, scope: str, labels: str, listener: Listener, page: int) -> None:
        self._cluster = cluster
        self._scope = scope
        self._labels = labels
        self._listener = listener
        self._page = page
        self._version = ""
        self._listed_at = 0.0
        self._has_progressed = False

    async def go_on(self) -> None:
        """A list where one is needed, and a watch from there to its end. Raises Unavailable, and _CutShort where that
        was at once."""
        self._has_progressed, began_at = False, time.monotonic()
        try:
            await self._list_and_watch()
        except Expired as expired:
            _log.info("workflows are listed anew: %s", expired)
            self._version = ""
        if not self._has_progressed and time.monotonic() - began_at < _STEADY_SECONDS:
            raise _CutShort

    async def _list_and_watch(self) -> None:
        if not self._version or time.monotonic() - self._listed_at >= _RELIST_SECONDS:
            await self._list()
        async with contextlib.aclosing(
            self._cluster.watch_workflows(self._scope, labels=self._labels, resource_version=self._version)
        ) as events:
            async for event in events:
                await self._take(event.type, event.object)

    async def _list(self) -> None:
        began_at, objects, version = time.monotonic(), set(), ""
        async for page in self._cluster.list_workflows(self._scope, labels=self._labels, limit=self._page):
            for item in page.items:
                if (seen := _readable(item)) is not None:
                    objects.add((seen.metadata.namespace, seen.metadata.name))
                    await self._listener.seen(seen)
            version = page.resource_version
        await self._listener.listed(self._scope, objects)
        self._version, self._listed_at = version, began_at

    async def _take(self, what: str, item: shapes.Text) -> None:
        metadata = shapes.read_metadata(item)
        if what == "DELETED":
            await self._listener.deleted(metadata)
        elif what != "BOOKMARK" and (seen := _readable(item)) is not None:
            await self._listener.seen(seen)
        self._has_progressed = True
        self._version = metadata.resource_version


def _readable(item: shapes.Text) -> shapes.Seen | None:
    try:
        return shapes.read(item)
    except shapes.Unreadable as error:
        _log.error("a workflow cannot be read: %s", error)
        return None
