"""The house of docker-compose.yml, as a test brings it up, looks into it and takes it down."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from infra.embedded.ports import free_ports
from tests.containers.engine import CommandFailed, Engine
from tests.containers.images import PROJECT, PYTHON_IMAGE

SYSTEM_PATHS = ', "systempaths=unconfined"]'


class NoCompose(Exception):
    """Neither `docker compose` nor `docker-compose` is installed."""


class NoPackages(Exception):
    """Nothing can be installed in a container of this machine."""


class House(msgspec.Struct, frozen=True, kw_only=True):
    engine: Engine
    compose_command: tuple[str, ...]
    url: str
    project: str

    def compose(self, *arguments: str, within_seconds: float = 600) -> str:
        return self.engine.run(*self.compose_command, *arguments, within_seconds=within_seconds)

    def container_of(self, service: str) -> str:
        return self.compose("ps", "-q", service).strip()

    def run_in(self, service: str, *command: str) -> str:
        return self.engine.docker("exec", self.container_of(service), *command)

    def state_of(self, service: str) -> dict[str, Any]:
        """The engine's own account of the one container of a service."""
        (described,) = json.loads(self.engine.docker("inspect", self.container_of(service)))
        assert isinstance(described, dict)
        return described

    def up(self) -> float:
        """Start what does not run; the seconds until every health check has passed."""
        begun = time.monotonic()
        self.compose("up", "-d")
        while unhealthy := self._not_healthy_yet():
            if time.monotonic() - begun > 120:
                raise AssertionError(f"not healthy: {unhealthy}\n{self.compose('logs', '--tail=20')}")
            time.sleep(0.2)
        return time.monotonic() - begun

    def _not_healthy_yet(self) -> dict[str, str]:
        """Containers that have a health check which has not passed, or that have failed."""
        ours = f"label=com.docker.compose.project={self.project}"
        listed = self.engine.docker("ps", "--all", "--filter", ours, "--format", "{{.Names}}\t{{.Status}}")
        states = dict(line.split("\t") for line in listed.splitlines())
        return {
            name: state
            for name, state in states.items()
            if not state.startswith("Exited (0)") and ("Up" not in state or "health: " in state or "unhealthy" in state)
        }


@contextmanager
def built(engine: Engine, folder: Path) -> Iterator[House]:
    """The images built, nothing started. Everything of it is gone at the end."""
    port = free_ports(1)[0]
    project = f"headrace-test-{secrets.token_hex(4)}"
    program = _program(engine)
    house = House(
        engine=engine,
        compose_command=(
            *program,
            *("--project-name", project, "--project-directory", str(PROJECT)),
            *("--env-file", str(_secrets(folder, port)), "--file", str(_file(program, folder))),
        ),
        url=f"http://127.0.0.1:{port}",
        project=project,
    )
    try:
        house.compose("build")
    except CommandFailed as error:
        if _finds_packages(engine):
            raise
        raise NoPackages(f"containers do not reach a package index here: {error}") from error
    try:
        yield house
    finally:
        house.compose("down", "--volumes", "--timeout", "20")


def _finds_packages(engine: Engine) -> bool:
    look = ("python3", "-m", "pip", "download", "--no-deps", "--dest", "/tmp", "msgspec")
    try:
        engine.docker("run", "--rm", PYTHON_IMAGE, *look)
    except CommandFailed:
        return False
    return True


def _secrets(folder: Path, port: int) -> Path:
    """As .env.example tells: a random value in place of every change-me."""
    lines = (PROJECT / ".env.example").read_text().splitlines()
    made = [
        f"{line.partition('=')[0]}={secrets.token_hex(24)}"
        if "=change-me" in line and not line.startswith("#")
        else line
        for line in lines
    ]
    file = folder / "env"
    file.write_text("\n".join([*made, f"HEADRACE_PORT={port}", ""]))
    return file


def _program(engine: Engine) -> tuple[str, ...]:
    plugin = subprocess.run(
        ["docker", "compose", "version"], env=dict(engine.environment), capture_output=True, check=False
    )
    if plugin.returncode == 0:
        return ("docker", "compose")
    if shutil.which("docker-compose") is None:
        raise NoCompose("neither `docker compose` nor `docker-compose` is installed")
    return ("docker-compose",)


def _file(program: tuple[str, ...], folder: Path) -> Path:
    """docker-compose.yml itself, but for version 1 of the program, which cannot say `systempaths`.

    There the step runner's container is a privileged one, still of an ordinary user without any capability in effect:
    nothing less gives it a whole /proc.
    """
    original = PROJECT / "docker-compose.yml"
    if program != ("docker-compose",):
        return original
    text = original.read_text()
    assert text.count(SYSTEM_PATHS) == 1, "docker-compose.yml says systempaths elsewhere now"
    changed = folder / "docker-compose.yml"
    changed.write_text(text.replace(SYSTEM_PATHS, "]\n    privileged: true"))
    return changed
