"""What a job fires when its slots have come. Pure: the same job at the same time fires the same runs.

Knows the schedule, and that only so many runs of a job may be alive; knows no database and no fact.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID, uuid5

import msgspec

from . import schedule
from .domain import Job


class Firing(msgspec.Struct, frozen=True, kw_only=True):
    """A slot that has come, for which there will be a run."""

    slot: datetime
    index: int
    run_id: str
    first_missed: datetime | None = None
    """The first of the slots that it stands for, where the job passes over all but the last."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a job fires now, the oldest slot first, and where its schedule stands then."""

    firings: tuple[Firing, ...]
    next_slot_at: datetime | None
    last_slot: datetime | None
    last_index: int


def plan(job: Job, now: datetime) -> Plan:
    firings = tuple(_firings(job, now)) if job.is_enabled else ()
    last_slot = firings[-1].slot if firings else job.last_slot
    return Plan(
        firings=firings,
        next_slot_at=first_slot(job) if not firings else schedule.next_slot(_standing(job, last_slot)),
        last_slot=last_slot,
        last_index=job.last_index + len(firings),
    )


def first_slot(job: Job) -> datetime | None:
    """The first slot after the job's last one, due or not."""
    return schedule.next_slot(_standing(job, job.last_slot))


def run_id(job_id: str, slot: datetime) -> str:
    """The run of a slot is always the same one, whoever orders it and however often."""
    return str(uuid5(UUID(job_id), slot.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))


def _firings(job: Job, now: datetime) -> Iterator[Firing]:
    last_slot = job.last_slot
    for index in range(job.last_index + 1, job.last_index + 1 + job.max_concurrency - job.active_runs):
        standing = _standing(job, last_slot)
        slot = schedule.due_slot(standing, now)
        if slot is None:
            return
        first = schedule.next_slot(standing) if job.no_catchup else slot
        yield Firing(slot=slot, index=index, run_id=run_id(job.id, slot), first_missed=None if first == slot else first)
        last_slot = slot


def _standing(job: Job, last_slot: datetime | None) -> schedule.Slot:
    return schedule.Slot(trigger=job.trigger, no_catchup=job.no_catchup, created_at=job.created_at, last_slot=last_slot)
