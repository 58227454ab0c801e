"""A second opinion on cron expressions: walks along time and looks at the clock on the wall. Shares no code with what
it is held against, is slow, and leaves nothing to arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo

import msgspec

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NICKNAMES = {
    "@yearly": "0 0 0 1 1 *", "@annually": "0 0 0 1 1 *", "@monthly": "0 0 0 1 * *", "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *", "@midnight": "0 0 0 * * *", "@hourly": "0 0 * * * *",
}  # fmt: skip
_QUARTER = timedelta(minutes=15)
"""No clock since 1972 has been moved within one."""
_QUARTERS_TO_SKIP = 24


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of each field, and whether a star was in either field of days."""

    seconds: frozenset[int]
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    has_star: bool


def read(text: str) -> Wanted:
    words = _NICKNAMES.get(text, text).lower().split()
    if len(words) == 5:
        words.append("*")
    for number, name in enumerate(_MONTHS, start=1):
        words[4] = words[4].replace(name, str(number))
    for number, name in enumerate(_DAYS):
        words[5] = words[5].replace(name, str(number))
    bounds = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
    numbers = [frozenset(_numbers(word, *ends)) for word, ends in zip(words, bounds, strict=True)]
    return Wanted(
        seconds=numbers[0],
        minutes=numbers[1],
        hours=numbers[2],
        days=numbers[3],
        months=numbers[4],
        weekdays=numbers[5],
        has_star=any(star in words[at] for star in "*?" for at in (3, 5)),
    )


def _numbers(word: str, least: int, most: int) -> Iterator[int]:
    for item in filter(None, word.split(",")):
        span, _, step = item.partition("/")
        if span in ("*", "?"):
            first, last = least, most
        elif "-" in span:
            first, last = map(int, span.split("-"))
        else:
            first = int(span)
            last = most if step else first
        yield from range(first, last + 1, int(step or 1))


def is_day(wanted: Wanted, day: date) -> bool:
    by_day, by_week = day.day in wanted.days, day.isoweekday() % 7 in wanted.weekdays
    return day.month in wanted.months and (by_day and by_week if wanted.has_star else by_day or by_week)


def is_match(wanted: Wanted, at: datetime, zone: tzinfo) -> bool:
    shown = at.astimezone(zone)
    return (
        is_day(wanted, shown.date())
        and shown.hour in wanted.hours
        and shown.minute in wanted.minutes
        and shown.second in wanted.seconds
    )


def matches(wanted: Wanted, after: datetime, until: datetime, zone: tzinfo) -> Iterator[datetime]:
    """Those later than one time and up to another, in whole seconds of UTC."""
    quarter = after.replace(minute=after.minute // 15 * 15, second=0)
    while quarter <= until:
        if not _is_near(wanted, quarter, zone):
            quarter += _QUARTERS_TO_SKIP * _QUARTER
            continue
        shown = quarter.astimezone(zone)
        if is_day(wanted, shown.date()) and shown.hour in wanted.hours:
            for minute in range(15):
                if shown.minute + minute in wanted.minutes:
                    for second in sorted(wanted.seconds):
                        at = quarter + timedelta(minutes=minute, seconds=second)
                        if after < at <= until:
                            yield at
        quarter += _QUARTER


def _is_near(wanted: Wanted, quarter: datetime, zone: tzinfo) -> bool:
    """Whether one of the days that the walls show within the next hours matches."""
    ends = (quarter, quarter + _QUARTERS_TO_SKIP * _QUARTER)
    return any(is_day(wanted, end.astimezone(zone).date()) for end in ends)


def first_match(text: str, after: datetime, zone: tzinfo = UTC, years: int = 5) -> datetime | None:
    last = (after + timedelta(seconds=1)).astimezone(zone).year + years
    until = datetime(last, 12, 31, 23, 59, 59, tzinfo=zone).astimezone(UTC)
    return next(matches(read(text), after, until, zone), None)
