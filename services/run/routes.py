"""The HTTP door of the run service: R1 to R10 without R9, X2, X4, X5 and X7 of the API specification's table 1.2."""

from __future__ import annotations

import binascii
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec
from litestar import HttpMethod, MediaType, Request, Response, route
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.response import Stream

from shared import idempotency, protojson
from shared.bearer import AgentToken
from shared.errors import InvalidInput, NotSupported, http_body, layer
from shared.idempotency import Answers
from shared.listing import ListRequest
from shared.web import delete, get, post, reply

from . import ranges
from .domain import Detail
from .reports import Reports
from .step_logs import StepLogs
from .usecases import Runs
from .wire import (
    LogQuery,
    Resources,
    Verb,
    WireAuthorization,
    WireRun,
    WireRuns,
    from_detail,
    from_engine,
    from_view,
    to_new_run,
)

Req = Request[Any, Any, Any]


@post("/apis/v1beta1/runs")
async def create_run(request: Req, runs: NamedDependency[Runs], answers: NamedDependency[Answers]) -> Response[bytes]:
    body = await request.body()
    asked = to_new_run(protojson.decode(body, WireRun))
    keyed = idempotency.keyed("POST /runs", request.headers.get(idempotency.HEADER), body)
    return reply(await answers.once(keyed, partial(runs.create, asked), _encoded))


def _encoded(detail: Detail) -> bytes:
    return protojson.encode(from_detail(detail))


@get("/apis/v1beta1/runs")
async def list_runs(request: Req, runs: NamedDependency[Runs]) -> Response[bytes]:
    asked = protojson.query(ListRequest, request.scope["query_string"])
    page = await runs.list(asked)
    return reply(
        WireRuns(
            runs=tuple(from_view(view) for view in page.rows),
            total_size=page.total_size,
            next_page_token=page.next_page_token,
        )
    )


@get("/apis/v1beta1/runs/{run_id:str}")
async def get_run(run_id: FromPath[str], runs: NamedDependency[Runs]) -> Response[bytes]:
    return reply(from_detail(await runs.get(run_id)))


@delete("/apis/v1beta1/runs/{run_id:str}")
async def delete_run(run_id: FromPath[str], runs: NamedDependency[Runs]) -> Response[bytes]:
    with layer("Delete run failed"), layer("Check run exist failed"):
        await runs.delete(run_id)
    return reply()


@post("/apis/v1beta1/runs/{run_id:str}/:archive")
async def archive_run(run_id: FromPath[str], runs: NamedDependency[Runs]) -> Response[bytes]:
    await runs.archive(run_id)
    return reply()


@post("/apis/v1beta1/runs/{run_id:str}/:unarchive")
async def unarchive_run(run_id: FromPath[str], runs: NamedDependency[Runs]) -> Response[bytes]:
    await runs.unarchive(run_id)
    return reply()


@post("/apis/v1beta1/runs/{run_id:str}/terminate")
async def terminate_run(run_id: FromPath[str], runs: NamedDependency[Runs]) -> Response[bytes]:
    with layer("Terminate run failed"):
        await runs.terminate(run_id)
    return reply()


@post("/apis/v1beta1/runs/{run_id:str}/retry")
async def retry_run(run_id: FromPath[str], runs: NamedDependency[Runs]) -> Response[bytes]:
    await runs.retry(run_id)
    return reply()


@get("/apis/v1beta1/runs/{run_id:str}/nodes/{node_id:str}/artifacts/{artifact_name:str}/:read")
async def read_artifact(
    run_id: FromPath[str], node_id: FromPath[str], artifact_name: FromPath[str], runs: NamedDependency[Runs]
) -> Response[bytes] | Stream:
    asked = f'run_id:"{run_id}" node_id:"{node_id}" artifact_name:"{artifact_name}"'
    with layer(f"failed to read artifact '{asked}'."):
        chunks = await runs.read_artifact(run_id, node_id, artifact_name)
        # The first chunk decides about the answer while the status can still be chosen.
        first = await anext(chunks, b"")
    if not first:
        return reply()
    return Stream(_artifact_json(first, chunks), media_type=MediaType.JSON)


async def _artifact_json(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """`{"data":"<base64>"}`, never held whole: three bytes make four letters, so the rest of a chunk waits."""
    yield b'{"data":"'
    waiting = first
    async for chunk in chunks:
        whole = len(waiting) - len(waiting) % 3
        yield binascii.b2a_base64(waiting[:whole], newline=False)
        waiting = waiting[whole:] + chunk
    yield binascii.b2a_base64(waiting, newline=False)
    yield b'"}'


@route(
    "/apis/headrace/v1/runs/{run_id:str}/nodes/{node_id:str}/artifacts/{artifact_name:str}",
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    status_code=200,
)
async def download_artifact(
    request: Req,
    run_id: FromPath[str],
    node_id: FromPath[str],
    artifact_name: FromPath[str],
    runs: NamedDependency[Runs],
) -> Response[bytes] | Stream:
    """The object as it is stored, whole or in part; an extension of the API."""
    artifact = await runs.find_artifact(run_id, node_id, artifact_name)
    etag = f'"{artifact.etag}"'
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(artifact.file_name, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
    is_same = request.headers.get("if-range") in (None, etag)
    try:
        part = ranges.part(request.headers.get("range") if is_same else None, artifact.size)
    except ranges.Unsatisfiable:
        refusal = http_body(InvalidInput(f"The artifact has {artifact.size} bytes, and none of those asked for."))
        headers["Content-Range"] = f"bytes */{artifact.size}"
        return Response(msgspec.json.encode(refusal), status_code=416, media_type=MediaType.JSON, headers=headers)
    status_code = 200
    if part is not None and request.method == HttpMethod.GET:
        status_code = 206
        headers["Content-Range"] = f"bytes {part.offset}-{part.offset + part.length - 1}/{artifact.size}"
    else:
        part = ranges.Part(offset=0, length=artifact.size)
    headers["Content-Length"] = str(part.length)
    is_bodiless = request.method == HttpMethod.HEAD or part.length == 0
    chunks = _no_bytes() if is_bodiless else runs.read_part(artifact, part.offset, part.length)
    return Stream(chunks, status_code=status_code, media_type="application/octet-stream", headers=headers)


async def _no_bytes() -> AsyncIterator[bytes]:
    return
    yield b""


@route(
    [
        "/apis/v1beta1/runs/{run_id:str}/nodes/{node_id:str}/log",
        "/apis/v1alpha1/runs/{run_id:str}/nodes/{node_id:str}/log",
    ],
    http_method=[HttpMethod.GET, HttpMethod.HEAD, HttpMethod.POST, HttpMethod.PUT, HttpMethod.PATCH, HttpMethod.DELETE],
    status_code=200,
)
async def read_log(
    request: Req, run_id: FromPath[str], node_id: FromPath[str], logs: NamedDependency[StepLogs]
) -> Response[bytes] | Stream:
    """Section 13, X7. Where the original takes every method, so do we."""
    asked = protojson.query(LogQuery, request.scope["query_string"])
    if request.method == HttpMethod.HEAD:
        await logs.check(run_id, node_id)
        return Response(b"", media_type=MediaType.TEXT)
    chunks = await logs.open(run_id, node_id, follow=asked.follow)
    return Stream(chunks, media_type=MediaType.TEXT, headers={"X-Content-Type-Options": "nosniff"})


@get("/apis/headrace/v1/engine")
async def get_engine(runs: NamedDependency[Runs]) -> Response[bytes]:
    """What runs are executed by; an extension of the API."""
    return reply(from_engine(await runs.engine()))


@post("/apis/v1beta1/visualizations")
async def create_visualization() -> Response[bytes]:
    raise NotSupported("Visualizations are not supported: this installation has no generator for them.")


@post("/apis/v1beta1/visualizations/{namespace:str}")
async def create_visualization_in_namespace(namespace: FromPath[str]) -> Response[bytes]:
    raise NotSupported("Visualizations are not supported: this installation has no generator for them.")


@get("/apis/v1beta1/auth")
async def authorize(request: Req) -> Response[bytes]:
    """Everything is allowed in single-user mode; the question must still be complete (section 13, X5)."""
    asked = protojson.query(WireAuthorization, request.scope["query_string"])
    with layer("Authorize request is not valid"):
        if not asked.namespace:
            raise InvalidInput("Namespace is empty. Please specify a valid namespace.")
        if asked.resources is Resources.UNASSIGNED_RESOURCES:
            raise InvalidInput("Resources not specified. Please specify a valid resources.")
        if asked.verb is Verb.UNASSIGNED_VERB:
            raise InvalidInput("Verb not specified. Please specify a valid verb.")
    return reply()


@post("/apis/v1beta1/workflows")
async def report_workflow(
    request: Req, agent: NamedDependency[AgentToken], reports: NamedDependency[Reports]
) -> Response[bytes]:
    """Who is not the agent is refused before the body is read."""
    agent.check(request.headers.get("authorization"))
    await reports.take_in(protojson.decode_string(await request.body()))
    return reply()


ROUTES = (
    create_run,
    list_runs,
    get_run,
    delete_run,
    archive_run,
    unarchive_run,
    terminate_run,
    retry_run,
    read_artifact,
    download_artifact,
    read_log,
    get_engine,
    create_visualization,
    create_visualization_in_namespace,
    authorize,
    report_workflow,
)
