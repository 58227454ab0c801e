"""Where `headrace logs` looks for the gateway."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from click.testing import CliRunner, Result

from infra.cli import main


class _Gateway(BaseHTTPRequestHandler):
    """Knows no run."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), _Gateway) as server:
        answering = threading.Thread(target=server.serve_forever)
        answering.start()
        yield server.server_port
        server.shutdown()
        answering.join()


def test_it_is_looked_for_where_headrace_up_was_told_to_answer(port: int) -> None:
    assert "the gateway answers 404" in _logs(HEADRACE_PORT=str(port)).stderr


def test_a_url_goes_before_the_port(port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    assert "the gateway answers 404" in _logs("--url", url, HEADRACE_PORT="1").stderr
    assert "the gateway answers 404" in _logs(HEADRACE_URL=url, HEADRACE_PORT="1").stderr


def test_a_port_that_is_none_is_one_line() -> None:
    assert _logs(HEADRACE_PORT="abc").stderr == "headrace logs: HEADRACE_PORT: 'abc' is not a port\n"


def _logs(*options: str, **variables: str) -> Result:
    given = {"HEADRACE_URL": "", "HEADRACE_PORT": "", "HEADRACE_TOKEN": ""} | variables
    result = CliRunner().invoke(main, ["logs", *options, "some-run"], env=given)
    assert result.exit_code == 1
    return result
