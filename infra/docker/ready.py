"""Whether the process in this container is ready: `python -m infra.docker.ready`, the containers' health check.

It asks what the process itself publishes: `/readyz` where it listens for HTTP, its socket where it is the step runner.
The image has no curl, and a check every few seconds must cost little: the standard library alone.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException

_WITHIN_SECONDS = 4


def why_not_ready(environment: Mapping[str, str]) -> str | None:
    """None when it is. The process is the one that `environment` describes."""
    try:
        if port := environment.get("HEADRACE_LISTEN_PORT"):
            return _why_not_over_http(int(port))
        if path := environment.get("HEADRACE_STEP_RUNNER_SOCKET"):
            return _why_no_steps(path)
    except (OSError, ValueError, HTTPException) as error:
        return str(error)
    return "neither HEADRACE_LISTEN_PORT nor HEADRACE_STEP_RUNNER_SOCKET is set"


def _why_not_over_http(port: int) -> str | None:
    connection = HTTPConnection("127.0.0.1", port, timeout=_WITHIN_SECONDS)
    connection.request("GET", "/readyz")
    answer = connection.getresponse()
    text = answer.read().decode(errors="replace").strip()
    return None if answer.status == 200 else f"{answer.status}: {text}"


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
