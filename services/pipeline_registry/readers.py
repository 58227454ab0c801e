"""A few processes that read packages, so that no untrusted byte is unpacked or parsed where requests are answered.

A process is started when there is work for it, reused, and ended when it is late, when it broke, and after a large
package, whose memory it would keep. At most `processes` work at a time; the others wait their turn.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from typing import Any, BinaryIO, Final, Self

import msgspec

from shared.errors import Refusal, Unavailable, from_document

from .domain import Package, unparsable
from .reader_process import LENGTH_BYTES, Answer, Request, framed

_REUSABLE_AFTER_BYTES: Final = 1024 * 1024
_BROKEN: Final = (asyncio.IncompleteReadError, ConnectionError)


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
    def __init__(
        self, *, processes: int, seconds: float, memory_bytes: int, queue_seconds: float, largest_bytes: int
    ) -> None:
        """`seconds` and `memory_bytes` bound the reading of one package; `queue_seconds` the wait for a turn."""
        self._turns = asyncio.Semaphore(processes)
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._queue_seconds = queue_seconds
        self.largest_bytes = largest_bytes
        self._idle: list[_Reader] = []

    async def read(self, file: BinaryIO, *, file_name: str, pipeline_name: str) -> Reading:
        """Raises Unavailable when no turn comes in time."""
        try:
            async with asyncio.timeout(self._queue_seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise Unavailable("Too many pipelines are being read. Try again later.") from None
        try:
            data = await asyncio.to_thread(_whole, file)
            request = Request(
                file_name=file_name, pipeline_name=pipeline_name, largest_bytes=self.largest_bytes, data=data
            )
            return await self._read(request)
        finally:
            self._turns.release()

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().end()

    async def _read(self, request: Request) -> Reading:
        while True:
            is_fresh = not self._idle
            reader = self._idle.pop() if self._idle else await _Reader.start(self._memory_bytes, self._seconds)
            try:
                answer = await asyncio.wait_for(reader.ask(request), self._seconds)
            except TimeoutError:
                await reader.end()
                return Reading(invalid=unparsable(f"it takes longer than {self._seconds:g} s to read"))
            except _BROKEN:
                await reader.end()
                if is_fresh:  # An idle one may have ended for reasons of its own.
                    return Reading(invalid=unparsable("it takes more memory or depth to read than it may"))
                continue
            except BaseException:
                await reader.end()  # An answer may be on its way, which the next request must not see.
                raise
            if len(request.data) > _REUSABLE_AFTER_BYTES:
                await reader.end()
            else:
                self._idle.append(reader)
            return _reading(answer)


class _Reader:
    """One process, and the pipes to it."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, memory_bytes: int, seconds: float) -> Self:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "services.pipeline_registry.reader_process",
            str(memory_bytes),
            str(seconds),
            stdin=PIPE,
            stdout=PIPE,
            env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # Ctrl-C is for the service, which ends its readers.
        )
        return cls(process)

    async def ask(self, request: Request) -> Answer:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        requests.write(framed(msgspec.msgpack.encode(request)))
        await requests.drain()
        length = int.from_bytes(await answers.readexactly(LENGTH_BYTES), "big")
        return msgspec.msgpack.decode(await answers.readexactly(length), type=Answer)

    async def end(self) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):  # It ended by itself just now.
                self._process.kill()
        await self._process.communicate()


def _whole(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _reading(answer: Answer) -> Reading:
    return Reading(package=answer.package, unreadable=_refusal(answer.unreadable), invalid=_refusal(answer.invalid))


def _refusal(document: dict[str, Any] | None) -> Refusal | None:
    return None if document is None else from_document(document)
