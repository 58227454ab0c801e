"""The HTTP door of the metrics service: R9 of the API specification's table 1.2."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response
from litestar.di import NamedDependency
from litestar.params import FromPath

from shared import protojson
from shared.web import post, reply

from .usecases import Metrics
from .wire import ReportRequest, ReportResponse, from_outcome, to_domain


@post("/apis/v1beta1/runs/{run_id:str}/:reportMetrics")
async def report_metrics(
    request: Request[Any, Any, Any], run_id: FromPath[str], metrics: NamedDependency[Metrics]
) -> Response[bytes]:
    body = protojson.decode(await request.body(), ReportRequest)
    report = await metrics.report(run_id, [to_domain(metric) for metric in body.metrics], until_seen=True)
    return reply(ReportResponse(results=tuple(from_outcome(outcome) for outcome in report.outcomes)))


ROUTES = (report_metrics,)
