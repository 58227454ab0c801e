"""A stack in a process of its own, as a test starts, watches and ends it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import sys
import tempfile
import termios
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from infra.embedded.ports import free_ports

WITHIN_SECONDS = 60

WITH_STUBS = (sys.executable, "-m", "tests.support.stack_process")
"""Real backing servers, and stubs for the processes; they keep the journal."""
REAL = (sys.executable, "-m", "infra.cli", "up")

_PROJECT = Path(__file__).parents[2]


class Started:
    """A stack in a process of its own. Every process below it carries `mark` in its environment."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, mark: str, journal: Path) -> None:
        self.process = process
        self.port = port
        self._mark = mark
        self._journal = journal

    async def ready(self) -> None:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), WITHIN_SECONDS)
        assert line.decode() == f"headrace ready http://127.0.0.1:{self.port}\n", await self.complaints()

    async def complaints(self) -> str:
        assert self.process.stderr is not None
        return (await asyncio.wait_for(self.process.stderr.read(), WITHIN_SECONDS)).decode()

    async def next_complaint(self) -> str:
        assert self.process.stderr is not None
        return (await asyncio.wait_for(self.process.stderr.readline(), WITHIN_SECONDS)).decode()

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), WITHIN_SECONDS)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return await self.ended()

    def events(self) -> list[str]:
        return [line.rpartition(" ")[0] for line in self._journal.read_text().splitlines()]

    def pid_of(self, name: str) -> int:
        """The newest process of that name."""
        lines = [line for line in self._journal.read_text().splitlines() if line.startswith(f"{name} started ")]
        return int(lines[-1].split()[2])

    def child(self, program: str) -> int | None:
        """The pid of what the supervisor itself started, by a word of its command line."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next((int(pid) for pid in listed if program.encode() in command_line(int(pid))), None)

    def running(self, words: str) -> int | None:
        """The pid of the process of this stack whose command line holds `words`, however deep it is."""
        return next((pid for pid, line in self._processes() if f" {words} " in f"{line} "), None)

    def living(self) -> list[str]:
        """The command line of every process of this stack, orphans included."""
        return [line for _, line in self._processes()]

    def _processes(self) -> Iterator[tuple[int, str]]:
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdecimal() and self._mark.encode() in (folder / "environ").read_bytes():
                    pid = int(folder.name)
                    yield pid, command_line(pid).replace(b"\0", b" ").decode()

    async def all_gone(self) -> None:
        async with asyncio.timeout(WITHIN_SECONDS):
            while self.living():  # noqa: ASYNC110 - the kernel tells nobody about orphans
                await asyncio.sleep(0.02)


@asynccontextmanager
async def started(
    data_dir: Path,
    *,
    port: int | None = None,
    command: Sequence[str] = WITH_STUBS,
    prefix: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    as_user: Mapping[str, Any] | None = None,
    terminal: int | None = None,
) -> AsyncIterator[Started]:
    """A stack told by the environment; `prefix` are words before its command, `as_user` says whose process it is.

    `terminal` is one that it controls, in place of pipes.
    """
    mark = f"HEADRACE_TEST_MARK={secrets.token_hex(8)}"
    gateway_port = port or free_ports(1)[0]
    journal = _empty_journal()
    environment: Mapping[str, str] = {
        **os.environ,
        "HEADRACE_PORT": str(gateway_port),
        "HEADRACE_DATA_DIR": str(data_dir),
        "HEADRACE_TEST_JOURNAL": str(journal),
        mark.partition("=")[0]: mark.partition("=")[2],
        **(variables or {}),
    }
    process = await asyncio.create_subprocess_exec(
        *prefix,
        *command,
        cwd=_PROJECT,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL if terminal is None else terminal,
        stdout=asyncio.subprocess.PIPE if terminal is None else terminal,
        stderr=asyncio.subprocess.PIPE if terminal is None else terminal,
        start_new_session=terminal is not None,
        preexec_fn=None if terminal is None else partial(fcntl.ioctl, terminal, termios.TIOCSCTTY, 0),
        **(as_user or {}),
    )
    stack = Started(process, gateway_port, mark, journal)
    try:
        yield stack
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await stack.all_gone()
        shutil.rmtree(journal.parent)


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")
    except OSError:
        return b""


def environment(pid: int) -> list[str]:
    """`NAME=VALUE`, as the process was started with."""
    return Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")


def _empty_journal() -> Path:
    journal = Path(tempfile.mkdtemp(prefix="headrace-journal-"), "journal")
    journal.touch()
    return journal
