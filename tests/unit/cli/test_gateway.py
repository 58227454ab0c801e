"""Where commands look for the gateway, and what they say where there is none; `headrace logs` is one of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from infra.cli import main
from infra.embedded.ports import free_ports
from tests.support.stack_folder import stack_on


class _Gateway(BaseHTTPRequestHandler):
    """Knows no run."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b'{"error": "no such run"}')

    def log_message(self, *_: object) -> None: ...


class _Careful(_Gateway):
    """Wants a token."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b'{"error": "The request has no token."}')


class _Stranger(_Gateway):
    """Has a page for everybody."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>welcome</html>")


@contextmanager
def answering(kind: type[_Gateway]) -> Iterator[int]:
    """The port at which such a one answers."""
    with HTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def port() -> Iterator[int]:
    with answering(_Gateway) as found:
        yield found


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Logs:
    """In a folder on which no stack has run."""
    monkeypatch.chdir(tmp_path)
    return _Logs()


class _Logs:
    def __call__(self, *options: str, **variables: str) -> Result:
        given = dict.fromkeys(("HEADRACE_URL", "HEADRACE_PORT", "HEADRACE_TOKEN", "HEADRACE_DATA_DIR"), "") | variables
        result = CliRunner().invoke(main, ["logs", *options, "some-run"], env=given)
        assert result.exit_code == 1
        return result


def test_it_is_looked_for_where_headrace_up_was_told_to_answer(logs: _Logs, port: int) -> None:
    assert logs(HEADRACE_PORT=str(port)).stderr == "headrace logs: no such run\n"


def test_a_url_goes_before_the_port(logs: _Logs, port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    assert "no such run" in logs("--url", url, HEADRACE_PORT="1").stderr
    assert "no such run" in logs(HEADRACE_URL=url, HEADRACE_PORT="1").stderr


def test_a_stack_that_runs_on_the_data_directory_is_found(logs: _Logs, port: int, tmp_path: Path) -> None:
    with stack_on(tmp_path / ".headrace", {"gateway": port}):
        assert "no such run" in logs().stderr
    with stack_on(tmp_path / "elsewhere", {"gateway": port}):
        assert "no such run" in logs(HEADRACE_DATA_DIR=str(tmp_path / "elsewhere")).stderr


def test_who_says_a_port_does_not_mean_the_stack_of_the_data_directory(logs: _Logs, port: int, tmp_path: Path) -> None:
    (other,) = free_ports(1)
    with stack_on(tmp_path / ".headrace", {"gateway": port}):
        assert f"http://127.0.0.1:{other} " in logs(HEADRACE_PORT=str(other)).stderr


def test_nothing_is_asked_in_the_name_of_a_stack_that_does_not_run(logs: _Logs, port: int, tmp_path: Path) -> None:
    """Whoever answers at its port by now is another one."""
    with stack_on(tmp_path / ".headrace", {"gateway": port}):
        pass
    assert "no such run" not in logs().stderr


def test_where_none_answers_it_is_told_where_it_was_looked_for_and_how_to_say_another_place(logs: _Logs) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    assert logs(f"--url={url}").stderr == (
        f"headrace logs: no gateway answers at {url} (Connection refused); "
        "--url, HEADRACE_URL, HEADRACE_PORT or HEADRACE_DATA_DIR say where it is\n"
    )


def test_who_answers_and_is_no_gateway_is_said_to_be_none(logs: _Logs) -> None:
    with answering(_Stranger) as port:
        refusal = logs(HEADRACE_PORT=str(port)).stderr
    assert f"what answers at http://127.0.0.1:{port} is no gateway of Headrace; --url, " in refusal


def test_who_wants_a_token_is_said_to_be_given_one_and_how(logs: _Logs) -> None:
    with answering(_Careful) as port:
        refusal = logs(HEADRACE_PORT=str(port)).stderr
    assert refusal == "headrace logs: The request has no token. (--token or HEADRACE_TOKEN)\n"


def test_an_address_that_is_none_is_one_line(logs: _Logs) -> None:
    assert logs(HEADRACE_PORT="abc").stderr == "headrace logs: HEADRACE_PORT: 'abc' is not a port\n"
    refusal = logs("--url", "localhost:8888").stderr
    assert refusal == "headrace logs: 'localhost:8888' is not the address of a gateway: say http://… or https://…\n"
