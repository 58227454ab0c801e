"""Whether the process in this container is ready: a script, the containers' health check.

It asks what the process itself publishes: `/readyz` where it listens for HTTP, its socket where it is the step runner.
Every container runs it every few seconds for ever, so it imports next to nothing: an HTTP client, or an interpreter
that looks for packages, would be most of what an idle house costs.
"""

from __future__ import annotations

import json
import os
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not worth its import here
    from collections.abc import Mapping

_WITHIN_SECONDS = 4


def why_not_ready(environment: Mapping[str, str]) -> str | None:
    """None when it is. The process is the one that `environment` describes."""
    try:
        if port := environment.get("HEADRACE_LISTEN_PORT"):
            return _why_not_over_http(int(port))
        if path := environment.get("HEADRACE_STEP_RUNNER_SOCKET"):
            return _why_no_steps(path)
    except (OSError, ValueError) as error:
        return str(error)
    return "neither HEADRACE_LISTEN_PORT nor HEADRACE_STEP_RUNNER_SOCKET is set"


def _why_not_over_http(port: int) -> str | None:
    with socket.create_connection(("127.0.0.1", port), timeout=_WITHIN_SECONDS) as connection:
        connection.sendall(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
        with connection.makefile("rb") as answer:
            head, _, body = answer.read().decode(errors="replace").partition("\r\n\r\n")
    status = head.partition("\r\n")[0]
    return None if status.split(" ")[1:2] == ["200"] else f"{status}: {body.strip()}"


def _why_no_steps(path: str) -> str | None:
    """Steps that run in less than the full sandbox run; steps without one do not."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_WITHIN_SECONDS)
        connection.connect(path)
        connection.sendall(b'{"type":"info"}\n')
        with connection.makefile("rb") as answer:
            info = json.loads(answer.readline())
    return info["weaker"] if info.get("runtime", "none") == "none" else None


if __name__ == "__main__":
    sys.exit(why_not_ready(os.environ))
