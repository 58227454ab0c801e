"""A whole bucket as a tar file, and back: the object store's part of a backup, with any S3 server.

Members are named by their keys. What is deleted meanwhile is left out.
"""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import IO, Any

from shared.blobs import Blobs, NoSuchObject

_SMALL_BYTES = 1024 * 1024
"""Up to here an object is read in one piece, and some at once."""
_AT_ONCE = 8


class ObjectError(Exception):
    """An object cannot be saved: it became another one while it was read, or there is no room for it."""


async def save(blobs: Blobs, out: IO[bytes]) -> int:
    """Write every object to `out`, which need not be seekable. Returns how many; raises Unavailable, ObjectError."""
    keys = await blobs.list_keys("")
    count = 0
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for first in range(0, len(keys), _AT_ONCE):
            some = keys[first : first + _AT_ONCE]
            for key, data in zip(some, await asyncio.gather(*(_beginning(blobs, key) for key in some)), strict=True):
                if data is None:
                    continue
                if len(data) <= _SMALL_BYTES:
                    tar.addfile(_member(key, len(data)), io.BytesIO(data))
                else:
                    await _save_large(blobs, key, tar)
                count += 1
    return count


async def load(blobs: Blobs, source: IO[bytes]) -> int:
    """Store every object that `save` wrote. Returns how many; raises Unavailable, tarfile.TarError."""
    count = 0
    small: list[tuple[str, bytes]] = []
    with tarfile.open(fileobj=source, mode="r|") as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is None:
                continue
            if member.size > _SMALL_BYTES:
                await blobs.put_stream(member.name, content, member.size)  # type: ignore[arg-type] # it is only read
            else:
                small.append((member.name, content.read()))
            count += 1
            if len(small) == _AT_ONCE:
                await _put(blobs, small)
                small.clear()
    await _put(blobs, small)
    return count


async def _put(blobs: Blobs, objects: list[tuple[str, bytes]]) -> None:
    await asyncio.gather(*(blobs.put(key, data) for key, data in objects))


async def _beginning(blobs: Blobs, key: str) -> bytes | None:
    try:
        return await blobs.get(key, largest_bytes=_SMALL_BYTES + 1)
    except NoSuchObject:
        return None


async def _save_large(blobs: Blobs, key: str, tar: tarfile.TarFile) -> None:
    """Piece by piece. The size goes before the content, so that both must be of the same object."""
    size = (await blobs.stat(key)).size
    async with aclosing(blobs.stream(key, length=size)) as pieces:
        content = io.BufferedReader(_Content(pieces, asyncio.get_running_loop()))
        try:
            await asyncio.to_thread(tar.addfile, _member(key, size), content)
        except OSError as error:
            raise ObjectError(f"{key}: {error}") from error


class _Content(io.RawIOBase):
    """An object as a file, read in another thread than the loop's."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], loop: asyncio.AbstractEventLoop) -> None:
        self._pieces = pieces
        self._loop = loop
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._piece:
            self._piece = memoryview(asyncio.run_coroutine_threadsafe(self._next(), self._loop).result())
        some = self._piece[: len(buffer)]
        buffer[: len(some)] = some
        self._piece = self._piece[len(some) :]
        return len(some)

    async def _next(self) -> bytes:
        return await anext(self._pieces, b"")


def _member(key: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(key)
    member.size = size
    return member
