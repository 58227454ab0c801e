"""What a job fires when its slots have come, and what it gives up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from services.job_scheduler.domain import Job, JobId, Missed, ObjectName, Overlap, PeriodicTrigger
from services.job_scheduler.firing import Plan, first_slot, plan, run_id

CREATED = datetime(2024, 5, 6, 10, 0, tzinfo=UTC)
ID = JobId("8f2c3d1e-0000-4000-8000-000000000001")


def a_job(**fields: Any) -> Job:
    """Fires every minute."""
    usual: dict[str, Any] = {
        "id": ID,
        "object_name": ObjectName("job-abcde"),
        "name": "job",
        "is_enabled": True,
        "no_catchup": False,
        "max_concurrency": 3,
        "trigger": PeriodicTrigger(interval_seconds=60),
        "experiment_id": "e",
        "namespace": "kubeflow",
        "references": (),
        "service_account": "pipeline-runner",
        "manifest_digest": "d",
        "created_at": CREATED,
        "updated_at": CREATED,
    }
    return Job(**(usual | fields))


def minute(number: int) -> datetime:
    return CREATED + timedelta(minutes=number)


def fired(planned: Plan) -> list[tuple[datetime, int]]:
    return [(each.slot, each.index) for each in planned.firings]


def test_as_many_slots_fire_as_runs_may_be_alive_the_oldest_first() -> None:
    job = a_job(active_runs=1, last_slot=minute(4), last_index=4)
    planned = plan(job, minute(20))
    assert fired(planned) == [(minute(5), 5), (minute(6), 6)]
    assert [each.run_id for each in planned.firings] == [run_id(ID, minute(5)), run_id(ID, minute(6))]
    assert (planned.last_slot, planned.last_index, planned.next_slot_at) == (minute(6), 6, minute(7))
    assert planned.missed is None


@pytest.mark.parametrize("fields", [{"is_enabled": False}, {"active_runs": 3}, {"active_runs": 5}])
def test_nothing_fires_where_nothing_may(fields: dict[str, Any]) -> None:
    planned = plan(a_job(**fields, last_slot=minute(4), last_index=4), minute(20))
    assert planned == Plan(firings=(), missed=None, next_slot_at=minute(5), last_slot=minute(4), last_index=4)


def test_what_is_given_up_for_a_slot_is_told_with_it_and_has_no_index() -> None:
    (only,) = plan(a_job(missed=Missed.LATEST), minute(20)).firings
    assert (only.slot, only.index) == (minute(20), 1)
    assert only.missed is not None
    assert (only.missed.count, only.missed.first, only.missed.last) == (19, minute(1), minute(19))


def test_what_is_given_up_for_nothing_moves_the_schedule_on() -> None:
    job = a_job(missed=Missed.NONE, missed_window_seconds=10)
    planned = plan(job, minute(20) + timedelta(seconds=30))
    assert planned.firings == ()
    assert planned.missed is not None
    assert (planned.missed.count, planned.missed.last) == (20, minute(20))
    assert (planned.last_slot, planned.last_index, planned.next_slot_at) == (minute(20), 0, minute(21))
    moved = msgspec.structs.replace(job, last_slot=planned.last_slot)
    assert first_slot(moved) == planned.next_slot_at


def test_what_finds_no_room_waits_goes_or_takes_anothers_place() -> None:
    full = a_job(active_runs=3, last_slot=minute(4), last_index=4)
    assert plan(full, minute(20)).firings == ()
    assert plan(full, minute(20)).missed is None

    skipped = plan(msgspec.structs.replace(full, overlap=Overlap.SKIP), minute(20))
    assert skipped.firings == ()
    assert skipped.missed is not None
    assert (skipped.missed.count, skipped.missed.first, skipped.missed.last) == (16, minute(5), minute(20))
    assert (skipped.last_slot, skipped.last_index, skipped.next_slot_at) == (minute(20), 4, minute(21))

    replaced = plan(msgspec.structs.replace(full, overlap=Overlap.REPLACE), minute(20))
    assert fired(replaced) == [(minute(20), 5)]
    assert [each.replaces for each in replaced.firings] == [True]
    assert (replaced.last_slot, replaced.missed, replaced.next_slot_at) == (minute(20), None, minute(21))


def test_what_finds_room_fires_first_however_the_rest_is_treated() -> None:
    job = a_job(active_runs=1, last_slot=minute(4), last_index=4)
    skipped = plan(msgspec.structs.replace(job, overlap=Overlap.SKIP), minute(20))
    assert fired(skipped) == [(minute(5), 5), (minute(6), 6)]
    assert skipped.missed is not None
    assert (skipped.missed.count, skipped.next_slot_at) == (14, minute(21))
    on_time = plan(msgspec.structs.replace(job, overlap=Overlap.SKIP), minute(5))
    assert (fired(on_time), on_time.missed) == ([(minute(5), 5)], None)
    replaced = plan(msgspec.structs.replace(job, overlap=Overlap.REPLACE), minute(5))
    assert [each.replaces for each in replaced.firings] == [False]


@pytest.mark.parametrize("overlap", list(Overlap))
def test_a_job_that_rests_gives_nothing_up(overlap: Overlap) -> None:
    job = a_job(is_enabled=False, active_runs=3, overlap=overlap, last_slot=minute(4), last_index=4)
    assert plan(job, minute(20)).last_slot == minute(4)
