"""The supervisor's side of the zygote: processes that are forked, and started and ended as any other."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count

import msgspec

from infra.embedded.failure import StartFailure
from infra.embedded.process import Command, Process, last_words
from infra.embedded.zygote import News, Order


@dataclass(frozen=True, kw_only=True)
class Life:
    """One forked process, from its order to its end."""

    pid: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    exit_code: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Zygote:
    """A row of the process table like any other; the rows that are forked from it belong to later stages."""

    def __init__(self, command: Command, *, modules: Sequence[str]) -> None:
        """`command` says where to log and in which environment; `modules` are imported once for all."""
        self._command = command
        self._modules = modules
        self._process: Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._lives: dict[int, Life] = {}
        self._numbers = count(1)

    @property
    def process(self) -> Process:
        if self._process is None:
            raise StartFailure("the zygote was not started")
        return self._process

    async def start(self) -> None:
        """Returns at once: orders wait in the channel until the imports are done."""
        ours, theirs = socket.socketpair()
        with theirs:
            argv = [sys.executable, "-m", "infra.embedded.zygote", str(theirs.fileno()), *self._modules]
            self._process = Process.spawn(replace(self._command, argv=argv, keep_open=(theirs.fileno(),)))
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._reading = asyncio.create_task(self._read(reader), name="read from the zygote")

    async def stop(self) -> None:
        await self.process.stop(within_seconds=2)
        if self._reading is not None:
            await self._reading

    async def exited(self) -> int:
        return await self.process.exited()

    def last_words(self) -> str:
        return self.process.last_words()

    async def fork(self, command: Command) -> Life:
        """Raises StartFailure when the zygote is gone, or goes before it has forked."""
        if self._writer is None or self._writer.is_closing():
            raise StartFailure("the zygote is not running")
        number, life = next(self._numbers), Life()
        self._lives[number] = life
        order = Order(
            id=number,
            arguments=list(command.argv[1:]),
            environment=dict(command.environment),
            log=str(command.log),
        )
        self._writer.write(msgspec.json.encode(order) + b"\n")
        await life.pid
        return life

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while line := await reader.readline():
                news = msgspec.json.decode(line, type=News)
                if news.pid is not None:
                    self._lives[news.id].pid.set_result(news.pid)
                if news.exit_code is not None:
                    self._lives.pop(news.id).exit_code.set_result(news.exit_code)
        self._end_all()

    def _end_all(self) -> None:
        """The zygote is gone, and the kernel ends whatever it forked."""
        if self._writer is not None:
            self._writer.close()
        for life in self._lives.values():
            if not life.pid.done():
                life.pid.set_exception(StartFailure("the zygote ended"))
            life.exit_code.set_result(-signal.SIGKILL)
        self._lives.clear()


class Forked:
    """A command of Python's as a Startable, forked from the zygote."""

    def __init__(self, zygote: Zygote, command: Command, *, stop_within_seconds: float = 10) -> None:
        self._zygote = zygote
        self._command = command
        self._stop_within_seconds = stop_within_seconds
        self._life: Life | None = None

    async def start(self) -> None:
        self._life = await self._zygote.fork(self._command)

    async def stop(self) -> None:
        if self._life is None:
            raise StartFailure(f"{self._command.argv} was not started")
        self._send(self._command.stop_signal)
        try:
            await asyncio.wait_for(self.exited(), self._stop_within_seconds)
        except TimeoutError:
            self._send_all(signal.SIGKILL)
            await self.exited()

    async def exited(self) -> int:
        """As for any process: what it left in its group ends with it."""
        if self._life is None:
            raise StartFailure(f"{self._command.argv} was not started")
        already = self._life.exit_code.done()
        code = await asyncio.shield(self._life.exit_code)
        if not already:
            self._send_all(signal.SIGKILL)
        return code

    def last_words(self) -> str:
        return last_words(self._command.log)

    def _send(self, number: signal.Signals) -> None:
        if self._life is not None and not self._life.exit_code.done():
            with suppress(ProcessLookupError):
                os.kill(self._life.pid.result(), number)

    def _send_all(self, number: signal.Signals) -> None:
        if self._life is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._life.pid.result(), number)
