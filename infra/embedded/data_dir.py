"""The folder that holds everything a stack keeps: the lock, the secrets, the ports, the data, the logs.

One stack at a time. The lock is a flock whose descriptor the backing servers inherit: after the supervisor was killed
it stays held until the last of them is gone, so a successor never meets a server that still writes. The lock's file is
also the mark by which a folder is known to be a stack's.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from infra.embedded.failure import StartFailure
from infra.embedded.object_store import ports_of_others
from infra.embedded.ports import LOOPBACK, free_ports, is_free

LEAST_FREE_BYTES = 256 * 1024 * 1024
"""Three servers that each create their first files need about half of this."""

T = TypeVar("T")

_SUCCESSION_SECONDS = 15
"""How long the servers of a killed stack may take to end."""
_LOCK = "headrace.lock"
_RESTORING = "restoring"
"""There while a backup is read into the folder: nothing runs on half of it."""
_MAY_LIE_THERE = ("tokens.json", ".tokens.json.lock", ".tokens.json.draft", "lost+found")
"""What is found in a folder that no stack has run on yet: tokens that were made first, and the root of a disk."""
_CLOSED_TO_OTHERS = ("logs", "steps", "engine", "nats", "object-store")
"""Other users may be able to enter a folder that was there before. Postgres closes its own."""
_LONGEST_SOCKET_PATH = 100


class DataDir:
    def __init__(self, path: Path) -> None:
        """Nothing is touched before `open`."""
        self.path = path.absolute()
        self.lock_descriptor = -1
        self._made = False

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def steps(self) -> Path:
        return self.path / "steps"

    @property
    def engine(self) -> Path:
        return self.path / "engine"

    async def open(self, *, least_free_bytes: int = LEAST_FREE_BYTES) -> None:
        """Create the folder where it is missing and lock it. Raises StartFailure; a folder it created is removed.

        One that was there keeps its mode, and must be empty or a stack's.
        """
        try:
            await self._enter()
            if (self.path / _RESTORING).exists():
                raise StartFailure(
                    f"the data directory {self.path} holds a part of a backup: empty it, and restore again"
                )
            self._refuse_a_full_disk(least_free_bytes)
            for name in _CLOSED_TO_OTHERS:
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            self._abandon()
            reason = error.strerror or str(error)
            raise StartFailure(f"the data directory {self.path} cannot be used: {reason}") from error
        except BaseException:
            self._abandon()
            raise

    def close(self) -> None:
        """Let go of the lock; servers that still live keep holding it."""
        for folder in (self._run_folder(), self._short_run_folder()):
            shutil.rmtree(folder, ignore_errors=True)
        self._unlock()

    def is_in_use(self) -> bool:
        """Whether a stack runs on it. Raises StartFailure where none ever did."""
        try:
            descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise StartFailure(f"no stack has run on {self.path}: {error.strerror}") from error
        try:
            return not _try_lock(descriptor)
        finally:
            os.close(descriptor)

    def begin_restore(self) -> None:
        """From now until `end_restore`, nobody else opens the folder. Raises StartFailure where it is not a new one."""
        if set(os.listdir(self.path)) - {_LOCK, "lost+found", *_CLOSED_TO_OTHERS}:
            raise StartFailure(f"the data directory {self.path} holds something: name an empty folder, or a new one")
        (self.path / _RESTORING).touch(mode=0o600)

    def end_restore(self) -> None:
        os.sync()
        (self.path / _RESTORING).unlink()

    def clear(self) -> None:
        """Leave nothing of a restore that did not end."""
        for entry in self.path.iterdir():
            if entry.name in {_LOCK, _RESTORING, "lost+found"}:
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink()
        (self.path / _RESTORING).unlink()
        self._abandon()

    def kept_ports(self) -> dict[str, int]:
        """Those of the stack that runs on this folder, or was the last to; none where none ever did."""
        return _read(self.path / "ports.json", dict[str, int])

    def running_ports(self) -> dict[str, int]:
        """Those of the stack that runs on this folder; none where it does not run, since others may have them by now.

        Raises StartFailure where none ever did.
        """
        return self.kept_ports() if self.is_in_use() else {}

    def secrets(self, names: Sequence[str]) -> dict[str, str]:
        """A password for each name: made once, kept for as long as the folder."""
        file = self.path / "secrets.json"
        kept = _read(file, dict[str, str])
        given = {name: kept.get(name) or secrets.token_hex(24) for name in names}
        _write(file, kept | given)
        return given

    def ports(self, names: Sequence[str], *, told: Mapping[str, int] = MappingProxyType({})) -> dict[str, int]:
        """A free port for each name: the same as last time unless somebody took it meanwhile, or `told` has it.

        `told` are the ports of others, by their names, which are kept beside. Stable ports matter to the object store,
        which files its own bookkeeping under them.
        """
        file = self.path / "ports.json"
        kept = _read(file, dict[str, int])
        taken = {*told.values(), *ports_of_others()}
        ports = {name: port for name, port in kept.items() if name in names and port not in taken and is_free(port)}
        lacking = [name for name in names if name not in ports]
        ports.update(zip(lacking, free_ports(len(lacking), besides=[*ports.values(), *taken]), strict=True))
        _write(file, {**ports, **told})
        return ports

    def bus_url(self, user: str) -> str:
        """How others reach the bus of the stack that runs on this folder. Raises StartFailure where none ever did."""
        port = self.kept_ports().get("nats")
        password = _read(self.path / "secrets.json", dict[str, str]).get(f"nats.{user}")
        if port is None or password is None:
            raise StartFailure(f"no stack has run on {self.path}")
        return f"nats://{user}:{password}@{LOOPBACK}:{port}"

    def socket(self, name: str) -> Path:
        """A place for a unix socket: inside the folder, or below /tmp where the path would be too long to bind."""
        folder = self._run_folder()
        if len(os.fsencode(folder / name)) > _LONGEST_SOCKET_PATH:
            folder = self._short_run_folder()
        shutil.rmtree(folder, ignore_errors=True)  # A killed stack left it.
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise StartFailure(f"cannot create the folder {folder} for sockets: {error.strerror}") from error
        return folder / name

    def _run_folder(self) -> Path:
        return self.path / "run"

    def _short_run_folder(self) -> Path:
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:12]
        return Path("/tmp", f"headrace-{os.geteuid()}-{digest}")  # noqa: S108 - mkdir refuses one that exists

    async def _enter(self) -> None:
        """Make the folder or find it, and lock it: anew where it was removed meanwhile by whoever had made it."""
        while self.lock_descriptor < 0:
            self._make()
            with suppress(_Removed):
                if not self._made:
                    self._refuse_what_is_not_ours()
                await self._lock()

    def _make(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            self._made = False
            return
        self._made = True
        if os.geteuid() == 0:
            # Root hands the database to another user, who must be able to pass through; nobody may look around.
            self.path.chmod(0o701)

    def _refuse_what_is_not_ours(self) -> None:
        try:
            entries = os.listdir(self.path)
        except FileNotFoundError as error:
            if self.path.is_symlink():
                raise
            raise _Removed from error
        if _LOCK not in entries and not set(entries) <= set(_MAY_LIE_THERE):
            raise StartFailure(
                f"the data directory {self.path} holds other things than a stack's data: "
                "name an empty folder, or a new one"
            )
        if not os.access(self.path, os.W_OK | os.X_OK, effective_ids=True):
            raise StartFailure(f"the data directory {self.path} is not writable")

    async def _lock(self) -> None:
        file = self.path / _LOCK
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError as error:
            raise _Removed from error
        try:
            await self._hold(descriptor)
            if not _is_open_at(descriptor, file):
                raise _Removed
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {_started_at(os.getpid())}".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self.lock_descriptor = descriptor

    async def _hold(self, descriptor: int) -> None:
        deadline = time.monotonic() + _SUCCESSION_SECONDS
        while not _try_lock(descriptor):
            holder = os.pread(descriptor, 64, 0).decode()
            if _lives(holder) or time.monotonic() > deadline:
                pid = holder.partition(" ")[0] or "unknown"
                raise StartFailure(f"the data directory {self.path} is in use by another headrace (process {pid})")
            await asyncio.sleep(0.02)

    def _unlock(self) -> None:
        if self.lock_descriptor >= 0:
            os.close(self.lock_descriptor)
            self.lock_descriptor = -1

    def _refuse_a_full_disk(self, least_free_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self.path).free
        if free_bytes < least_free_bytes:
            raise StartFailure(
                f"the data directory {self.path} is on a full disk: "
                f"{free_bytes // 2**20} MiB free, {least_free_bytes // 2**20} MiB needed"
            )

    def _abandon(self) -> None:
        """Leave nothing of a folder that was made here, and everything that somebody else has put there meanwhile.

        The lock goes last, and while it is held: whoever waits for it sees that it is gone and begins anew.
        """
        if self._made and self.lock_descriptor >= 0:
            for name in _CLOSED_TO_OTHERS:
                with suppress(OSError):
                    (self.path / name).rmdir()
            with suppress(OSError):
                (self.path / _LOCK).unlink()
        if self._made:
            with suppress(OSError):
                self.path.rmdir()
        self._unlock()


class _Removed(Exception):
    """The folder went while it was being entered."""


def _is_open_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lives(holder: str) -> bool:
    """Whether the process that wrote `pid start-time` into the lock is still that process."""
    pid, _, started = holder.partition(" ")
    return pid.isdecimal() and started != "" and _started_at(int(pid)) == started


def _started_at(pid: int) -> str:
    """In clock ticks since the boot; pids come again, this pair does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def _read(file: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except FileNotFoundError:
        return kind()
    except msgspec.DecodeError as error:
        raise StartFailure(f"{file} is damaged: {error}") from error


def _write(file: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, readable by us alone."""
    draft = file.with_suffix(".draft")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(msgspec.json.encode(content))
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)
    except OSError as error:
        raise StartFailure(f"cannot write {file}: {error.strerror}") from error
