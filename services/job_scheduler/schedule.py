"""When a job fires (API specification, sections 11.3 and 11.4, and what Headrace adds: time zones, missed slots).

Pure: knows triggers and times, no rows and no runs. What a cron expression matches is told by `cron.py`. Times are UTC
in whole seconds.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, assert_never

import msgspec

from .cron import (
    EARLIEST,
    Every,
    Expression,
    count_matches,
    find_zone,
    interval,
    later,
    latest_match,
    next_match,
    parse,
    smallest_gap_seconds,
)
from .domain import ON_TIME_SECONDS, CronTrigger, Missed, OneOff, PeriodicTrigger, RunTrigger, Trigger

_SECOND: Final = timedelta(seconds=1)


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """Where a job's schedule stands: everything that decides about its next slot."""

    trigger: Trigger
    time_zone: str = "UTC"
    """In which a cron expression is read."""
    no_catchup: bool = False
    missed: Missed | None = None
    """None: as `no_catchup` says."""
    missed_window_seconds: int | None = None
    """None: for ever; with `Missed.NONE`, `ON_TIME_SECONDS`."""
    created_at: datetime
    last_slot: datetime | None = None
    """The last slot that was fired or given up, not the time at which that happened."""


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """Slots that follow one another."""

    count: int
    first: datetime
    last: datetime


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What to do about a job at some time. Who has done it sets the job's last slot to `reached` and looks again."""

    fires: datetime | None = None
    """The slot to fire."""
    missed: Range | None = None
    """The slots to give up. They are older than the one to fire."""
    next_due: datetime | None = None
    """The slot after those; None where none is left. It may be due already."""

    @property
    def reached(self) -> datetime | None:
        return self.fires or (None if self.missed is None else self.missed.last)


def next_slot(job: Slot) -> datetime | None:
    """The first slot after the last one, whether it is due or not; None where none is left."""
    trigger = job.trigger
    match trigger:
        case OneOff():
            return _whole_seconds(job.created_at) if job.last_slot is None else None
        case RunTrigger():
            return None
        case CronTrigger():
            slot = next_match(parse(trigger.cron), _base(job, trigger.starts_at), find_zone(job.time_zone))
        case PeriodicTrigger(interval_seconds=seconds, starts_at=start):
            is_moved = job.last_slot is not None and start is not None and job.last_slot < start
            slot = start if is_moved else later(_base(job, start), seconds)
        case _ as unreachable:
            assert_never(unreachable)
    return slot if slot is not None and (trigger.ends_at is None or slot <= trigger.ends_at) else None


def due_slot(job: Slot, now: datetime) -> datetime | None:
    """The slot to fire now; None where none is."""
    first = next_slot(job)
    return None if first is None or first > now else _chosen(job, first, now)


def decide(job: Slot, now: datetime) -> Decision:
    """The slot to fire now, and what is given up for it."""
    first = next_slot(job)
    if first is None or first > now:
        return Decision(next_due=first)
    fires = _chosen(job, first, now)
    decision = Decision(fires=fires, missed=_given_up(job, first, fires, now))
    following = msgspec.structs.replace(job, last_slot=decision.reached)
    return msgspec.structs.replace(decision, next_due=next_slot(following))


def due_range(job: Slot, now: datetime) -> Range | None:
    """All slots that are due, whatever the job makes of them."""
    first = next_slot(job)
    return None if first is None or first > now else _given_up(job, first, None, now)


def preview(job: Slot, now: datetime, count: int) -> tuple[datetime, ...]:
    """The next slots that fire if nobody is ever late again, with those that are due already."""
    slots: list[datetime] = []
    while len(slots) < count:
        decision = decide(job, now)
        if decision.fires is not None:
            slots.append(decision.fires)
        if decision.next_due is None:
            break
        if decision.reached is not None:
            job = msgspec.structs.replace(job, last_slot=decision.reached)
        now = max(now, decision.next_due)
    return tuple(slots)


def slots_between(job: Slot, since: datetime, until: datetime, most: int) -> tuple[datetime, ...]:
    """The slots from one time to another, both included, whatever the trigger's start and end; a first few of them.

    Intervals are counted from where the job stands, back into the past too. Without a schedule there are none.
    """
    if isinstance(job.trigger, OneOff | RunTrigger):
        return ()
    slots: list[datetime] = []
    expression, zone = _expression(job.trigger), find_zone(job.time_zone)
    slot = _first_from(job, job.trigger, since)
    while slot is not None and slot <= until and len(slots) < most:
        slots.append(slot)
        slot = next_match(expression, slot, zone)
    return tuple(slots)


def count_between(job: Slot, since: datetime, until: datetime) -> int:
    """How many slots there are from one time to another; cheap, also where they are millions."""
    if isinstance(job.trigger, OneOff | RunTrigger):
        return 0
    first = _first_from(job, job.trigger, since)
    if first is None or first > until:
        return 0
    expression, zone = _expression(job.trigger), find_zone(job.time_zone)
    return count_matches(expression, first, latest_match(expression, first, _whole_seconds(until), zone), zone)


def shortest_interval_seconds(trigger: Trigger) -> int | None:
    """Between two slots, on a clock that nobody moves; None where there are no two."""
    return None if isinstance(trigger, OneOff | RunTrigger) else smallest_gap_seconds(_expression(trigger))


# How missed slots are made up for. The first one that is due is known here.


def _chosen(job: Slot, first: datetime, now: datetime) -> datetime | None:
    """The slot that fires; None where every one is too old."""
    if isinstance(job.trigger, OneOff | RunTrigger):
        # It has no schedule that it could be behind.
        return first
    due = _due(job, job.trigger, first, now)
    match job.missed:
        case Missed.LATEST | Missed.NONE:
            slot = due.latest(due.until)
        case None if job.no_catchup:
            slot = _as_old_clients_know_it(due, job.trigger)
        case Missed.ALL | None:
            slot = due.first
        case _ as unreachable:
            assert_never(unreachable)
    window = job.missed_window_seconds
    if window is None:
        window = ON_TIME_SECONDS if job.missed is Missed.NONE else None
    oldest = None if window is None else now - timedelta(seconds=window)
    return slot if oldest is None or slot >= oldest else due.first_from(oldest)


def _given_up(job: Slot, first: datetime, fires: datetime | None, now: datetime) -> Range | None:
    """All that are older than the one that fires. A time between two slots stands for the earlier one."""
    if isinstance(job.trigger, OneOff | RunTrigger):
        return None
    due = _due(job, job.trigger, first, now)
    if fires is None:
        return due.range(due.latest(due.until))
    fired = due.latest(fires)
    return None if fired == first else due.range(due.latest(fired - _SECOND))


class _Due(msgspec.Struct, frozen=True, kw_only=True):
    """The slots that are due, from the first one on, up to a time that is not before it."""

    expression: Expression
    zone: tzinfo
    first: datetime
    until: datetime

    def latest(self, until: datetime) -> datetime:
        """The last one up to a time, which is not before the first."""
        return latest_match(self.expression, self.first, until, self.zone)

    def first_from(self, since: datetime) -> datetime | None:
        """The first one that is not before a time; None where that is due later."""
        since = _up_to_whole_seconds(since)
        if since <= self.first:
            return self.first
        slot = next_match(self.expression, self.latest(since - _SECOND), self.zone)
        return None if slot is None or slot > self.until else slot

    def range(self, last: datetime) -> Range:
        """From the first one to another one."""
        return Range(count=count_matches(self.expression, self.first, last, self.zone), first=self.first, last=last)


def _due(job: Slot, trigger: CronTrigger | PeriodicTrigger, first: datetime, now: datetime) -> _Due:
    return _Due(
        expression=_expression(trigger),
        zone=find_zone(job.time_zone),
        first=first,
        until=_whole_seconds(now if trigger.ends_at is None else min(now, trigger.ends_at)),
    )


def _as_old_clients_know_it(due: _Due, trigger: Trigger) -> datetime:
    """`no_catchup`: the latest slot, but now itself where more than one interval has passed."""
    latest = due.latest(due.until)
    return due.until if isinstance(trigger, PeriodicTrigger) and latest > due.first else latest


def _expression(trigger: CronTrigger | PeriodicTrigger) -> Expression:
    match trigger:
        case CronTrigger(cron=cron):
            return parse(cron)
        case PeriodicTrigger(interval_seconds=seconds):
            return Every(seconds=seconds)


def _first_from(job: Slot, trigger: CronTrigger | PeriodicTrigger, since: datetime) -> datetime | None:
    since = _up_to_whole_seconds(max(since, EARLIEST))
    match _expression(trigger):
        case Every(seconds=seconds):
            # In a calendar that ends, a long interval may have no slot left.
            wait = (_base(job, trigger.starts_at) - since) % interval(seconds)
            return later(since, wait // _SECOND)
        case expression:
            return next_match(expression, since - _SECOND, find_zone(job.time_zone))


def _base(job: Slot, start: datetime | None) -> datetime:
    base = job.last_slot or start or job.created_at
    return _whole_seconds(base if start is None else max(base, start))


def _whole_seconds(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(microsecond=0)


def _up_to_whole_seconds(at: datetime) -> datetime:
    whole = _whole_seconds(at)
    return whole if whole == at else later(whole, 1) or whole
