"""The containers' health check beside what it asks; no container engine is needed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.embedded.ports import free_ports
from tests.containers.images import PROJECT

_SCRIPT = PROJECT / "infra/docker/ready.py"


def _check(**told: str) -> subprocess.CompletedProcess[str]:
    """Run as the containers run it: without site packages."""
    return subprocess.run(
        [sys.executable, "-I", "-S", str(_SCRIPT)],
        env={name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")} | told,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def _answering_once(listener: socket.socket, answer: bytes) -> Callable[[], bytes]:
    """Serve one connection; the returned function waits and tells what was asked."""
    asked: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            asked.append(connection.recv(4096))
            connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    def tell() -> bytes:
        thread.join(timeout=10)
        listener.close()
        return asked[0]

    return tell


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", None),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\nno database\n", "HTTP/1.1 503 Service Unavailable: no database"),
        (b"", ": "),
    ],
)
def test_a_process_with_http_is_ready_when_it_says_so_itself(answer: bytes, reason: str | None) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    asked = _answering_once(listener, answer)
    done = _check(HEADRACE_LISTEN_PORT=str(listener.getsockname()[1]))
    assert asked().startswith(b"GET /readyz HTTP/1.0\r\n")
    assert (done.returncode, done.stderr.rstrip("\n")) == ((0, "") if reason is None else (1, reason))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b'{"type":"info","runtime":"bubblewrap","weaker":null}\n', None),
        (b'{"type":"info","runtime":"bubblewrap","weaker":"steps cannot write to /etc"}\n', None),
        (b'{"type":"info","runtime":"none","weaker":"no sandbox: forbidden"}\n', "no sandbox: forbidden"),
    ],
)
def test_the_step_runner_is_ready_when_it_has_a_sandbox(tmp_path: Path, answer: bytes, reason: str | None) -> None:
    path = str(tmp_path / "steps.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    asked = _answering_once(listener, answer)
    done = _check(HEADRACE_STEP_RUNNER_SOCKET=path)
    assert asked() == b'{"type":"info"}\n'
    assert (done.returncode, done.stderr.rstrip("\n")) == ((0, "") if reason is None else (1, reason))


def test_nobody_listening_is_not_ready() -> None:
    (port,) = free_ports(1)
    done = _check(HEADRACE_LISTEN_PORT=str(port))
    assert done.returncode == 1
    assert "refused" in done.stderr


def test_who_is_told_nothing_is_not_ready() -> None:
    assert _check().returncode == 1
