"""What a job fires when its slots have come. Pure: the same job at the same time fires the same runs.

Knows the schedule, and that only so many runs of a job may be alive; knows no database and no fact.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID, uuid5

import msgspec

from . import schedule
from .causes import Cause, Handover
from .domain import Job, Missed, Overlap


class Firing(msgspec.Struct, frozen=True, kw_only=True):
    """A slot that has come, for which there will be a run."""

    slot: datetime
    index: int
    run_id: str
    missed: schedule.Range | None = None
    """The slots before it that are given up for it."""
    replaces: bool = False
    """Whether the oldest run that is alive has to go for it."""
    handover: Handover | None = None
    """What it is given by the run that has triggered it."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a job fires now, the oldest slot first, and where its schedule stands then."""

    firings: tuple[Firing, ...]
    missed: schedule.Range | None
    """The slots after those that are given up for nothing: they are too old, or there is no room for them."""
    next_slot_at: datetime | None
    last_slot: datetime | None
    last_index: int
    given_up: tuple[tuple[Cause, str], ...] = ()
    """Causes for which there will be no run, and why."""
    error: str = ""
    """What the job shows, until there is another run."""


def plan(job: Job, now: datetime) -> Plan:
    standing = standing_of(job)
    firings: list[Firing] = []
    missed: schedule.Range | None = None
    free = job.max_concurrency - job.active_runs
    room = 0
    if job.is_enabled:
        # Where each run replaces another, what is older than the latest slot would be fired to be terminated.
        room = 1 if job.overlap is Overlap.REPLACE else free
    while len(firings) < room:
        decision = schedule.decide(standing, now)
        if decision.reached is None:
            break
        standing = msgspec.structs.replace(standing, last_slot=decision.reached)
        if decision.fires is None:
            missed = decision.missed
            break
        index = job.last_index + len(firings) + 1
        slot = decision.fires
        firings.append(
            Firing(slot=slot, index=index, run_id=run_id(job.id, slot), missed=decision.missed, replaces=free < 1)
        )
    if job.is_enabled and job.overlap is Overlap.SKIP and len(firings) >= free:
        missed = schedule.due_range(standing, now)
        if missed is not None:
            standing = msgspec.structs.replace(standing, last_slot=missed.last)
    return Plan(
        firings=tuple(firings),
        missed=missed,
        next_slot_at=schedule.next_slot(standing),
        last_slot=standing.last_slot,
        last_index=job.last_index + len(firings),
    )


def plan_backfill(job: Job, slots: Sequence[datetime]) -> Plan:
    """Slots of the past, for which there is room; the schedule stands where it stood."""
    firings = tuple(
        Firing(slot=slot, index=index, run_id=run_id(job.id, slot))
        for index, slot in enumerate(slots, start=job.last_index + 1)
    )
    return Plan(
        firings=firings,
        missed=None,
        next_slot_at=job.next_slot_at,
        last_slot=job.last_slot,
        last_index=job.last_index + len(firings),
    )


def plan_caused(
    job: Job,
    handovers: Sequence[Handover],
    *,
    passed_over: Sequence[tuple[Cause, str]],
    refused: Sequence[tuple[Cause, str]],
) -> Plan:
    """Runs of a job that others trigger; those are chosen already (`causes.choose`)."""
    free = job.max_concurrency - job.active_runs
    firings = tuple(
        Firing(
            slot=each.cause.at,
            index=index,
            run_id=each.cause.run_id_of(job.id),
            replaces=free < 1,
            handover=each,
        )
        for index, each in enumerate(handovers, start=job.last_index + 1)
    )
    return Plan(
        firings=firings,
        missed=None,
        next_slot_at=None,
        last_slot=max((at for at in (job.last_slot, *(each.slot for each in firings)) if at), default=None),
        last_index=job.last_index + len(firings),
        given_up=(*passed_over, *refused),
        # What a policy passes over is no error.
        error=refused[-1][1] if refused else "",
    )


def first_slot(job: Job) -> datetime | None:
    """The first slot after the job's last one, due or not."""
    return schedule.next_slot(standing_of(job))


def run_id(job_id: str, slot: datetime) -> str:
    """The run of a slot is always the same one, whoever orders it and however often."""
    return str(uuid5(UUID(job_id), slot.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))


def standing_of(job: Job) -> schedule.Slot:
    missed = job.missed
    if job.overlap is Overlap.REPLACE and missed is not Missed.NONE:
        missed = Missed.LATEST
    return schedule.Slot(
        trigger=job.trigger,
        time_zone=job.time_zone,
        no_catchup=job.no_catchup,
        missed=missed,
        missed_window_seconds=job.missed_window_seconds,
        created_at=job.created_at,
        last_slot=job.last_slot,
    )
