"""Spans for a collector, where an operator has one: the one module that knows OpenTelemetry's SDK.

Off unless the standard variable `OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) names a
collector that takes OTLP over HTTP; then the SDK is imported, and not before. Headers, certificates, time limits, queue
sizes and attributes of the resource are told by its own variables (`OTEL_EXPORTER_OTLP_HEADERS`,
`OTEL_RESOURCE_ATTRIBUTES`, …). What is recorded, and under which ids, `shared.trace` decides; sampling is the affair of
the collector, or of a caller whose traceparent says that it is not recorded.

Spans leave in batches from a thread. A collector that is away costs spans and nothing else.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from shared import trace

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_log = logging.getLogger(__name__)


def is_wanted(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(environment.get(name) for name in _VARIABLES)


@contextmanager
def exporting(process: str, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Hand the spans of this process to the collector while the block lasts, and what is left at its end.

    Without the SDK there are none, and the log says so: the variable may be meant for other programs.
    """
    if not is_wanted(os.environ if environment is None else environment):
        yield
        return
    try:
        record, close = _exporter(process)
    except ImportError as error:
        _log.warning("a collector of spans is named, and the extra headrace[tracing] is not installed: %s", error)
        yield
        return
    trace.record_spans(record)
    _log.info("spans are exported")
    try:
        yield
    finally:
        trace.record_spans(None)
        close()


def _exporter(process: str) -> tuple[trace.Recorder, Callable[[], None]]:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

    resource = Resource.create({"service.namespace": "headrace", "service.name": process})
    scope = InstrumentationScope("headrace")
    sampled = TraceFlags(TraceFlags.SAMPLED)
    processor = BatchSpanProcessor(OTLPSpanExporter())

    def context(trace_id: str, span_id: str, *, is_remote: bool) -> SpanContext:
        return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=is_remote, trace_flags=sampled)

    def record(span: trace.Span) -> None:
        processor.on_end(
            ReadableSpan(
                name=span.name,
                context=context(span.trace_id, span.span_id, is_remote=False),
                parent=context(span.trace_id, span.parent_id, is_remote=True) if span.parent_id else None,
                resource=resource,
                attributes=dict(span.attributes),
                kind=SpanKind[span.kind.upper()],
                status=Status(StatusCode.UNSET) if span.error is None else Status(StatusCode.ERROR, span.error),
                start_time=span.started_ns,
                end_time=span.ended_ns,
                instrumentation_scope=scope,
            )
        )

    return record, processor.shutdown
