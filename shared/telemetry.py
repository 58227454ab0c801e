"""The process's registry of metrics, and the trace context (`shared.trace`) under the name it is used by.

Kept apart from the context because the library of metrics is heavy, and not every process holds it.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

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

VERSION: Final = "0.1.0"
"""As the project's file says. The image holds the code and not the package, which could be asked."""

metrics = CollectorRegistry()
"""Where every metric of this process registers. Names begin with `headrace_`; labels are closed sets."""
ProcessCollector(registry=metrics)
Gauge("headrace_build_info", "Always 1: what runs here.", ("version",), registry=metrics).labels(VERSION).set(1)
