"""Where the text of a manifest comes from: this process, our table, the object store, in this order; and its reading.

Manifests are immutable and named by their digest, so a copy is never wrong. Each distinct one is parsed once and
accepted by the engine's validation once, large ones in a process of their own. Knows no run.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Generic, TypeVar

import msgspec

from shared.blobs import Blobs, NoSuchObject
from shared.database import Database
from shared.readers import Readers

from . import compose, reading, store
from .compose import Prepared
from .reading import Reading, Runner

V = TypeVar("V")

_PREPARED_SHARE = 2
"""The large parts of a prepared manifest are as long as its text again."""


class Manifests:
    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        rules: compose.Rules,
        readers: Readers,
        runner: Runner,
        *,
        cache_bytes: int,
        large_bytes: int,
    ) -> None:
        """`readers` do the work of `reading.read` for manifests of `large_bytes` and more."""
        self._database = database
        self._blobs = blobs
        self._rules = rules
        self._readers = readers
        self._runner = runner
        self._large_bytes = large_bytes
        self._texts = Recent[str](cache_bytes, len)
        self._prepared = Recent[Prepared](cache_bytes // _PREPARED_SHARE, lambda each: len(each.text))
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

    async def prepared(self, digest: str) -> Prepared:
        """Of a manifest that runs refer to."""
        found = self._prepared.get(digest)
        if found is not None:
            return found
        return await self.prepare((await self.texts((digest,)))[digest], digest)

    async def prepare(self, text: str, digest: str) -> Prepared:
        """Of a manifest that nobody has to judge. Raises as `read` does."""
        found = self._prepared.get(digest)
        if found is not None:
            return found
        if self.is_large(text):
            return (await self._read_apart(text, digest, None)).prepared
        return self._prepare(text, digest)

    async def read(self, text: str, digest: str) -> Reading:
        """Of a manifest that a run is to be made of.

        Raises compose.Malformed, compose.OfAnotherKind, and readers.OverLimit or Unavailable where it is read apart.
        """
        is_valid = self._valid.get(digest) is not None
        prepared = self._prepared.get(digest)
        if prepared is None and not self.is_large(text):
            prepared = self._prepare(text, digest)
        if prepared is not None and is_valid:
            return Reading(prepared=prepared)
        if prepared is None or prepared.holds_yaml:
            found = await self._read_apart(text, digest, None if is_valid else self._runner)
        else:
            # In a thread: even this takes long enough for others to notice.
            found = Reading(prepared=prepared, refusal=await asyncio.to_thread(reading.judge, prepared, self._runner))
        if not found.refusal:
            self._valid.put(digest, True)
        return found

    def is_large(self, text: str) -> bool:
        """Whether an event loop would stall for what is made of it."""
        return len(text) >= self._large_bytes

    async def keep(self, text: str, digest: str) -> None:
        """Make the manifest durable, in the object store first: whoever learns its digest may ask for it there."""
        if self._kept.get(digest):
            return
        if not await store.has_manifest(self._database, digest):
            await self._blobs.put_manifest(text)
            await store.insert_manifest(self._database, digest, text)
        self._remember(digest, text)

    def _prepare(self, text: str, digest: str) -> Prepared:
        prepared = compose.prepare(text, digest, self._rules)
        self._prepared.put(digest, prepared)
        return prepared

    async def _read_apart(self, text: str, digest: str, runner: Runner | None) -> Reading:
        request = reading.Request(text=text, digest=digest, rules=self._rules, runner=runner)
        answer = await self._readers.read(partial(msgspec.msgpack.encode, request))
        found = msgspec.json.decode(answer, type=reading.Answer).get()
        prepared = msgspec.structs.replace(found.prepared, text=text)
        self._prepared.put(digest, prepared)
        return msgspec.structs.replace(found, prepared=prepared)

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
