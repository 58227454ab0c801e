"""Cron expressions and the moments they match (API specification, section 11.2). Pure: knows no jobs.

croniter does the arithmetic of cron. What is ours is the grammar: the API's expressions start with seconds, count
days of the week from Sunday as 0 to 6, know `?`, `a/n`, descriptors and `@every`, and combine the two day fields by a
rule of their own. An expression is therefore read here, completely, and croniter is given plain lists of numbers and
the way to combine the days.

Ours are also time zones. A moment matches if the clock on the wall shows what the fields ask for: what a clock that is
moved forward leaves out does not happen, and what it shows twice when it is moved back happens twice. The reference
walks the fields of the wall clock and comes to the same, but for its slips where a day has no midnight or a clock moves
by half an hour: there it misses matches or makes some on the wrong day, and is not followed. Between two changes of its
clock a zone is a fixed distance from UTC; so croniter is asked for each such stretch, in a calendar without changes.

Moments are UTC in whole seconds. What a wall shows ("shown") is kept as a UTC time too, because that calendar has no
gaps.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from typing import Final, assert_never
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from croniter import CroniterBadDateError, croniter

HORIZON_YEARS: Final = 5
"""An expression that matches nothing for so long never does."""

_SECOND: Final = timedelta(seconds=1)
_DAY: Final = timedelta(days=1)
EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(9990, 1, 1, tzinfo=UTC)
_CALENDAR_SECONDS: Final = 10_000 * 366 * 86_400


class CronError(Exception):
    """The text is no cron expression; says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnknownZone(Exception):
    """The name is none of the IANA database."""


class Fields(msgspec.Struct, frozen=True, kw_only=True):
    numbers: tuple[tuple[int, ...], ...]
    """What each of the six fields matches, from seconds on, in order."""
    is_either_day: bool
    """Whether a day matches by either of its fields, instead of by both."""
    text: str
    """The same as croniter takes it: each field `*` or a list of numbers."""


class Every(msgspec.Struct, frozen=True, kw_only=True):
    """`@every`: counted from the last match, not from any full hour, and in no zone."""

    seconds: int


Expression = Fields | Every


def next_match(expression: Expression, after: datetime, zone: tzinfo = UTC) -> datetime | None:
    """The first match strictly later than a time in whole seconds; None where there is none."""
    match expression:
        case Every(seconds=seconds):
            return later(after, seconds)
        case Fields():
            # There is no second before the first: the calendar of earlier times is nobody's schedule.
            return None if after > _LATEST else _next(expression, max(after + _SECOND, EARLIEST), zone)
        case _ as unreachable:
            assert_never(unreachable)


def latest_match(expression: Expression, first: datetime, until: datetime, zone: tzinfo = UTC) -> datetime:
    """The last match up to a time, given an earlier one."""
    match expression:
        case Every(seconds=seconds):
            return until - (until - first) % interval(seconds)
        case Fields():
            return _latest(expression, first, min(until, max(first, _LATEST)), zone)
        case _ as unreachable:
            assert_never(unreachable)


def count_matches(expression: Expression, first: datetime, last: datetime, zone: tzinfo = UTC) -> int:
    """How many there are from one match to another, both counted; the same effort whether they are few or millions."""
    match expression:
        case Every(seconds=seconds):
            return (last - first) // interval(seconds) + 1
        case Fields():
            return sum(
                _count(expression, since + offset, until + offset)
                for since, until, offset in _stretches(zone, first, last)
            )
        case _ as unreachable:
            assert_never(unreachable)


@lru_cache(maxsize=4096)
def smallest_gap_seconds(expression: Expression) -> int | None:
    """The shortest time between two matches on a clock that nobody moves; None where there are no two."""
    match expression:
        case Every(seconds=seconds):
            return seconds
        case Fields():
            return min(_gaps(expression), default=None)
        case _ as unreachable:
            assert_never(unreachable)


def interval(seconds: int) -> timedelta:
    """Those that are longer than the calendar are all the same."""
    return timedelta(seconds=min(seconds, _CALENDAR_SECONDS))


def later(moment: datetime, seconds: int) -> datetime | None:
    """None beyond the calendar."""
    try:
        return moment + interval(seconds)
    except OverflowError:
        return None


# Zones.

_NO_PLACES: Final = frozenset({"Factory", "localtime", "posixrules"})
_OTHER_COUNTS: Final = ("posix/", "right/")
"""Copies of the database that some machines have beside it; one of them counts leap seconds."""


@lru_cache(maxsize=1024)
def find_zone(name: str) -> tzinfo:
    """Raises UnknownZone."""
    if name == "UTC":
        return UTC
    if name in _NO_PLACES or name.startswith(_OTHER_COUNTS):
        raise UnknownZone(name)
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UnknownZone(name) from error


def _offset(zone: tzinfo, at: datetime) -> timedelta:
    offset = at.astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def _first_change(zone: tzinfo, since: datetime, until: datetime) -> datetime | None:
    """The first moment after one and up to another at which the clock is another one than at the first."""
    if zone is UTC:
        return None
    offset = _offset(zone, since)
    low = since
    while low < until:
        high = min(low + _DAY, until)
        if _offset(zone, high) != offset:
            return _change(zone, low, high)
        low = high
    return None


def _last_change(zone: tzinfo, since: datetime, until: datetime) -> datetime | None:
    """The last moment after one and up to another at which the clock becomes what it is at the other."""
    if zone is UTC:
        return None
    offset = _offset(zone, until)
    high = until
    while high > since:
        low = max(high - _DAY, since)
        if _offset(zone, low) != offset:
            return _change(zone, low, high)
        high = low
    return None


def _change(zone: tzinfo, low: datetime, high: datetime) -> datetime:
    """The moment of the change between two that show different clocks. No zone changes twice within a day."""
    before = _offset(zone, low)
    while high - low > _SECOND:
        middle = low + timedelta(seconds=(high - low) // _SECOND // 2)
        low, high = (middle, high) if _offset(zone, middle) == before else (low, middle)
    return high


def _stretches(zone: tzinfo, first: datetime, last: datetime) -> Iterator[tuple[datetime, datetime, timedelta]]:
    """The time from one moment to another, cut where the clock changes: first and last second, distance from UTC."""
    since: datetime | None = first
    while since is not None:
        change = _first_change(zone, since, last)
        yield since, last if change is None else change - _SECOND, _offset(zone, since)
        since = change


# Matches.


def _next(fields: Fields, earliest: datetime, zone: tzinfo) -> datetime | None:
    last_year = (earliest + _offset(zone, earliest)).year + HORIZON_YEARS
    while True:
        offset = _offset(zone, earliest)
        shown = _step(fields, earliest + offset - _SECOND, is_back=False)
        if shown is None or shown.year > last_year:
            return None
        change = _first_change(zone, earliest, shown - offset)
        if change is None:
            return shown - offset
        earliest = change


def _latest(fields: Fields, first: datetime, until: datetime, zone: tzinfo) -> datetime:
    while True:
        offset = _offset(zone, until)
        shown = _step(fields, until + offset + _SECOND, is_back=True)
        found = first if shown is None else max(first, shown - offset)
        change = _last_change(zone, found, until)
        if change is None:
            return found
        until = change - _SECOND


def _step(fields: Fields, base: datetime, *, is_back: bool) -> datetime | None:
    matches = _matches(fields.text, fields.is_either_day)
    try:
        move = matches.get_prev if is_back else matches.get_next
        return move(datetime, start_time=base)
    except CroniterBadDateError:
        return None


@lru_cache(maxsize=4096)
def _matches(text: str, is_either_day: bool) -> croniter:
    """Made once, because reading the text takes longer than a step. It is told where to start at every one.

    It remembers where it stands meanwhile: all this is for one thread.
    """
    return croniter(
        text,
        EARLIEST,
        day_or=is_either_day,
        max_years_between_matches=HORIZON_YEARS,
        second_at_beginning=True,
    )


def _count(fields: Fields, since: datetime, until: datetime) -> int:
    """Between two times of a clock that nobody moves, both included."""
    midnight = since.replace(hour=0, minute=0, second=0)
    seconds, minutes, hours = (len(each) for each in fields.numbers[:3])
    days = sum(_has(fields, day) for day in range(since.toordinal(), until.toordinal()))
    before = _count_of_day(fields, since - _SECOND) if since > midnight and _has(fields, since.toordinal()) else 0
    rest = _count_of_day(fields, until) if _has(fields, until.toordinal()) else 0
    return days * seconds * minutes * hours - before + rest


def _count_of_day(fields: Fields, until: datetime) -> int:
    """Up to a time of its day, as if the day matched."""
    seconds, minutes, hours = fields.numbers[:3]
    count = bisect_left(hours, until.hour) * len(minutes) * len(seconds)
    if until.hour not in hours:
        return count
    count += bisect_left(minutes, until.minute) * len(seconds)
    return count + bisect_right(seconds, until.second) if until.minute in minutes else count


def _has(fields: Fields, day: int) -> bool:
    """Whether a day, counted as Python counts them, matches."""
    days, months, weekdays = fields.numbers[3:]
    at = date.fromordinal(day)
    by_day, by_week = at.day in days, day % 7 in weekdays
    return at.month in months and (by_day or by_week if fields.is_either_day else by_day and by_week)


_CALENDAR_DAYS: Final = range(date(2000, 1, 1).toordinal(), date(2028, 1, 1).toordinal())
"""After twenty-eight years months, days and days of the week come together as before."""


def _gaps(fields: Fields) -> Iterator[int]:
    seconds, minutes, hours = fields.numbers[:3]
    over_minute = seconds[0] - seconds[-1]
    over_hour = over_minute + 60 * (minutes[0] - minutes[-1])
    over_day = over_hour + 3600 * (hours[0] - hours[-1])
    is_ever = False
    last: int | None = None
    for day in filter(lambda day: _has(fields, day), _CALENDAR_DAYS):
        is_ever = True
        if last is not None:
            yield 86400 * (day - last) + over_day
            if day == last + 1:
                break
        last = day
    if is_ever:
        yield from (b - a for a, b in pairwise(seconds))
        yield from (60 * (b - a) + over_minute for a, b in pairwise(minutes))
        yield from (3600 * (b - a) + over_hour for a, b in pairwise(hours))


# The grammar.


class _Field(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    least: int
    most: int
    words: tuple[str, ...] = ()
    """Names of the values, from the least one on."""


_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: Final = (
    _Field(name="second", least=0, most=59),
    _Field(name="minute", least=0, most=59),
    _Field(name="hour", least=0, most=23),
    _Field(name="day of month", least=1, most=31),
    _Field(name="month", least=1, most=12, words=_MONTHS),
    _Field(name="day of week", least=0, most=6, words=_DAYS),
)
_DAY_OF_MONTH: Final = 3
_DAY_OF_WEEK: Final = 5
_DESCRIPTORS: Final = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
_EVERY: Final = "@every "
_NUMBER = re.compile(r"[0-9]{1,9}")


@lru_cache(maxsize=4096)
def parse(text: str) -> Expression:
    """Raises CronError."""
    if not text:
        raise CronError("Empty spec string")
    if text.startswith(_EVERY):
        return Every(seconds=_duration_seconds(text.removeprefix(_EVERY)))
    if text.startswith("@"):
        if text not in _DESCRIPTORS:
            raise CronError(f"Unrecognized descriptor: {text}")
        text = _DESCRIPTORS[text]
    words = text.split()
    if len(words) not in (5, 6):
        raise CronError(f"Expected 5 to 6 fields, found {len(words)}: {text}")
    if len(words) == 5:
        words.append("*")
    return _combine([_values(word, field) for word, field in zip(words, _FIELDS, strict=True)])


def _combine(values: list[tuple[frozenset[int], bool]]) -> Fields:
    lists = [
        "*" if _is_all(numbers, field) else ",".join(map(str, sorted(numbers)))
        for (numbers, _), field in zip(values, _FIELDS, strict=True)
    ]
    # A star in either day field, with a step or without: both must match. Else either suffices; and where one of them
    # then names every day, the other does not matter. croniter knows stars by their values alone, so it is told.
    is_either = not (values[_DAY_OF_MONTH][1] or values[_DAY_OF_WEEK][1])
    if is_either and "*" in (lists[_DAY_OF_MONTH], lists[_DAY_OF_WEEK]):
        lists[_DAY_OF_MONTH] = lists[_DAY_OF_WEEK] = "*"
    return Fields(
        numbers=tuple(tuple(sorted(numbers)) for numbers, _ in values), is_either_day=is_either, text=" ".join(lists)
    )


def _is_all(numbers: frozenset[int], field: _Field) -> bool:
    return len(numbers) == field.most - field.least + 1


def _values(word: str, field: _Field) -> tuple[frozenset[int], bool]:
    """The numbers that a field matches, and whether a star was in it."""
    items = [item for item in word.split(",") if item]
    if not items:
        raise CronError(f"Nothing in the field of the {field.name}: {word}")
    numbers: set[int] = set()
    has_star = False
    for item in items:
        some, is_star = _item(item, field)
        numbers.update(some)
        has_star = has_star or is_star
    return frozenset(numbers), has_star


def _item(item: str, field: _Field) -> tuple[range, bool]:
    span, slash, step_word = item.partition("/")
    if "/" in step_word:
        raise CronError(f"Too many slashes: {item}")
    step = _number(step_word, item) if slash else 1
    if step < 1:
        raise CronError(f"Step of range should be a positive number: {item}")
    if span in ("*", "?"):
        return range(field.least, field.most + 1, step), True
    first_word, hyphen, last_word = span.partition("-")
    if "-" in last_word:
        raise CronError(f"Too many hyphens: {item}")
    first = _value(first_word, field, item)
    last = _value(last_word, field, item) if hyphen else field.most if slash else first
    if first < field.least:
        raise CronError(f"Beginning of range ({first}) below minimum ({field.least}): {item}")
    if last > field.most:
        raise CronError(f"End of range ({last}) above maximum ({field.most}): {item}")
    if first > last:
        raise CronError(f"Beginning of range ({first}) beyond end of range ({last}): {item}")
    return range(first, last + 1, step), False


def _value(word: str, field: _Field, item: str) -> int:
    if word.lower() in field.words:
        return field.least + field.words.index(word.lower())
    return _number(word, item)


def _number(word: str, item: str) -> int:
    if not _NUMBER.fullmatch(word):
        raise CronError(f"Failed to parse int from {word}: {item}")
    return int(word)


# Durations, as Go writes them.

_UNIT_SECONDS: Final = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "μs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_DURATION = re.compile(rf"([+-]?)((?:{_PART.pattern})+|0)", re.ASCII)
_LONGEST_SECONDS: Final = 2**63 // 10**9
_LONGEST_DURATION_TEXT: Final = 100


def _duration_seconds(text: str) -> int:
    """Whole seconds, and at least one."""
    found = _DURATION.fullmatch(text) if len(text) <= _LONGEST_DURATION_TEXT else None
    if found is None:
        raise CronError(f"Failed to parse duration {_EVERY}{text}: invalid duration")
    seconds = sum((Decimal(number) * _UNIT_SECONDS[unit] for number, unit in _PART.findall(found[2])), Decimal(0))
    if seconds > _LONGEST_SECONDS:
        raise CronError(f"Failed to parse duration {_EVERY}{text}: invalid duration")
    return max(1, 0 if found[1] == "-" else int(seconds))
