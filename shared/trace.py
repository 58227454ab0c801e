"""Which request and which trace the running code works for.

The trace context is W3C's `traceparent`, carried from the client's HTTP request through the outbox and the bus to the
controller. It is a string in a context variable: every log line and every fact has its trace's id, whether or not
somebody records spans. Who does (`record_spans`) is handed each piece of work when it is over, with the very ids that
were sent along, so that what a process says of itself and what it told others fit together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from os import urandom
from time import time_ns
from typing import Literal

import msgspec

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attributes = Mapping[str, str | int]


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of work that is over. Ids are hexadecimal, as in a traceparent."""

    name: str
    """From a small set: a kind of work, never an id."""
    kind: Kind
    trace_id: str
    span_id: str
    parent_id: str | None
    started_ns: int
    """Since the epoch."""
    ended_ns: int
    attributes: Attributes
    error: str | None = None
    """Why it failed."""


Recorder = Callable[[Span], None]
"""Called within the work, therefore it must not wait."""

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_run_id: ContextVar[str | None] = ContextVar("run_id", default=None)
_traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)
_recorder: Recorder | None = None

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


def record_spans(recorder: Recorder | None) -> None:
    """From now on hand it every span of this process; None records nothing."""
    global _recorder
    _recorder = recorder


def are_spans_recorded() -> bool:
    return _recorder is not None


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
def continue_trace(
    traceparent: str | None,
    name: str | None = None,
    *,
    kind: Kind = "internal",
    attributes: Attributes | None = None,
) -> Iterator[str]:
    """Work inside the trace that a message carries; a missing or malformed traceparent starts a new trace.

    Work with a name is a span; one that raises has failed. Attributes may be added to the mapping until the end. What
    is not recorded must be no span of its own to those it tells, or they would miss their parent.
    """
    is_recorded = _recorder is not None and name is not None
    if _recorder is None or is_recorded or not traceparent or _parse(traceparent) is None:
        hop = _hop_from(traceparent)
    else:
        hop = traceparent
    token = _traceparent.set(hop)
    started_ns = time_ns() if is_recorded else 0
    error: str | None = None
    try:
        yield hop
    except Exception as failure:
        error = repr(failure)
        raise
    finally:
        _traceparent.reset(token)
        if started_ns and name is not None:
            _record(name, kind, hop, traceparent, started_ns, attributes, error)


@contextmanager
def child_span(name: str, *, kind: Kind = "internal", attributes: Attributes | None = None) -> Iterator[str]:
    """A part of the current work that deserves a span of its own; nothing at all while nobody records."""
    if _recorder is None:
        yield current_traceparent()
        return
    with continue_trace(_traceparent.get(), name, kind=kind, attributes=attributes) as hop:
        yield hop


def note_span(
    name: str,
    *,
    parent: str,
    started_ns: int,
    ended_ns: int,
    span_id: str | None = None,
    kind: Kind = "internal",
    attributes: Attributes | None = None,
    error: str | None = None,
) -> None:
    """Record what happened elsewhere, or before anybody knew of it.

    `parent` is a traceparent; `span_id` is for what may be noted twice.
    """
    caller = _parse(parent)
    if _recorder is None or caller is None:
        return
    trace_id, _, flags = caller
    hop = f"00-{trace_id}-{span_id or urandom(8).hex()}-{flags}"
    _record(name, kind, hop, parent, started_ns, attributes, error, ended_ns)


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


def current_run_id() -> str | None:
    return _run_id.get()


@contextmanager
def for_run(run_id: str) -> Iterator[None]:
    """Name the run that the code inside works for."""
    token = _run_id.set(run_id)
    try:
        yield
    finally:
        _run_id.reset(token)


def _record(
    name: str,
    kind: Kind,
    hop: str,
    parent: str | None,
    started_ns: int,
    attributes: Attributes | None,
    error: str | None,
    ended_ns: int | None = None,
) -> None:
    if _recorder is None or not int(hop[53:], 16) & 1:
        return  # The caller has decided that this trace is not recorded.
    caller = _parse(parent) if parent else None
    _recorder(
        Span(
            name=name,
            kind=kind,
            trace_id=hop[3:35],
            span_id=hop[36:52],
            parent_id=caller[1] if caller else None,
            started_ns=started_ns,
            ended_ns=ended_ns or time_ns(),
            attributes=attributes or {},
            error=error,
        )
    )


def _hop_from(traceparent: str | None) -> str:
    caller = _parse(traceparent) if traceparent else None
    if caller is None:
        return f"00-{urandom(16).hex()}-{urandom(8).hex()}-01"
    trace_id, _, flags = caller
    return f"00-{trace_id}-{urandom(8).hex()}-{flags}"


def _parse(traceparent: str) -> tuple[str, str, str] | None:
    """Trace id, span id and flags (of which we know `sampled` alone); None where it is none by W3C's rules."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return trace_id, span_id, f"{int(flags, 16) & 1:02x}"
