"""What jobs have beyond the original API, on two replicas at once."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from services.job_scheduler.domain import LONGEST_TOLD, EngineName
from services.job_scheduler.extensions import REVISIONS_KEPT
from shared.contracts import events
from shared.contracts.states import MissedState, RunStatus, TriggerState
from tests.component.job_scheduler.conftest import JOB, World
from tests.component.job_scheduler.test_firing import is_quiet, job_of, periodic, slot
from tests.support.eventually import eventually

JOBS = "/apis/headrace/v1/jobs"
NIGHTLY = {"cron_schedule": {"cron": "0 30 2 * * *"}}


async def told(world: World, job_id: str) -> list[Any]:
    """What was given up, in order."""
    rows = await world.database.fetch(
        "select body from outbox where resource_id = $1 and what = $2 order by seq", job_id, events.JOB_MISSED.what
    )
    return [msgspec.json.decode(row["body"], type=MissedState) for row in rows]


async def test_what_the_original_does_not_have_is_taken_and_shown_to_nobody_who_does_not_ask(world: World) -> None:
    further = {"time_zone": "Europe/Berlin", "missed": "latest", "missed_window_seconds": 3600}
    plain = await world.create(trigger=NIGHTLY)
    job = await world.create(trigger=NIGHTLY, **further)
    assert set(job) == set(plain)
    assert set(await world.get(job["id"])) == set(await world.get(plain["id"]))

    shown = await world.extended(job["id"])
    assert shown.items() >= (await world.get(job["id"])).items()
    assert shown.items() >= further.items()
    assert shown["next_slot_at"].endswith(("T00:30:00Z", "T01:30:00Z"))
    assert "last_slot_at" not in shown

    usual = await world.extended(plain["id"])
    assert usual["time_zone"] == "UTC"
    assert usual["next_slot_at"].endswith("T02:30:00Z")
    assert not {"missed", "missed_window_seconds"} & set(usual)


async def test_the_installation_says_which_zone_is_meant_where_a_job_names_none(world: World) -> None:
    elsewhere = await world.start_replica(cron_schedule_timezone="Asia/Kolkata")
    job = await elsewhere.post("/jobs", {**JOB, "trigger": NIGHTLY})
    shown = await world.extended(job["id"])
    assert shown["time_zone"] == "Asia/Kolkata"
    assert shown["next_slot_at"].endswith("T21:00:00Z")


UNTHINKABLE: list[tuple[dict[str, Any], str]] = [
    ({"time_zone": "Mars/Olympus"}, "Unknown time zone: Mars/Olympus."),
    ({"missed_window_seconds": -1}, "The window for missed slots is out of range."),
    ({"missed_window_seconds": 2**31 - 1}, "The window for missed slots is out of range."),
    ({"missed": "some"}, "some"),
    ({"overlap": "some"}, "some"),
    ({"pause_on_failures": -1}, "The number of failures to pause on is out of range."),
]


async def test_what_cannot_be_meant_is_refused(world: World) -> None:
    for fields, message in UNTHINKABLE:
        status, body = await world.client.refused("POST", "/jobs", {**JOB, **fields})
        assert (status, message in body["error"]) == (400, True), body
    assert await world.database.fetchval("select count(*) from jobs") == 0


async def test_an_unknown_job_has_no_extensions_either(world: World) -> None:
    answer = await world.client.call("GET", f"{JOBS}/nobody")
    assert (answer.status, answer.json["error"]) == (404, "ResourceNotFoundError: Job nobody not found.")


async def test_the_latest_of_the_missed_slots_stands_for_all(world: World) -> None:
    job = await job_of(world, missed="latest", trigger=periodic(slots=1000))
    (trigger,) = await world.triggered(job["id"], 1)
    assert (trigger.slot, trigger.index) == (slot(1000), 1)
    (missed,) = await told(world, job["id"])
    assert (missed.count, missed.first, missed.last) == (999, slot(1), slot(999))
    assert await world.facts(job["id"]) == ["created", "missed", "triggered"]
    assert await is_quiet(world, job["id"])


async def test_slots_that_are_made_up_for_by_nothing_are_told_and_left(world: World) -> None:
    job = await job_of(world, missed="none", trigger=periodic(slots=1000))
    await eventually(lambda: told(world, job["id"]))
    (missed,) = await told(world, job["id"])
    assert (missed.count, missed.first, missed.last) == (1000, slot(1), slot(1000))
    assert await world.facts(job["id"]) == ["created", "missed"]
    row = await world.row(job["id"])
    assert (row["last_slot"], row["last_index"], row["next_slot_at"]) == (slot(1000), 0, None)


async def test_a_window_lets_the_young_ones_among_the_missed_be_made_up_for(world: World) -> None:
    # Every second for ten years: who looked at each slot would not come to an end.
    every_second = {"periodic_schedule": {"interval_second": "1", "start_time": "2015-01-01T00:00:00Z"}}
    job = await job_of(world, missed="all", missed_window_seconds=30, trigger=every_second)
    triggers = await world.triggered(job["id"], 10)
    assert [each.index for each in triggers] == list(range(1, 11))
    (missed,) = await told(world, job["id"])
    assert missed.last < triggers[0].slot
    assert missed.count == (missed.last - missed.first).total_seconds() + 1 > 300_000_000


# Previews.


async def preview(world: World, job_id: str, query: str = "") -> Any:
    answer = await world.replica.call("GET", f"{JOBS}/{job_id}:preview{query}")
    assert answer.status == 200, answer.body
    return answer.json


async def test_the_next_slots_are_foreseen_in_the_jobs_zone_whether_it_is_enabled_or_not(world: World) -> None:
    job = await world.create(trigger=NIGHTLY, time_zone="Asia/Tokyo")
    foreseen = await preview(world, job["id"], "?count=3")
    assert foreseen["time_zone"] == "Asia/Tokyo"
    slots = [datetime.fromisoformat(each) for each in foreseen["slots"]]
    assert [each.astimezone(ZoneInfo("Asia/Tokyo")).time() for each in slots] == [time(2, 30)] * 3
    assert [after - before for before, after in pairwise(slots)] == [timedelta(days=1)] * 2
    assert foreseen["slots"][0] == (await world.extended(job["id"]))["next_slot_at"]
    assert len((await preview(world, job["id"]))["slots"]) == 10


async def test_a_preview_begins_with_what_would_be_made_up_for(world: World) -> None:
    job = await job_of(world, enabled=False, trigger=periodic(slots=5), missed="all")
    other = await job_of(world, enabled=False, trigger=periodic(slots=5), missed="none")
    assert (await preview(world, job["id"]))["slots"] == [f"{slot(nth):%Y-%m-%dT%H:%M:%SZ}" for nth in range(1, 6)]
    assert "slots" not in await preview(world, other["id"])


async def test_nobody_foresees_more_than_a_hundred_slots(world: World) -> None:
    job = await world.create()
    for count in ("101", "-1"):
        answer = await world.client.call("GET", f"{JOBS}/{job['id']}:preview?count={count}")
        assert answer.status == 400
        assert answer.json["error"].endswith(f"The number of slots is out of range. Support 1-100. Received {count}.")


# Changes.


async def change(world: World, job_id: str, **fields: Any) -> Any:
    answer = await world.replica.call("PATCH", f"{JOBS}/{job_id}", json=fields)
    assert answer.status == 200, answer.body
    return answer.json


async def history(world: World, job_id: str) -> list[Any]:
    answer = await world.client.call("GET", f"{JOBS}/{job_id}/history")
    assert answer.status == 200, answer.body
    return list(answer.json.get("revisions", []))


async def test_what_is_changed_of_a_job_is_changed_in_place_and_remembered(world: World) -> None:
    job = await world.create(name="old", trigger=NIGHTLY)
    assert await history(world, job["id"]) == []
    before = await world.extended(job["id"])

    after = await change(
        world, job["id"], name="new", max_concurrency="3", parameters=[{"name": "greeting", "value": "ho"}]
    )
    assert after == await world.extended(job["id"])
    assert (after["id"], after["name"], after["max_concurrency"]) == (job["id"], "new", "3")
    assert after["pipeline_spec"]["parameters"] == [{"name": "greeting", "value": "ho"}]
    # The schedule is as it was.
    assert after["next_slot_at"] == before["next_slot_at"]

    await change(world, job["id"], missed="none", missed_window_seconds=90)
    newest, oldest = await history(world, job["id"])
    assert newest["fields"] == [
        {"field": "missed", "before": "null", "after": "none"},
        {"field": "missed_window_seconds", "before": "null", "after": "90"},
    ]
    assert oldest["fields"] == [
        {"field": "name", "before": "old", "after": "new"},
        {"field": "max_concurrency", "before": "1", "after": "3"},
        {"field": "parameters", "before": "[]", "after": '[{"name":"greeting","value":"ho"}]'},
    ]
    assert (oldest["version"], newest["version"]) == ("2", "3")
    assert newest["changed_at"] >= oldest["changed_at"]
    assert await world.facts(job["id"]) == ["created", "updated", "updated"]


async def test_a_change_that_changes_nothing_is_none(world: World) -> None:
    job = await world.create(trigger=NIGHTLY)
    before = await world.extended(job["id"])
    assert await change(world, job["id"], name=job["name"], trigger=NIGHTLY) == before
    assert await change(world, job["id"]) == before
    assert await history(world, job["id"]) == []
    assert await world.facts(job["id"]) == ["created"]


async def test_what_a_job_says_of_missed_slots_can_be_taken_back(world: World) -> None:
    job = await world.create(missed="latest", missed_window_seconds=90)
    after = await change(world, job["id"], no_catchup=True, missed_window_seconds=0)
    assert not {"missed", "missed_window_seconds"} & set(after)
    assert after["no_catchup"] is True


async def test_a_changed_schedule_counts_from_the_change_on(world: World) -> None:
    job = await job_of(world, enabled=False, trigger=periodic(slots=5))
    hourly = {"cron_schedule": {"cron": "0 0 * * * *", "start_time": "2000-01-01T00:00:00Z"}}
    after = await change(world, job["id"], trigger=hourly)
    next_slot = datetime.fromisoformat(after["next_slot_at"])
    assert timedelta(0) < next_slot - datetime.now(UTC) <= timedelta(hours=1)
    await world.client.post(f"/jobs/{job['id']}/enable")
    assert await is_quiet(world, job["id"])
    assert await world.triggers(job["id"]) == []
    assert await world.facts(job["id"]) == ["created", "updated", "enabled"]


async def test_a_zone_means_nothing_to_what_is_no_expression(world: World) -> None:
    once = await world.create(enabled=False, trigger={})
    late = await world.create(enabled=False, trigger=periodic(slots=3))
    for job in (once, late):
        before = await world.extended(job["id"])
        after = await change(world, job["id"], time_zone="Asia/Tokyo")
        assert after["next_slot_at"] == before["next_slot_at"]
    await world.client.post(f"/jobs/{once['id']}/enable")
    assert len(await world.triggered(once["id"], 1)) == 1


async def test_a_change_wakes_who_waits_for_a_later_slot_and_leaves_runs_that_are_alive_alone(world: World) -> None:
    job = await job_of(world, trigger=periodic(slots=1), max_concurrency="1")
    await world.triggered(job["id"], 1)
    await change(world, job["id"], max_concurrency="5", trigger={"periodic_schedule": {"interval_second": "1"}})
    first, second, third = await world.triggered(job["id"], 3)
    assert (first.slot, first.index) == (slot(1), 1)
    assert third.slot - second.slot == timedelta(seconds=1)
    assert [second.index, third.index] == [2, 3]
    assert (await world.row(job["id"]))["active_runs"] >= 3


UNCHANGEABLE: list[tuple[dict[str, Any], str]] = [
    *UNTHINKABLE,
    ({"max_concurrency": "11"}, "The max concurrency of the job is out of range."),
    ({"time_zone": ""}, "Unknown time zone"),
    ({"trigger": {}}, "A job that has been created keeps a trigger"),
    ({"trigger": {"cron_schedule": {"cron": "x"}}}, "Schedule cron is not a supported format"),
    ({"trigger": {"periodic_schedule": {}}}, "Found invalid period schedule interval 0."),
    ({"parameters": [{"name": "unknown"}]}, "Unrecognized input parameter: unknown"),
    ({"parameters": [{"name": "greeting", "value": "x" * 20_000}]}, "exceed maximum size"),
    ({"name": "n" * 2001}, "The job name is longer than"),
    ({"enabled": False}, 'unknown field "enabled" in api.JobChange'),
    ({"trigger": {"cron_schedule": {"crn": "0 0 3 * * *"}}}, 'unknown field "crn" in api.CronSchedule'),
]


async def test_a_change_that_cannot_be_meant_changes_nothing(world: World) -> None:
    job = await world.create(trigger=NIGHTLY)
    before = await world.extended(job["id"])
    for fields, message in UNCHANGEABLE:
        answer = await world.client.call("PATCH", f"{JOBS}/{job['id']}", json={"description": "new", **fields})
        assert (answer.status, message in answer.json["error"]) == (400, True), answer.json
    assert await world.extended(job["id"]) == before


async def test_a_backfill_that_says_something_else_makes_no_run(world: World) -> None:
    """Who mistypes `dry_run` means it."""
    job = await world.create(trigger=NIGHTLY)
    asked = {"start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-03T00:00:00Z", "dryrun": True}
    answer = await world.client.call("POST", f"{JOBS}/{job['id']}:backfill", json=asked)
    assert (answer.status, 'unknown field "dryrun" in api.Backfill' in answer.json["error"]) == (400, True)
    assert (await world.extended(job["id"])).get("pending_slots", 0) == 0


async def test_nobody_changes_a_job_that_is_unknown_or_fired_elsewhere(world: World) -> None:
    for method, path in (("PATCH", "nobody"), ("GET", "nobody/history"), ("GET", "nobody:preview")):
        answer = await world.client.call(method, f"{JOBS}/{path}", json={} if method == "PATCH" else None)
        assert (answer.status, "Job nobody not found." in answer.json["error"]) == (404, True)
    elsewhere = await world.start_replica(engine=EngineName.EXTERNAL)
    job = await elsewhere.post("/jobs", JOB)
    answer = await world.client.call("PATCH", f"{JOBS}/{job['id']}", json={"name": "new"})
    assert answer.status == 400
    assert "fired by the scheduler of an external engine" in answer.json["error"]


async def test_a_history_is_of_the_newest_changes_and_goes_with_its_job(world: World) -> None:
    job = await world.create()
    await world.database.execute(
        "insert into revisions (job_id, version, changed_by, fields) select $1, -nth, '', '[]' "
        "from generate_series(1, 150) as nth",
        job["id"],
    )
    await change(world, job["id"], description="new")
    revisions = await history(world, job["id"])
    assert len(revisions) == REVISIONS_KEPT
    assert revisions[0]["version"] == "2"
    await world.client.delete(f"/jobs/{job['id']}")
    assert await world.database.fetchval("select count(*) from revisions") == 0


async def test_of_a_long_text_the_history_tells_the_beginning(world: World) -> None:
    job = await world.create()
    changed = await change(world, job["id"], description="x" * 100_000)
    assert len(changed["description"]) == 100_000
    (revision,) = await history(world, job["id"])
    assert revision["fields"] == [{"field": "description", "after": "x" * LONGEST_TOLD + "…"}]


async def test_an_operator_says_how_close_slots_may_be(world: World) -> None:
    strict = await world.start_replica(shortest_interval_seconds=60)
    too_close = {"trigger": {"cron_schedule": {"cron": "*/30 * * * * *"}}}
    refusal = "The schedule has slots 30 seconds apart. This installation takes none that are closer than 60 seconds."
    status, body = await strict.refused("POST", "/jobs", {**JOB, **too_close})
    assert status == 400
    assert body["error"].endswith(refusal)
    job = await strict.post("/jobs", {**JOB, "trigger": {"cron_schedule": {"cron": "0 * * * * *"}}})
    answer = await strict.call("PATCH", f"{JOBS}/{job['id']}", json=too_close)
    assert answer.status == 400
    assert refusal in answer.json["error"]


# Failures.


async def end(world: World, trigger: TriggerState, status: RunStatus) -> None:
    kind = events.RUN_SUCCEEDED if status is RunStatus.SUCCEEDED else events.RUN_FAILED
    await world.tell_of_run(kind, trigger, 2, status=status)


async def test_a_job_rests_when_as_many_runs_as_it_says_have_failed_in_a_row_and_says_why(world: World) -> None:
    job = await job_of(world, trigger=periodic(slots=9), max_concurrency="1", pause_on_failures=2)
    for nth, status in enumerate((RunStatus.FAILED, RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.FAILED), start=1):
        await end(world, (await world.triggered(job["id"], nth))[-1], status)
    last = (await world.triggers(job["id"]))[-1]
    shown = await world.get(job["id"])
    assert "enabled" not in shown
    assert shown["status"] == "Disabled"
    assert shown["error"] == f"Disabled, because its last 2 runs have failed. The last one is {last.run_id}."
    assert (await world.extended(job["id"]))["failures"] == 2
    assert await is_quiet(world, job["id"])
    assert (await world.facts(job["id"]))[-2:] == ["triggered", "disabled"]

    await world.client.post(f"/jobs/{job['id']}/enable")
    shown = await world.extended(job["id"])
    assert "error" not in shown
    assert "failures" not in shown
    fifth = (await world.triggered(job["id"], 5))[-1]
    await end(world, fifth, RunStatus.FAILED)
    assert len(await world.triggered(job["id"], 6)) == 6


async def test_failures_do_not_matter_to_a_job_that_does_not_say_so(world: World) -> None:
    job = await job_of(world, trigger=periodic(slots=4), max_concurrency="1")
    for nth in (1, 2, 3):
        await end(world, (await world.triggered(job["id"], nth))[-1], RunStatus.FAILED)
    assert len(await world.triggered(job["id"], 4)) == 4
    assert (await world.extended(job["id"]))["failures"] == 3


# Overlap.


async def open_slots(world: World, job_id: str) -> Any:
    return await world.database.fetchval("select count(*) from slots where job_id = $1 and ended_at is null", job_id)


async def test_a_slot_that_finds_no_room_is_given_up_where_the_job_skips(world: World) -> None:
    job = await job_of(world, trigger=periodic(slots=6), max_concurrency="2", overlap="skip")
    first, second = await world.triggered(job["id"], 2)
    (missed,) = await told(world, job["id"])
    assert (missed.count, missed.first, missed.last) == (4, slot(3), slot(6))
    await end(world, first, RunStatus.SUCCEEDED)
    await end(world, second, RunStatus.SUCCEEDED)
    assert await world.facts(job["id"]) == ["created", "triggered", "triggered", "missed"]


async def test_the_oldest_run_goes_for_a_slot_that_finds_no_room_where_the_job_replaces(world: World) -> None:
    every_second = {"periodic_schedule": {"interval_second": "1"}}
    job = await job_of(world, trigger=every_second, max_concurrency="2", overlap="replace", pause_on_failures=1)
    triggers = await world.triggered(job["id"], 4)
    assert [each.replaces for each in triggers[:4]] == [(), (), (triggers[0].run_id,), (triggers[1].run_id,)]

    # A run that had to go has not failed.
    await end(world, triggers[0], RunStatus.FAILED)
    shown = await world.extended(job["id"])
    assert shown["enabled"] is True
    assert "failures" not in shown
    await world.client.post(f"/jobs/{job['id']}/disable")
    assert await open_slots(world, job["id"]) == (await world.row(job["id"]))["active_runs"] >= 3


async def test_of_several_slots_that_are_due_only_the_latest_replaces(world: World) -> None:
    job = await job_of(world, trigger=periodic(slots=6), max_concurrency="1", overlap="replace")
    (only,) = await world.triggered(job["id"], 1)
    assert (only.slot, only.replaces) == (slot(6), ())
    (missed,) = await told(world, job["id"])
    assert missed.count == 5


# Backfills.


async def backfill(world: World, job_id: str, **fields: Any) -> list[datetime]:
    answer = await world.replica.call("POST", f"{JOBS}/{job_id}:backfill", json=fields)
    assert answer.status == 200, answer.body
    return [datetime.fromisoformat(each) for each in answer.json.get("slots", [])]


WEEK = {"start_time": "2024-01-01T00:00:00Z", "end_time": "2024-01-07T23:59:59Z"}


def night(day: int) -> datetime:
    return datetime(2024, 1, day, 2, 30, tzinfo=UTC)


async def test_slots_of_the_past_are_fired_as_far_as_there_is_room_and_the_schedule_goes_its_way(world: World) -> None:
    job = await world.create(trigger=NIGHTLY, max_concurrency="2")
    before = await world.extended(job["id"])
    week = [night(day) for day in range(1, 8)]
    assert await backfill(world, job["id"], **WEEK, dry_run=True) == week
    assert await world.triggers(job["id"]) == []
    assert await backfill(world, job["id"], **WEEK) == week
    assert await backfill(world, job["id"], **WEEK) == []

    triggers = await world.triggered(job["id"], 2)
    await eventually(lambda: _waits(world, job["id"], 5))
    for nth in range(3, 8):
        await end(world, triggers[-2], RunStatus.SUCCEEDED)
        triggers = await world.triggered(job["id"], nth)
    assert [(each.slot, each.index) for each in triggers] == [(night(day), day) for day in range(1, 8)]
    after = await world.extended(job["id"])
    assert after["next_slot_at"] == before["next_slot_at"]
    assert not {"last_slot_at", "pending_slots"} & set(after)
    assert after["runs_made"] == "7"


async def _waits(world: World, job_id: str, number: int) -> bool:
    return bool((await world.row(job_id))["pending_slots"] == number)


async def test_what_waits_for_room_can_be_dropped_and_goes_with_its_job(world: World) -> None:
    job = await world.create(trigger=NIGHTLY, max_concurrency="1")
    await backfill(world, job["id"], **WEEK)
    (first,) = await world.triggered(job["id"], 1)
    answer = await world.client.call("DELETE", f"{JOBS}/{job['id']}:backfill")
    assert (answer.status, answer.json) == (200, {})
    await end(world, first, RunStatus.SUCCEEDED)
    assert await _waits(world, job["id"], 0)
    assert await backfill(world, job["id"], **WEEK, dry_run=True) == [night(day) for day in range(2, 8)]
    await world.client.delete(f"/jobs/{job['id']}")
    assert await world.database.fetchval("select count(*) from pending_slots") == 0


async def test_a_range_that_cannot_be_meant_is_refused(world: World) -> None:
    often = await world.create(trigger={"cron_schedule": {"cron": "* * * * * *"}})
    for fields, message in (
        ({}, "Please specify from when on"),
        ({"start_time": "2024-01-02T00:00:00Z", "end_time": "2024-01-01T00:00:00Z"}, "ends before it begins"),
        ({"start_time": "2024-01-02T00:00:00Z", "end_time": "2924-01-01T00:00:00Z"}, "ends in the future"),
        ({"start_time": "0001-01-02T00:00:00Z"}, "longer than 3660 days"),
        (WEEK, "The range holds 604800 slots. At most 1000"),
    ):
        answer = await world.client.call("POST", f"{JOBS}/{often['id']}:backfill", json=fields)
        assert (answer.status, message in answer.json["error"]) == (400, True), answer.json
    first_day = {"start_time": "0001-01-01T00:00:00Z", "end_time": "0001-01-02T00:00:00Z"}
    assert await backfill(world, often["id"], **first_day) == []
    for method in ("POST", "DELETE"):
        answer = await world.client.call(method, f"{JOBS}/nobody:backfill", json={})
        assert answer.status == 404
