"""Recurring runs as rows, many at once: what a test of slots needs of them, without anybody who creates them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from services.job_scheduler import firing, store
from services.job_scheduler.domain import (
    Job,
    JobId,
    ObjectName,
    PeriodicTrigger,
    Reference,
    Relationship,
    ResourceType,
    Trigger,
)
from shared.database import Database


def job(nth: int, trigger: Trigger, now: datetime, **fields: object) -> Job:
    """An enabled one; the database dates it when it is inserted."""
    draft = Job(
        id=JobId(str(uuid.uuid4())),
        object_name=ObjectName(f"job{nth:06}xxxxx"),
        name=f"job {nth}",
        is_enabled=True,
        no_catchup=False,
        max_concurrency=10,
        trigger=trigger,
        experiment_id="e",
        namespace="kubeflow",
        references=(Reference(type=ResourceType.EXPERIMENT, id="e", name="mill", relationship=Relationship.OWNER),),
        service_account="",
        manifest_digest="0" * 64,
        created_at=now,
        updated_at=now,
    )
    return msgspec.structs.replace(draft, **fields)


async def insert(database: Database, jobs: Sequence[Job]) -> list[Job]:
    """They are there all at once, and their schedules with them."""
    async with database.transaction() as tx:
        inserted = [await store.insert(tx, each) for each in jobs]
        for each in inserted:
            await store.set_next_slot(tx, each.id, firing.first_slot(each))
    return inserted


def every(seconds: int, *, start: datetime, slots: int | None = None) -> PeriodicTrigger:
    """So many slots, or without an end."""
    end = None if slots is None else start + timedelta(seconds=seconds * slots)
    return PeriodicTrigger(interval_seconds=seconds, starts_at=start, ends_at=end)
