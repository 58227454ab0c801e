"""Which request and which trace the running code works for, and the process's registry of metrics.

The trace context is W3C's `traceparent`, carried from the client's HTTP request through the outbox and the bus to the
controller. It is a string in a context variable and nothing more: no SDK, no exporter and no recorded spans. Whoever
puts a collector behind the product finds the same trace id in every log line and every fact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from os import urandom

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry, ProcessCollector

metrics = CollectorRegistry()
"""Where every metric of this process registers. Names begin with `headrace_`; labels are closed sets."""
ProcessCollector(registry=metrics)

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)
_propagator = TraceContextTextMapPropagator()


def start_trace(headers: Mapping[str, str]) -> str:
    """Enter the trace that `headers` (lower-case names) belong to, or a new one; return our own traceparent in it.

    The trace id is the caller's, the span id is new: this process is one hop further.
    """
    traceparent = _hop_from(headers.get("traceparent"))
    _traceparent.set(traceparent)
    return traceparent


def current_traceparent() -> str:
    """The traceparent to send along; code that runs for nobody in particular starts a trace here."""
    return _traceparent.get() or start_trace({})


def current_trace_id() -> str | None:
    traceparent = _traceparent.get()
    return None if traceparent is None else traceparent[3:35]


@contextmanager
def continue_trace(traceparent: str | None) -> Iterator[str]:
    """Work inside the trace that a message carries; a missing or malformed traceparent starts a new trace."""
    hop = _hop_from(traceparent)
    token = _traceparent.set(hop)
    try:
        yield hop
    finally:
        _traceparent.reset(token)


def current_request_id() -> str | None:
    return _request_id.get()


@contextmanager
def in_request(request_id: str) -> Iterator[None]:
    """Name the HTTP request that the code inside works for."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


def _hop_from(traceparent: str | None) -> str:
    caller = _parse(traceparent) if traceparent else None
    if caller is None:
        return f"00-{urandom(16).hex()}-{urandom(8).hex()}-01"
    return f"00-{caller.trace_id:032x}-{urandom(8).hex()}-{int(caller.trace_flags) & 1:02x}"


def _parse(traceparent: str) -> trace.SpanContext | None:
    # An explicit empty context: the propagator would otherwise fall back to the ambient one.
    context = _propagator.extract({"traceparent": traceparent}, context=Context())
    caller = trace.get_current_span(context).get_span_context()
    return caller if caller.is_valid else None
