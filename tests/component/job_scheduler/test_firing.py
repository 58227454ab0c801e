"""Slots that come, on two replicas at once (API specification, section 11)."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from services.job_scheduler.domain import EngineName, workflow_name
from services.job_scheduler.slots import SLOTS_KEPT, Slots
from shared.contracts import events
from shared.contracts.questions import AppliedRequest
from shared.contracts.states import (
    ExperimentId,
    ParameterValue,
    PipelineId,
    PipelineVersionId,
    RunId,
    RunStatus,
    TriggerState,
)
from shared.outbox import Outbox
from tests.component.job_scheduler.conftest import MANIFEST, World, reference, run_of
from tests.support.eventually import eventually

START = datetime(2000, 1, 1, tzinfo=UTC)


def periodic(*, slots: int, seconds: int = 3) -> dict[str, Any]:
    """A trigger whose slots are all long past."""
    end = START + timedelta(seconds=slots * seconds)
    return {
        "periodic_schedule": {
            "interval_second": str(seconds),
            "start_time": START.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "end_time": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    }


def slot(nth: int, seconds: int = 3) -> datetime:
    return START + timedelta(seconds=nth * seconds)


async def job_of(world: World, **fields: Any) -> dict[str, Any]:
    return await world.create(**({"enabled": True, "trigger": periodic(slots=3), "max_concurrency": "10"} | fields))


async def is_quiet(world: World, job_id: str) -> bool:
    """Whether nothing of the job is due: what has not fired by then never will by itself."""
    due = "select 1 from jobs where id = $1 and is_enabled and active_runs < max_concurrency and next_slot_at < now()"
    return await world.database.fetchval(due, job_id) is None


async def test_each_slot_is_told_once_with_all_that_its_run_needs(world: World) -> None:
    world.peers.has_version("p1", "v1", await world.blobs.put_manifest(MANIFEST))
    world.peers.has_experiment("e1", "mill")
    job = await job_of(
        world,
        name="Every Day!",
        service_account="miller",
        pipeline_spec={
            "pipeline_id": "p1",
            "parameters": [{"name": "greeting", "value": "[[Index]] at [[ScheduledTime]]"}, {"name": "whom"}],
        },
        resource_references=[reference("EXPERIMENT", "e1")],
    )
    triggers = await world.triggered(job["id"], 3)
    assert await is_quiet(world, job["id"])

    row = await world.row(job["id"])
    run_ids = [str(uuid.uuid5(uuid.UUID(job["id"]), f"2000-01-01T00:00:0{second}Z")) for second in (3, 6, 9)]
    assert triggers == [
        TriggerState(
            id=job["id"],
            version=nth + 1,
            run_id=RunId(run_ids[nth - 1]),
            slot=slot(nth),
            index=nth,
            name="Every Day!",
            workflow_name=workflow_name(row["object_name"], nth),
            namespace="kubeflow",
            experiment_id=ExperimentId("e1"),
            experiment_name="mill",
            pipeline_id=PipelineId("p1"),
            pipeline_version_id=PipelineVersionId("v1"),
            manifest_digest=row["manifest_digest"],
            parameters=(
                ParameterValue(name="greeting", value=f"{nth} at 2000010100000{3 * nth}"),
                ParameterValue(name="whom"),
            ),
            service_account="miller",
        )
        for nth in (1, 2, 3)
    ]
    assert (row["last_index"], row["last_slot"], row["next_slot_at"]) == (3, slot(3), None)
    assert (row["active_runs"], row["version"]) == (3, 4)
    assert await world.facts(job["id"]) == ["created", "triggered", "triggered", "triggered"]
    told = await world.database.fetch("select id, traceparent from outbox where what = 'triggered' order by seq")
    assert [str(each["id"]) for each in told] == run_ids
    assert len({each["traceparent"] for each in told}) == 3
    assert (await world.get(job["id"]))["status"] == "Enabled"


async def test_a_job_fires_no_more_runs_than_may_be_alive_and_goes_on_as_they_end(world: World) -> None:
    job = await job_of(world, trigger=periodic(slots=6), max_concurrency="2")
    first, second = await world.triggered(job["id"], 2)
    assert await is_quiet(world, job["id"])

    await world.tell_of_run(events.RUN_CREATED, first, 1)
    await world.tell_of_run(events.RUN_STARTED, first, 2, status=RunStatus.RUNNING)
    assert len(await world.triggers(job["id"])) == 2
    await world.tell_of_run(events.RUN_FAILED, first, 3, status=RunStatus.FAILED)
    third = (await world.triggered(job["id"], 3))[-1]
    assert (third.slot, third.index) == (slot(3), 3)

    # A second end, and an end of what is no slot of this job, free nothing.
    await world.tell_of_run(events.RUN_DELETED, first, 4, is_deleted=True)
    stranger = run_of(second, 9, status=RunStatus.SUCCEEDED)
    await world.peers.run.tell(events.RUN_SUCCEEDED, msgspec.structs.replace(stranger, id="another"))
    await world.peers.run.tell(events.RUN_SUCCEEDED, msgspec.structs.replace(stranger, scheduled_at=None))
    await world.peers.run.tell(events.RUN_SUCCEEDED, msgspec.structs.replace(stranger, job_id=None))
    await world.peers.run.until_applied_by("job-scheduler")
    assert await is_quiet(world, job["id"])
    assert len(await world.triggers(job["id"])) == 3

    # A retried run takes room again, though there is none: two must end before the next slot comes.
    await world.tell_of_run(events.RUN_ERROR, second, 2, status=RunStatus.ERROR)
    fourth = (await world.triggered(job["id"], 4))[-1]
    await world.tell_of_run(events.RUN_RETRIED, second, 3, status=RunStatus.RUNNING, attempt=2)
    assert (await world.row(job["id"]))["active_runs"] == 3
    await world.tell_of_run(events.RUN_SUCCEEDED, second, 4, status=RunStatus.SUCCEEDED, attempt=2)
    assert await is_quiet(world, job["id"])
    await world.tell_of_run(events.RUN_SKIPPED, third, 2, status=RunStatus.SKIPPED)
    fifth = (await world.triggered(job["id"], 5))[-1]
    await world.tell_of_run(events.RUN_DELETED, fourth, 2, is_deleted=True)
    sixth = (await world.triggered(job["id"], 6))[-1]
    for last in (fifth, sixth):
        await world.tell_of_run(events.RUN_SUCCEEDED, last, 2, status=RunStatus.SUCCEEDED)
    row = await world.row(job["id"])
    assert (row["active_runs"], row["next_slot_at"], row["last_index"]) == (0, None, 6)
    assert [each.slot for each in await world.triggers(job["id"])] == [slot(nth) for nth in range(1, 7)]


async def test_a_refused_run_frees_its_slot_and_the_job_tells_why_until_the_next_slot_comes(world: World) -> None:
    job = await job_of(world, trigger=periodic(slots=2), max_concurrency="1")
    (first,) = await world.triggered(job["id"], 1)
    await world.tell_of_run(events.RUN_REJECTED, first, 1, status=RunStatus.ERROR, error="No such manifest.")
    second = (await world.triggered(job["id"], 2))[-1]
    assert "error" not in await world.get(job["id"])
    await world.tell_of_run(events.RUN_REJECTED, second, 1, status=RunStatus.ERROR, error="No such experiment.")
    assert (await world.get(job["id"]))["error"] == "No such experiment."
    assert (await world.replica.get("/jobs"))["jobs"][0]["error"] == "No such experiment."


async def test_what_a_disabled_job_missed_comes_when_it_is_enabled(world: World) -> None:
    job = await job_of(world, enabled=False)
    other = await job_of(world, enabled=False, no_catchup=True)
    assert (await world.row(job["id"]))["next_slot_at"] == slot(1)

    await world.client.post(f"/jobs/{job['id']}/enable")
    await world.client.post(f"/jobs/{other['id']}/enable")
    assert [each.slot for each in await world.triggered(job["id"], 3)] == [slot(1), slot(2), slot(3)]

    # Without catching up the last slot stands for all.
    (only,) = await world.triggered(other["id"], 1)
    assert (only.slot, only.index) == (slot(3), 1)
    assert await is_quiet(world, other["id"])
    assert await world.facts(other["id"]) == ["created", "enabled", "missed", "triggered"]
    body = await world.database.fetchval("select body from outbox where what = 'missed'")
    assert b'"count":2,"first":"2000-01-01T00:00:03Z","last":"2000-01-01T00:00:06Z"' in body


async def test_disabling_keeps_runs_alive_and_their_ends_bring_no_others(world: World) -> None:
    job = await job_of(world, max_concurrency="1")
    (first,) = await world.triggered(job["id"], 1)
    await world.client.post(f"/jobs/{job['id']}/disable")
    await world.tell_of_run(events.RUN_SUCCEEDED, first, 2, status=RunStatus.SUCCEEDED)
    assert (await world.row(job["id"]))["active_runs"] == 0
    assert await world.facts(job["id"]) == ["created", "triggered", "disabled"]
    await world.client.post(f"/jobs/{job['id']}/enable")
    assert [each.index for each in await world.triggered(job["id"], 2)] == [1, 2]


async def test_a_job_without_a_trigger_runs_once_and_has_succeeded_when_that_is_over(world: World) -> None:
    job = await job_of(world, trigger=None)
    (only,) = await world.triggered(job["id"], 1)
    assert only.slot == datetime.fromisoformat(job["created_at"])
    assert (await world.get(job["id"]))["status"] == "Running"
    await world.tell_of_run(events.RUN_FAILED, only, 2, status=RunStatus.FAILED)
    assert (await world.get(job["id"]))["status"] == "Succeeded"
    for status, found in (("Succeeded", 1), ("Running", 0)):
        predicate = f'{{"predicates":[{{"op":"EQUALS","key":"status","string_value":"{status}"}}]}}'
        assert len((await world.client.get("/jobs", filter=predicate)).get("jobs", ())) == found
    assert await is_quiet(world, job["id"])
    assert len(await world.triggers(job["id"])) == 1


async def test_a_deleted_job_leaves_no_slots_and_its_runs_end_in_peace(world: World) -> None:
    job = await job_of(world, max_concurrency="1")
    (first,) = await world.triggered(job["id"], 1)
    await world.client.delete(f"/jobs/{job['id']}")
    assert await world.database.fetchval("select count(*) from slots") == 0
    await world.tell_of_run(events.RUN_SUCCEEDED, first, 2, status=RunStatus.SUCCEEDED)
    await world.tell_of_run(events.RUN_RETRIED, first, 3, status=RunStatus.RUNNING)
    assert await world.facts(job["id"]) == ["created", "triggered", "deleted"]


async def test_what_another_scheduler_fires_is_left_to_it(world: World) -> None:
    external = await world.start_replica(engine=EngineName.EXTERNAL)
    job = await external.post(
        "/jobs",
        {
            "name": "theirs",
            "enabled": True,
            "pipeline_spec": {"workflow_manifest": MANIFEST},
            "max_concurrency": "1",
            "trigger": periodic(slots=2),
        },
    )
    ours = await job_of(world)
    await world.triggered(ours["id"], 3)
    assert (await world.row(job["id"]))["next_slot_at"] is None
    assert await world.facts(job["id"]) == ["created"]


async def test_jobs_of_runs_on_argo_are_fired_here_whatever_triggers_them(world: World) -> None:
    argo = await world.start_replica(engine=EngineName.ARGO)
    asked = {"enabled": True, "pipeline_spec": {"workflow_manifest": MANIFEST}, "max_concurrency": "3"}
    job = await argo.post("/jobs", asked | {"name": "timed", "trigger": periodic(slots=2)})
    triggers = await world.triggered(job["id"], 2)
    assert {trigger.engine for trigger in triggers} == {"argo"}
    assert (await world.row(job["id"]))["engine"] == "argo"
    # A run may trigger it, as it may none of another scheduler's.
    on_run = {"on": {"job_id": job["id"], "facts": ["succeeded"]}}
    after = await argo.post("/jobs", asked | {"name": "after"} | on_run)
    assert (await world.row(after["id"]))["trigger_kind"] == "run"


async def test_a_slot_fires_when_it_comes_and_not_earlier(world: World) -> None:
    job = await job_of(world, trigger={"periodic_schedule": {"interval_second": "1"}})
    triggers = await world.triggered(job["id"], 3)
    created_at = datetime.fromisoformat(job["created_at"])
    assert [each.slot for each in triggers] == [created_at + timedelta(seconds=nth) for nth in (1, 2, 3)]
    fired_at = await world.database.fetch("select slot, fired_at from slots order by slot")
    for each in fired_at:
        assert each["fired_at"] >= each["slot"]


async def test_only_the_newest_slots_are_remembered(world: World) -> None:
    job = await job_of(world, trigger=periodic(slots=2), max_concurrency="1")
    (first,) = await world.triggered(job["id"], 1)
    await world.database.execute(
        """
        insert into slots (job_id, slot, index, run_id, ended_at)
        select $1, $2::timestamptz - make_interval(days => nth), 1000 + nth, 'old ' || nth,
            case when nth > 2 then now() end
        from generate_series(1, 150) as nth
        """,
        job["id"],
        first.slot,
    )
    await world.database.execute("update jobs set last_index = 1200 where id = $1", job["id"])
    await world.tell_of_run(events.RUN_SUCCEEDED, first, 2, status=RunStatus.SUCCEEDED)
    await world.triggered(job["id"], 2)
    rows = await world.database.fetch("select index from slots order by index")
    # Those that are open stay, however old they are.
    assert [row["index"] for row in rows] == [1001, 1002, *range(1202 - SLOTS_KEPT, 1151), 1201]


async def test_a_schedule_that_cannot_be_followed_rests_and_says_so_and_others_fire(world: World) -> None:
    broken = await job_of(world, enabled=False, trigger={"cron_schedule": {"cron": "* * * * * *"}})
    await world.database.execute("update jobs set cron = 'never was one' where id = $1", broken["id"])
    await world.client.post(f"/jobs/{broken['id']}/enable")
    job = await job_of(world)
    await world.triggered(job["id"], 3)

    async def error() -> str:
        return str((await world.get(broken["id"])).get("error", ""))

    assert "cannot be followed" in await eventually(error)
    assert await world.triggers(broken["id"]) == []


# What nobody tells.


@pytest.fixture
def slots(world: World) -> Slots:
    return Slots(world.database, Outbox("job-scheduler"), world.peers.buses["run"], ask_seconds=2)


async def test_open_slots_whose_runs_are_over_or_unknown_are_freed_though_nobody_told(
    world: World, slots: Slots
) -> None:
    job = await job_of(world, trigger=periodic(slots=5), max_concurrency="4")
    alive, over, _, retried = await world.triggered(job["id"], 4)
    world.peers.runs = {
        alive.run_id: run_of(alive, 2, status=RunStatus.RUNNING),
        over.run_id: run_of(over, 3, status=RunStatus.FAILED),
        # It has been retried since, which is known here already.
        retried.run_id: run_of(retried, 3, status=RunStatus.FAILED),
    }
    await world.tell_of_run(events.RUN_FAILED, retried, 3, status=RunStatus.FAILED)
    await world.triggered(job["id"], 5)
    await world.tell_of_run(events.RUN_RETRIED, retried, 4, status=RunStatus.RUNNING)
    assert (await world.row(job["id"]))["active_runs"] == 5

    # Nothing is asked about what was opened just now, nor what is concluded before the orders have arrived.
    assert await slots.check(older_than_seconds=3600) == 0
    world.peers.has_applied = False
    assert await eventually(lambda: _asked(world, slots)) == [6]
    assert (await world.row(job["id"]))["active_runs"] == 5

    world.peers.has_applied = True
    await world.database.execute("update slots set checked_at = now() - interval '1 hour'")
    fifth = (await world.triggers(job["id"]))[-1]
    world.peers.runs[fifth.run_id] = run_of(fifth, 1)
    assert await slots.check(older_than_seconds=1800) == 2
    open_runs = await world.database.fetch("select run_id from slots where ended_at is null order by slot")
    assert [row["run_id"] for row in open_runs] == [alive.run_id, retried.run_id, fifth.run_id]
    assert (await world.row(job["id"]))["active_runs"] == 3
    # Each was looked at a moment ago.
    assert await slots.check(older_than_seconds=1800) == 0


async def _asked(world: World, slots: Slots) -> list[int]:
    """Which position the run service was asked for; nothing as long as the relay has not come to the newest fact."""
    world.peers.waited.clear()
    assert await slots.check(older_than_seconds=0) == 0
    asked: list[AppliedRequest] = world.peers.waited
    return [each.position for each in asked if each.position == 6]
