"""A job's slots: base time, end, no_catchup (API specification, sections 11.3 and 11.4)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.job_scheduler.domain import CronTrigger, OneOff, PeriodicTrigger
from services.job_scheduler.schedule import Slot, due_slot, next_slot

CREATED = "10:00:00"
HOURLY = "0 0 * * * *"


def at(clock: str | None) -> datetime | None:
    return None if clock is None else datetime.fromisoformat(f"2024-05-06T{clock}+00:00")


def clock(slot: datetime | None) -> str | None:
    assert slot is None or slot.microsecond == 0
    return None if slot is None else slot.strftime("%H:%M:%S")


def cron(text: str = HOURLY, start: str | None = None, end: str | None = None) -> CronTrigger:
    return CronTrigger(cron=text, starts_at=at(start), ends_at=at(end))


def periodic(seconds: int, start: str | None = None, end: str | None = None) -> PeriodicTrigger:
    return PeriodicTrigger(interval_seconds=seconds, starts_at=at(start), ends_at=at(end))


def standing(trigger: Any, *, last: str | None = None, no_catchup: bool = False) -> Slot:
    created = at(CREATED)
    assert created is not None
    created += timedelta(microseconds=654_321)
    return Slot(trigger=trigger, created_at=created, last_slot=at(last), no_catchup=no_catchup)


NEXT: dict[str, tuple[Any, str | None, str | None]] = {
    "no trigger: once, at creation": (OneOff(), None, "10:00:00"),
    "no trigger: not again": (OneOff(), "10:00:00", None),
    "cron: after creation, not at it": (cron(), None, "11:00:00"),
    "cron: after the last slot": (cron(), "13:00:00", "14:00:00"),
    "cron: a start on a tick does not fire at it": (cron(start="12:00:00"), None, "13:00:00"),
    "cron: a start between two ticks": (cron(start="12:00:01"), None, "13:00:00"),
    "cron: a start before creation": (cron(start="07:30:00"), None, "08:00:00"),
    "cron: the last slot counts where it is later than the start": (cron(start="07:30:00"), "09:00:00", "10:00:00"),
    "cron: the start counts where it is later than the last slot": (cron(start="15:30:00"), "09:00:00", "16:00:00"),
    "cron: a slot at the end still fires": (cron(end="11:00:00"), None, "11:00:00"),
    "cron: none beyond the end": (cron(end="10:59:59"), None, None),
    "cron: an end before the start": (cron(start="12:00:00", end="09:00:00"), None, None),
    "cron: an end in the past still backfills up to it": (cron(start="07:30:00", end="08:30:00"), None, "08:00:00"),
    "cron: never": (cron("0 0 0 30 2 *"), None, None),
    "every: counted from creation": (cron("@every 90m"), None, "11:30:00"),
    "every: counted from the start": (cron("@every 90m", start="10:30:00"), None, "12:00:00"),
    "every: counted from the last slot": (cron("@every 90m"), "12:34:56", "14:04:56"),
    "periodic: creation and one interval": (periodic(90), None, "10:01:30"),
    "periodic: start and one interval, not the start": (periodic(90, start="12:00:00"), None, "12:01:30"),
    "periodic: a start before creation": (periodic(60, start="09:00:00"), None, "09:01:00"),
    "periodic: the last slot and one interval": (periodic(60, start="09:00:00"), "09:30:00", "09:31:00"),
    "periodic: a start later than the last slot": (periodic(60, start="12:00:00"), "09:30:00", "12:00:00"),
    "periodic: a slot at the end still fires": (periodic(60, end="10:01:00"), None, "10:01:00"),
    "periodic: none beyond the end": (periodic(60, end="10:00:59"), None, None),
    "periodic: a moved start beyond the end": (periodic(60, start="12:00:00", end="11:00:00"), "09:30:00", None),
    "periodic: longer than the calendar": (periodic(2**62), None, None),
    "every: longer than what is left of it": (cron("@every 2562047h"), None, "09:00:00"),
}


@pytest.mark.parametrize(("trigger", "last", "expected"), NEXT.values(), ids=NEXT)
@pytest.mark.parametrize("no_catchup", [False, True])
def test_the_next_slot_follows_from_trigger_and_last_slot(
    trigger: Any, last: str | None, expected: str | None, no_catchup: bool
) -> None:
    assert clock(next_slot(standing(trigger, last=last, no_catchup=no_catchup))) == expected


DUE: dict[str, tuple[Any, str | None, str, str | None, str | None]] = {
    # trigger, last slot, now, the due slot with catch-up, and without
    "no trigger": (OneOff(), None, "10:00:00", "10:00:00", "10:00:00"),
    "no trigger, has run": (OneOff(), "10:00:00", "11:00:00", None, None),
    "cron, not yet": (cron(), None, "10:59:59", None, None),
    "cron, on time": (cron(), None, "11:00:00", "11:00:00", "11:00:00"),
    "cron, a little late": (cron(), None, "11:59:59", "11:00:00", "11:00:00"),
    "cron, behind": (cron(), None, "15:20:00", "11:00:00", "15:00:00"),
    "cron, behind, now is a slot": (cron(), None, "15:00:00", "11:00:00", "15:00:00"),
    "cron, behind and ended": (cron(end="13:30:00"), None, "15:20:00", "11:00:00", "13:00:00"),
    "cron, behind, ended at a slot": (cron(end="13:00:00"), None, "15:20:00", "11:00:00", "13:00:00"),
    "cron, ended": (cron(end="13:30:00"), "13:00:00", "15:20:00", None, None),
    "cron, a start in the past": (cron(start="06:10:00"), None, "10:20:00", "07:00:00", "10:00:00"),
    "cron, days by a rule": (cron("0 0 9 6 * SUN"), "08:00:00", "15:00:00", "09:00:00", "09:00:00"),
    "every, behind": (cron("@every 25m"), None, "11:59:59", "10:25:00", "11:40:00"),
    "every, behind and ended": (cron("@every 25m", end="11:00:00"), None, "11:59:59", "10:25:00", "10:50:00"),
    "periodic, not yet": (periodic(60), None, "10:00:59", None, None),
    "periodic, on time": (periodic(60), None, "10:01:00", "10:01:00", "10:01:00"),
    "periodic, less than one interval late": (periodic(60), None, "10:01:59", "10:01:00", "10:01:00"),
    "periodic, one interval late: now is the slot": (periodic(60), None, "10:02:00", "10:01:00", "10:02:00"),
    "periodic, behind: now is the slot": (periodic(60), None, "11:11:11", "10:01:00", "11:11:11"),
    "periodic, behind and ended: the end is": (periodic(60, end="10:30:30"), None, "11:11:11", "10:01:00", "10:30:30"),
    "periodic, ended": (periodic(60, end="10:30:30"), "10:30:30", "11:11:11", None, None),
}


@pytest.mark.parametrize(("trigger", "last", "now", "caught_up", "latest"), DUE.values(), ids=DUE)
def test_what_is_due_is_the_oldest_slot_or_without_catching_up_the_latest(
    trigger: Any, last: str | None, now: str, caught_up: str | None, latest: str | None
) -> None:
    moment = at(now)
    assert moment is not None
    moment += timedelta(microseconds=999_999)
    assert clock(due_slot(standing(trigger, last=last), moment)) == caught_up
    assert clock(due_slot(standing(trigger, last=last, no_catchup=True), moment)) == latest


def test_a_cron_expression_is_read_in_the_jobs_zone_and_intervals_in_none() -> None:
    created = datetime(2024, 3, 30, 20, 0, tzinfo=UTC)
    daily = CronTrigger(cron="0 30 9 * * ?")
    for zone, hour in (("Europe/Berlin", 7), ("America/New_York", 13), ("Asia/Kolkata", 4), ("UTC", 9)):
        slot = next_slot(Slot(trigger=daily, time_zone=zone, created_at=created))
        assert slot == datetime(2024, 3, 31, hour, 0 if zone == "Asia/Kolkata" else 30, tzinfo=UTC)
        every_day = PeriodicTrigger(interval_seconds=86400)
        assert next_slot(Slot(trigger=every_day, time_zone=zone, created_at=created)) == created + timedelta(days=1)


CRONS = st.sampled_from(
    [
        "*/7 * * * * *",
        "0 3/17 * * * ?",
        "5,50 */9 8-19 * * *",
        "0 0 */5 2,30 * MON",
        "0 0 0 */3 * */2",
        "@every 11m",
        "@hourly",
    ]
)
MOMENTS = st.datetimes(datetime(2024, 2, 20), datetime(2024, 3, 20), timezones=st.just(UTC))  # noqa: DTZ001


@settings(max_examples=50, deadline=None, print_blob=True)
@given(text=CRONS, created=MOMENTS, behind=st.timedeltas(timedelta(0), timedelta(hours=6)))
def test_the_latest_slot_is_the_last_of_all_that_were_missed(text: str, created: datetime, behind: timedelta) -> None:
    now = created + behind
    job = Slot(trigger=CronTrigger(cron=text), created_at=created)
    missed: list[datetime] = []
    while (slot := due_slot(msgspec.structs.replace(job, last_slot=missed[-1] if missed else None), now)) is not None:
        assert not missed or slot > missed[-1]
        missed.append(slot)
    assume(missed)
    assert due_slot(msgspec.structs.replace(job, no_catchup=True), now) == missed[-1]
    following = next_slot(msgspec.structs.replace(job, last_slot=missed[-1]))
    assert following is not None
    assert following > now.replace(microsecond=0)
