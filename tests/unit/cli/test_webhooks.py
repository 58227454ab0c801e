"""How `headrace webhooks` says what the API says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner, Result

from infra.cli import main

HOOK: dict[str, Any] = {
    "id": "h1",
    "name": "pager",
    "url": "http://r/",
    "status": "active",
    "resources": ["run"],
    "facts": ["failed"],
}
TWIN: dict[str, Any] = {
    "id": "h2",
    "name": "twin",
    "url": "http://s/",
    "status": "paused",
    "pause_reason": "It is gone.",
}
OTHER_TWIN = {**TWIN, "id": "h3", "experiment_id": "e"}
DELIVERY = {"id": "d1", "created_at": "2026-01-02T03:04:05Z", "type": "kfp.run.failed.v1", "subject": "r"}


class _Gateway(BaseHTTPRequestHandler):
    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if path.endswith("/deliveries"):
            waits = {**DELIVERY, "status": "waiting", "tries": 2, "reason": "The receiver answers 500."}
            return self._answer({"deliveries": [waits, {**DELIVERY, "id": "d2", "status": "delivered", "tries": 1}]})
        if path.endswith("/webhooks"):
            return self._answer(self._listed(query))
        return self._answer(HOOK)

    def _listed(self, query: dict[str, list[str]]) -> Any:
        webhooks = [HOOK, TWIN, OTHER_TWIN]
        if "filter" in query:
            (predicate,) = json.loads(query["filter"][0])["predicates"]
            return {"webhooks": [each for each in webhooks if each["name"] == predicate["string_value"]]}
        if "page_token" in query:
            return {"webhooks": webhooks[2:]}
        return {"webhooks": webhooks[:2], "next_page_token": "more"}

    def do_POST(self) -> None:
        type(self).asked.append(("POST", self.path))
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.endswith(":test"):
            return self._answer({"code": 500, "reason": "The receiver answers 500."})
        return self._answer({**json.loads(body), "id": "new", "secret": "whsec_x"} if body else {})

    def do_DELETE(self) -> None:
        type(self).asked.append(("DELETE", self.path))
        self._answer({})

    def _answer(self, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    _Gateway.asked = []
    with HTTPServer(("127.0.0.1", 0), _Gateway) as server:
        answering = threading.Thread(target=server.serve_forever, args=(0.01,))
        answering.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        answering.join()


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["webhooks", *arguments], env={"HEADRACE_URL": url})


def test_the_secret_of_a_new_one_is_printed(url: str) -> None:
    assert run(url, "create", "pager", "http://r/", "--fact", "failed,error").stdout == "new  whsec_x\n"


def test_all_pages_are_listed_with_what_each_one_wants(url: str) -> None:
    assert run(url, "list").stdout.splitlines() == [
        "h1  active  pager  http://r/  run failed",
        "h2  paused  twin  http://s/  everything  It is gone.",
        "h3  paused  twin  http://s/  experiment=e  It is gone.",
    ]


def test_one_is_named_by_its_name_or_its_id(url: str) -> None:
    for name in ("pager", "h1"):
        assert run(url, "delete", name).exit_code == 0
        assert run(url, "pause", name).exit_code == 0
        assert run(url, "redeliver", name, "d1").exit_code == 0
    path = "/apis/headrace/v1/webhooks/h1"
    each = [("DELETE", path), ("POST", f"{path}:pause"), ("POST", f"{path}/deliveries/d1:redeliver")]
    assert _Gateway.asked == each * 2


def test_a_name_that_two_have_names_neither(url: str) -> None:
    refused = run(url, "delete", "twin")
    assert (refused.exit_code, refused.stderr) == (
        1,
        "headrace webhooks delete: 2 webhooks are called twin: h2, h3\n",
    )
    assert _Gateway.asked == []


def test_a_test_that_is_not_taken_fails(url: str) -> None:
    refused = run(url, "test", "pager")
    assert (refused.exit_code, refused.stderr) == (1, "headrace webhooks test: The receiver answers 500.\n")


def test_deliveries_tell_what_became_of_them(url: str) -> None:
    said = "2026-01-02T03:04:05Z  waiting    kfp.run.failed.v1  r  2 tries  The receiver answers 500."
    assert run(url, "deliveries", "pager").stdout.splitlines() == [
        f"d1  {said}",
        "d2  2026-01-02T03:04:05Z  delivered  kfp.run.failed.v1  r",
    ]
    assert run(url, "deliveries", "pager", "--last", "1").stdout.splitlines() == [f"d1  {said}"]
