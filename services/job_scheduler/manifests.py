"""Where the text of a manifest comes from: our table, then the object store.

Manifests are immutable and named by their digest, so a copy is never wrong. Knows no job, and not what is in one.
"""

from __future__ import annotations

from collections.abc import Iterable

from shared.blobs import Blobs, NoSuchObject
from shared.database import Database

from . import store


class Manifests:
    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    async def texts(self, digests: Iterable[str]) -> dict[str, str]:
        """The texts of manifests that jobs refer to; all of them are in our table."""
        wanted = list(dict.fromkeys(digests))
        return await store.find_manifests(self._database, wanted) if wanted else {}

    async def find(self, digest: str) -> str | None:
        """The text of a manifest that somebody else accepted; None where it is gone."""
        known = (await self.texts((digest,))).get(digest)
        if known is not None:
            return known
        try:
            return await self._blobs.get_manifest(digest)
        except NoSuchObject:
            return None

    async def publish(self, text: str) -> str:
        """Put a manifest where others can read it. Returns its digest, by which they may be told of it."""
        return await self._blobs.put_manifest(text)

    async def keep(self, text: str, digest: str) -> None:
        """Have the text at hand for replies."""
        await store.insert_manifest(self._database, digest, text)
