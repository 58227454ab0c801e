"""Cron expressions and when they fire next (API specification, section 11.2), in every zone and over the changes of
their clocks: literally in `firings.txt`, and arbitrary ones against `walker.py`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.job_scheduler.cron import (
    CronError,
    Every,
    UnknownZone,
    count_matches,
    find_zone,
    latest_match,
    next_match,
    parse,
    smallest_gap_seconds,
)

from . import walker

TABLE = Path(__file__).with_name("firings.txt")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    zone: str
    base: datetime
    expected: list[str]
    """As the clock shows it, with its distance from UTC."""


def _rows() -> Iterator[Row]:
    zone, base = "", ""
    for line in TABLE.read_text().splitlines():
        if line.startswith("in "):
            _, zone, _, base = line.split()
        elif line and not line.startswith("#"):
            text, firings = line.split(" => ")
            expected = [] if firings == "never" else firings.split()
            yield Row(text=text.strip(), zone=zone, base=datetime.fromisoformat(base), expected=expected)


ROWS = list(_rows())


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.text} in {row.zone} from {row.base}" for row in ROWS])
def test_an_expression_fires_when_it_should(row: Row) -> None:
    assert _firings(row.text, row.base, max(1, len(row.expected)), row.zone) == row.expected


def test_the_table_is_what_somebody_sees_who_walks_along_time_and_looks_at_the_wall() -> None:
    for row in ROWS:
        if row.text.startswith("@every"):
            continue
        zone = find_zone(row.zone)
        seen: list[str] = []
        at: datetime | None = row.base.astimezone(UTC)
        while at is not None and len(seen) < max(1, len(row.expected)):
            at = walker.first_match(row.text, at, zone)
            if at is not None:
                seen.append(at.astimezone(zone).isoformat())
        assert seen == row.expected, row


def test_the_table_holds_more_than_a_hundred_and_fifty_cases() -> None:
    assert len({(row.text, row.zone, row.base) for row in ROWS}) == len(ROWS) >= 200
    assert len({row.text for row in ROWS}) >= 150
    assert len({row.zone for row in ROWS}) >= 20


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("2026-12-31T23:59:58", []),
        ("2027-01-01T00:00:00", ["2032-02-29T00:00:00+00:00"]),
    ],
)
def test_five_years_are_looked_ahead(base: str, expected: list[str]) -> None:
    assert _firings("0 0 0 29 2 */6", datetime.fromisoformat(f"{base}+00:00"), 1) == expected


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("@every 1h", "9999-12-31T23:30:00", []),
        ("* * * * * *", "9999-12-31T23:59:59", []),
        ("* * * * * *", "0001-01-01T00:00:00", ["1970-01-01T00:00:00+00:00"]),
    ],
)
def test_the_ends_of_the_calendar_are_survived(text: str, base: str, expected: list[str]) -> None:
    assert _firings(text, datetime.fromisoformat(f"{base}+00:00"), 1) == expected


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


def _firings(text: str, base: datetime, most: int, zone: str = "UTC") -> list[str]:
    expression, place = parse(text), find_zone(zone)
    at: datetime | None = base.astimezone(UTC)
    firings: list[str] = []
    while len(firings) < most and at is not None:
        at = next_match(expression, at, place)
        if at is not None:
            assert at.tzinfo is UTC
            firings.append(at.astimezone(place).isoformat())
    return firings


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Mars/Olympus",
        "America",
        "../etc/passwd",
        "/etc/localtime",
        "Europe/Berlin\0",
        "EST5EDT,M3.2.0",
        "localtime",
        "posix/UTC",
        "UTC+1",
        "x" * 5000,
    ],
)
def test_a_zone_is_one_of_the_database(name: str) -> None:
    assert find_zone("Europe/Berlin") is not find_zone("UTC") is UTC
    with pytest.raises(UnknownZone):
        find_zone(name)


GAPS: list[tuple[str, int | None]] = [
    ("* * * * * *", 1),
    ("0 * * * * *", 60),
    ("*/7 * * * * *", 4),
    ("0,59 * * * * *", 1),
    ("0,59 0 * * * *", 59),
    ("30 */7 * * * *", 240),
    ("0 0 * * * *", 3600),
    ("0 0 */5 * * *", 4 * 3600),
    ("0 0,50 */5 * * *", 3000),
    ("0 0 0 * * *", 86400),
    ("0 0 0,23 * * *", 3600),
    ("0 0 0,23 1,3 * ?", 23 * 3600),
    ("0 0 0,23 31,1 * ?", 3600),
    ("59 59 23 ? * mon", 7 * 86400),
    ("0 0 0 1 * ?", 28 * 86400),
    ("0 0 0 1,31 * ?", 86400),
    ("0 0 0 29 2 ?", (365 * 4 + 1) * 86400),
    ("0,10 0 0 29 2 ?", 10),
    ("0 0 0 30 2 ?", None),
    ("0,1 * * 30 2 ?", None),
    ("@every 90s", 90),
    ("@weekly", 7 * 86400),
]


@pytest.mark.parametrize(("text", "seconds"), GAPS)
def test_the_smallest_gap_is_between_the_two_nearest_firings(text: str, seconds: int | None) -> None:
    assert smallest_gap_seconds(parse(text)) == seconds


# Arbitrary expressions in arbitrary zones, held against the walk along time.


def _items(least: int, most: int) -> st.SearchStrategy[str]:
    numbers = st.integers(least, most).map(str)
    spans = st.lists(st.integers(least, most), min_size=2, max_size=2).map(lambda ends: f"{min(ends)}-{max(ends)}")
    steps = st.integers(1, most).map(str)
    stars = st.sampled_from("*?")
    return st.one_of(stars, numbers, spans, st.tuples(st.one_of(stars, numbers, spans), steps).map("/".join))


def _fields(least: int, most: int) -> st.SearchStrategy[str]:
    return st.lists(_items(least, most), min_size=1, max_size=3).map(",".join)


EXPRESSIONS = st.tuples(
    _fields(0, 59), _fields(0, 59), _fields(0, 23), _fields(1, 31), _fields(1, 12), _fields(0, 6)
).map(" ".join)
ZONES = st.sampled_from(sorted({row.zone for row in ROWS}))
MOMENTS = st.datetimes(datetime(1999, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001
    lambda at: at.replace(microsecond=0)
)
NEAR_A_CHANGE = st.builds(
    lambda row, hours: row.base.astimezone(UTC) + hours,
    st.sampled_from(ROWS),
    st.timedeltas(timedelta(hours=-2), timedelta(hours=26)).map(
        lambda delta: timedelta(seconds=delta // timedelta(seconds=1))
    ),
)


@settings(max_examples=100, deadline=None, print_blob=True)
@given(text=EXPRESSIONS, zone=ZONES, base=st.one_of(MOMENTS, NEAR_A_CHANGE))
def test_any_expression_fires_as_the_clock_on_the_wall_says(text: str, zone: str, base: datetime) -> None:
    found = next_match(parse(text), base, find_zone(zone))
    assert found == walker.first_match(text, base, find_zone(zone))
    if found is not None:
        assert found > base
        assert walker.is_match(walker.read(text), found, find_zone(zone))


FREQUENT = st.tuples(
    st.sampled_from(("0", "*/20", "59,0", "7-9")),
    st.sampled_from(("0", "*/7", "?", "30", "0,59")),
    _fields(0, 23),
    st.sampled_from(("*", "?", "*/2", "1-30", "2,3,10,27,31")),
    st.just("*"),
    st.sampled_from(("*", "?", "sun", "1-6")),
).map(" ".join)


@settings(max_examples=40, deadline=None, print_blob=True)
@given(
    text=FREQUENT,
    zone=ZONES,
    base=st.one_of(MOMENTS, NEAR_A_CHANGE),
    length=st.integers(0, 60 * 3600).map(lambda seconds: timedelta(seconds=seconds)),
)
def test_the_latest_match_and_the_count_are_those_of_all_matches(
    text: str, zone: str, base: datetime, length: timedelta
) -> None:
    place = find_zone(zone)
    seen = list(walker.matches(walker.read(text), base, base + length, place))
    assume(seen)
    expression = parse(text)
    assert latest_match(expression, seen[0], base + length, place) == seen[-1]
    assert count_matches(expression, seen[0], seen[-1], place) == len(seen)
    middle = seen[len(seen) // 2]
    assert latest_match(expression, seen[0], middle, place) == middle
    assert count_matches(expression, middle, seen[-1], place) == len(seen) - len(seen) // 2


@pytest.mark.parametrize(
    ("text", "first", "until", "latest", "count"),
    [
        # Where the clock goes back: the later moment is earlier on the wall.
        ("0 30 1 * * *", "2024-11-01T01:30:00-04:00", "2024-11-03T01:20:00-05:00", "2024-11-03T01:30:00-04:00", 3),
        ("0 30 1 * * *", "2024-11-01T01:30:00-04:00", "2024-11-03T01:30:00-05:00", "2024-11-03T01:30:00-05:00", 4),
        ("0 30 1 * * *", "2024-11-01T01:30:00-04:00", "2024-11-03T01:29:59-04:00", "2024-11-02T01:30:00-04:00", 2),
        ("0 45 0,1 * * *", "2024-11-03T00:45:00-04:00", "2024-11-03T01:00:00-05:00", "2024-11-03T01:45:00-04:00", 2),
        ("0 0 * * * *", "2024-11-03T00:00:00-04:00", "2024-11-03T02:59:00-05:00", "2024-11-03T02:00:00-05:00", 4),
        # Where it goes forward.
        ("0 30 2 * * *", "2024-03-08T02:30:00-05:00", "2024-03-10T12:00:00-04:00", "2024-03-09T02:30:00-05:00", 2),
        ("0 30 2 * * *", "2024-03-08T02:30:00-05:00", "2024-03-11T02:30:00-04:00", "2024-03-11T02:30:00-04:00", 3),
        ("0 0 3 * * *", "2024-03-09T03:00:00-05:00", "2024-03-10T03:00:00-04:00", "2024-03-10T03:00:00-04:00", 2),
        ("0 0 * * * *", "2024-03-10T00:00:00-05:00", "2024-03-10T03:30:00-04:00", "2024-03-10T03:00:00-04:00", 3),
        # Over both.
        ("0 30 1,2 3,10 3 ?", "2023-03-10T01:30:00-05:00", "2024-12-31T00:00:00-05:00", "2024-03-10T01:30:00-05:00", 5),
    ],
)  # fmt: skip
def test_the_latest_match_is_found_from_the_other_side_of_a_change(
    text: str, first: str, until: str, latest: str, count: int
) -> None:
    zone = find_zone("America/New_York")
    begin, end = (datetime.fromisoformat(each).astimezone(UTC) for each in (first, until))
    found = latest_match(parse(text), begin, end, zone)
    assert found.astimezone(zone).isoformat() == latest
    assert count_matches(parse(text), begin, found, zone) == count


def test_millions_of_matches_are_counted_without_looking_at_each() -> None:
    first, last = datetime(1990, 1, 1, tzinfo=UTC), datetime(2023, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert count_matches(parse("* * * * * *"), first, last) == 34 * 365 * 86400 + 8 * 86400


@settings(max_examples=40, deadline=None, print_blob=True)
@given(text=FREQUENT, base=MOMENTS)
def test_no_two_firings_are_nearer_than_the_smallest_gap(text: str, base: datetime) -> None:
    seen = list(walker.matches(walker.read(text), base, base + timedelta(days=3), UTC))
    gap = smallest_gap_seconds(parse(text))
    assert gap is not None
    assert all((after - before).total_seconds() >= gap for before, after in pairwise(seen))
