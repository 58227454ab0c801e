"""The process's registry of metrics, and the trace context (`shared.trace`) under the name it is used by.

Kept apart from the context because the library of metrics is heavy, and not every process holds it.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, ProcessCollector

from shared.trace import (
    child_span,
    continue_trace,
    current_request_id,
    current_trace_id,
    current_traceparent,
    for_run,
    in_request,
    note_span,
    start_trace,
)

__all__ = [
    "child_span",
    "continue_trace",
    "current_request_id",
    "current_trace_id",
    "current_traceparent",
    "for_run",
    "in_request",
    "metrics",
    "note_span",
    "start_trace",
]

metrics = CollectorRegistry()
"""Where every metric of this process registers. Names begin with `headrace_`; labels are closed sets."""
ProcessCollector(registry=metrics)
