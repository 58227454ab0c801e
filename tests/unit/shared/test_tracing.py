from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from shared import trace
from shared.trace import Span
from shared.tracing import exporting, is_wanted

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def spans() -> Iterator[list[Span]]:
    recorded: list[Span] = []
    trace.record_spans(recorded.append)
    yield recorded
    trace.record_spans(None)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_spans_are_wanted_where_a_collector_is_named(environment: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environment) is wanted


def test_without_a_collector_no_process_imports_the_sdk() -> None:
    program = """
import sys
from shared.tracing import exporting
import gateway.app, services.run.controller_app
with exporting("run", {}):
    print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_a_collector_without_the_sdk_is_a_warning_and_no_reason_not_to_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with exporting("run", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}):
        assert not trace.are_spans_recorded()
    assert "the extra headrace[tracing] is not installed" in caplog.text


def test_a_span_has_the_ids_that_were_sent_along(spans: list[Span]) -> None:
    with (
        trace.continue_trace(CALLER, "outer", kind="server") as outer,
        trace.child_span("inner", kind="client") as sent,
    ):
        pass
    inner, first = spans
    assert (first.name, first.kind, first.trace_id, first.parent_id) == ("outer", "server", CALLER[3:35], CALLER[36:52])
    assert (inner.name, inner.parent_id, inner.trace_id) == ("inner", outer[36:52], CALLER[3:35])
    assert sent[36:52] == inner.span_id
    assert first.started_ns <= inner.started_ns <= inner.ended_ns <= first.ended_ns


def test_work_without_a_name_is_no_span_and_no_missing_parent(spans: list[Span]) -> None:
    with trace.continue_trace(CALLER) as unnamed, trace.child_span("work"):
        pass
    assert unnamed == CALLER
    (work,) = spans
    assert work.parent_id == CALLER[36:52]


def test_what_the_caller_does_not_record_is_not_recorded_here(spans: list[Span]) -> None:
    with trace.continue_trace(CALLER[:-1] + "0", "request"), trace.child_span("question"):
        pass
    assert spans == []


def test_work_that_raises_has_failed(spans: list[Span]) -> None:
    with pytest.raises(ValueError, match="bad"), trace.continue_trace(None, "request"):
        raise ValueError("bad")
    (failed,) = spans
    assert (failed.parent_id, failed.error) == (None, "ValueError('bad')")


def test_what_is_noted_afterwards_takes_the_times_and_the_id_it_is_given(spans: list[Span]) -> None:
    trace.note_span("step", parent=CALLER, started_ns=5, ended_ns=9, span_id="00000000000000aa", error="no")
    (step,) = spans
    assert (step.started_ns, step.ended_ns, step.span_id, step.parent_id) == (5, 9, "00000000000000aa", CALLER[36:52])
    trace.note_span("step", parent="nonsense", started_ns=5, ended_ns=9)
    assert len(spans) == 1
