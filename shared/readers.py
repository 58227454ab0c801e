"""A few processes that read what others wrote, so that nothing untrusted is parsed where requests are answered.

A process is started when there is work for it, reused, and ended when it is late, when it broke, and after a large
request, whose memory it would keep. A few work at a time; other requests wait their turn. What is read, and what comes
of it, is the caller's to know.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self

import msgspec
from prometheus_client import Counter, Gauge

from shared import telemetry
from shared.errors import Unavailable
from shared.reader_process import LENGTH_BYTES, OUT_OF_PROCESSOR_TIME
from shared.settings import variable_of

_processes = Gauge(
    "headrace_reader_processes", "Processes that read what others wrote, idle ones too.", registry=telemetry.metrics
)
_waiting = Gauge("headrace_reader_waiting", "Requests that wait for such a process.", registry=telemetry.metrics)
_reads = Counter(
    "headrace_reads_total",
    "What was read in such a process; `outcome` is read, over-limit, busy or failed.",
    ("outcome",),
    registry=telemetry.metrics,
)

_REUSABLE_AFTER_BYTES: Final = 1024 * 1024
_BROKEN: Final = (asyncio.IncompleteReadError, ConnectionError)
_MEBIBYTE: Final = 1024 * 1024


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Processor time is what counts of reading one thing: how long it takes depends on what else the machine does."""

    processes: int
    """How many may work at a time."""
    queue_seconds: float
    """How long a request waits for its turn."""
    cpu_seconds: float
    seconds: float
    """Only a machine that is far too busy, or a process that hangs, takes this long."""
    memory_bytes: int
    """Address space of a process; the interpreter alone takes a tenth of a gibibyte."""
    settings: str
    """What the names of the settings for these limits begin with."""

    def setting(self, limit: str) -> str:
        return f"the setting {variable_of(f'{self.settings}_{limit}')} says so"


class OverLimit(Exception):
    """Reading took more than it may; the text says of what, and who says so."""


class Readers:
    def __init__(self, work: str, limits: Limits) -> None:
        """`work` names a function from bytes to bytes, as `module:function`."""
        self._work = work
        self._limits = limits
        self._turns = asyncio.Semaphore(limits.processes)
        self._idle: list[_Reader] = []

    async def read(self, request: Callable[[], bytes]) -> bytes:
        """The answer. The request is made in a thread once it is its turn: what waits need not be in memory.

        Raises OverLimit, and Unavailable where this machine is too busy.
        """
        outcome = "failed"
        try:
            answer = await self._read_in_turn(request)
            outcome = "read"
        except OverLimit:
            outcome = "over-limit"
            raise
        except Unavailable:
            outcome = "busy"
            raise
        finally:
            _reads.labels(outcome).inc()
        return answer

    async def _read_in_turn(self, request: Callable[[], bytes]) -> bytes:
        try:
            with _waiting.track_inprogress():
                async with asyncio.timeout(self._limits.queue_seconds):
                    await self._turns.acquire()
        except TimeoutError:
            raise Unavailable("Too much is being read at this moment. Try again later.") from None
        try:
            return await self._read(await asyncio.to_thread(request))
        finally:
            self._turns.release()

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().end()

    async def _read(self, request: bytes) -> bytes:
        while True:
            is_fresh = not self._idle
            reader = self._idle.pop() if self._idle else await _Reader.start(self._work, self._limits)
            try:
                answer = await asyncio.wait_for(reader.ask(request), self._limits.seconds)
            except TimeoutError:
                await reader.end()
                reason = f"it takes longer than {self._limits.seconds:g} s; {self._limits.setting('seconds')}"
                raise Unavailable("This machine is too busy to read that. Try again later.", cause=reason) from None
            except _BROKEN:
                status = await reader.ended()
                if status == -OUT_OF_PROCESSOR_TIME:
                    raise OverLimit(
                        f"it takes more than {self._limits.cpu_seconds:g} s of processor time to read; "
                        f"{self._limits.setting('cpu_seconds')}"
                    ) from None
                if is_fresh:  # An idle one may have ended for reasons of its own.
                    raise OverLimit(
                        f"it takes more than {self._limits.memory_bytes // _MEBIBYTE} MiB of memory, or more depth, "
                        f"to read; {self._limits.setting('memory_bytes')}"
                    ) from None
                continue
            except BaseException:
                await reader.end()  # An answer may be on its way, which the next request must not see.
                raise
            if len(request) > _REUSABLE_AFTER_BYTES:
                await reader.end()
            else:
                self._idle.append(reader)
            return answer


class _Reader:
    """One process, and the pipes to it."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, work: str, limits: Limits) -> Self:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "shared.reader_process",
            work,
            str(limits.memory_bytes),
            str(limits.cpu_seconds),
            str(limits.seconds),
            stdin=PIPE,
            stdout=PIPE,
            env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # Ctrl-C is for the service, which ends its readers.
        )
        _processes.inc()
        return cls(process)

    async def ask(self, request: bytes) -> bytes:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        requests.write(len(request).to_bytes(LENGTH_BYTES, "big"))
        requests.write(request)
        await requests.drain()
        length = int.from_bytes(await answers.readexactly(LENGTH_BYTES), "big")
        return await answers.readexactly(length)

    async def ended(self) -> int:
        """The status that it ended with by itself. To kill it now might lose that."""
        await self._process.communicate()
        _processes.dec()
        status = self._process.returncode
        assert status is not None
        return status

    async def end(self) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):  # It ended by itself just now.
                self._process.kill()
        await self._process.communicate()
        _processes.dec()
