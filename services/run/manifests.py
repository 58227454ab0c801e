"""Where the text of a manifest comes from: this process, our table, the object store, in this order.

Manifests are immutable and named by their digest, so a copy is never wrong. Each distinct one is parsed once and
accepted by the engine's validation once. Knows no run.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from shared.blobs import Blobs, NoSuchObject
from shared.database import Database

from . import compose, store

V = TypeVar("V")

_PARSED_SHARE = 4
"""A parsed manifest takes several times the memory of its text."""


class Validator(Protocol):
    """Raises an exception that has a `reason` where the engine would refuse the workflow."""

    def __call__(self, workflow: Mapping[str, object]) -> None: ...


class Manifests:
    def __init__(self, database: Database, blobs: Blobs, rules: compose.Rules, *, cache_bytes: int) -> None:
        self._database = database
        self._blobs = blobs
        self._rules = rules
        self._texts = Recent[str](cache_bytes, len)
        self._prepared = Recent[compose.Prepared](cache_bytes // _PARSED_SHARE, lambda each: len(each.text))
        self._kept = Recent[bool](65_536, lambda _: 1)
        self._valid = Recent[bool](65_536, lambda _: 1)

    async def texts(self, digests: Iterable[str]) -> dict[str, str]:
        """The texts of manifests that runs refer to; all of them are in our table."""
        wanted = dict.fromkeys(digests)
        found = {digest: text for digest in wanted if (text := self._texts.get(digest)) is not None}
        if missing := [digest for digest in wanted if digest not in found]:
            for digest, text in await store.find_manifests(self._database, missing):
                self._remember(digest, text)
                found[digest] = text
        return found

    async def find(self, digest: str) -> str | None:
        """The text of a manifest that somebody else accepted; None where it is gone."""
        known = (await self.texts((digest,))).get(digest)
        if known is not None:
            return known
        try:
            return await self._blobs.get_manifest(digest)
        except NoSuchObject:
            return None

    def prepared(self, text: str, digest: str) -> compose.Prepared:
        """Raises compose.Malformed or compose.OfAnotherKind."""
        found = self._prepared.get(digest)
        if found is None:
            found = compose.prepare(text, digest, self._rules)
            self._prepared.put(digest, found)
        return found

    async def prepared_by_digest(self, digest: str) -> compose.Prepared:
        found = self._prepared.get(digest)
        return found or self.prepared((await self.texts((digest,)))[digest], digest)

    async def keep(self, text: str, digest: str) -> None:
        """Make the manifest durable, in the object store first: whoever learns its digest may ask for it there."""
        if self._kept.get(digest):
            return
        if not await store.has_manifest(self._database, digest):
            await self._blobs.put_manifest(text)
            await store.insert_manifest(self._database, digest, text)
        self._remember(digest, text)

    def is_valid(self, digest: str) -> bool:
        return self._valid.get(digest) is not None

    def found_valid(self, digest: str) -> None:
        self._valid.put(digest, True)

    def _remember(self, digest: str, text: str) -> None:
        self._texts.put(digest, text)
        self._kept.put(digest, True)


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Recent(Generic[V]):
    """What was used last, up to a total weight. Something heavier than half of that is not kept at all."""

    def __init__(self, capacity: int, weigh: Callable[[V], int]) -> None:
        self._capacity = capacity
        self._weigh = weigh
        self._weight = 0
        self._entries: OrderedDict[str, V] = OrderedDict()

    def get(self, key: str) -> V | None:
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: str, value: V) -> None:
        if key in self._entries or self._weigh(value) * 2 > self._capacity:
            return
        self._entries[key] = value
        self._weight += self._weigh(value)
        while self._weight > self._capacity:
            _, dropped = self._entries.popitem(last=False)
            self._weight -= self._weigh(dropped)
