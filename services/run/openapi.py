"""What the run service publishes about its operations."""

from __future__ import annotations

from typing import Final

import msgspec

from shared.listing import ListRequest
from shared.openapi import HOST, Operation, captured
from shared.pipeline_spec import WireRuntimeConfig, WireRuntimeValue

from . import store
from .wire import (
    LogQuery,
    Resources,
    Verb,
    WireAuthorization,
    WireEngine,
    WireMetric,
    WireMetricFormat,
    WireRun,
    WireRunDetail,
    WireRuns,
    WireStorageState,
)

_TAG: Final = "RunService"
_COLLECTION: Final = "/apis/v1beta1/runs"


def _manifest(command: str) -> str:
    return (
        '{"apiVersion":"argoproj.io/v1alpha1","kind":"Workflow","metadata":{"generateName":"hello-"},'
        '"spec":{"entrypoint":"hello","templates":[{"name":"hello",'
        f'"container":{{"image":"python:3.11","command":[{command}]}}}}]}}}}'
    )


def _create(command: str) -> str:
    manifest = _manifest(command).replace('"', '\\"')
    return (
        f"""curl -sS {HOST}{_COLLECTION} """
        f"""-d '{{"name":"hello","pipeline_spec":{{"workflow_manifest":"{manifest}"}}}}'"""
    )


def _new(command: str) -> str:
    return captured("RUN", _create(command), '["run"]["id"]') + "\n"


def _until(status: str) -> str:
    return f"""until curl -sS {_ONE} | grep -q '"status":"{status}"'; do sleep 0.2; done\n"""


_HELLO: Final = '"echo","hello"'
_FALSE: Final = '"false"'
_SLEEP: Final = '"sleep","60"'
_NEW: Final = _new(_HELLO)
_ONE: Final = f"{HOST}{_COLLECTION}/$RUN"
_NODE: Final = (
    f"NODE=$(curl -sS {_ONE} | python3 -c 'import json, sys; run = json.load(sys.stdin); "
    """print(*json.loads(run["pipeline_runtime"]["workflow_manifest"])["status"]["nodes"])')"""
)
_FINISHED: Final = f"{_NEW}{_until('Succeeded')}{_NODE}\n"
_LOG: Final = "runs/{run_id}/nodes/{node_id}/log"
_READ_LOG: Final = Operation(
    id="ReadRunLog",
    method="GET",
    path=f"/apis/v1beta1/{_LOG}",
    tag=_TAG,
    summary="Shows what a step wrote.",
    query=LogQuery,
    answers_text=True,
    example=f'{_FINISHED}curl -sS "{_ONE}/nodes/$NODE/log?follow=true"',
)


class ReadArtifactResponse(msgspec.Struct, frozen=True, kw_only=True):
    """For the description only: the answer is streamed."""

    data: bytes = b""


NAMES: Final = {
    Resources: "AuthorizeRequestResources",
    Verb: "AuthorizeRequestVerb",
    ReadArtifactResponse: "apiReadArtifactResponse",
    WireMetric: "apiRunMetric",
    WireMetricFormat: "RunMetricFormat",
    WireRuns: "apiListRunsResponse",
    WireRuntimeConfig: "PipelineSpecRuntimeConfig",
    WireRuntimeValue: "apiValue",
    WireStorageState: "apiRunStorageState",
}

OPERATIONS: Final = (
    Operation(
        id="CreateRun",
        method="POST",
        path=_COLLECTION,
        tag=_TAG,
        summary="Creates a run and starts it.",
        notes=(
            "What runs is named by `pipeline_spec`: a workflow as text, a pipeline's id, or a version among the "
            "references. A run without an experiment goes to the default one."
        ),
        may_be_repeated=True,
        body=WireRun,
        body_example={"name": "hello", "pipeline_spec": {"workflow_manifest": _manifest(_HELLO)}},
        answer=WireRunDetail,
        example=f'KEY=$(date +%s%N)\n{_create(_HELLO)} -H "Idempotency-Key: $KEY"',
    ),
    Operation(
        id="ListRuns",
        method="GET",
        path=_COLLECTION,
        tag=_TAG,
        summary="Lists runs.",
        query=ListRequest,
        query_without=frozenset({"resource_key"}),
        lists=store.LISTING,
        beyond=frozenset({"experiment_id", "pipeline_id", "created_by", "finished_at"}),
        answer=WireRuns,
        example=f"curl -sS '{HOST}{_COLLECTION}?page_size=5&sort_by=finished_at%20desc'",
    ),
    Operation(
        id="GetRun",
        method="GET",
        path=f"{_COLLECTION}/{{run_id}}",
        tag=_TAG,
        summary="Shows a run with its workflow and the state of its steps.",
        answer=WireRunDetail,
        example=f"{_NEW}curl -sS {_ONE}",
    ),
    Operation(
        id="DeleteRun",
        method="DELETE",
        path=f"{_COLLECTION}/{{id}}",
        tag=_TAG,
        summary="Deletes a run and stops it where it is not over.",
        example=f"{_NEW}curl -sS -X DELETE {_ONE}",
    ),
    Operation(
        id="ArchiveRun",
        method="POST",
        path=f"{_COLLECTION}/{{id}}:archive",
        tag=_TAG,
        summary="Archives a run.",
        example=f"{_NEW}curl -sS -X POST {_ONE}:archive",
    ),
    Operation(
        id="UnarchiveRun",
        method="POST",
        path=f"{_COLLECTION}/{{id}}:unarchive",
        tag=_TAG,
        summary="Brings an archived run back.",
        example=f"{_NEW}curl -sS -X POST {_ONE}:archive\ncurl -sS -X POST {_ONE}:unarchive",
    ),
    Operation(
        id="RetryRun",
        method="POST",
        path=f"{_COLLECTION}/{{run_id}}/retry",
        tag=_TAG,
        summary="Runs the failed steps of a run again, and what waited for them.",
        notes="Refused with 409 unless the run has failed.",
        example=f"{_new(_FALSE)}{_until('Failed')}curl -sS -X POST {_ONE}/retry",
    ),
    Operation(
        id="TerminateRun",
        method="POST",
        path=f"{_COLLECTION}/{{run_id}}/terminate",
        tag=_TAG,
        summary="Stops a run.",
        example=f"{_new(_SLEEP)}curl -sS -X POST {_ONE}/terminate",
    ),
    Operation(
        id="ReadArtifact",
        method="GET",
        path=f"{_COLLECTION}/{{run_id}}/nodes/{{node_id}}/artifacts/{{artifact_name}}:read",
        tag=_TAG,
        summary="Reads an artifact as it is stored, in base64.",
        answer=ReadArtifactResponse,
        example=f"{_FINISHED}curl -sS {_ONE}/nodes/$NODE/artifacts/main-logs:read",
    ),
    Operation(
        id="DownloadArtifact",
        method="GET",
        path="/apis/headrace/v1/runs/{run_id}/nodes/{node_id}/artifacts/{artifact_name}",
        tag=_TAG,
        summary="Downloads an artifact as it is stored, whole or in parts; not in the original.",
        answers_parts=True,
        example=f"{_FINISHED}curl -sS -r 0-99 {HOST}/apis/headrace/v1/runs/$RUN/nodes/$NODE/artifacts/main-logs",
    ),
    _READ_LOG,
    msgspec.structs.replace(
        _READ_LOG,
        id="ReadRunLogV1alpha1",
        path=f"/apis/v1alpha1/{_LOG}",
        notes="The same under the path that clients of 1.1 and later ask.",
        example="",
    ),
    Operation(
        id="GetEngine",
        method="GET",
        path="/apis/headrace/v1/engine",
        tag=_TAG,
        summary="Tells what steps run in, and what that lacks on this machine; not in the original.",
        answer=WireEngine,
        example=f"curl -sS {HOST}/apis/headrace/v1/engine",
    ),
    Operation(
        id="Authorize",
        method="GET",
        path="/apis/v1beta1/auth",
        tag="AuthService",
        summary="Tells whether the caller may do something in a namespace: everything is allowed.",
        query=WireAuthorization,
        example=f"curl -sS '{HOST}/apis/v1beta1/auth?namespace=kubeflow&resources=VIEWERS&verb=GET'",
    ),
    Operation(
        id="ReportWorkflow",
        method="POST",
        path="/apis/v1beta1/workflows",
        tag="ReportService",
        summary="For the agent of an external engine alone: 403 for everybody else.",
        body=str,
        notes="The body is a string that holds the workflow in JSON. Refused for a run that is driven here.",
    ),
    Operation(
        id="CreateVisualization",
        method="POST",
        path="/apis/v1beta1/visualizations/{namespace}",
        tag="VisualizationService",
        summary="Not supported: always 501.",
        never_succeeds=True,
    ),
    Operation(
        id="CreateVisualizationV1",
        method="POST",
        path="/apis/v1beta1/visualizations",
        tag="VisualizationService",
        summary="Not supported: always 501.",
        never_succeeds=True,
    ),
)
