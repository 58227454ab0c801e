"""The HTTP door of the job scheduler: J1 to J6 and X3 of the API specification's table 1.2, and what goes beyond."""

from __future__ import annotations

from functools import partial
from typing import Any

from litestar import Request, Response
from litestar.di import NamedDependency
from litestar.params import FromPath

from shared import idempotency, protojson
from shared.bearer import AgentToken
from shared.errors import layer
from shared.idempotency import Answers
from shared.listing import ListRequest
from shared.web import delete, get, patch, post, reply

from .domain import View
from .extensions import Extensions
from .usecases import Jobs
from .wire import (
    PreviewQuery,
    WireBackfill,
    WireExtendedJob,
    WireJobChange,
    WireJobs,
    WirePreview,
    extended,
    from_revisions,
    from_view,
    to_change,
    to_new_job,
    to_report,
)

Req = Request[Any, Any, Any]


@post("/apis/v1beta1/jobs")
async def create_job(request: Req, jobs: NamedDependency[Jobs], answers: NamedDependency[Answers]) -> Response[bytes]:
    body = await request.body()
    asked = to_new_job(protojson.decode(body, WireExtendedJob))
    keyed = idempotency.keyed("POST /jobs", request.headers.get(idempotency.HEADER), body)
    return reply(await answers.once(keyed, partial(jobs.create, asked), _encoded))


@get("/apis/v1beta1/jobs")
async def list_jobs(request: Req, jobs: NamedDependency[Jobs]) -> Response[bytes]:
    asked = protojson.query(ListRequest, request.scope["query_string"])
    page = await jobs.list(asked)
    return reply(
        WireJobs(
            jobs=tuple(from_view(view) for view in page.rows),
            total_size=page.total_size,
            next_page_token=page.next_page_token,
        )
    )


@get("/apis/v1beta1/jobs/{job_id:str}")
async def get_job(job_id: FromPath[str], jobs: NamedDependency[Jobs]) -> Response[bytes]:
    return reply(from_view(await jobs.get(job_id)))


@delete("/apis/v1beta1/jobs/{job_id:str}")
async def delete_job(job_id: FromPath[str], jobs: NamedDependency[Jobs]) -> Response[bytes]:
    with layer("Delete job failed"):
        await jobs.delete(job_id)
    return reply()


@post("/apis/v1beta1/jobs/{job_id:str}/enable")
async def enable_job(job_id: FromPath[str], jobs: NamedDependency[Jobs]) -> Response[bytes]:
    with layer("Enable/Disable job failed"), layer("Check job exist failed"):
        await jobs.enable(job_id)
    return reply()


@post("/apis/v1beta1/jobs/{job_id:str}/disable")
async def disable_job(job_id: FromPath[str], jobs: NamedDependency[Jobs]) -> Response[bytes]:
    with layer("Enable/Disable job failed"), layer("Check job exist failed"):
        await jobs.disable(job_id)
    return reply()


@post("/apis/v1beta1/scheduledworkflows")
async def report_scheduled_workflow(
    request: Req, agent: NamedDependency[AgentToken], jobs: NamedDependency[Jobs]
) -> Response[bytes]:
    """Who is not the agent is refused before the body is read."""
    agent.check(request.headers.get("authorization"))
    with layer("Report scheduled workflow failed."):
        await jobs.follow(to_report(protojson.decode_string(await request.body())))
    return reply()


@get("/apis/headrace/v1/jobs/{job_id:str}")
async def get_extended_job(job_id: FromPath[str], jobs: NamedDependency[Jobs]) -> Response[bytes]:
    """With what the original's clients do not know; an extension of the API, as all that follow."""
    return reply(extended(await jobs.get(job_id)))


@patch("/apis/headrace/v1/jobs/{job_id:str}")
async def update_job(request: Req, job_id: FromPath[str], extensions: NamedDependency[Extensions]) -> Response[bytes]:
    change = to_change(protojson.decode(await request.body(), WireJobChange, is_strict=True))
    with layer("Update job failed"):
        return reply(extended(await extensions.update(job_id, change)))


@get("/apis/headrace/v1/jobs/{job_id:str}/history")
async def list_job_history(job_id: FromPath[str], extensions: NamedDependency[Extensions]) -> Response[bytes]:
    return reply(from_revisions(await extensions.history(job_id)))


@get("/apis/headrace/v1/jobs/{job_id:str}/:preview")
async def preview_job(request: Req, job_id: FromPath[str], extensions: NamedDependency[Extensions]) -> Response[bytes]:
    asked = protojson.query(PreviewQuery, request.scope["query_string"])
    job, slots = await extensions.preview(job_id, asked.count)
    return reply(WirePreview(slots=slots, time_zone=job.time_zone))


@post("/apis/headrace/v1/jobs/{job_id:str}/:backfill")
async def backfill_job(request: Req, job_id: FromPath[str], extensions: NamedDependency[Extensions]) -> Response[bytes]:
    asked = protojson.decode(await request.body(), WireBackfill, is_strict=True)
    with layer("Backfill job failed"):
        job, slots = await extensions.backfill(job_id, asked.start_time, asked.end_time, is_dry=asked.dry_run)
    return reply(WirePreview(slots=slots, time_zone=job.time_zone))


@delete("/apis/headrace/v1/jobs/{job_id:str}/:backfill")
async def give_up_backfill(job_id: FromPath[str], extensions: NamedDependency[Extensions]) -> Response[bytes]:
    await extensions.give_up_backfill(job_id)
    return reply()


def _encoded(view: View) -> bytes:
    return protojson.encode(from_view(view))


ROUTES = (
    create_job,
    list_jobs,
    get_job,
    delete_job,
    enable_job,
    disable_job,
    report_scheduled_workflow,
    get_extended_job,
    update_job,
    list_job_history,
    preview_job,
    backfill_job,
    give_up_backfill,
)
