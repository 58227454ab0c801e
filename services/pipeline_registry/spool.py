"""Where a package waits until it is read: in memory while it is small, in one unnamed file otherwise.

However much arrives, no more than the largest package is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, Final, cast

_IN_MEMORY_BYTES: Final = 1024 * 1024


class Spool:
    """`size_bytes` is exact up to the largest package, and at least one more for anything larger."""

    def __init__(self, file: SpooledTemporaryFile[bytes], largest_bytes: int) -> None:
        self._file = file
        self._largest_bytes = largest_bytes
        self.size_bytes = 0

    @property
    def content(self) -> BinaryIO:
        return cast("BinaryIO", self._file)

    @property
    def is_over(self) -> bool:
        """More has come than a package may hold: what follows is not kept."""
        return self.size_bytes > self._largest_bytes

    async def write(self, chunk: bytes | bytearray) -> None:
        if self.is_over:
            return
        is_on_disk = self.size_bytes + len(chunk) > _IN_MEMORY_BYTES
        self.size_bytes += len(chunk)
        if self.is_over:
            return
        if is_on_disk:
            await asyncio.to_thread(self._file.write, chunk)
        else:
            self._file.write(chunk)


@contextmanager
def spooled(largest_bytes: int) -> Iterator[Spool]:
    with SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as file:
        yield Spool(file, largest_bytes)
