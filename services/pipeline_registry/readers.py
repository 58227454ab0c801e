"""Who reads packages: what comes of the work that is done in processes of its own."""

from __future__ import annotations

from functools import partial
from typing import Any, BinaryIO

import msgspec

from shared.errors import Refusal, from_document
from shared.readers import Limits, OverLimit, Readers

from . import reading
from .domain import Package, unparsable


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What came of reading a package. Which refusal counts depends on what the caller checks in between."""

    package: Package | None = None
    unreadable: Refusal | None = None
    invalid: Refusal | None = None

    def check_readable(self) -> None:
        """Raises InvalidInput where the bytes hold no text of a pipeline."""
        if self.unreadable is not None:
            raise self.unreadable

    def valid_package(self) -> Package:
        """Raises InvalidInput where the text is no workflow."""
        self.check_readable()
        if self.package is None:
            raise self.invalid or unparsable("nothing was read")
        return self.package


class PackageReaders:
    def __init__(self, limits: Limits, *, largest_bytes: int) -> None:
        self._readers = Readers(reading.WORK, limits)
        self.largest_bytes = largest_bytes

    async def read(self, file: BinaryIO, *, file_name: str, pipeline_name: str) -> Reading:
        """Raises Unavailable."""
        request = partial(_request, file, file_name, pipeline_name, self.largest_bytes)
        try:
            answer = msgspec.msgpack.decode(await self._readers.read(request), type=reading.Answer)
        except OverLimit as limit:
            return Reading(invalid=unparsable(str(limit)))
        return Reading(package=answer.package, unreadable=_refusal(answer.unreadable), invalid=_refusal(answer.invalid))

    async def close(self) -> None:
        await self._readers.close()


def _request(file: BinaryIO, file_name: str, pipeline_name: str, largest_bytes: int) -> bytes:
    file.seek(0)
    request = reading.Request(
        file_name=file_name, pipeline_name=pipeline_name, largest_bytes=largest_bytes, data=file.read()
    )
    return msgspec.msgpack.encode(request)


def _refusal(document: dict[str, Any] | None) -> Refusal | None:
    return None if document is None else from_document(document)
