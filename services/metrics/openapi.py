"""What the metrics service publishes about its operation."""

from __future__ import annotations

from typing import Final

from shared.openapi import A_RUN, HOST, Operation

from .wire import ReportRequest, ReportResponse, WireFormat, WireMetric, WireResult, WireStatus

_EXAMPLE: Final = {"metrics": [{"name": "accuracy", "node_id": "train", "number_value": 0.93, "format": "PERCENTAGE"}]}

NAMES: Final = {
    ReportRequest: "apiReportRunMetricsRequest",
    ReportResponse: "apiReportRunMetricsResponse",
    WireFormat: "RunMetricFormat",
    WireMetric: "apiRunMetric",
    WireResult: "ReportRunMetricsResponseReportRunMetricResult",
    WireStatus: "ReportRunMetricsResponseReportRunMetricResultStatus",
}

OPERATIONS: Final = (
    Operation(
        id="ReportRunMetrics",
        method="POST",
        path="/apis/v1beta1/runs/{run_id}:reportMetrics",
        tag="RunService",
        summary="Reports metrics of a run; each metric has a verdict of its own.",
        notes="The first value reported for a name and a node stays.",
        body=ReportRequest,
        body_example=_EXAMPLE,
        answer=ReportResponse,
        example=(
            f"{A_RUN}\ncurl -sS {HOST}/apis/v1beta1/runs/$RUN:reportMetrics "
            """-d '{"metrics":[{"name":"accuracy","node_id":"train","number_value":0.93,"format":"PERCENTAGE"}]}'"""
        ),
    ),
)
