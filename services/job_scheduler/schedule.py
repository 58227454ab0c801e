"""When a job fires (API specification, sections 11.2 to 11.4). Pure: knows triggers and times, no rows and no runs.

croniter does the arithmetic of cron. What is ours is the grammar: the API's expressions start with seconds, count
days of the week from Sunday as 0 to 6, know `?`, `a/n`, descriptors and `@every`, and combine the two day fields by a
rule of their own. An expression is therefore read here, completely, and croniter is given plain lists of numbers and
the way to combine the days.

Times are UTC in whole seconds.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Final, assert_never

import msgspec
from croniter import CroniterBadDateError, croniter

from .domain import CronTrigger, OneOff, PeriodicTrigger, Trigger

HORIZON_YEARS: Final = 5
"""An expression that matches nothing for so long never does."""

_SECOND: Final = timedelta(seconds=1)
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(9990, 1, 1, tzinfo=UTC)


class CronError(Exception):
    """The text is no cron expression; says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """Where a job's schedule stands: everything that decides about its next slot."""

    trigger: Trigger
    no_catchup: bool = False
    created_at: datetime
    last_slot: datetime | None = None
    """The slot of its last run, not the time at which that was made."""


def next_slot(job: Slot) -> datetime | None:
    """The first slot after the last one, whether it is due or not; None where none is left."""
    trigger = job.trigger
    match trigger:
        case OneOff():
            return _whole_seconds(job.created_at) if job.last_slot is None else None
        case CronTrigger():
            slot = next_match(parse(trigger.cron), _base(job, trigger.starts_at))
        case PeriodicTrigger(interval_seconds=seconds, starts_at=start):
            is_moved = job.last_slot is not None and start is not None and job.last_slot < start
            slot = start if is_moved else _later(_base(job, start), seconds)
        case _ as unreachable:
            assert_never(unreachable)
    return slot if slot is not None and _is_in_time(slot, trigger.ends_at) else None


def due_slot(job: Slot, now: datetime) -> datetime | None:
    """The slot to run now; None where none is due.

    With `no_catchup` it stands for every slot that was missed before it.
    """
    slot = next_slot(job)
    if slot is None or slot > now:
        return None
    if not job.no_catchup:
        return slot
    trigger = job.trigger
    match trigger:
        case OneOff():
            return slot
        case CronTrigger(cron=cron, ends_at=end):
            return _latest_match(parse(cron), slot, now if end is None else min(now, end))
        case PeriodicTrigger(interval_seconds=seconds, ends_at=end):
            following = _later(slot, seconds)
            if following is None or now < following:
                return slot
            return _whole_seconds(now if end is None else min(now, end))
        case _ as unreachable:
            assert_never(unreachable)


def _base(job: Slot, start: datetime | None) -> datetime:
    base = job.last_slot or start or job.created_at
    return _whole_seconds(base if start is None else max(base, start))


def _later(base: datetime, seconds: int) -> datetime | None:
    try:
        return base + timedelta(seconds=seconds)
    except OverflowError:
        return None


def _is_in_time(slot: datetime, end: datetime | None) -> bool:
    return end is None or slot <= end


def _whole_seconds(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(microsecond=0)


# Cron expressions.


class Fields(msgspec.Struct, frozen=True, kw_only=True):
    """An expression as croniter takes it: six fields from seconds on, each `*` or a list of numbers."""

    text: str
    is_either_day: bool
    """Whether a day matches by either of its fields, instead of by both."""


class Every(msgspec.Struct, frozen=True, kw_only=True):
    """`@every`: counted from the last slot, not from any full hour."""

    seconds: int


Expression = Fields | Every


def next_match(expression: Expression, after: datetime) -> datetime | None:
    """The first match strictly later than a time in whole seconds; None where there is none."""
    match expression:
        case Every(seconds=seconds):
            return _later(after, seconds)
        case Fields():
            if after > _LATEST:
                return None
            # There is no second before the first: the calendar of earlier times is nobody's schedule.
            return _step(expression, max(after, _EARLIEST - _SECOND), is_back=False)
        case _ as unreachable:
            assert_never(unreachable)


def _latest_match(expression: Expression, first: datetime, until: datetime) -> datetime:
    """The last match up to a time, given the first one, which is not later than that."""
    match expression:
        case Every(seconds=seconds):
            return first + (until - first) // timedelta(seconds=seconds) * timedelta(seconds=seconds)
        case Fields():
            latest = _step(expression, _whole_seconds(until) + _SECOND, is_back=True)
            return first if latest is None else max(first, latest)
        case _ as unreachable:
            assert_never(unreachable)


def _step(fields: Fields, base: datetime, *, is_back: bool) -> datetime | None:
    matches = croniter(
        fields.text,
        base,
        ret_type=datetime,
        day_or=fields.is_either_day,
        max_years_between_matches=HORIZON_YEARS,
        second_at_beginning=True,
    )
    try:
        found: datetime = matches.get_prev() if is_back else matches.get_next()
    except CroniterBadDateError:
        return None
    return found


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
        "*" if _is_all(numbers, field) else _list(numbers) for (numbers, _), field in zip(values, _FIELDS, strict=True)
    ]
    # A star in either day field, with a step or without: both must match. Else either suffices; and where one of them
    # then names every day, the other does not matter. croniter knows stars by their values alone, so it is told.
    is_either = not (values[_DAY_OF_MONTH][1] or values[_DAY_OF_WEEK][1])
    if is_either and "*" in (lists[_DAY_OF_MONTH], lists[_DAY_OF_WEEK]):
        lists[_DAY_OF_MONTH] = lists[_DAY_OF_WEEK] = "*"
    return Fields(text=" ".join(lists), is_either_day=is_either)


def _is_all(numbers: frozenset[int], field: _Field) -> bool:
    return len(numbers) == field.most - field.least + 1


def _list(numbers: frozenset[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


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
