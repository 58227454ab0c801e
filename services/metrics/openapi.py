"""What the metrics service publishes about its operation."""

from __future__ import annotations

from typing import Final

from shared.openapi import HOST, Operation, captured

from .wire import ReportRequest, ReportResponse, WireFormat, WireMetric, WireResult, WireStatus

_MANIFEST: Final = (
    '{\\"apiVersion\\":\\"argoproj.io/v1alpha1\\",\\"kind\\":\\"Workflow\\",\\"metadata\\":{\\"generateName\\":\\"hello-\\"},'
    '\\"spec\\":{\\"entrypoint\\":\\"hello\\",\\"templates\\":[{\\"name\\":\\"hello\\",'
    '\\"container\\":{\\"image\\":\\"python:3.11\\",\\"command\\":[\\"echo\\",\\"hello\\"]}}]}}'
)
_RUN: Final = captured(
    "RUN",
    f"""curl -sS {HOST}/apis/v1beta1/runs """
    f"""-d '{{"name":"hello","pipeline_spec":{{"workflow_manifest":"{_MANIFEST}"}}}}'""",
    '["run"]["id"]',
)
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
            f"{_RUN}\ncurl -sS {HOST}/apis/v1beta1/runs/$RUN:reportMetrics "
            """-d '{"metrics":[{"name":"accuracy","node_id":"train","number_value":0.93,"format":"PERCENTAGE"}]}'"""
        ),
    ),
)
