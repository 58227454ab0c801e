"""The HTTP door of the pipeline registry: P1 to P8 and V1 to V5 of the API specification's table 1.2."""

from __future__ import annotations

from functools import partial
from typing import Any

import litestar
import msgspec
from litestar import HttpMethod, MediaType, Request, Response
from litestar.di import NamedDependency
from litestar.params import FromPath

from shared import idempotency, protojson
from shared.errors import InvalidInput, NotFound, Refusal, layer
from shared.idempotency import Answers, Keyed
from shared.listing import ListRequest
from shared.references import ResourceType
from shared.web import delete, get, post, reply

from .domain import Described, NameTaken, Version
from .uploads import Upload, received
from .usecases import Pipelines
from .wire import (
    UploadRefusal,
    UploadRequest,
    WirePipeline,
    WirePipelines,
    WireTemplate,
    WireVersion,
    WireVersions,
    from_described,
    from_version,
    owner_of,
    url_of,
)

Req = Request[Any, Any, Any]

_ANY_METHOD = (HttpMethod.GET, HttpMethod.POST, HttpMethod.PUT, HttpMethod.PATCH, HttpMethod.DELETE, HttpMethod.HEAD)


def _refuse_upload(_request: Req, refusal: Refusal) -> Response[bytes]:
    """The upload routes' own error body and statuses (API specification, section 3.3).

    A taken name is a 500 for the sake of clients that expect one. The body is JSON in spite of its type.
    """
    match refusal:
        case NameTaken():
            status = 500
        case NotFound():
            status = 400
        case _:
            status = refusal.status
    body = UploadRefusal(error_message=refusal.error, error_details=refusal.error)
    return Response(msgspec.json.encode(body), status_code=status, media_type=MediaType.TEXT)


async def _keyed_upload(route: str, request: Req, file: Upload, asked: UploadRequest) -> Keyed | None:
    """A repeated upload has the same file and says the same of it; how the form delimits them differs each time."""
    key = request.headers.get(idempotency.HEADER)
    if key is None:
        return None
    said = msgspec.json.encode((asked, file.name, file.size_bytes, await file.digest()))
    return idempotency.keyed(route, key, said)


def _encoded(described: Described) -> bytes:
    return protojson.encode(from_described(described))


def _encoded_version(version: Version) -> bytes:
    return protojson.encode(from_version(version))


@litestar.route(
    "/apis/v1beta1/pipelines/upload",
    http_method=_ANY_METHOD,
    status_code=200,
    exception_handlers={Refusal: _refuse_upload},
)
async def upload_pipeline(
    request: Req, pipelines: NamedDependency[Pipelines], answers: NamedDependency[Answers]
) -> Response[bytes]:
    asked = protojson.query(UploadRequest, request.scope["query_string"])
    async with received(
        request, "Failed to read pipeline from file", largest_bytes=pipelines.largest_package_bytes
    ) as file:
        keyed = await _keyed_upload("POST /pipelines/upload", request, file, asked)
        create = partial(pipelines.upload, file, name=asked.name, description=asked.description)
        return reply(await answers.once(keyed, create, _encoded))


@litestar.route(
    "/apis/v1beta1/pipelines/upload_version",
    http_method=_ANY_METHOD,
    status_code=200,
    exception_handlers={Refusal: _refuse_upload},
)
async def upload_version(
    request: Req, pipelines: NamedDependency[Pipelines], answers: NamedDependency[Answers]
) -> Response[bytes]:
    asked = protojson.query(UploadRequest, request.scope["query_string"])
    async with received(
        request, "Failed to read pipeline version from file", largest_bytes=pipelines.largest_package_bytes
    ) as file:
        keyed = await _keyed_upload("POST /pipelines/upload_version", request, file, asked)
        create = partial(
            pipelines.upload_version, file, asked.pipelineid, name=asked.name, description=asked.description
        )
        return reply(await answers.once(keyed, create, _encoded_version))


@post("/apis/v1beta1/pipelines")
async def create_pipeline(
    request: Req, pipelines: NamedDependency[Pipelines], answers: NamedDependency[Answers]
) -> Response[bytes]:
    body = await request.body()
    keyed = idempotency.keyed("POST /pipelines", request.headers.get(idempotency.HEADER), body)
    asked = protojson.decode(body, WirePipeline)
    create = partial(pipelines.create, url_of(asked.url), name=asked.name, description=asked.description)
    return reply(await answers.once(keyed, create, _encoded))


@get("/apis/v1beta1/pipelines")
async def list_pipelines(request: Req, pipelines: NamedDependency[Pipelines]) -> Response[bytes]:
    asked = protojson.query(ListRequest, request.scope["query_string"])
    if asked.resource_reference_key and asked.resource_reference_key.type is not ResourceType.NAMESPACE:
        raise InvalidInput("Invalid resource references for pipelines. ListPipelines requires filtering by namespace.")
    page = await pipelines.list(asked)
    return reply(
        WirePipelines(
            pipelines=tuple(from_described(described) for described in page.rows),
            total_size=page.total_size,
            next_page_token=page.next_page_token,
        )
    )


@get("/apis/v1beta1/pipelines/{pipeline_id:str}")
async def get_pipeline(pipeline_id: FromPath[str], pipelines: NamedDependency[Pipelines]) -> Response[bytes]:
    with layer("Get pipeline failed."):
        return reply(from_described(await pipelines.get(pipeline_id)))


@delete("/apis/v1beta1/pipelines/{pipeline_id:str}")
async def delete_pipeline(pipeline_id: FromPath[str], pipelines: NamedDependency[Pipelines]) -> Response[bytes]:
    await pipelines.delete(pipeline_id)
    return reply()


@get("/apis/v1beta1/pipelines/{pipeline_id:str}/templates")
async def get_template(pipeline_id: FromPath[str], pipelines: NamedDependency[Pipelines]) -> Response[bytes]:
    return reply(WireTemplate(template=await pipelines.get_template(pipeline_id)))


@post("/apis/v1beta1/pipelines/{pipeline_id:str}/default_version/{version_id:str}")
async def set_default_version(
    pipeline_id: FromPath[str], version_id: FromPath[str], pipelines: NamedDependency[Pipelines]
) -> Response[bytes]:
    with layer("Update pipeline default version failed."):
        await pipelines.set_default_version(pipeline_id, version_id)
    return reply()


@post("/apis/v1beta1/pipeline_versions")
async def create_version(
    request: Req, pipelines: NamedDependency[Pipelines], answers: NamedDependency[Answers]
) -> Response[bytes]:
    body = await request.body()
    keyed = idempotency.keyed("POST /pipeline_versions", request.headers.get(idempotency.HEADER), body)
    asked = protojson.decode(body, WireVersion)
    create = partial(
        pipelines.create_version,
        url_of(asked.package_url),
        owner_of(asked),
        name=asked.name,
        description=asked.description,
        code_source_url=asked.code_source_url,
    )
    return reply(await answers.once(keyed, create, _encoded_version))


@get("/apis/v1beta1/pipeline_versions")
async def list_versions(request: Req, pipelines: NamedDependency[Pipelines]) -> Response[bytes]:
    """V2. Only the id of the reference counts."""
    asked = protojson.query(ListRequest, request.scope["query_string"])
    if asked.resource_key is None:
        raise InvalidInput("ResourceKey must be set in the input")
    page = await pipelines.list_versions(asked.resource_key.id, asked)
    return reply(
        WireVersions(
            versions=tuple(from_version(version) for version in page.rows),
            total_size=page.total_size,
            next_page_token=page.next_page_token,
        )
    )


@get("/apis/v1beta1/pipeline_versions/{version_id:str}")
async def get_version(version_id: FromPath[str], pipelines: NamedDependency[Pipelines]) -> Response[bytes]:
    with layer("Get pipeline version failed."):
        return reply(from_version(await pipelines.get_version(version_id)))


@delete("/apis/v1beta1/pipeline_versions/{version_id:str}")
async def delete_version(version_id: FromPath[str], pipelines: NamedDependency[Pipelines]) -> Response[bytes]:
    with layer("Failed to get Pipeline Version."):
        await pipelines.delete_version(version_id)
    return reply()


@get("/apis/v1beta1/pipeline_versions/{version_id:str}/templates")
async def get_version_template(version_id: FromPath[str], pipelines: NamedDependency[Pipelines]) -> Response[bytes]:
    return reply(WireTemplate(template=await pipelines.get_version_template(version_id)))


ROUTES = (
    upload_pipeline,
    upload_version,
    create_pipeline,
    list_pipelines,
    get_pipeline,
    delete_pipeline,
    get_template,
    set_default_version,
    create_version,
    list_versions,
    get_version,
    delete_version,
    get_version_template,
)
