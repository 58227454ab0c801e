"""What `headrace logs` does with its reader."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

_WITHIN_SECONDS = 30


class _Gateway(BaseHTTPRequestHandler):
    """Knows one run, which goes on for ever, as its two steps write for ever."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        if self.path.startswith("/apis/v1beta1/runs/r/nodes/"):
            with suppress(OSError):
                while True:
                    self.wfile.write(b"flour\n" * 1000)
        nodes = {each: {"id": each, "displayName": each, "type": "Pod", "startedAt": "2026-01-01"} for each in "ab"}
        manifest = json.dumps({"status": {"nodes": nodes}})
        detail = {"run": {"status": "Running"}, "pipeline_runtime": {"workflow_manifest": manifest}}
        with suppress(OSError):
            self.wfile.write(json.dumps(detail).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Gateway) as server:
        answering = threading.Thread(target=server.serve_forever, args=(0.01,))
        answering.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        answering.join()


@pytest.mark.parametrize("wanted", [(), ("a",)])
def test_it_ends_in_silence_where_nobody_reads_any_more(url: str, tmp_path: Path, wanted: tuple[str, ...]) -> None:
    """As `| head -1` does."""
    command = [sys.executable, "-m", "infra.cli", "logs", f"--url={url}", "r", *wanted, "-f"]
    with (tmp_path / "said").open("wb") as said:
        logs = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said)
    try:
        assert logs.stdout is not None
        assert logs.stdout.readline().endswith(b"flour\n")
        logs.stdout.close()
        assert logs.wait(_WITHIN_SECONDS) == 1
    finally:
        logs.kill()
        logs.wait()
    assert (tmp_path / "said").read_bytes() == b""
