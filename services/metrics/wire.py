"""v1beta1 JSON of metrics (API specification, section 9.8), to and from the domain."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from shared.protojson import named

from .domain import Format, Metric, Outcome


@named("RunMetric.Format")
class WireFormat(IntEnum):
    UNSPECIFIED = 0
    RAW = 1
    PERCENTAGE = 2


class WireStatus(IntEnum):
    UNSPECIFIED = 0
    OK = 1
    INVALID_ARGUMENT = 2
    DUPLICATE_REPORTING = 3
    INTERNAL_ERROR = 4


class WireMetric(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str = ""
    node_id: str = ""
    number_value: float | None = None
    format: WireFormat = WireFormat.UNSPECIFIED


class ReportRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The run's id in the body does not count: the path says it."""

    metrics: tuple[WireMetric, ...] = ()


class WireResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    metric_name: str = ""
    metric_node_id: str = ""
    status: WireStatus = WireStatus.UNSPECIFIED
    message: str = ""


class ReportResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    results: tuple[WireResult, ...] = ()


def to_domain(metric: WireMetric) -> Metric:
    """A missing value counts as 0."""
    return Metric(
        node_id=metric.node_id,
        name=metric.name,
        number=metric.number_value or 0.0,
        format=Format(metric.format.name),
    )


def from_outcome(outcome: Outcome) -> WireResult:
    return WireResult(
        metric_name=outcome.metric.name,
        metric_node_id=outcome.metric.node_id,
        status=WireStatus[outcome.status.value],
        message=outcome.message,
    )
