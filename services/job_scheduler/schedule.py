"""When a job fires (API specification, sections 11.3 and 11.4). Pure: knows triggers and times, no rows and no runs.

What a cron expression matches is told by `cron.py`. Times are UTC in whole seconds.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import assert_never

import msgspec

from .cron import CronError as CronError
from .cron import find_zone, later, latest_match, next_match
from .cron import parse as parse
from .domain import CronTrigger, OneOff, PeriodicTrigger, Trigger


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """Where a job's schedule stands: everything that decides about its next slot."""

    trigger: Trigger
    time_zone: str = "UTC"
    """In which a cron expression is read."""
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
            slot = next_match(parse(trigger.cron), _base(job, trigger.starts_at), find_zone(job.time_zone))
        case PeriodicTrigger(interval_seconds=seconds, starts_at=start):
            is_moved = job.last_slot is not None and start is not None and job.last_slot < start
            slot = start if is_moved else later(_base(job, start), seconds)
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
            until = _whole_seconds(now if end is None else min(now, end))
            return latest_match(parse(cron), slot, until, find_zone(job.time_zone))
        case PeriodicTrigger(interval_seconds=seconds, ends_at=end):
            following = later(slot, seconds)
            if following is None or now < following:
                return slot
            return _whole_seconds(now if end is None else min(now, end))
        case _ as unreachable:
            assert_never(unreachable)


def _base(job: Slot, start: datetime | None) -> datetime:
    base = job.last_slot or start or job.created_at
    return _whole_seconds(base if start is None else max(base, start))


def _is_in_time(slot: datetime, end: datetime | None) -> bool:
    return end is None or slot <= end


def _whole_seconds(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(microsecond=0)
