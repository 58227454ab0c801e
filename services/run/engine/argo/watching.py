"""A list and what happens after it, for ever: the objects with some labels in one scope, told in order.

Where a watch ends it is taken up at the version it has come to; where that version is forgotten, and now and then
anyway, everything is listed anew, page by page, and whoever listens can compare. Knows nothing of runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import Protocol

from shared.errors import Unavailable

from . import shapes
from .cluster import Busy, Cluster, Expired, Missing, Rejected

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

    async def listed(self, scope: str, names: set[str]) -> None:
        """These were all there were when the listing began."""


class Patience:
    """Pauses that grow from failure to failure, up to a few seconds."""

    def __init__(self, *, most_seconds: float = 5.0) -> None:
        self._most_seconds = most_seconds
        self._failures = 0

    def reset(self) -> None:
        self._failures = 0

    async def pause(self, *, at_least_seconds: float = 0.0) -> None:
        longest = min(self._most_seconds, 0.05 * 2**self._failures)
        self._failures += 1
        await asyncio.sleep(max(at_least_seconds, random.uniform(longest / 2, longest)))


async def follow(cluster: Cluster, scope: str, labels: str, listener: Listener, *, page: int = 100) -> None:
    """Until cancelled. `scope`: a namespace, or nothing for all of them. `labels`: what selects the objects."""
    following = _Following(cluster, scope, labels, listener, page)
    patience = Patience()
    while True:
        began_at = time.monotonic()
        try:
            await following.go_on()
        except Expired as expired:
            _log.info("workflows are listed anew: %s", expired)
            following.forget()
        except (Unavailable, Missing, Rejected) as outage:
            _log.warning("workflows are not watched: %s", outage)
            await patience.pause(at_least_seconds=outage.after_seconds if isinstance(outage, Busy) else 0.0)
            continue
        if following.has_progressed or time.monotonic() - began_at >= _STEADY_SECONDS:
            patience.reset()
        else:
            await patience.pause()


class _Following:
    def __init__(self, cluster: Cluster, scope: str, labels: str, listener: Listener, page: int) -> None:
        self._cluster = cluster
        self._scope = scope
        self._labels = labels
        self._listener = listener
        self._page = page
        self._version = ""
        self._listed_at = 0.0
        self.has_progressed = False

    def forget(self) -> None:
        self._version = ""

    async def go_on(self) -> None:
        """A list where one is needed, and a watch from there to its end. Raises Expired, Unavailable."""
        self.has_progressed = False
        if not self._version or time.monotonic() - self._listed_at >= _RELIST_SECONDS:
            await self._list()
        async with contextlib.aclosing(
            self._cluster.watch_workflows(self._scope, labels=self._labels, resource_version=self._version)
        ) as events:
            async for event in events:
                await self._take(event.type, event.object)

    async def _list(self) -> None:
        began_at, names, at = time.monotonic(), set(), ""
        while True:
            page = await self._cluster.list_workflows(self._scope, labels=self._labels, at=at, limit=self._page)
            for item in page.items:
                if (seen := _readable(item)) is not None:
                    names.add(seen.metadata.name)
                    await self._listener.seen(seen)
            if not page.next:
                break
            at = page.next
        await self._listener.listed(self._scope, names)
        self._version, self._listed_at = page.resource_version, began_at

    async def _take(self, what: str, item: shapes.Text) -> None:
        metadata = shapes.read_metadata(item)
        if what == "DELETED":
            await self._listener.deleted(metadata)
        elif what != "BOOKMARK" and (seen := _readable(item)) is not None:
            await self._listener.seen(seen)
        self.has_progressed = True
        self._version = metadata.resource_version


def _readable(item: shapes.Text) -> shapes.Seen | None:
    try:
        return shapes.read(item)
    except shapes.Unreadable as error:
        _log.error("a workflow cannot be read: %s", error)
        return None
