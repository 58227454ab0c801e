from __future__ import annotations

import asyncio
import re
from contextvars import copy_context

import pytest

from shared import telemetry

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
WELL_FORMED = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]")


def test_a_hop_keeps_the_trace_and_takes_a_span_of_its_own() -> None:
    def hop() -> None:
        ours = telemetry.start_trace({"traceparent": CALLER})
        assert WELL_FORMED.fullmatch(ours)
        assert ours[3:35] == TRACE_ID
        assert ours != CALLER
        assert telemetry.current_traceparent() == ours
        assert telemetry.current_trace_id() == TRACE_ID

    copy_context().run(hop)


@pytest.mark.parametrize(
    "broken", [None, "", "nonsense", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"ff-{TRACE_ID}-00f067aa0ba902b7-01", "00-é"]
)
def test_a_broken_traceparent_starts_a_new_trace(broken: str | None) -> None:
    with telemetry.continue_trace(broken) as ours:
        assert WELL_FORMED.fullmatch(ours)
        assert ours[3:35] != TRACE_ID


def test_the_callers_decision_not_to_sample_is_kept() -> None:
    with telemetry.continue_trace(f"00-{TRACE_ID}-00f067aa0ba902b7-00") as ours:
        assert ours.endswith("-00")


def test_leaving_a_trace_returns_to_the_one_before() -> None:
    with telemetry.continue_trace(CALLER) as outer:
        with telemetry.continue_trace(None) as inner:
            assert telemetry.current_traceparent() == inner
        assert telemetry.current_traceparent() == outer


def test_code_that_works_for_nobody_starts_one_trace_and_stays_in_it() -> None:
    def work() -> None:
        assert telemetry.current_trace_id() is None
        first = telemetry.current_traceparent()
        assert telemetry.current_traceparent() == first

    copy_context().run(work)


async def test_requests_at_the_same_moment_keep_their_ids_apart() -> None:
    meeting = asyncio.Barrier(2)

    async def handle(request_id: str) -> str | None:
        with telemetry.in_request(request_id):
            await asyncio.wait_for(meeting.wait(), 5)
            return telemetry.current_request_id()

    assert await asyncio.gather(*map(handle, "ab")) == ["a", "b"]
    assert telemetry.current_request_id() is None
