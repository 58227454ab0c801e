"""One child process: started in a session of its own, logged to a file, awaited, stopped, and never left behind.

It knows signals and files, and nothing of what the child does. A child is a plain `subprocess.Popen` watched through a
pidfd, so it belongs to no event loop: a server started in one loop can be stopped in another.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from infra.embedded.failure import StartFailure

LOG_LIMIT_BYTES = 16 * 1024 * 1024
"""A log larger than this is put aside (one generation) when its process starts."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to run, and how it may be ended."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    directory: Path | None = None
    keep_open: Sequence[int] = ()
    """File descriptors that the child inherits."""
    uid: int | None = None
    """Run as this user and group, with no other groups; None keeps ours."""
    stop_signal: signal.Signals = signal.SIGTERM
    orphan_signal: signal.Signals = signal.SIGKILL
    """What the kernel sends the child when the process that started it dies."""


class Process:
    def __init__(self, command: Command, popen: subprocess.Popen[bytes]) -> None:
        self.command = command
        self.pid = popen.pid
        self._popen = popen
        self._swept = False

    @classmethod
    def spawn(cls, command: Command) -> Process:
        """Start the child. Raises StartFailure when it cannot be executed at all.

        Call it from the main thread: the kernel takes the end of the spawning thread for the end of the parent.
        """
        command.log.parent.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()
        try:
            with open_log(command.log) as log:
                popen = subprocess.Popen(
                    command.argv,
                    env=dict(command.environment),
                    cwd=command.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C in the terminal is for the supervisor alone, which stops children in order.
                    start_new_session=True,
                    user=command.uid,
                    group=command.uid,
                    extra_groups=None if command.uid is None else [],
                    pass_fds=command.keep_open,
                    preexec_fn=lambda: die_with_parent(parent, command.orphan_signal),
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise StartFailure(f"cannot run {command.argv[0]}: {error}") from error
        return cls(command, popen)

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    async def exited(self) -> int:
        """Wait for the end; the exit code, or the negative number of the signal that ended it.

        Whatever the child left in its process group ends with it.
        """
        if self._popen.poll() is None:
            await _pidfd_readable(self.pid)
        code = self._popen.wait()
        self._sweep()
        return code

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    async def stop(self, *, within_seconds: float) -> int:
        """Ask for the end, then enforce it."""
        self.send(self.command.stop_signal)
        try:
            return await asyncio.wait_for(self.exited(), within_seconds)
        except TimeoutError:
            self.kill()
            return await self.exited()

    def kill(self) -> None:
        """End the child and everything in its process group at once."""
        if self.running:
            os.killpg(self.pid, signal.SIGKILL)

    def _sweep(self) -> None:
        # Once, right after the end: later the number may be another group's.
        if not self._swept:
            self._swept = True
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def last_words(self) -> str:
        return last_words(self.command.log)


def last_words(log: Path) -> str:
    """The end of a log, for the one line that explains a failed start."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def die_with_parent(parent: int, number: signal.Signals) -> None:
    """Called in a child: have the kernel send `number` to it when `parent` dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # It died before the line above took hold.
        os._exit(1)


def open_log(log: Path | str) -> BinaryIO:
    """To be written at its end; one that has grown too large is put aside first."""
    file = Path(log)
    _put_aside_when_large(file)
    return file.open("ab")


async def _pidfd_readable(pid: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    descriptor = os.pidfd_open(pid)
    try:
        loop.add_reader(descriptor, ended.set)
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _put_aside_when_large(log: Path) -> None:
    try:
        large = log.stat().st_size > LOG_LIMIT_BYTES
    except FileNotFoundError:
        return
    if large:
        log.replace(log.with_name(f"{log.name}.1"))
