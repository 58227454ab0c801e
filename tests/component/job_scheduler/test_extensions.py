"""What jobs have beyond the original API, on two replicas at once."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shared.contracts import events
from shared.contracts.states import MissedState
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"time_zone": "Mars/Olympus"}, "Unknown time zone: Mars/Olympus."),
        ({"missed_window_seconds": 0}, "The window for missed slots is out of range."),
        ({"missed_window_seconds": 2**31 - 1}, "The window for missed slots is out of range."),
        ({"missed": "some"}, "some"),
    ],
)
async def test_what_cannot_be_meant_is_refused(world: World, fields: dict[str, Any], message: str) -> None:
    status, body = await world.client.refused("POST", "/jobs", {**JOB, **fields})
    assert status == 400
    assert message in body["error"]
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
