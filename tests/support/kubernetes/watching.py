"""Watches: the changes of a kind as events, in order, from any version on that is not forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec

from tests.support.kubernetes.resources import Resource
from tests.support.kubernetes.selectors import Predicate
from tests.support.kubernetes.statuses import Refusal, too_old
from tests.support.kubernetes.store import Change, Document, Forgotten, Store, of_resource, with_version

_BEFORE_THE_END_SECONDS = 2.0
"""So long before a watch ends it is told how far it has come."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    object: Document | dict[str, Any]


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    resource: Resource
    matches: Predicate
    """Of the namespace and the selectors that were asked for."""
    since: int | None
    """None: from the present on, which is told first."""
    bookmark_seconds: float | None
    timeout_seconds: float


async def events(store: Store, watch: Watch) -> AsyncGenerator[list[Event], None]:
    """What happened, many at a time where much did. Ends after its time, or with an ERROR."""
    clock = asyncio.get_running_loop().time
    position = store.version if watch.since is None else watch.since
    if watch.since is None:
        yield [
            Event(type="ADDED", object=each)
            for _, each in sorted(store.all(watch.resource).items())
            if watch.matches(each)
        ]
    elif watch.since < store.oldest:
        yield [error(too_old(watch.since, store.oldest))]
        return
    end = clock() + watch.timeout_seconds
    bookmark_at = _next_bookmark(clock(), end, watch.bookmark_seconds)
    while True:
        try:
            async with asyncio.timeout_at(min(end, bookmark_at)):
                await store.past(position)
        except TimeoutError:
            if clock() >= end:
                return
            yield [_bookmark(watch.resource, position)]
            bookmark_at = _next_bookmark(clock(), end, watch.bookmark_seconds)
            continue
        try:
            changes = store.since(position)
        except Forgotten:
            yield [error(too_old(position, store.oldest))]
            return
        position = max(position, store.version)
        happened = [_event(each, watch.matches) for each in changes if of_resource(each, watch.resource)]
        if seen := [event for event in happened if event is not None]:
            yield seen


def error(refusal: Refusal) -> Event:
    return Event(type="ERROR", object=refusal.status())


def as_seen(event: Event, seen: Callable[[Document], Document]) -> Event:
    """The event with its object as the watcher wants it."""
    if event.type in ("ERROR", "BOOKMARK"):
        return event
    return Event(type=event.type, object=seen(event.object))


def _event(change: Change, matches: Predicate) -> Event | None:
    """An object that comes to match is added, and one that no longer does is deleted, whatever it did itself."""
    before, after = (each if each is not None and matches(each) else None for each in (change.before, change.after))
    if after is not None:
        return Event(type="ADDED" if before is None else "MODIFIED", object=after)
    if before is not None:
        return Event(type="DELETED", object=with_version(before, change.version))
    return None


def _bookmark(resource: Resource, version: int) -> Event:
    metadata = {"resourceVersion": str(version), "creationTimestamp": None}
    return Event(
        type="BOOKMARK", object={"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
    )


def _next_bookmark(now: float, end: float, every_seconds: float | None) -> float:
    if every_seconds is None:
        return end
    last = end - _BEFORE_THE_END_SECONDS
    return min(now + every_seconds, last if last > now else end)
