"""What the job scheduler publishes about its operations."""

from __future__ import annotations

from typing import Final

from shared.listing import ListRequest
from shared.openapi import HOST, Operation, captured
from shared.pipeline_spec import WireRuntimeConfig, WireRuntimeValue

from . import store
from .wire import (
    PreviewQuery,
    WireBackfill,
    WireExtendedJob,
    WireFieldChange,
    WireHistory,
    WireJob,
    WireJobChange,
    WireJobs,
    WireMode,
    WireOn,
    WirePreview,
    WireRevision,
)

_TAG: Final = "JobService"
_COLLECTION: Final = "/apis/v1beta1/jobs"
_EXTENDED: Final = "/apis/headrace/v1/jobs/{id}"
_MANIFEST: Final = (
    '{"apiVersion":"argoproj.io/v1alpha1","kind":"Workflow","metadata":{"generateName":"hello-"},'
    '"spec":{"entrypoint":"hello","templates":[{"name":"hello",'
    '"container":{"image":"python:3.11","command":["echo","hello"]}}]}}'
)
_CREATE: Final = (
    f"""curl -sS {HOST}{_COLLECTION} -d '{{"name":"every night","max_concurrency":"1","enabled":false,"""
    """"trigger":{"cron_schedule":{"cron":"0 30 2 * * *"}},"pipeline_spec":{"workflow_manifest":"%s"}}'"""
) % _MANIFEST.replace('"', '\\"')
_NEW: Final = captured("JOB", _CREATE) + "\n"
_OURS: Final = f"{HOST}/apis/headrace/v1/jobs/$JOB"
_VERB: Final = f"{HOST}/apis/headrace/v1/jobs/${{JOB}}"
_ONE: Final = f"{HOST}{_COLLECTION}/$JOB"

NAMES: Final = {
    WireExtendedJob: "headraceJob",
    WireJobChange: "headraceJobChange",
    WireOn: "headraceJobOn",
    WireFieldChange: "headraceFieldChange",
    WireRevision: "headraceRevision",
    WireHistory: "headraceJobHistory",
    WireBackfill: "headraceBackfill",
    WirePreview: "headraceJobPreview",
    WireJobs: "apiListJobsResponse",
    WireMode: "JobMode",
    WireRuntimeConfig: "PipelineSpecRuntimeConfig",
    WireRuntimeValue: "apiValue",
}

OPERATIONS: Final = (
    Operation(
        id="CreateJob",
        method="POST",
        path=_COLLECTION,
        tag=_TAG,
        summary="Creates a recurring run.",
        notes="A `cron` has six fields, seconds first. A job without `enabled` is made disabled. There are more fields "
        "than these: [extensions](/docs/extensions.md).",
        may_be_repeated=True,
        body=WireJob,
        body_example={
            "name": "every night",
            "max_concurrency": "1",
            "enabled": False,
            "trigger": {"cron_schedule": {"cron": "0 30 2 * * *"}},
            "pipeline_spec": {"workflow_manifest": _MANIFEST},
        },
        answer=WireJob,
        example=_CREATE,
    ),
    Operation(
        id="ListJobs",
        method="GET",
        path=_COLLECTION,
        tag=_TAG,
        summary="Lists recurring runs.",
        query=ListRequest,
        query_without=frozenset({"resource_key"}),
        lists=store.LISTING,
        beyond=frozenset({"pipeline_id", "experiment_id", "status", "created_by"}),
        answer=WireJobs,
        example=f"curl -sS '{HOST}{_COLLECTION}?page_size=5&sort_by=created_at%20desc'",
    ),
    Operation(
        id="GetJob",
        method="GET",
        path=f"{_COLLECTION}/{{id}}",
        tag=_TAG,
        summary="Shows a recurring run.",
        answer=WireJob,
        example=f"{_NEW}curl -sS {_ONE}",
    ),
    Operation(
        id="DeleteJob",
        method="DELETE",
        path=f"{_COLLECTION}/{{id}}",
        tag=_TAG,
        summary="Deletes a recurring run; the runs it made stay.",
        example=f"{_NEW}curl -sS -X DELETE {_ONE}",
    ),
    Operation(
        id="EnableJob",
        method="POST",
        path=f"{_COLLECTION}/{{id}}/enable",
        tag=_TAG,
        summary="Lets a recurring run fire.",
        example=f"{_NEW}curl -sS -X POST {_ONE}/enable",
    ),
    Operation(
        id="DisableJob",
        method="POST",
        path=f"{_COLLECTION}/{{id}}/disable",
        tag=_TAG,
        summary="Keeps a recurring run from firing; what runs already goes on.",
        example=f"{_NEW}curl -sS -X POST {_ONE}/disable",
    ),
    Operation(
        id="ReportScheduledWorkflow",
        method="POST",
        path="/apis/v1beta1/scheduledworkflows",
        tag="ReportService",
        summary="For the agent of an external engine alone: 403 for everybody else.",
        body=str,
        notes="The body is a string that holds the scheduler's object in JSON. Refused for a job that is fired here.",
    ),
    Operation(
        id="GetExtendedJob",
        method="GET",
        path=_EXTENDED,
        tag=_TAG,
        summary="Shows a recurring run with what the original does not have.",
        answer=WireExtendedJob,
        example=f"{_NEW}curl -sS {_OURS}",
    ),
    Operation(
        id="UpdateJob",
        method="PATCH",
        path=_EXTENDED,
        tag=_TAG,
        summary="Changes a recurring run; what is absent stays as it is, and so do runs that are alive.",
        notes="A schedule that is changed counts from now on: it makes up for nothing that was before. With `on`, what "
        "triggers the job is the end of a run, instead of a schedule.",
        body=WireJobChange,
        body_example={"max_concurrency": "2", "missed": "latest"},
        answer=WireExtendedJob,
        example=f'{_NEW}curl -sS -X PATCH {_OURS} -d \'{{"time_zone":"Europe/Berlin"}}\'',
    ),
    Operation(
        id="ListJobHistory",
        method="GET",
        path=f"{_EXTENDED}/history",
        tag=_TAG,
        summary="Tells who changed what of a recurring run and when, the newest change first.",
        answer=WireHistory,
        example=f"{_NEW}curl -sS {_OURS}/history",
    ),
    Operation(
        id="PreviewJob",
        method="GET",
        path=f"{_EXTENDED}:preview",
        tag=_TAG,
        summary="Foresees the next slots of a recurring run, as if it were enabled.",
        notes="`count` is 10 unless it is given, and 100 at most.",
        query=PreviewQuery,
        answer=WirePreview,
        example=f'{_NEW}curl -sS "{_VERB}:preview?count=5"',
    ),
    Operation(
        id="BackfillJob",
        method="POST",
        path=f"{_EXTENDED}:backfill",
        tag=_TAG,
        summary="Makes runs for slots of a time that has passed; answers with those that will have one.",
        notes="At most 1000 slots at once. They wait for room among the job's runs, whether it is enabled or not. "
        "`end_time` is now, unless it is given.",
        body=WireBackfill,
        body_example={"start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-03T00:00:00Z", "dry_run": True},
        answer=WirePreview,
        example=f"{_NEW}curl -sS {_VERB}:backfill "
        """-d '{"start_time":"2026-01-01T00:00:00Z","end_time":"2026-01-03T00:00:00Z","dry_run":true}'""",
    ),
    Operation(
        id="GiveUpBackfill",
        method="DELETE",
        path=f"{_EXTENDED}:backfill",
        tag=_TAG,
        summary="Drops the slots of the past that still wait for room.",
        example=f"{_NEW}curl -sS -X DELETE {_VERB}:backfill",
    ),
)
