"""The embedded Postgres: a data folder, a port on the loopback interface, a superuser with a password.

It calls the programs of a wheel (or of any installation) and knows no role of ours but the superuser: those are
`infra.postgres.roles`. Postgres refuses to run as root, so root hands the child to an unprivileged user; where that
user cannot even reach the files (a home folder of mode 0700), the child runs in a user namespace that renames us.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from infra.embedded.failure import StartFailure
from infra.embedded.ports import LOOPBACK
from infra.embedded.process import Command, Process
from infra.embedded.readiness import until_ready

SUPERUSER = "postgres"
NOBODY = 65534
"""The user that a root-owned stack runs Postgres as; it needs no entry in /etc/passwd."""

SETTINGS: Mapping[str, str] = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # A socket's path is limited to 107 bytes; a data folder's is not.
    "max_connections": "120",
    "shared_buffers": "64MB",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "max_wal_size": "512MB",
    "min_wal_size": "64MB",
    "synchronous_commit": "on",
    "jit": "off",  # Short statements: compiling them costs more than running them.
    "io_method": "sync",  # The worker processes of the default cost memory, and gain nothing on one local disk.
    "max_parallel_workers_per_gather": "0",
    "max_logical_replication_workers": "0",
    "log_line_prefix": "%m [%p] %u ",
}
"""An embedded server on a laptop of two cores, beside everything else that runs there."""

_INITDB = (
    *("-E", "UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
    *("-A", "scram-sha-256", "--no-instructions"),
)


class Postgres:
    def __init__(
        self,
        *,
        data_dir: Path,
        port: int,
        password: str,
        bin_dir: Path,
        log: Path | None = None,
        keep_open: Sequence[int] = (),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`data_dir` becomes the server's own; the log goes there unless named. `settings` go before SETTINGS.

        `keep_open` are file descriptors that every session of the server holds as well, as long as it lives.
        """
        self.port = port
        self.password = password
        self.bin_dir = bin_dir
        self._data_dir = data_dir.absolute()
        self._cluster = self._data_dir / "cluster"
        self._log = log or self._data_dir / "postgres.log"
        self._settings = {**SETTINGS, **(settings or {})}
        self._keep_open = keep_open
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        if self._process is None:
            raise StartFailure("Postgres was not started")
        return self._process

    def dsn(self, database: str = "postgres", *, role: str = SUPERUSER, password: str | None = None) -> str:
        secret = self.password if password is None else password
        return f"postgresql://{quote(role)}:{quote(secret, safe='')}@{LOOPBACK}:{self.port}/{quote(database)}"

    async def start(self, *, within_seconds: float = 30) -> None:
        """Create the cluster on first use, then serve it; returns when it accepts connections."""
        self._data_dir.mkdir(parents=True, exist_ok=True)
        prefix, uid = self._identity()
        _own(self._data_dir, os.geteuid() if uid is None else uid)
        if not self._cluster.exists():
            await asyncio.to_thread(self._create_cluster, prefix, uid)
        self._forget_recycled_pid()
        options = [text for name, value in self._settings.items() for text in ("-c", f"{name}={value}")]
        command = Command(
            argv=[*prefix, str(self.bin_dir / "postgres"), "-D", str(self._cluster), "-p", str(self.port), *options],
            environment=_environment(),
            log=self._log,
            keep_open=self._keep_open,
            directory=Path("/"),
            uid=uid,
            stop_signal=signal.SIGINT,  # Fast shutdown: sessions are cut, nothing committed is lost.
            orphan_signal=signal.SIGINT,
        )
        self._process = Process.spawn(command)
        await until_ready("Postgres", self._process, self._accepts, within_seconds=within_seconds)

    async def stop(self, *, within_seconds: float = 10) -> None:
        await self.process.stop(within_seconds=within_seconds)

    async def exited(self) -> int:
        return await self.process.exited()

    def last_words(self) -> str:
        return self.process.last_words()

    async def _accepts(self) -> bool:
        """As pg_ctl does: the server writes `ready` as the eighth line of its pid file."""
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.process.pid) and lines[7].strip() == "ready"

    def _identity(self) -> tuple[list[str], int | None]:
        """The words that go before a Postgres program, and the user to run it as."""
        if os.geteuid() != 0:
            return [], None
        postgres = str(self.bin_dir / "postgres")
        reach = 'cd "$1" && exec "$2" --version'
        probe = ["/bin/sh", "-c", reach, "sh", str(self._data_dir), postgres]
        if _succeeds(probe, uid=NOBODY):
            return [], NOBODY
        rename = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}", "--"]
        if _succeeds([*rename, postgres, "--version"], uid=None):
            return rename, None
        raise StartFailure(
            f"Postgres cannot run as root, and user {NOBODY} cannot reach {self._data_dir} and {postgres}: "
            "choose a data directory outside of private folders, or start as an ordinary user"
        )

    def _create_cluster(self, prefix: list[str], uid: int | None) -> None:
        """Under another name first: a cluster under its own name is whole, whenever we are killed."""
        draft = self._data_dir / "cluster.draft"
        secret = self._data_dir / "password.draft"
        shutil.rmtree(draft, ignore_errors=True)
        secret.unlink(missing_ok=True)
        try:
            with os.fdopen(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(self.password)
            if uid is not None:
                os.chown(secret, uid, uid)
            durable = self._settings.get("fsync") != "off"
            where = [f"--username={SUPERUSER}", f"--pwfile={secret}", "-D", str(draft)]
            made = _run_to_the_end(
                [*prefix, str(self.bin_dir / "initdb"), *_INITDB, *([] if durable else ["--no-sync"]), *where], uid=uid
            )
        finally:
            secret.unlink(missing_ok=True)
        if made.returncode != 0:
            shutil.rmtree(draft, ignore_errors=True)
            complaints = [line.strip() for line in made.stdout.splitlines() if "error" in line.lower()]
            reason = " | ".join(complaints) or made.stdout[-300:].strip()
            raise StartFailure(f"Postgres could not create {self._cluster}: {reason}")
        draft.rename(self._cluster)

    def _forget_recycled_pid(self) -> None:
        """After a power loss the pid file can name a process that has nothing to do with us; Postgres would refuse.

        A pid that is dead, or is a Postgres, is left to Postgres, which checks for living sessions before it starts.
        """
        file = self._cluster / "postmaster.pid"
        try:
            pid = int(file.read_text().split("\n", 1)[0])
            program = Path(f"/proc/{pid}/comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return
        if program != "postgres":
            file.unlink(missing_ok=True)


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _succeeds(argv: list[str], *, uid: int | None) -> bool:
    try:
        return _run_to_the_end(argv, uid=uid).returncode == 0
    except OSError:
        return False


def _run_to_the_end(argv: list[str], *, uid: int | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        env=_environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
        text=True,
        check=False,
    )


def _own(folder: Path, uid: int) -> None:
    """Hand the tree to `uid` where it belongs to another: an earlier start may have run as somebody else."""
    if folder.stat().st_uid == uid:
        return
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.lchown(os.path.join(place, name), uid, uid)
    os.chown(folder, uid, uid)
