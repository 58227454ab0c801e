"""A container engine for tests: the one that answers, else a dockerd of our own that is gone afterwards.

One that cannot run a trivial container with a network of its own is none: not every machine lets it. Our own needs root
and Debian's `docker.io`. It lives in a temporary folder with a socket of its own, so it meets nobody else's containers;
what it changes of the machine's network is put back as it was.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from infra.embedded import binaries

_ANSWERS_WITHIN_SECONDS = 30
_ENDS_WITHIN_SECONDS = 30
_PROVES_WITHIN_SECONDS = 120


class NoEngine(Exception):
    """None answers and none can be started; the text says why."""


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """`environment` is what clients of the engine run in."""

    environment: Mapping[str, str]
    version: str
    is_ours: bool

    def docker(self, *arguments: str, check: bool = True, within_seconds: float = 600) -> str:
        """Run a docker command; its output. Raises CommandFailed."""
        return self.run("docker", *arguments, check=check, within_seconds=within_seconds)

    def run(self, *command: str, check: bool = True, within_seconds: float = 600) -> str:
        done = subprocess.run(
            command,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=within_seconds,
            check=False,
        )
        if check and done.returncode != 0:
            raise CommandFailed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout


class CommandFailed(Exception):
    """What was run, and all that it said."""


@contextmanager
def container_engine() -> Iterator[Engine]:
    """Raises NoEngine."""
    # Compose prefers a variable, even an empty one, to the line of an environment file.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    if version := _answering(environment):
        yield _proven(Engine(environment=_for_clients(environment), version=version, is_ours=False))
        return
    if shutil.which("docker") is None:
        raise NoEngine("there is no docker command")
    with _own_daemon() as socket:
        environment["DOCKER_HOST"] = f"unix://{socket}"
        version = _answering(environment)
        if version is None:
            raise NoEngine("our own dockerd came up and does not answer")
        yield _proven(Engine(environment=_for_clients(environment), version=version, is_ours=True))


def _proven(engine: Engine) -> Engine:
    """Raises NoEngine with its own words, unless it runs one static program on a network."""
    name = f"headrace-proof-{secrets.token_hex(4)}"
    program = binaries.nats_server()
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-proof-") as folder:
            root = Path(folder, "root.tar")
            with tarfile.open(root, "w") as tar:
                tar.add(program, "program")
            engine.docker("import", str(root), name, within_seconds=_PROVES_WITHIN_SECONDS)
        engine.docker("network", "create", name, within_seconds=_PROVES_WITHIN_SECONDS)
        engine.docker(
            *("run", "--rm", "--name", name, "--network", name, name, "/program", "--version"),
            within_seconds=_PROVES_WITHIN_SECONDS,
        )
    except (CommandFailed, subprocess.TimeoutExpired) as error:
        raise NoEngine(f"the engine cannot run a container here: {' '.join(str(error).split())}") from error
    finally:
        with suppress(subprocess.TimeoutExpired):
            for what in (("rm", "--force", name), ("network", "rm", name), ("image", "rm", "--force", name)):
                engine.docker(*what, check=False, within_seconds=_ANSWERS_WITHIN_SECONDS)
    return engine


def _for_clients(environment: Mapping[str, str]) -> dict[str, str]:
    """The old builder where the client lacks the new one."""
    has_buildx = subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode == 0
    return {**environment} if has_buildx else {**environment, "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0"}


def _answering(environment: Mapping[str, str]) -> str | None:
    """The server's version, if one answers."""
    try:
        done = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"],
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


@contextmanager
def _own_daemon() -> Iterator[Path]:
    program = shutil.which("dockerd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        raise NoEngine("no engine answers `docker version`, and there is no dockerd to start one")
    if os.geteuid() != 0:
        raise NoEngine("no engine answers `docker version`, and only root can start one")
    folder = Path(tempfile.mkdtemp(prefix="headrace-docker-"))
    socket = folder / "docker.sock"
    with _network_as_it_was(), (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [
                program,
                *("-H", f"unix://{socket}", "-p", str(folder / "pid")),
                *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _until_it_answers(daemon, socket, folder / "log")
            yield socket
        finally:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(_ENDS_WITHIN_SECONDS)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
            shutil.rmtree(folder, ignore_errors=True)


def _until_it_answers(daemon: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    deadline = time.monotonic() + _ANSWERS_WITHIN_SECONDS
    while _answering({**os.environ, "DOCKER_HOST": f"unix://{socket}"}) is None:
        if daemon.poll() is not None or time.monotonic() > deadline:
            last_words = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
            raise NoEngine(f"dockerd does not come up: {last_words}")
        time.sleep(0.1)


@contextmanager
def _network_as_it_was() -> Iterator[None]:
    """A dockerd leaves its bridge and its packet filter rules behind."""
    had_bridge = _has_bridge()
    rules = subprocess.run(["iptables-save"], capture_output=True, check=False).stdout
    try:
        yield
    finally:
        if not had_bridge and _has_bridge():
            subprocess.run(["ip", "link", "delete", "docker0"], check=False)
        # A table that had no rules is not in what was saved.
        for table in ("nat", "filter"):
            if f"*{table}".encode() not in rules:
                rules += f"*{table}\n{_OPEN[table]}COMMIT\n".encode()
        subprocess.run(["iptables-restore"], input=rules, check=False)


_OPEN = {
    "nat": "".join(f":{chain} ACCEPT\n" for chain in ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")),
    "filter": "".join(f":{chain} ACCEPT\n" for chain in ("INPUT", "FORWARD", "OUTPUT")),
}


def _has_bridge() -> bool:
    return Path("/sys/class/net/docker0").exists()
