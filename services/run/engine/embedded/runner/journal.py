"""What the runner keeps of each attempt on disk, so that neither its own death nor the machine's is a lie.

    <steps_dir>/<key>/spec.json    what was asked for
                      start.json   before the first process; without it nothing ran
                      exit.json    how it ended; only ever written by who saw it
                      log          stdout and stderr, from the first byte
                      stdout       main's stdout alone, where the spec asks for it
                      root, …      the private tree

Each JSON file is whole or absent, and on the disk (file and directory) before anybody hears of it. The log is held
under an advisory lock by the processes of the step themselves: as long as it cannot be taken, one of them lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from services.run.engine.embedded.runner.protocol import StepExit, StepStart
from services.run.engine.embedded.runtime import StepSpec
from services.run.engine.embedded.runtime.tree import Tree

T = TypeVar("T")

_SPEC = "spec.json"
_START = "start.json"
_EXIT = "exit.json"
_LOG = "log"
_STDOUT = "stdout"
_TRASH = ".trash"


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
        shutil.rmtree(steps_dir / _TRASH, ignore_errors=True)

    def close(self) -> None:
        os.close(self._lock)

    def directory_of(self, key: str) -> Path:
        return self.steps_dir / key

    def log_of(self, key: str) -> Path:
        return self.directory_of(key) / _LOG

    def make_room(self, key: str) -> None:
        """The attempt's directory; until `begin` it counts as nothing. Raises OSError."""
        self.directory_of(key).mkdir(mode=0o700, exist_ok=True)

    def begin(self, spec: StepSpec, start: StepStart) -> None:
        """Durably note that the step is about to run."""
        directory = self.directory_of(spec.key)
        _write(directory / _SPEC, spec)
        _write(directory / _START, start)
        _sync_directory(directory)
        _sync_directory(self.steps_dir)

    def finish(self, exit: StepExit) -> None:
        """Durably note how it ended."""
        directory = self.directory_of(exit.key)
        _write(directory / _EXIT, exit)
        _sync_directory(directory)

    def open_log(self, key: str) -> int:
        """A descriptor for the step's processes to write to; while one of them holds it, `is_alive`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self.log_of(key), flags, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor

    def open_stdout(self, key: str) -> int:
        """A descriptor for the runner to write main's stdout to."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return os.open(self.directory_of(key) / _STDOUT, flags, 0o600)

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
        """Remove everything of an attempt; a crash in between leaves it whole or out of sight."""
        trash = self.steps_dir / _TRASH
        trash.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.directory_of(key).rename(trash / key)
            _sync_directory(self.steps_dir)
            shutil.rmtree(trash / key, onerror=_make_removable)


def tree_of(attempt_dir: Path) -> Tree | None:
    """The private tree of an attempt's main process, for `runtime.tree.find` and `read_text`."""
    start = _read(attempt_dir / _START, StepStart)
    return None if start is None else start.tree


def stdout_of(attempt_dir: Path) -> Path:
    """What main wrote to stdout, if its spec asked to keep it."""
    return attempt_dir / _STDOUT


def _write(path: Path, content: object) -> None:
    partial = path.with_suffix(".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(content))
        file.flush()
        os.fsync(descriptor)
    partial.rename(path)


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


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
