from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from shared.clock import Clock, FixedClock, SystemClock


def test_the_systems_time_is_aware_and_in_utc() -> None:
    clock: Clock = SystemClock()
    assert clock.now().utcoffset() == timedelta(0)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=5)


def test_a_fixed_clock_moves_only_when_it_is_moved() -> None:
    clock = FixedClock(datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))))
    midnight = datetime(2026, 1, 1, tzinfo=UTC)
    assert (clock.now(), clock.now()) == (midnight, midnight)
    assert clock.advance(timedelta(hours=1)) == clock.now() == midnight + timedelta(hours=1)


def test_a_clock_without_a_zone_shows_no_time() -> None:
    with pytest.raises(ValueError, match="aware"):
        FixedClock(datetime(2026, 1, 1))  # noqa: DTZ001
