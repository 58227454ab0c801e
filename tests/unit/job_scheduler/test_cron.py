"""Cron expressions and when they fire next (API specification, section 11.2). The expected times were made by hand
and by a model that walks the calendar day by day; the last test holds arbitrary expressions to such a model."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.job_scheduler.schedule import CronError, Every, next_match, parse

TUESDAY = "2024-02-27T10:20:30"

FIRINGS: list[tuple[str, str]] = [
    # Seconds come first, and a line of five fields is shifted.
    ("* * * * * *", "2024-02-27T10:20:31 2024-02-27T10:20:32 2024-02-27T10:20:33"),
    ("* * * * *", "2024-02-27T10:20:31 2024-02-27T10:20:32 2024-02-27T10:20:33"),
    ("? ? ? ? ? ?", "2024-02-27T10:20:31 2024-02-27T10:20:32 2024-02-27T10:20:33"),
    ("*/5 * * * *", "2024-02-27T10:20:35 2024-02-27T10:20:40 2024-02-27T10:20:45"),
    ("*/5 * * * * *", "2024-02-27T10:20:35 2024-02-27T10:20:40 2024-02-27T10:20:45"),
    ("0 * * * * *", "2024-02-27T10:21:00 2024-02-27T10:22:00 2024-02-27T10:23:00"),
    ("0 0 0 1 *", "2024-03-01T00:00:00 2024-04-01T00:00:00 2024-05-01T00:00:00"),
    # Later than the base, never at it.
    ("29 20 10 * * *", "2024-02-28T10:20:29 2024-02-29T10:20:29 2024-03-01T10:20:29"),
    ("30 20 10 * * *", "2024-02-28T10:20:30 2024-02-29T10:20:30 2024-03-01T10:20:30"),
    ("31 20 10 * * *", "2024-02-27T10:20:31 2024-02-28T10:20:31 2024-02-29T10:20:31"),
    # Steps, ranges, lists.
    ("0 */15 * * * *", "2024-02-27T10:30:00 2024-02-27T10:45:00 2024-02-27T11:00:00"),
    ("0 5/15 * * * *", "2024-02-27T10:35:00 2024-02-27T10:50:00 2024-02-27T11:05:00"),
    ("0 5-20/15 * * * *", "2024-02-27T11:05:00 2024-02-27T11:20:00 2024-02-27T12:05:00"),
    ("10-10 * * * * *", "2024-02-27T10:21:10 2024-02-27T10:22:10 2024-02-27T10:23:10"),
    ("50/5 * * * * *", "2024-02-27T10:20:50 2024-02-27T10:20:55 2024-02-27T10:21:50"),
    ("15/20 59 23 * * *", "2024-02-27T23:59:15 2024-02-27T23:59:35 2024-02-27T23:59:55"),
    ("0,30 0 12 * * *", "2024-02-27T12:00:00 2024-02-27T12:00:30 2024-02-28T12:00:00"),
    ("0 0 9-17 * * *", "2024-02-27T11:00:00 2024-02-27T12:00:00 2024-02-27T13:00:00"),
    ("0 0 9-17/4 * * *", "2024-02-27T13:00:00 2024-02-27T17:00:00 2024-02-28T09:00:00"),
    ("0 0 22-23,0-1 * * *", "2024-02-27T22:00:00 2024-02-27T23:00:00 2024-02-28T00:00:00"),
    ("0 0/30 8-9 5,20 * *", "2024-03-05T08:00:00 2024-03-05T08:30:00 2024-03-05T09:00:00"),
    ("0 0 0 ,3, * ?", "2024-03-03T00:00:00 2024-04-03T00:00:00 2024-05-03T00:00:00"),
    ("00 007 01 * * *", "2024-02-28T01:07:00 2024-02-29T01:07:00 2024-03-01T01:07:00"),
    ("0  0\t0   1 1 *", "2025-01-01T00:00:00 2026-01-01T00:00:00 2027-01-01T00:00:00"),
    # What the UI emits.
    ("0 0 * * * ?", "2024-02-27T11:00:00 2024-02-27T12:00:00 2024-02-27T13:00:00"),
    ("0 0 0 * * ?", "2024-02-28T00:00:00 2024-02-29T00:00:00 2024-03-01T00:00:00"),
    ("0 0 0 1 * ?", "2024-03-01T00:00:00 2024-04-01T00:00:00 2024-05-01T00:00:00"),
    ("0 0 0 ? * MON,WED", "2024-02-28T00:00:00 2024-03-04T00:00:00 2024-03-06T00:00:00"),
    # Months of different length, years of different length.
    ("0 0 0 30 * *", "2024-03-30T00:00:00 2024-04-30T00:00:00 2024-05-30T00:00:00"),
    ("0 0 0 31 * *", "2024-03-31T00:00:00 2024-05-31T00:00:00 2024-07-31T00:00:00"),
    ("0 0 0 28-31 2 *", "2024-02-28T00:00:00 2024-02-29T00:00:00 2025-02-28T00:00:00"),
    ("0 0 0 29 2 *", "2024-02-29T00:00:00 2028-02-29T00:00:00 2032-02-29T00:00:00"),
    ("59 59 23 31 12 *", "2024-12-31T23:59:59 2025-12-31T23:59:59 2026-12-31T23:59:59"),
    ("0 0 0 1 1 *", "2025-01-01T00:00:00 2026-01-01T00:00:00 2027-01-01T00:00:00"),
    # Names, in any case.
    ("0 0 0 1 JAN *", "2025-01-01T00:00:00 2026-01-01T00:00:00 2027-01-01T00:00:00"),
    ("0 0 0 1 jan-mar *", "2024-03-01T00:00:00 2025-01-01T00:00:00 2025-02-01T00:00:00"),
    ("0 0 0 1 feb,AUG *", "2024-08-01T00:00:00 2025-02-01T00:00:00 2025-08-01T00:00:00"),
    ("0 0 0 1 Oct/1 *", "2024-10-01T00:00:00 2024-11-01T00:00:00 2024-12-01T00:00:00"),
    ("0 0 0 1 */3 *", "2024-04-01T00:00:00 2024-07-01T00:00:00 2024-10-01T00:00:00"),
    ("0 0 0 1 2/5 *", "2024-07-01T00:00:00 2024-12-01T00:00:00 2025-02-01T00:00:00"),
    # Days of the week count from Sunday.
    ("0 0 0 * * 0", "2024-03-03T00:00:00 2024-03-10T00:00:00 2024-03-17T00:00:00"),
    ("0 0 0 * * sun", "2024-03-03T00:00:00 2024-03-10T00:00:00 2024-03-17T00:00:00"),
    ("0 0 0 ? * sat", "2024-03-02T00:00:00 2024-03-09T00:00:00 2024-03-16T00:00:00"),
    ("0 0 0 ? * 6", "2024-03-02T00:00:00 2024-03-09T00:00:00 2024-03-16T00:00:00"),
    ("0 0 0 ? * MON", "2024-03-04T00:00:00 2024-03-11T00:00:00 2024-03-18T00:00:00"),
    ("0 0 0 ? * MON-FRI", "2024-02-28T00:00:00 2024-02-29T00:00:00 2024-03-01T00:00:00"),
    ("0 0 0 ? * mon,wed,fri", "2024-02-28T00:00:00 2024-03-01T00:00:00 2024-03-04T00:00:00"),
    ("0 0 0 ? * 1-5/2", "2024-02-28T00:00:00 2024-03-01T00:00:00 2024-03-04T00:00:00"),
    ("0 0 0 ? * 4/2", "2024-02-29T00:00:00 2024-03-02T00:00:00 2024-03-07T00:00:00"),
    ("0 0 0 * * */2", "2024-02-29T00:00:00 2024-03-02T00:00:00 2024-03-03T00:00:00"),
    ("0 30 10 ? * TUE", "2024-02-27T10:30:00 2024-03-05T10:30:00 2024-03-12T10:30:00"),
    ("0 20 10 ? * TUE", "2024-03-05T10:20:00 2024-03-12T10:20:00 2024-03-19T10:20:00"),
    # Both day fields without a star: either suffices.
    ("0 0 0 13 * FRI", "2024-03-01T00:00:00 2024-03-08T00:00:00 2024-03-13T00:00:00"),
    ("0 0 0 1,15 * MON", "2024-03-01T00:00:00 2024-03-04T00:00:00 2024-03-11T00:00:00"),
    ("0 0 0 1-7 * sat", "2024-03-01T00:00:00 2024-03-02T00:00:00 2024-03-03T00:00:00"),
    ("0 0 0 29 2 MON", "2024-02-29T00:00:00 2025-02-03T00:00:00 2025-02-10T00:00:00"),
    ("0 0 0 31 2,4,6 MON", "2024-04-01T00:00:00 2024-04-08T00:00:00 2024-04-15T00:00:00"),
    ("0 0 0 1 3 wed", "2024-03-01T00:00:00 2024-03-06T00:00:00 2024-03-13T00:00:00"),
    ("0 0 3 15 */2 tue,thu", "2024-03-05T03:00:00 2024-03-07T03:00:00 2024-03-12T03:00:00"),
    # Without a star, also where a list happens to hold every day.
    ("0 0 0 1-31 * MON", "2024-02-28T00:00:00 2024-02-29T00:00:00 2024-03-01T00:00:00"),
    ("0 0 0 13 * 0-6", "2024-02-28T00:00:00 2024-02-29T00:00:00 2024-03-01T00:00:00"),
    # A star in either, with a step or in a list too: both must match.
    ("0 0 0 13 * ?", "2024-03-13T00:00:00 2024-04-13T00:00:00 2024-05-13T00:00:00"),
    ("0 0 0 13 * */1", "2024-03-13T00:00:00 2024-04-13T00:00:00 2024-05-13T00:00:00"),
    ("0 0 0 13 * */3", "2024-03-13T00:00:00 2024-04-13T00:00:00 2024-07-13T00:00:00"),
    ("0 0 0 */2 * MON", "2024-03-11T00:00:00 2024-03-25T00:00:00 2024-04-01T00:00:00"),
    ("0 0 0 */10 * MON", "2024-03-11T00:00:00 2024-04-01T00:00:00 2024-07-01T00:00:00"),
    ("0 0 0 */7 * ?", "2024-02-29T00:00:00 2024-03-01T00:00:00 2024-03-08T00:00:00"),
    ("0 0 0 5,* * MON", "2024-03-04T00:00:00 2024-03-11T00:00:00 2024-03-18T00:00:00"),
    ("0 0 0 5,?,9 * MON", "2024-03-04T00:00:00 2024-03-11T00:00:00 2024-03-18T00:00:00"),
    # Never.
    ("0 0 0 30 2 ?", ""),
    ("0 0 0 30 feb *", ""),
    ("0 0 0 31 4,6,9,11 */1", ""),
    ("0 0 0 29 2 */6", ""),  # The 29th of February is a Sunday in 2032, beyond five years.
    # Descriptors.
    ("@yearly", "2025-01-01T00:00:00 2026-01-01T00:00:00 2027-01-01T00:00:00"),
    ("@annually", "2025-01-01T00:00:00 2026-01-01T00:00:00 2027-01-01T00:00:00"),
    ("@monthly", "2024-03-01T00:00:00 2024-04-01T00:00:00 2024-05-01T00:00:00"),
    ("@weekly", "2024-03-03T00:00:00 2024-03-10T00:00:00 2024-03-17T00:00:00"),
    ("@daily", "2024-02-28T00:00:00 2024-02-29T00:00:00 2024-03-01T00:00:00"),
    ("@midnight", "2024-02-28T00:00:00 2024-02-29T00:00:00 2024-03-01T00:00:00"),
    ("@hourly", "2024-02-27T11:00:00 2024-02-27T12:00:00 2024-02-27T13:00:00"),
    # Intervals.
    ("@every 1s", "2024-02-27T10:20:31 2024-02-27T10:20:32 2024-02-27T10:20:33"),
    ("@every 90s", "2024-02-27T10:22:00 2024-02-27T10:23:30 2024-02-27T10:25:00"),
    ("@every 1h30m10s", "2024-02-27T11:50:40 2024-02-27T13:20:50 2024-02-27T14:51:00"),
    ("@every 48h", "2024-02-29T10:20:30 2024-03-02T10:20:30 2024-03-04T10:20:30"),
]


@pytest.mark.parametrize(("text", "expected"), FIRINGS)
def test_an_expression_fires_when_it_should(text: str, expected: str) -> None:
    assert " ".join(_firings(text, TUESDAY, 3)) == expected


def test_there_are_firings_of_more_than_sixty_expressions() -> None:
    assert len({text for text, _ in FIRINGS}) == len(FIRINGS) >= 60


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("2026-12-31T23:59:58", []),
        ("2027-01-01T00:00:00", ["2032-02-29T00:00:00"]),
    ],
)
def test_five_years_are_looked_ahead(base: str, expected: list[str]) -> None:
    assert _firings("0 0 0 29 2 */6", base, 1) == expected


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("@every 1h", "9999-12-31T23:30:00", []),
        ("* * * * * *", "9999-12-31T23:59:59", []),
        ("* * * * * *", "0001-01-01T00:00:00", ["1970-01-01T00:00:00"]),
    ],
)
def test_the_ends_of_the_calendar_are_survived(text: str, base: str, expected: list[str]) -> None:
    assert _firings(text, base, 1) == expected


DURATIONS: list[tuple[str, int]] = [
    ("1s", 1),
    ("999ms", 1),
    ("0", 1),
    ("-5m", 1),
    ("1500ms", 1),
    ("2.9s", 2),
    ("1.5h", 5400),
    (".5m", 30),
    ("1.m", 60),
    ("+1m", 60),
    ("1h1m1s1ms1us1µs1μs1ns", 3661),
    ("1s1h", 3601),
    ("2562047h", 2562047 * 3600),
]


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_a_duration_is_whole_seconds_and_at_least_one(text: str, seconds: int) -> None:
    assert parse(f"@every {text}") == Every(seconds=seconds)


NO_EXPRESSIONS: list[tuple[str, str]] = [
    ("", "Empty spec string"),
    (" ", "Expected 5 to 6 fields, found 0:  "),
    ("* * * *", "Expected 5 to 6 fields, found 4: * * * *"),
    ("* * * * * * *", "Expected 5 to 6 fields, found 7: * * * * * * *"),
    ("TZ=UTC 0 0 0 * * *", "Expected 5 to 6 fields, found 7: TZ=UTC 0 0 0 * * *"),
    ("TZ=UTC 0 0 * * *", "Failed to parse int from TZ=UTC: TZ=UTC"),
    ("60 * * * * *", "End of range (60) above maximum (59): 60"),
    ("* 0-60 * * * *", "End of range (60) above maximum (59): 0-60"),
    ("* * 24 * * *", "End of range (24) above maximum (23): 24"),
    ("* * * 0 * *", "Beginning of range (0) below minimum (1): 0"),
    ("* * * 32 * *", "End of range (32) above maximum (31): 32"),
    ("* * * * 0 *", "Beginning of range (0) below minimum (1): 0"),
    ("* * * * 13 *", "End of range (13) above maximum (12): 13"),
    ("* * * * * 7", "End of range (7) above maximum (6): 7"),
    ("* * * * * fri-mon", "Beginning of range (5) beyond end of range (1): fri-mon"),
    ("10-5 * * * * *", "Beginning of range (10) beyond end of range (5): 10-5"),
    ("*/0 * * * * *", "Step of range should be a positive number: */0"),
    ("*/-1 * * * * *", "Failed to parse int from -1: */-1"),
    ("*/ * * * * *", "Failed to parse int from : */"),
    ("1/2/3 * * * * *", "Too many slashes: 1/2/3"),
    ("1-2-3 * * * * *", "Too many hyphens: 1-2-3"),
    ("1- * * * * *", "Failed to parse int from : 1-"),
    ("-1 * * * * *", "Failed to parse int from : -1"),
    ("*-5 * * * * *", "Failed to parse int from *: *-5"),
    (", * * * * *", "Nothing in the field of the second: ,"),
    ("jan * * * * *", "Failed to parse int from jan: jan"),
    ("* * * * sun *", "Failed to parse int from sun: sun"),
    ("* * * * january *", "Failed to parse int from january: january"),
    ("0 0 0 L * *", "Failed to parse int from L: L"),
    ("0 0 0 15W * *", "Failed to parse int from 15W: 15W"),
    ("0 0 0 * * 5#3", "Failed to parse int from 5#3: 5#3"),
    ("٣ * * * * *", "Failed to parse int from ٣: ٣"),
    ("9" * 5000 + " * * * * *", f"Failed to parse int from {'9' * 5000}: {'9' * 5000}"),
    ("H * * * * *", "Failed to parse int from H: H"),
    ("@reboot", "Unrecognized descriptor: @reboot"),
    ("@Daily", "Unrecognized descriptor: @Daily"),
    ("@every", "Unrecognized descriptor: @every"),
    ("@every ", "Failed to parse duration @every : invalid duration"),
    ("@every 5", "Failed to parse duration @every 5: invalid duration"),
    ("@every 1d", "Failed to parse duration @every 1d: invalid duration"),
    ("@every 1 s", "Failed to parse duration @every 1 s: invalid duration"),
    ("@every 1h ", "Failed to parse duration @every 1h : invalid duration"),
    ("@every ٣s", "Failed to parse duration @every ٣s: invalid duration"),
    ("@every 2562048h", "Failed to parse duration @every 2562048h: invalid duration"),
]


@pytest.mark.parametrize(("text", "reason"), NO_EXPRESSIONS, ids=[text[:20] for text, _ in NO_EXPRESSIONS])
def test_what_is_no_expression_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(CronError) as refused:
        parse(text)
    assert refused.value.reason == reason


def _firings(text: str, base: str, most: int) -> list[str]:
    expression = parse(text)
    at: datetime | None = datetime.fromisoformat(base).replace(tzinfo=UTC)
    firings: list[str] = []
    while len(firings) < most and at is not None:
        at = next_match(expression, at)
        if at is not None:
            assert at.tzinfo is UTC
            firings.append(at.strftime("%Y-%m-%dT%H:%M:%S"))
    return firings


# Arbitrary expressions. A field is drawn as its text, its values and whether it has a star, so that the model
# reads no text.

Drawn = tuple[str, frozenset[int], bool]


def _items(least: int, most: int) -> st.SearchStrategy[Drawn]:
    numbers = st.integers(least, most)
    steps = st.integers(1, most)
    stars = st.sampled_from("*?")
    return st.one_of(
        stars.map(lambda star: (star, frozenset(range(least, most + 1)), True)),
        st.builds(lambda star, step: (f"{star}/{step}", frozenset(range(least, most + 1, step)), True), stars, steps),
        numbers.map(lambda number: (str(number), frozenset({number}), False)),
        st.builds(
            lambda first, step: (f"{first}/{step}", frozenset(range(first, most + 1, step)), False), numbers, steps
        ),
        st.builds(
            lambda ends, step: (
                f"{min(ends)}-{max(ends)}/{step}",
                frozenset(range(min(ends), max(ends) + 1, step)),
                False,
            ),
            st.tuples(numbers, numbers),
            steps,
        ),
    )


def _fields(least: int, most: int) -> st.SearchStrategy[Drawn]:
    return st.lists(_items(least, most), min_size=1, max_size=3).map(
        lambda items: (
            ",".join(text for text, _, _ in items),
            frozenset().union(*(values for _, values, _ in items)),
            any(has_star for _, _, has_star in items),
        )
    )


EXPRESSIONS = st.tuples(_fields(0, 59), _fields(0, 59), _fields(0, 23), _fields(1, 31), _fields(1, 12), _fields(0, 6))


@settings(max_examples=150, deadline=None)
@given(fields=EXPRESSIONS, base=st.datetimes(datetime(1999, 1, 1), datetime(2040, 1, 1)))  # noqa: DTZ001
def test_any_expression_fires_as_the_calendar_says(fields: tuple[Drawn, ...], base: datetime) -> None:
    base = base.replace(microsecond=0, tzinfo=UTC)
    expression = parse(" ".join(text for text, _, _ in fields))
    assert next_match(expression, base) == _walked(fields, base)


def _walked(fields: tuple[Drawn, ...], base: datetime) -> datetime | None:
    """Day by day, then the earliest time of that day."""
    (_, seconds, _), (_, minutes, _), (_, hours, _), (_, days, day_star), (_, months, _), (_, weekdays, week_star) = (
        fields
    )
    times = sorted(timedelta(hours=h, minutes=m, seconds=s) for h in hours for m in minutes for s in seconds)
    day = base.replace(hour=0, minute=0, second=0)
    while day.year <= (base + timedelta(seconds=1)).year + 5:
        by_day, by_week = day.day in days, day.isoweekday() % 7 in weekdays
        is_day = by_day and by_week if day_star or week_star else by_day or by_week
        if is_day and day.month in months:
            found = next((day + time for time in times if day + time > base), None)
            if found is not None:
                return found
        day += timedelta(days=1)
    return None
