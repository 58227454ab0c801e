"""What is kept, and how it came about: every change of every object in one order, as etcd has it.

Objects are never changed in place, so that the past, the present and whatever a watch still has to send can share
them. A snapshot is the present with the latest changes undone.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import msgspec

from tests.support.kubernetes.resources import Resource

Document: TypeAlias = Mapping[str, Any]

Kind: TypeAlias = tuple[str, str]
"""Group and plural: all versions of a kind are the same objects."""
Name: TypeAlias = tuple[str, str]
"""Namespace and name; the namespace is empty where there is none."""


class Forgotten(Exception):
    """That far back nothing is known any more."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    kind: Kind
    name: Name
    before: Document | None
    after: Document | None
    """None where the object was removed."""


class Store:
    def __init__(self, *, most_changes: int) -> None:
        """Of more changes the oldest are forgotten."""
        self.version = 1
        """Of the latest change. There is one counter for all kinds."""
        self.oldest = 1
        """The earliest version that somebody may still ask for."""
        self._objects: dict[Kind, dict[Name, Document]] = {}
        self._changes: list[Change] = []
        self._dropped = 0
        self._most_changes = most_changes
        self._changed = asyncio.Event()

    def find(self, resource: Resource, name: Name) -> Document | None:
        return self._objects.get(_kind(resource), {}).get(name)

    def put(self, resource: Resource, name: Name, document: Document) -> Document:
        """The document as it is kept: with its new version."""
        kept = with_version(document, self.version + 1)
        before = self.find(resource, name)
        self._objects.setdefault(_kind(resource), {})[name] = kept
        self._note(resource, name, before, kept)
        return kept

    def remove(self, resource: Resource, name: Name) -> Document:
        """What was removed, in its last state."""
        before = self._objects[_kind(resource)].pop(name)
        self._note(resource, name, before, None)
        return before

    def all(self, resource: Resource) -> Mapping[Name, Document]:
        return self._objects.get(_kind(resource), {})

    def at(self, resource: Resource, version: int) -> Mapping[Name, Document]:
        """All objects of the kind as they were then. Raises Forgotten."""
        objects = dict(self.all(resource))
        for change in reversed(self.since(version)):
            if change.kind == _kind(resource):
                if change.before is None:
                    del objects[change.name]
                else:
                    objects[change.name] = change.before
        return objects

    def since(self, version: int) -> Sequence[Change]:
        """Every later change, of whatever kind. Raises Forgotten."""
        if version < self._dropped:
            raise Forgotten
        return self._changes[bisect_right(self._changes, version, key=attrgetter("version")) :]

    async def past(self, version: int) -> None:
        """Until there is a later version."""
        while self.version <= version:
            await self._changed.wait()

    def compact(self) -> None:
        """Let nobody ask for the past. Who is following the changes already is not disturbed.

        The counter moves on, as it would with the writing of anything: every version that somebody has heard of is
        of the past.
        """
        self.version += 1
        self.oldest = self.version
        self._wake()

    def _note(self, resource: Resource, name: Name, before: Document | None, after: Document | None) -> None:
        self.version += 1
        self._changes.append(Change(version=self.version, kind=_kind(resource), name=name, before=before, after=after))
        if len(self._changes) > self._most_changes:
            self._drop_half()
        self._wake()

    def _drop_half(self) -> None:
        """Half at once, because it costs as much as one."""
        half = len(self._changes) // 2
        self._dropped = self._changes[half - 1].version
        self.oldest = max(self.oldest, self._dropped)
        del self._changes[:half]

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def with_version(document: Document, version: int) -> Document:
    return {**document, "metadata": {**document["metadata"], "resourceVersion": str(version)}}


def of_resource(change: Change, resource: Resource) -> bool:
    return change.kind == _kind(resource)


def _kind(resource: Resource) -> Kind:
    return resource.group, resource.plural
