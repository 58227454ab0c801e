"""The folder that holds everything a stack keeps: the lock, the secrets, the ports, the data, the logs.

One stack at a time. The lock is a flock whose descriptor the backing servers inherit: after the supervisor was killed
it stays held until the last of them is gone, so a successor never meets a server that still writes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from infra.embedded.failure import StartFailure
from infra.embedded.ports import LOOPBACK, free_ports, is_free

LEAST_FREE_BYTES = 256 * 1024 * 1024
"""Three servers that each create their first files need about half of this."""

T = TypeVar("T")

_SUCCESSION_SECONDS = 15
"""How long the servers of a killed stack may take to end."""
_LONGEST_SOCKET_PATH = 100


class DataDir:
    def __init__(self, path: Path) -> None:
        """Nothing is touched before `open`."""
        self.path = path.absolute()
        self.lock_descriptor = -1

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def steps(self) -> Path:
        return self.path / "steps"

    def open(self, *, least_free_bytes: int = LEAST_FREE_BYTES) -> None:
        """Create the folder where it is missing and lock it. Raises StartFailure; a folder it created is removed."""
        missing = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Root hands the database to another user, who must be able to pass through; nobody may look around.
            self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)
            self._lock()
            self._refuse_a_full_disk(least_free_bytes)
            for folder in (self.logs, self.steps):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            self._abandon(missing)
            reason = error.strerror or str(error)
            raise StartFailure(f"the data directory {self.path} cannot be used: {reason}") from error
        except StartFailure:
            self._abandon(missing)
            raise

    def close(self) -> None:
        """Let go of the lock; servers that still live keep holding it."""
        for folder in (self._run_folder(), self._short_run_folder()):
            shutil.rmtree(folder, ignore_errors=True)
        self._unlock()

    def secrets(self, names: Sequence[str]) -> dict[str, str]:
        """A password for each name: made once, kept for as long as the folder."""
        file = self.path / "secrets.json"
        kept = _read(file, dict[str, str])
        given = {name: kept.get(name) or secrets.token_hex(24) for name in names}
        _write(file, kept | given)
        return given

    def ports(self, names: Sequence[str]) -> dict[str, int]:
        """A free port for each name: the same as last time unless somebody took it meanwhile.

        Stable ports matter to the object store, which files its own bookkeeping under them.
        """
        file = self.path / "ports.json"
        ports = {name: port for name, port in _read(file, dict[str, int]).items() if name in names and is_free(port)}
        lacking = [name for name in names if name not in ports]
        ports.update(zip(lacking, free_ports(len(lacking)), strict=True))
        _write(file, ports)
        return ports

    def bus_url(self, user: str) -> str:
        """How others reach the bus of the stack that runs on this folder. Raises StartFailure where none ever did."""
        port = _read(self.path / "ports.json", dict[str, int]).get("nats")
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

    def _lock(self) -> None:
        self.lock_descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _SUCCESSION_SECONDS
        while not _try_lock(self.lock_descriptor):
            holder = os.pread(self.lock_descriptor, 64, 0).decode()
            if _lives(holder) or time.monotonic() > deadline:
                pid = holder.partition(" ")[0] or "unknown"
                raise StartFailure(f"the data directory {self.path} is in use by another headrace (process {pid})")
            time.sleep(0.02)
        os.ftruncate(self.lock_descriptor, 0)
        os.pwrite(self.lock_descriptor, f"{os.getpid()} {_started_at(os.getpid())}".encode(), 0)

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

    def _abandon(self, missing: bool) -> None:
        self._unlock()
        if missing:
            shutil.rmtree(self.path, ignore_errors=True)


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
