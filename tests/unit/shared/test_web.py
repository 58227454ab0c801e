"""The HTTP door, through a Litestar application with one resource that does nothing but tell what it was asked."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from litestar import Request, Response
from litestar.di import NamedDependency
from litestar.params import FromPath

from shared import telemetry, web
from shared.errors import InvalidInput, NotFound, layer

ROOT = "http://headrace"


class Seen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    verb: str = ""
    id: str = ""
    body: str = ""
    traceparent: str = ""


@web.post("/apis/v1beta1/runs")
async def create(request: Request[Any, Any, Any]) -> Response[bytes]:
    return web.reply(Seen(verb="create", body=(await request.body()).decode()))


@web.get("/apis/v1beta1/runs/{run_id:str}")
async def read(run_id: FromPath[str], suffix: NamedDependency[str]) -> Response[bytes]:
    if run_id.endswith(suffix):
        return web.reply(Seen(verb="read", id=run_id, traceparent=telemetry.current_traceparent()))
    with layer("Get run failed"):
        raise NotFound.of("Run", run_id)


@web.get("/apis/v1beta1/runs")
async def find(request: Request[Any, Any, Any]) -> Response[bytes]:
    return web.reply(Seen(verb="find", body=request.scope["query_string"].decode()))


@web.get("/apis/v1beta1/jobs")
async def find_jobs(request: Request[Any, Any, Any]) -> Response[bytes]:
    return web.reply(Seen(verb="find jobs", body=request.scope["query_string"].decode()))


@web.delete("/apis/v1beta1/runs/{run_id:str}")
async def erase(run_id: FromPath[str]) -> Response[bytes]:
    if run_id == "bug":
        raise KeyError("secret detail")
    return web.reply()


@web.post("/apis/v1beta1/runs/{run_id:str}/:archive")
async def archive(run_id: FromPath[str]) -> Response[bytes]:
    return web.reply(Seen(verb="archive", id=run_id))


@web.post("/apis/v1beta1/runs/{run_id:str}/retry")
async def retry(run_id: FromPath[str]) -> Response[bytes]:
    raise InvalidInput("cannot retry", cause=run_id)


@web.post("/apis/v1beta1/pipelines/{pipeline_id:str}/default_version/{version_id:str}")
async def choose(pipeline_id: FromPath[str], version_id: FromPath[str]) -> Response[bytes]:
    return web.reply(Seen(verb="choose", id=f"{pipeline_id} {version_id}"))


@web.get("/apis/v1beta1/runs/{run_id:str}/nodes/{node_id:str}/artifacts/{name:str}/:read")
async def read_artifact(run_id: FromPath[str], node_id: FromPath[str], name: FromPath[str]) -> Response[bytes]:
    return web.reply(Seen(verb="artifact", id=f"{run_id} {node_id} {name}"))


class Backing:
    """Something the service depends on."""

    def __init__(self) -> None:
        self.answers = True

    async def check(self) -> None:
        if not self.answers:
            raise ConnectionError("nobody home")


@pytest.fixture
def backing() -> Backing:
    return Backing()


@pytest.fixture
def app(backing: Backing) -> web.Service:
    return web.create_app(
        service="web-test",
        routes=[create, find, find_jobs, read, erase, archive, retry, choose, read_artifact],
        ready=[backing.check],
        dependencies={"suffix": "known"},
    )


@pytest.fixture
async def client(app: web.Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url=f"{ROOT}/apis/v1beta1/") as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "verb", "run_id"),
    [
        ("GET", "runs/known", "read", "known"),
        ("POST", "runs/a:archive", "archive", "a"),
        ("POST", "runs/a%3Aarchive", "archive", "a"),
        ("POST", "runs/a:b:archive", "archive", "a:b"),
        ("POST", "runs/a b'\":archive", "archive", "a b'\""),
        ("GET", "runs/r/nodes/n:1/artifacts/main.log:read", "artifact", "r n:1 main.log"),
        ("POST", "pipelines/p/default_version/v", "choose", "p v"),
    ],
)
async def test_a_request_reaches_the_handler_of_its_verb(
    client: httpx.AsyncClient, method: str, path: str, verb: str, run_id: str
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == 200
    assert answer.json()["verb"] == verb
    assert answer.json()["id"] == run_id
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["grpc-metadata-content-type"] == "application/grpc"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "nothing"),
        ("GET", "runs/known:b"),
        ("GET", "runs/known:"),
        ("POST", "runs/:archive"),
        ("POST", "runs/a/:archive"),
        ("POST", "runs/a:Archive"),
        ("POST", "pipelines/p/default_version:v"),
        ("GET", "runs/a%2Fb"),
        ("GET", "runs/" + "x" * 9000),
        ("POST", "runs/a/retry/"),
        ("GET", "runs/r/nodes/n/artifacts/main.log"),
    ],
)
async def test_a_path_that_no_route_has_is_a_text_404(client: httpx.AsyncClient, method: str, path: str) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.text) == (404, "Not Found\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "runs/"),
        ("POST", "runs/a"),
        ("PUT", "runs"),
        ("HEAD", "runs/a"),
        ("OPTIONS", "runs/a"),
        ("OPTIONS", "runs"),
        ("GET", "runs/a:archive"),
    ],
)
async def test_a_method_that_the_path_lacks_is_a_text_405(client: httpx.AsyncClient, method: str, path: str) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == 405
    assert "allow" not in answer.headers
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    if method != "HEAD":
        assert answer.text == "Method Not Allowed\n"


@pytest.mark.parametrize(
    ("path", "run_id"),
    [
        ("runs/", ""),
        ("runs/%00", "\ufffd"),
        ("runs/%FF%FE", "\ufffd\ufffd"),
        ("runs/%27%22%20;drop", "'\" ;drop"),
        ("runs/" + "x" * 4000, "x" * 4000),
    ],
)
async def test_an_id_that_cannot_exist_is_not_found_like_any_other(
    client: httpx.AsyncClient, path: str, run_id: str
) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    error = f"Get run failed: ResourceNotFoundError: Run {run_id} not found."
    assert answer.json() == {
        "error": error,
        "message": error,
        "code": 5,
        "details": [
            {
                "@type": "type.googleapis.com/api.Error",
                "error_message": f"Run {run_id} not found.",
                "error_details": error,
            }
        ],
    }
    assert "grpc-metadata-content-type" not in answer.headers


async def test_an_empty_id_does_not_stick_to_the_routers_cache(client: httpx.AsyncClient) -> None:
    first, second = await client.get("runs/"), await client.get("runs/")
    assert first.json()["details"][0]["error_message"] == "Run  not found."
    assert second.json() == first.json()


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("runs//known", "/apis/v1beta1/runs/known"),
        (f"{ROOT}/apis//v1beta1/runs/", "/apis/v1beta1/runs/"),
        ("runs/%2E%2E/pipelines?a=1&b=%20", "/apis/v1beta1/pipelines?a=1&b=%20"),
        ("runs/%2E/a%20b", "/apis/v1beta1/runs/a%20b"),
    ],
)
async def test_an_unclean_path_is_sent_to_the_clean_one(client: httpx.AsyncClient, path: str, location: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["location"]) == (301, location)


async def test_a_dot_in_a_name_is_no_reason_to_redirect(client: httpx.AsyncClient) -> None:
    assert (await client.get("runs/.known")).json()["id"] == ".known"


async def test_creating_answers_200_with_the_body_as_it_was_sent(client: httpx.AsyncClient) -> None:
    answer = await client.post("runs", content=b"anything", headers={"content-type": "text/csv"})
    assert (answer.status_code, answer.json()) == (200, {"verb": "create", "body": "anything"})


async def test_a_form_posted_where_nothing_is_posted_is_a_long_get(client: httpx.AsyncClient) -> None:
    form = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
    answer = await client.post("jobs?page_size=2", content=b"filter=%7B%7D", headers=form)
    assert (answer.status_code, answer.json()) == (200, {"verb": "find jobs", "body": "filter=%7B%7D&page_size=2"})
    assert (await client.post("jobs", content=b"filter=%7B%7D")).status_code == 405
    assert (await client.post("runs/lost", content=b"", headers=form)).status_code == 404
    text = (await client.get(f"{ROOT}/metrics")).text
    assert 'code="200",method="POST",route="/apis/v1beta1/jobs",service="web-test"' in text


async def test_a_form_posted_where_something_is_posted_is_a_post(client: httpx.AsyncClient) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert (await client.post("runs", content=b"{}", headers=form)).json() == {"verb": "create", "body": "{}"}
    overridden = await client.post("runs/a", headers={**form, "x-http-method-override": "delete"})
    assert (overridden.status_code, overridden.content) == (200, b"{}")
    ignored = await client.post("runs/a", headers={"x-http-method-override": "delete"})
    assert ignored.status_code == 405


async def test_a_large_body_passes(client: httpx.AsyncClient) -> None:
    answer = await client.post("runs", content=b"x" * 12_000_000)
    assert len(answer.json()["body"]) == 12_000_000


async def test_an_empty_result_is_an_empty_object(client: httpx.AsyncClient) -> None:
    answer = await client.delete("runs/a")
    assert (answer.status_code, answer.content) == (200, b"{}")


async def test_a_refusal_carries_its_own_status(client: httpx.AsyncClient) -> None:
    answer = await client.post("runs/a/retry")
    assert answer.status_code == 400
    assert answer.json()["error"] == "InvalidInputError: cannot retry: a"


async def test_an_unexpected_failure_is_logged_whole_and_told_short(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = await client.delete("runs/bug")
    assert answer.status_code == 500
    assert answer.json()["code"] == 13
    assert answer.json()["details"][0]["error_message"] == "Internal Server Error"
    assert "secret" not in answer.text
    assert "KeyError: 'secret detail'" in caplog.text


async def test_a_request_id_is_kept_when_sane_and_made_otherwise(client: httpx.AsyncClient) -> None:
    kept = await client.get("runs/known", headers={"x-request-id": "abc-1"})
    assert kept.headers["x-request-id"] == "abc-1"
    made = await client.get("runs/known", headers={"x-request-id": "a b" * 100})
    assert len(made.headers["x-request-id"]) == 32


async def test_a_handler_works_inside_the_callers_trace(client: httpx.AsyncClient) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = await client.get("runs/known", headers={"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"})
    assert answer.json()["traceparent"].split("-")[1] == trace_id
    assert "00f067aa0ba902b7" not in answer.json()["traceparent"]


async def test_readiness_follows_what_the_service_needs(client: httpx.AsyncClient, backing: Backing) -> None:
    backing.answers = False
    assert (await client.get(f"{ROOT}/startupz")).status_code == 503
    assert (await client.get(f"{ROOT}/readyz")).text == "ConnectionError: nobody home\n"
    assert (await client.get(f"{ROOT}/livez")).status_code == 200
    backing.answers = True
    assert (await client.get(f"{ROOT}/readyz")).status_code == 200
    backing.answers = False
    assert (await client.get(f"{ROOT}/readyz")).status_code == 503
    assert (await client.get(f"{ROOT}/startupz")).status_code == 200


async def test_a_draining_service_is_not_ready_and_lets_go_of_connections(
    client: httpx.AsyncClient, app: web.Service
) -> None:
    app.health.draining = True
    answer = await client.get(f"{ROOT}/readyz")
    assert (answer.status_code, answer.text) == (503, "draining\n")
    assert (await client.get("runs/known")).headers["connection"] == "close"


async def test_metrics_name_routes_and_never_ids(client: httpx.AsyncClient) -> None:
    await client.get("runs/very-known")
    await client.post("runs/8d2f:archive")
    await client.request("BREW", "runs/a")
    await client.get("nothing/at/all")
    text = (await client.get(f"{ROOT}/metrics")).text
    archive_route = "/apis/v1beta1/runs/{run_id}/:archive"
    for labels in (
        'code="200",method="GET",route="/apis/v1beta1/runs/{run_id}",service="web-test"',
        f'code="200",method="POST",route="{archive_route}",service="web-test"',
        'code="404",method="GET",route="unknown",service="web-test"',
        'code="405",method="other",route="unknown",service="web-test"',
    ):
        assert f"headrace_http_requests_total{{{labels}}}" in text
    assert "very-known" not in text
    assert "8d2f" not in text
    assert "headrace_http_request_duration_seconds_bucket{" in text
    assert 'headrace_http_requests_in_flight{service="web-test"} 1.0' in text
