"""A job's slots: base time, end, no_catchup (API specification, sections 11.3 and 11.4); time zones, what becomes of
missed slots, previews and backfills."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.job_scheduler.domain import ON_TIME_SECONDS, CronTrigger, Missed, OneOff, PeriodicTrigger, Trigger
from services.job_scheduler.schedule import (
    Slot,
    count_between,
    decide,
    due_slot,
    next_slot,
    preview,
    shortest_interval_seconds,
    slots_between,
)

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
    "periodic: longer than the calendar, and a start later than the last slot": (
        periodic(2**62, start="12:00:00"),
        "09:30:00",
        "12:00:00",
    ),
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


def said(job: Slot, now: str) -> tuple[str | None, str | None, str | None]:
    """What fires, what is given up as "count first last", and the next slot."""
    moment = at(now)
    assert moment is not None
    decision = decide(job, moment + timedelta(microseconds=250_000))
    gone = decision.missed
    return (
        clock(decision.fires),
        None if gone is None else f"{gone.count} {clock(gone.first)} {clock(gone.last)}",
        clock(decision.next_due),
    )


ALL, LATEST, NONE = Missed

MISSED: dict[str, tuple[Any, Missed | None, int | None, str, tuple[str | None, str | None, str | None]]] = {
    # trigger, policy, window, now: what fires, what is given up, the next slot
    "not due": (cron(), LATEST, None, "10:59:59", (None, None, "11:00:00")),
    "all": (cron(), ALL, None, "15:20:00", ("11:00:00", None, "12:00:00")),
    "all, by default": (cron(), None, None, "15:20:00", ("11:00:00", None, "12:00:00")),
    "all, within a window": (cron(), ALL, 7200, "15:20:00", ("14:00:00", "3 11:00:00 13:00:00", "15:00:00")),
    "all, none is within": (cron(), ALL, 60, "15:20:00", (None, "5 11:00:00 15:00:00", "16:00:00")),
    "all, the first is within": (cron(), ALL, 3600, "11:30:00", ("11:00:00", None, "12:00:00")),
    "all, the window's edge is in": (cron(), ALL, 3601, "12:00:00", ("11:00:00", None, "12:00:00")),
    "all, beyond its edge": (cron(), ALL, 3600, "12:00:00", ("12:00:00", "1 11:00:00 11:00:00", "13:00:00")),
    "latest": (cron(), LATEST, None, "15:20:00", ("15:00:00", "4 11:00:00 14:00:00", "16:00:00")),
    "latest, one alone": (cron(), LATEST, None, "11:20:00", ("11:00:00", None, "12:00:00")),
    "latest, window": (cron(), LATEST, 1500, "15:20:00", ("15:00:00", "4 11:00:00 14:00:00", "16:00:00")),
    "latest, too old": (cron(), LATEST, 600, "15:20:00", (None, "5 11:00:00 15:00:00", "16:00:00")),
    "latest, ended": (cron(end="13:30:00"), LATEST, None, "15:20:00", ("13:00:00", "2 11:00:00 12:00:00", None)),
    "none": (cron(), NONE, None, "15:20:00", (None, "5 11:00:00 15:00:00", "16:00:00")),
    "none, on time": (cron(), NONE, None, "11:00:30", ("11:00:00", None, "12:00:00")),
    "none, on time again": (cron(), NONE, None, "15:00:30", ("15:00:00", "4 11:00:00 14:00:00", "16:00:00")),
    "none, a window says what is on time": (cron(), NONE, 1500, "11:20:00", ("11:00:00", None, "12:00:00")),
    "none, up to the end": (cron(end="13:30:00"), NONE, None, "15:20:00", (None, "3 11:00:00 13:00:00", None)),
    "every, all": (cron("@every 25m"), ALL, 3600, "12:00:00", ("11:15:00", "2 10:25:00 10:50:00", "11:40:00")),
    "every, latest": (cron("@every 25m"), LATEST, None, "12:00:00", ("11:40:00", "3 10:25:00 11:15:00", "12:05:00")),
    "periodic, all": (periodic(60), ALL, None, "11:11:11", ("10:01:00", None, "10:02:00")),
    "periodic, all, window": (periodic(60), ALL, 120, "11:11:11", ("11:10:00", "69 10:01:00 11:09:00", "11:11:00")),
    "periodic, latest": (periodic(60), LATEST, None, "11:11:11", ("11:11:00", "70 10:01:00 11:10:00", "11:12:00")),
    "periodic, none": (periodic(600), NONE, None, "11:11:11", (None, "7 10:10:00 11:10:00", "11:20:00")),
    "no trigger is never behind": (OneOff(), NONE, 1, "23:00:00", ("10:00:00", None, None)),
}  # fmt: skip


@pytest.mark.parametrize(("trigger", "missed", "window", "now", "expected"), MISSED.values(), ids=MISSED)
def test_a_job_says_what_becomes_of_its_missed_slots(
    trigger: Any, missed: Missed | None, window: int | None, now: str, expected: tuple[str | None, ...]
) -> None:
    job = msgspec.structs.replace(standing(trigger), missed=missed, missed_window_seconds=window)
    assert said(job, now) == expected


@pytest.mark.parametrize(
    ("trigger", "now", "expected"),
    [
        (cron(), "15:20:00", ("15:00:00", "4 11:00:00 14:00:00", "16:00:00")),
        (periodic(60), "11:11:11", ("11:11:11", "70 10:01:00 11:10:00", "11:12:11")),
        (periodic(60), "11:11:00", ("11:11:00", "70 10:01:00 11:10:00", "11:12:00")),
        (periodic(60), "10:01:59", ("10:01:00", None, "10:02:00")),
        (periodic(60, end="10:30:30"), "11:11:11", ("10:30:30", "29 10:01:00 10:29:00", None)),
    ],
)
def test_what_no_catchup_gives_up_is_told_too(trigger: Any, now: str, expected: tuple[str | None, ...]) -> None:
    assert said(standing(trigger, no_catchup=True), now) == expected


def test_what_a_job_says_of_missed_slots_counts_more_than_no_catchup() -> None:
    job = msgspec.structs.replace(standing(periodic(60), no_catchup=True), missed=Missed.ALL)
    assert said(job, "11:11:11") == ("10:01:00", None, "10:02:00")


def test_a_cron_expression_is_read_in_the_jobs_zone_and_intervals_in_none() -> None:
    created = datetime(2024, 3, 30, 20, 0, tzinfo=UTC)
    daily = CronTrigger(cron="0 30 9 * * ?")
    for zone, hour in (("Europe/Berlin", 7), ("America/New_York", 13), ("Asia/Kolkata", 4), ("UTC", 9)):
        slot = next_slot(Slot(trigger=daily, time_zone=zone, created_at=created))
        assert slot == datetime(2024, 3, 31, hour, 0 if zone == "Asia/Kolkata" else 30, tzinfo=UTC)
        every_day = PeriodicTrigger(interval_seconds=86400)
        assert next_slot(Slot(trigger=every_day, time_zone=zone, created_at=created)) == created + timedelta(days=1)


def test_a_preview_begins_with_what_is_due_and_goes_on_as_if_nobody_were_late() -> None:
    def slots(now: str, **fields: Any) -> list[str | None]:
        moment = at(now)
        assert moment is not None
        job = msgspec.structs.replace(standing(cron(end="16:00:00")), **fields)
        return [clock(slot) for slot in preview(job, moment, 4)]

    assert slots("10:00:00") == ["11:00:00", "12:00:00", "13:00:00", "14:00:00"]
    assert slots("13:10:00") == ["11:00:00", "12:00:00", "13:00:00", "14:00:00"]
    assert slots("13:10:00", missed=Missed.LATEST) == ["13:00:00", "14:00:00", "15:00:00", "16:00:00"]
    assert slots("13:10:00", missed=Missed.NONE) == ["14:00:00", "15:00:00", "16:00:00"]
    assert slots("13:10:00", no_catchup=True) == ["13:00:00", "14:00:00", "15:00:00", "16:00:00"]
    assert slots("13:10:00", last_slot=at("16:00:00")) == []
    assert slots("13:10:00", trigger=OneOff()) == ["10:00:00"]
    assert slots("13:10:00", trigger=cron("0 0 0 30 2 ?")) == []


@pytest.mark.parametrize(
    ("trigger", "last", "since", "until", "slots"),
    [
        (cron(), None, "05:00:00", "07:59:59", "05:00:00 06:00:00 07:00:00"),
        (cron(start="09:00:00", end="09:30:00"), None, "05:00:01", "07:00:00", "06:00:00 07:00:00"),
        (cron("@every 25m"), None, "08:00:00", "09:00:00", "08:20:00 08:45:00"),
        (periodic(3600, start="09:30:00"), None, "06:30:00", "08:31:00", "06:30:00 07:30:00 08:30:00"),
        (periodic(3600, start="09:30:00"), "11:15:00", "06:30:00", "08:31:00", "07:15:00 08:15:00"),
        (periodic(7200), None, "06:30:00", "07:30:00", ""),
        (periodic(2**63 - 1), None, "06:30:00", "10:30:00", "10:00:00"),
        (periodic(2**63 - 1), None, "10:30:00", "11:30:00", ""),
        (cron(), None, "07:30:00", "06:30:00", ""),
        (OneOff(), None, "00:00:00", "23:00:00", ""),
    ],
)
def test_a_backfill_has_the_slots_of_a_time_that_has_passed(
    trigger: Any, last: str | None, since: str, until: str, slots: str
) -> None:
    first, end = at(since), at(until)
    assert first is not None
    assert end is not None
    job = standing(trigger, last=last)
    found = slots_between(job, first, end, 1000)
    assert " ".join(str(clock(slot)) for slot in found) == slots
    assert count_between(job, first, end) == len(found)
    assert slots_between(job, first, end, 1) == found[:1]
    # A fraction of a second is later than the second.
    assert len(slots_between(job, first + timedelta(microseconds=1), end, 1000)) in (len(found), len(found) - 1)


def test_the_shortest_interval_is_that_of_the_trigger() -> None:
    assert shortest_interval_seconds(OneOff()) is None
    assert shortest_interval_seconds(periodic(90)) == 90
    assert shortest_interval_seconds(cron("@every 1s")) == 1
    assert shortest_interval_seconds(cron("* * * * * *")) == 1
    assert shortest_interval_seconds(cron("0 */15 * * * *")) == 900
    assert shortest_interval_seconds(cron("0 0 0 30 2 ?")) is None


# Arbitrary jobs and times.

TRIGGERS: st.SearchStrategy[Trigger] = st.one_of(
    st.sampled_from(
        [
            "*/47 * * * * *",
            "0 3/17 * * * ?",
            "5,50 */9 8-19 * * *",
            "0 30 1,2 * * ?",
            "0 0 */5 2,30 * MON",
            "0 0 0 */3 * */2",
            "@every 11m",
            "@hourly",
        ]
    ).map(lambda text: CronTrigger(cron=text)),
    st.integers(37, 10_000).map(lambda seconds: PeriodicTrigger(interval_seconds=seconds)),
)
MOMENTS = st.datetimes(datetime(2024, 2, 20), datetime(2024, 4, 20), timezones=st.just(UTC))  # noqa: DTZ001
DELAYS = st.timedeltas(timedelta(0), timedelta(hours=6))
WINDOWS = st.one_of(st.none(), st.integers(1, 20_000))
JOBS = st.builds(
    lambda trigger, zone, created, missed, window: Slot(
        trigger=trigger, time_zone=zone, created_at=created, missed=missed, missed_window_seconds=window
    ),
    TRIGGERS,
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Havana"]),
    MOMENTS,
    st.sampled_from([None, *Missed]),
    WINDOWS,
)


def _slots(job: Slot, until: datetime) -> list[datetime]:
    """One after the other, whatever becomes of them."""
    slots: list[datetime] = []
    while (slot := next_slot(job)) is not None and slot <= until:
        assert not slots or slot > slots[-1]
        slots.append(slot)
        job = msgspec.structs.replace(job, last_slot=slot)
    return slots


@settings(max_examples=50, deadline=None, print_blob=True)
@given(job=JOBS, wakings=st.lists(DELAYS, min_size=1, max_size=4))
def test_every_slot_is_fired_or_given_up_and_none_is_both(job: Slot, wakings: list[timedelta]) -> None:
    slots, now, standing_job = [], job.created_at, job
    given_up = 0
    fired: list[datetime] = []
    for delay in wakings:
        now += delay
        while (decision := decide(standing_job, now)).reached is not None:
            assert due_slot(standing_job, now) == decision.fires
            if decision.missed is not None:
                given_up += decision.missed.count
                assert decision.fires is None or decision.missed.last < decision.fires
            if decision.fires is not None:
                assert not fired or decision.fires > fired[-1]
                fired.append(decision.fires)
                _check_age(job, decision.fires, now)
            standing_job = msgspec.structs.replace(standing_job, last_slot=decision.reached)
            assert next_slot(standing_job) == decision.next_due
        assert decision.next_due is None or decision.next_due > now
    slots = _slots(job, now)
    assert set(fired) <= set(slots)
    assert len(fired) + given_up == len(slots)
    if job.missed in (None, Missed.ALL) and job.missed_window_seconds is None:
        assert fired == slots


def _check_age(job: Slot, slot: datetime, now: datetime) -> None:
    window = job.missed_window_seconds or (ON_TIME_SECONDS if job.missed is Missed.NONE else None)
    assert window is None or now - slot <= timedelta(seconds=window)
    following = next_slot(msgspec.structs.replace(job, last_slot=slot))
    if job.missed in (Missed.LATEST, Missed.NONE):
        assert following is None or following > now


@settings(max_examples=50, deadline=None, print_blob=True)
@given(job=JOBS, behind=DELAYS)
def test_no_catchup_fires_the_last_of_all_that_were_missed(job: Slot, behind: timedelta) -> None:
    now = job.created_at + behind
    slots = _slots(job, now)
    assume(slots)
    old = msgspec.structs.replace(job, no_catchup=True, missed=None, missed_window_seconds=None)
    fires = due_slot(old, now)
    assert fires is not None
    if isinstance(job.trigger, PeriodicTrigger) and len(slots) > 1:
        assert fires == now.replace(microsecond=0)
    else:
        assert fires == slots[-1]
    following = next_slot(msgspec.structs.replace(old, last_slot=fires))
    assert following is None or following > now.replace(microsecond=0)


@settings(max_examples=50, deadline=None, print_blob=True)
@given(job=JOBS, behind=DELAYS)
def test_a_preview_is_what_somebody_fires_who_is_never_late(job: Slot, behind: timedelta) -> None:
    now = job.created_at + behind
    foreseen = preview(job, now, 8)
    fired: list[datetime] = []
    while len(fired) < len(foreseen):
        decision = decide(job, now)
        if decision.fires is not None:
            fired.append(decision.fires)
        if decision.reached is None:
            assert decision.next_due is not None
            now = decision.next_due
        else:
            job = msgspec.structs.replace(job, last_slot=decision.reached)
    assert tuple(fired) == foreseen


@settings(max_examples=50, deadline=None, print_blob=True)
@given(job=JOBS, length=DELAYS)
def test_the_slots_of_a_range_are_those_that_would_have_fired_in_it(job: Slot, length: timedelta) -> None:
    until = job.created_at + length
    slots = _slots(job, until)
    found = slots_between(job, job.created_at + timedelta(seconds=1), until, 10_000)
    assert list(found) == [slot for slot in slots if slot >= job.created_at + timedelta(seconds=1)]
    assert count_between(job, job.created_at + timedelta(seconds=1), until) == len(found)
