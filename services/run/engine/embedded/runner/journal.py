"""What the runner keeps of each attempt on disk, so that neither its own death nor the machine's is a lie.

    <steps_dir>/<key>/start.json   before the first process; without it nothing ran
                      exit.json    how it ended; reserved room until then, only ever written by who saw it
                      log          stdout and stderr, from the first byte
                      stdout       main's stdout alone, where the spec asks for it
                      root, …      the private tree
    <steps_dir>/.trash/<key>       what was forgotten and is still to be removed

What the JSON files say is on the disk before anybody hears of it, and a half-written one says nothing. Each costs
every step its way to the disk: the directories go there once, at the start, with both names in them. The log is held
under an advisory lock by the processes of the step themselves: as long as it cannot be taken, one of them lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from services.run.engine.embedded.runner.protocol import StepExit, StepStart
from services.run.engine.embedded.runtime import process as processes
from services.run.engine.embedded.runtime.tree import Tree

T = TypeVar("T")

_START = "start.json"
_EXIT = "exit.json"
_LOG = "log"
_STDOUT = "stdout"
_TRASH = ".trash"

_TO_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_EXIT_BYTES = 4096
"""More than the end of a step of a dozen containers takes."""
_AT_ONCE = 100
"""Attempts that one `rm` is told to remove."""


class StepsDirectoryInUse(Exception):
    """Another runner works in this directory."""


class Journal:
    """The attempts below one directory, which belongs to this process alone."""

    def __init__(self, steps_dir_path: str) -> None:
        """Take the directory. Raises StepsDirectoryInUse, OSError."""
        steps_dir = Path(steps_dir_path).resolve()
        steps_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.steps_dir = steps_dir
        self._lock = os.open(steps_dir / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StepsDirectoryInUse(f"{steps_dir} is in use by another step runner") from None
        self._trash = steps_dir / _TRASH
        self._trash.mkdir(mode=0o700, exist_ok=True)

    def close(self) -> None:
        os.close(self._lock)

    def directory_of(self, key: str) -> Path:
        return self.steps_dir / key

    def log_of(self, key: str) -> Path:
        return self.directory_of(key) / _LOG

    def make_room(self, key: str) -> None:
        """The attempt's directory; until `begin` it counts as nothing. Raises OSError."""
        self.directory_of(key).mkdir(mode=0o700, exist_ok=True)

    def begin(self, start: StepStart) -> None:
        """Durably note that the step is about to run."""
        directory = self.directory_of(start.key)
        _reserve(directory / _EXIT)
        _write(directory / _START, start)
        _sync_directory(directory)
        _sync_directory(self.steps_dir)

    def finish(self, exit: StepExit) -> None:
        """Durably note how it ended."""
        _write(self.directory_of(exit.key) / _EXIT, exit)

    def open_log(self, key: str) -> int:
        """A descriptor for the step's processes to write to; while one of them holds it, `is_alive`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self.log_of(key), flags, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor

    def open_stdout(self, key: str) -> int:
        """A descriptor for the runner to write main's stdout to."""
        return os.open(self.directory_of(key) / _STDOUT, _TO_WRITE, 0o600)

    def is_alive(self, key: str) -> bool:
        """Whether a process of a former runner's step is still there."""
        try:
            descriptor = os.open(self.log_of(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def remembered(self) -> dict[str, StepExit | StepStart]:
        """Every attempt a former runner began: its exit, or its start where no exit is known.

        What it never durably started is removed: starting it again must run it.
        """
        found: dict[str, StepExit | StepStart] = {}
        for directory in sorted(self.steps_dir.iterdir()):
            if directory.name.startswith(".") or not directory.is_dir():
                continue
            known = _read(directory / _EXIT, StepExit) or _read(directory / _START, StepStart)
            if known is None:
                self.forget(directory.name)
            else:
                found[directory.name] = known
        return found

    def forget(self, key: str) -> None:
        """Put everything of an attempt out of sight.

        This need not survive a crash: who forgets has the outcome on record, and forgets again what comes back.
        """
        # The same key may have been forgotten, and begun again, before the trash was emptied.
        with contextlib.suppress(FileNotFoundError):
            self.directory_of(key).rename(self._trash / f"{key}.{time.monotonic_ns()}")

    async def empty_trash(self) -> None:
        """Remove what was forgotten, at no step's expense: an attempt is half a hundred files and directories."""
        names = os.listdir(self._trash)
        for at in range(0, len(names), _AT_ONCE):
            paths = [str(self._trash / name) for name in names[at : at + _AT_ONCE]]
            await processes.ended(_spawn_quietly("nice", "-n", "19", "rm", "-rf", "--", *paths))
            for path in filter(os.path.lexists, paths):
                await asyncio.to_thread(shutil.rmtree, path, onerror=_make_removable)


def tree_of(attempt_dir: Path) -> Tree | None:
    """The private tree of an attempt's main process, for `runtime.tree.find` and `read_text`."""
    start = _read(attempt_dir / _START, StepStart)
    return None if start is None else start.tree


def stdout_of(attempt_dir: Path) -> Path:
    """What main wrote to stdout, if its spec asked to keep it."""
    return attempt_dir / _STDOUT


def _write(path: Path, content: object) -> None:
    """In place, over what is reserved: what a crash cuts short cannot be decoded, and counts as absent."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(content))
        file.truncate()
        file.flush()
        os.fsync(descriptor)


def _reserve(path: Path) -> None:
    """Room on the disk for what must still be written when a step has filled it: that this step has ended."""
    descriptor = os.open(path, _TO_WRITE, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _EXIT_BYTES)
    finally:
        os.close(descriptor)


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _spawn_quietly(*argv: str) -> int:
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        return processes.spawn(argv, env={"PATH": os.defpath}, cwd="/", log=nowhere)
    finally:
        os.close(nowhere)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_removable(remove: Callable[..., Any], path: str, _: object) -> None:
    """Overlayfs' scratch and some steps leave directories that even their owner may not enter."""
    parent = os.path.dirname(path)
    os.chmod(parent, stat.S_IRWXU)
    if os.path.isdir(path) and not os.path.islink(path):
        os.chmod(path, stat.S_IRWXU)
        shutil.rmtree(path)
    else:
        os.unlink(path)
