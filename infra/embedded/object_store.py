"""The embedded object store: an S3 server (SeaweedFS) with one key pair, on the loopback interface.

Everything that stores objects here is plain S3, so nothing beyond this file knows the server's name. Its own ports
(master, volume, filer, admin) serve no HTTP: they would hand out every object without asking for credentials.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from infra.embedded.failure import StartFailure
from infra.embedded.ports import LOOPBACK
from infra.embedded.process import Command, Process
from infra.embedded.readiness import http_status, until_ready

_MINI = (
    f"-ip={LOOPBACK}",
    f"-ip.bind={LOOPBACK}",
    "-disableHttp",
    "-master.telemetry=false",
    "-admin.ui=false",
    "-webdav=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-s3.allowDeleteBucketNotEmpty=false",
)


class ObjectStorePorts(msgspec.Struct, frozen=True, kw_only=True):
    """S3 for clients; the rest is how the server's parts talk to one another."""

    s3: int
    s3_grpc: int
    master: int
    master_grpc: int
    volume: int
    volume_grpc: int
    filer: int
    filer_grpc: int
    admin: int
    admin_grpc: int


PORT_COUNT = len(ObjectStorePorts.__struct_fields__)


class ObjectStore:
    def __init__(
        self,
        *,
        data_dir: Path,
        ports: ObjectStorePorts,
        access_key: str,
        secret_key: str,
        program: Path,
        log: Path | None = None,
        keep_open: Sequence[int] = (),
    ) -> None:
        self.ports = ports
        self.access_key = access_key
        self.secret_key = secret_key
        self._program = program
        self._data_dir = data_dir.absolute()
        self._log = log or self._data_dir / "object-store.log"
        self._keep_open = keep_open
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        if self._process is None:
            raise StartFailure("the object store was not started")
        return self._process

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.ports.s3}"

    async def start(self, *, within_seconds: float = 30) -> None:
        """Serve the folder; returns when S3 answers and its parts have found one another."""
        folder = self._data_dir / "objects"
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_sockets()
        ports = [
            f"-{name.removesuffix('_grpc')}.port{'.grpc' if name.endswith('_grpc') else ''}={port}"
            for name, port in msgspec.structs.asdict(self.ports).items()
        ]
        command = Command(
            argv=[str(self._program), "-logtostderr=true", "mini", f"-dir={folder}", *_MINI, *ports],
            environment=self._environment(),
            log=self._log,
            keep_open=self._keep_open,
            directory=self._data_dir,
            # It needs more than three seconds to stop when asked, and what it has acknowledged is on the disk.
            stop_signal=signal.SIGKILL,
            orphan_signal=signal.SIGKILL,
        )
        self._process = Process.spawn(command)
        await until_ready("the object store", self._process, self._answers, within_seconds=within_seconds)

    async def stop(self, *, within_seconds: float = 2) -> None:
        await self.process.stop(within_seconds=within_seconds)
        self._remove_sockets()

    async def exited(self) -> int:
        code = await self.process.exited()
        self._remove_sockets()
        return code

    def last_words(self) -> str:
        return self.process.last_words()

    async def _answers(self) -> bool:
        """S3 is up once it refuses a request without credentials."""
        return 200 <= await http_status(self.ports.s3, "/") < 500

    def _environment(self) -> Mapping[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self._data_dir),  # It reads configuration from the home folder, which is not ours to read.
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            # From the first write on its heap holds 230 MiB of buffers, nearly all never touched. With a limit close to
            # that it collects garbage without end: a fifth of a processor at rest, and a put takes three times as long.
            "GOMEMLIMIT": "512MiB",
            "GOGC": "50",
        }

    def _remove_sockets(self) -> None:
        """Killed, it leaves sockets behind; found, they would keep it from starting."""
        for port in msgspec.structs.asdict(self.ports).values():
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 - the server's own choice
                socket.unlink(missing_ok=True)


def ports_of_others() -> set[int]:
    """Where a server of another user has left a socket, which keeps ours from starting and is not ours to remove."""
    if os.geteuid() == 0:
        return set()
    found = set()
    for socket in Path("/tmp").glob("seaweedfs-*-*.sock"):  # noqa: S108 - the server's own choice
        port = socket.stem.rpartition("-")[2]
        with suppress(FileNotFoundError):
            if port.isdecimal() and socket.lstat().st_uid != os.geteuid():
                found.add(int(port))
    return found
