"""What `headrace dead` asks the gateway for, and what it makes of the answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from click.testing import CliRunner, Result

from infra.cli import main

DEAD = "/apis/headrace/v1/dead"


def _letter(letter_id: str) -> dict[str, Any]:
    return {
        "subscriber": "run",
        "id": letter_id,
        "type": "kfp.metrics.reported.v1",
        "subject": "r",
        "reason": "it makes no sense",
        "put_aside_at": "2026-01-02T03:04:05Z",
    }


class _Gateway(BaseHTTPRequestHandler):
    """Lists two letters, on a page each, and keeps what was asked; the first of them cannot be applied."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append((self.command, self.path))
        is_refused = self.path == f"{DEAD}/run/a:retry"
        answer: dict[str, Any] = {"dead_letters": [_letter("a")], "total_size": 2, "next_page_token": "t="}
        if "page_token=t%3D" in self.path:
            answer = {"dead_letters": [_letter("b")], "total_size": 2}
        if is_refused:
            answer = {"details": [{"error_message": "still not"}]}
        self.send_response(409 if is_refused else 200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    do_POST = do_DELETE = do_GET  # noqa: N815 - names that the library knows

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def gateway() -> Iterator[Any]:
    with HTTPServer(("127.0.0.1", 0), _Gateway) as server:
        server.asked = []  # type: ignore[attr-defined] # the handler knows it
        answering = threading.Thread(target=server.serve_forever, args=(0.01,))
        answering.start()
        yield server
        server.shutdown()
        answering.join()


def _dead(gateway: Any, *arguments: str) -> Result:
    variables = {"HEADRACE_URL": f"http://127.0.0.1:{gateway.server_port}", "HEADRACE_TOKEN": ""}
    return CliRunner().invoke(main, ["dead", *arguments], env=variables)


def test_all_pages_are_listed(gateway: Any) -> None:
    listed = _dead(gateway, "list", "--subscriber", "run")
    assert listed.exit_code == 0
    first, second = listed.stdout.splitlines()
    assert " ".join(first.split()) == "2026-01-02T03:04:05Z run a kfp.metrics.reported.v1 r it makes no sense"
    assert second.split()[2] == "b"
    pages = f"{DEAD}?subscriber=run&page_size=200&page_token="
    assert gateway.asked == [("GET", pages), ("GET", f"{pages}t%3D")]


def test_one_is_shown_and_one_is_retried(gateway: Any) -> None:
    assert json.loads(_dead(gateway, "show", "run", "a").stdout)["total_size"] == 2
    assert _dead(gateway, "retry", "run", "b").exit_code == 0
    assert _dead(gateway, "retry", "run", "a").stderr == "headrace dead retry: still not\n"
    retries = [("POST", f"{DEAD}/run/b:retry"), ("POST", f"{DEAD}/run/a:retry")]
    assert gateway.asked == [("GET", f"{DEAD}/run/a"), *retries]


def test_one_is_deleted(gateway: Any) -> None:
    assert _dead(gateway, "delete", "run", "a/b").exit_code == 0
    assert gateway.asked == [("DELETE", f"{DEAD}/run/a%2Fb")]


def test_one_that_is_dead_still_does_not_keep_the_others_from_being_tried(gateway: Any) -> None:
    retried = _dead(gateway, "retry", "--all")
    assert retried.exit_code == 1
    assert retried.stderr == "still not\n"
    assert retried.stdout.startswith("applied: ")
    retries = [path for method, path in gateway.asked if method == "POST"]
    assert retries == [f"{DEAD}/run/a:retry", f"{DEAD}/run/b:retry"]


@pytest.mark.parametrize("arguments", [(), ("run",), ("run", "a", "--all")])
def test_what_is_to_be_retried_is_said_in_one_way(gateway: Any, arguments: tuple[str, ...]) -> None:
    assert _dead(gateway, "retry", *arguments).exit_code == 2
    assert gateway.asked == []
