"""What the pipeline registry publishes about its operations."""

from __future__ import annotations

from typing import Final

from shared.listing import ListRequest
from shared.openapi import HOST, Operation, captured

from . import store
from .wire import (
    UploadRefusal,
    UploadRequest,
    WirePipeline,
    WirePipelines,
    WireTemplate,
    WireVersion,
    WireVersions,
)

_TAG: Final = "PipelineService"
_UPLOADS: Final = "PipelineUploadService"
_PIPELINES: Final = "/apis/v1beta1/pipelines"
_VERSIONS: Final = "/apis/v1beta1/pipeline_versions"

_FILE: Final = f"{HOST}/docs/hello-world.yaml"
_UPLOAD: Final = f"curl -sS {_FILE} | curl -sS -F 'uploadfile=@-;filename=hello-world.yaml'"
_PIPELINE: Final = captured("PIPELINE", f'{_UPLOAD} "{HOST}{_PIPELINES}/upload?name=docs-$(date +%s%N)"') + "\n"
_VERSION: Final = (
    _PIPELINE
    + captured("VERSION", f'{_UPLOAD} "{HOST}{_PIPELINES}/upload_version?name=second&pipelineid=$PIPELINE"')
    + "\n"
)
_ONE: Final = f"{HOST}{_PIPELINES}/$PIPELINE"
_ONE_VERSION: Final = f"{HOST}{_VERSIONS}/$VERSION"

NAMES: Final = {
    UploadRefusal: "apiUploadError",
    WirePipelines: "apiListPipelinesResponse",
    WireTemplate: "apiGetTemplateResponse",
    WireVersion: "apiPipelineVersion",
    WireVersions: "apiListPipelineVersionsResponse",
}

OPERATIONS: Final = (
    Operation(
        id="UploadPipeline",
        method="POST",
        path=f"{_PIPELINES}/upload",
        tag=_UPLOADS,
        summary="Uploads a pipeline: a compiled workflow as YAML, or packed as tar.gz or zip.",
        may_be_repeated=True,
        takes_file=True,
        query=UploadRequest,
        query_without=frozenset({"pipelineid"}),
        answer=WirePipeline,
        refusal=UploadRefusal,
        example=f'{_UPLOAD} "{HOST}{_PIPELINES}/upload?name=hello-$(date +%s%N)"',
    ),
    Operation(
        id="UploadPipelineVersion",
        method="POST",
        path=f"{_PIPELINES}/upload_version",
        tag=_UPLOADS,
        summary="Uploads a further version of a pipeline.",
        may_be_repeated=True,
        takes_file=True,
        query=UploadRequest,
        answer=WireVersion,
        refusal=UploadRefusal,
        example=f'{_PIPELINE}{_UPLOAD} "{HOST}{_PIPELINES}/upload_version?name=second&pipelineid=$PIPELINE"',
    ),
    Operation(
        id="CreatePipeline",
        method="POST",
        path=_PIPELINES,
        tag=_TAG,
        summary="Creates a pipeline from a file at a URL.",
        may_be_repeated=True,
        body=WirePipeline,
        body_example={"name": "hello from a URL", "url": {"pipeline_url": _FILE}},
        answer=WirePipeline,
        example=(
            f"""curl -sS {HOST}{_PIPELINES} """
            f"""-d '{{"name":"hello-'$(date +%s%N)'","url":{{"pipeline_url":"{_FILE}"}}}}'"""
        ),
    ),
    Operation(
        id="ListPipelines",
        method="GET",
        path=_PIPELINES,
        tag=_TAG,
        summary="Lists pipelines.",
        query=ListRequest,
        query_without=frozenset({"resource_key"}),
        lists=store.PIPELINES,
        answer=WirePipelines,
        example=f"curl -sS '{HOST}{_PIPELINES}?page_size=5&sort_by=name'",
    ),
    Operation(
        id="GetPipeline",
        method="GET",
        path=f"{_PIPELINES}/{{id}}",
        tag=_TAG,
        summary="Shows a pipeline with its default version.",
        answer=WirePipeline,
        example=f"{_PIPELINE}curl -sS {_ONE}",
    ),
    Operation(
        id="DeletePipeline",
        method="DELETE",
        path=f"{_PIPELINES}/{{id}}",
        tag=_TAG,
        summary="Deletes a pipeline with its versions; runs made from them stay.",
        example=f"{_PIPELINE}curl -sS -X DELETE {_ONE}",
    ),
    Operation(
        id="GetTemplate",
        method="GET",
        path=f"{_PIPELINES}/{{id}}/templates",
        tag=_TAG,
        summary="Shows the workflow of a pipeline's default version.",
        answer=WireTemplate,
        example=f"{_PIPELINE}curl -sS {_ONE}/templates",
    ),
    Operation(
        id="UpdatePipelineDefaultVersion",
        method="POST",
        path=f"{_PIPELINES}/{{pipeline_id}}/default_version/{{version_id}}",
        tag=_TAG,
        summary="Makes a version the default one.",
        example=f"{_VERSION}curl -sS -X POST {_ONE}/default_version/$VERSION",
    ),
    Operation(
        id="CreatePipelineVersion",
        method="POST",
        path=_VERSIONS,
        tag=_TAG,
        summary="Creates a version from a file at a URL.",
        may_be_repeated=True,
        body=WireVersion,
        body_example={
            "name": "second",
            "package_url": {"pipeline_url": _FILE},
            "resource_references": [{"key": {"type": "PIPELINE", "id": "the pipeline's id"}, "relationship": "OWNER"}],
        },
        answer=WireVersion,
        example=(
            f"""{_PIPELINE}curl -sS {HOST}{_VERSIONS} """
            f"""-d '{{"name":"second","package_url":{{"pipeline_url":"{_FILE}"}},"""
            """"resource_references":[{"key":{"type":"PIPELINE","id":"'$PIPELINE'"},"relationship":"OWNER"}]}'"""
        ),
    ),
    Operation(
        id="ListPipelineVersions",
        method="GET",
        path=_VERSIONS,
        tag=_TAG,
        summary="Lists the versions of a pipeline.",
        query=ListRequest,
        query_without=frozenset({"resource_reference_key"}),
        lists=store.VERSIONS,
        answer=WireVersions,
        example=f'{_PIPELINE}curl -sS "{HOST}{_VERSIONS}?resource_key.type=PIPELINE&resource_key.id=$PIPELINE"',
    ),
    Operation(
        id="GetPipelineVersion",
        method="GET",
        path=f"{_VERSIONS}/{{version_id}}",
        tag=_TAG,
        summary="Shows a version.",
        answer=WireVersion,
        example=f"{_VERSION}curl -sS {_ONE_VERSION}",
    ),
    Operation(
        id="DeletePipelineVersion",
        method="DELETE",
        path=f"{_VERSIONS}/{{version_id}}",
        tag=_TAG,
        summary="Deletes a version; the newest remaining one takes its place as default.",
        example=f"{_VERSION}curl -sS -X DELETE {_ONE_VERSION}",
    ),
    Operation(
        id="GetPipelineVersionTemplate",
        method="GET",
        path=f"{_VERSIONS}/{{version_id}}/templates",
        tag=_TAG,
        summary="Shows the workflow of a version.",
        answer=WireTemplate,
        example=f"{_VERSION}curl -sS {_ONE_VERSION}/templates",
    ),
)
