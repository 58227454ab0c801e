"""The whole stack, started once per session as a person would start it: `headrace up`, a free port, a fresh folder."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from infra.embedded.ports import free_ports
from shared.bearer import digest_of
from tests.support.step_sandbox import demand_full_sandbox

AGENT_TOKEN = "the agent's token"
"""By which reports of another engine are taken."""

REPLICAS = os.environ.get("HEADRACE_TEST_REPLICAS", "")
"""How many of each service work in the stacks of tests, as `headrace up --replicas` is told; one, unless said."""

_READY_WITHIN_SECONDS = 180
_STOP_WITHIN_SECONDS = 30
_SERVERS = ("postgres", "nats", "object-store")


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """A running stack. `url` is the gateway's."""

    url: str
    data_dir: Path
    secrets_dir: Path | None
    """What pipelines are given: a secret `given` with the key `token`."""
    process: subprocess.Popen[str]

    def logs(self) -> str:
        """The last lines of our processes, for the report of a failed test."""
        folder = self.data_dir / "logs"
        ours = (file for file in sorted(folder.glob("*.log")) if file.stem not in _SERVERS)
        parts = (f"== {file.name}\n{_tail(file)}" for file in ours)
        return "\n".join(parts)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    # A short path, for the step runner's socket, in a directory that steps see: what they must not see of it is masked.
    with tempfile.TemporaryDirectory(prefix="headrace-", dir="/var/tmp") as folder:
        secrets_dir = Path(folder, "secrets")
        (secrets_dir / "given").mkdir(parents=True)
        (secrets_dir / "given" / "token").write_text(secrets.token_hex(24))
        with running(Path(folder, "data"), secrets_dir=secrets_dir) as stack:
            yield stack


@contextmanager
def running(
    data_dir: Path, *, port: int | None = None, secrets_dir: Path | None = None, replicas: str = REPLICAS
) -> Iterator[Stack]:
    """Run `headrace up` on `data_dir` and stop it in order at the end; with the default runtime or not at all.

    What still runs at the end is interrupted.
    """
    port = port or free_ports(1)[0]
    where = ["--port", str(port), "--data-dir", str(data_dir), "--replicas", replicas]
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.cli", "up", *where],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environment(secrets_dir),
        start_new_session=True,
    )
    said: list[str] = []
    ready = threading.Event()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line.startswith("headrace ready "):
                ready.set()
        ready.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        ready.wait(timeout=_READY_WITHIN_SECONDS)
        if not any(line.startswith("headrace ready ") for line in said):
            pytest.fail(f"the stack did not start:\n{''.join(said)}")
        demand_full_sandbox(data_dir / "run" / "steps.sock")
        url = f"http://127.0.0.1:{port}"
        yield Stack(url=url, data_dir=data_dir, secrets_dir=secrets_dir, process=process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=_STOP_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        listener.join(timeout=5)
        if process.stdout is not None:
            process.stdout.close()


def _environment(secrets_dir: Path | None) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    own["HEADRACE_STOP_STEPS"] = "interrupt"
    own["HEADRACE_AGENT_TOKEN_SHA256"] = digest_of(AGENT_TOKEN)
    return own if secrets_dir is None else {**own, "HEADRACE_SECRETS_DIR": str(secrets_dir)}


def _tail(file: Path, lines: int = 40) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])
