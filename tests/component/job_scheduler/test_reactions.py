"""Jobs that runs trigger by their end, on two replicas at once."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from services.job_scheduler.domain import EngineName
from shared.contracts import events
from shared.contracts.events import FactKind
from shared.contracts.states import (
    ExperimentId,
    JobId,
    ParameterValue,
    PipelineId,
    PipelineVersionId,
    PipelineVersionState,
    RunState,
    RunStatus,
)
from tests.component.job_scheduler.conftest import JOB, MANIFEST, World, experiment_state, reference, run_of
from tests.component.job_scheduler.test_extensions import JOBS, NIGHTLY, told
from tests.support.eventually import eventually

FACTS: dict[RunStatus, FactKind[RunState]] = {
    RunStatus.SUCCEEDED: events.RUN_SUCCEEDED,
    RunStatus.FAILED: events.RUN_FAILED,
    RunStatus.ERROR: events.RUN_ERROR,
    RunStatus.SKIPPED: events.RUN_SKIPPED,
}
ON_SUCCESS = {"facts": ["succeeded"], "pipeline_id": "p1"}


def plain_job(**fields: Any) -> dict[str, Any]:
    return {
        **{key: value for key, value in JOB.items() if key != "trigger"},
        "enabled": True,
        "on": ON_SUCCESS,
        **fields,
    }


async def job_on(world: World, **fields: Any) -> dict[str, Any]:
    return dict(await world.client.post("/jobs", plain_job(**fields)))


def parameters(**values: str) -> dict[str, Any]:
    return {"workflow_manifest": MANIFEST, "parameters": [{"name": name, "value": values[name]} for name in values]}


async def ends(
    world: World, status: RunStatus = RunStatus.SUCCEEDED, *, at: datetime | None = None, **fields: Any
) -> RunState:
    """A run of pipeline p1, unless the fields say otherwise; returns after its end was applied."""
    run = await ended(world, status, at=at, **fields)
    await world.peers.run.until_applied_by("job-scheduler")
    return run


async def ended(
    world: World, status: RunStatus = RunStatus.SUCCEEDED, *, at: datetime | None = None, **fields: Any
) -> RunState:
    given: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "version": 3,
        "name": "milling",
        "status": status,
        "experiment_id": ExperimentId("e1"),
        "pipeline_id": PipelineId("p1"),
        "created_at": datetime.now(UTC),
    }
    run = RunState(**(given | fields))
    await world.peers.run.tell(FACTS[status], run, at=at)
    return run


async def causes(world: World, job_id: str) -> list[tuple[str, int]]:
    rows = await world.database.fetch("select run_id, attempt from causes where job_id = $1 order by at", job_id)
    return [(row["run_id"], row["attempt"]) for row in rows]


async def missed(world: World, job_id: str, times: int) -> list[Any]:
    async def those() -> list[Any]:
        found = await told(world, job_id)
        return found if len(found) >= times else []

    return await eventually(those)


async def test_the_end_of_a_run_makes_one_run_that_knows_of_it(world: World) -> None:
    spec = parameters(greeting="{{run.name}} of {{ run.id }}", whom="[[Index]] {{workflow.uid}}")
    job = await job_on(world, pipeline_spec=spec)
    before = datetime.now(UTC)
    run = await ends(world, name="[[RunUUID]] {{run.id}}")
    await ends(world, RunStatus.FAILED)

    (trigger,) = await world.triggered(job["id"], 1)
    assert trigger.run_id == str(uuid.uuid5(uuid.UUID(job["id"]), f"{run.id}/1"))
    assert (trigger.cause_run_id, trigger.trigger_depth, trigger.index) == (run.id, 1, 1)
    assert before < trigger.slot < datetime.now(UTC)
    # What the run is called is a name, whatever it looks like.
    assert trigger.parameters == (
        ParameterValue(name="greeting", value=f"[[RunUUID]] {{{{run.id}}}} of {run.id}"),
        ParameterValue(name="whom", value="1 {{workflow.uid}}"),
    )
    assert await causes(world, job["id"]) == [(run.id, 1)]
    assert await world.facts(job["id"]) == ["created", "triggered"]
    row = await world.row(job["id"])
    assert (row["pending_causes"], row["active_runs"], row["last_index"], row["next_slot_at"]) == (0, 1, 1, None)


async def test_what_is_told_again_makes_nothing_and_a_further_attempt_does(world: World) -> None:
    job = await job_on(world, max_concurrency="10")
    run = await ends(world)
    await world.triggered(job["id"], 1)
    await ends(world, id=run.id)
    assert len(await causes(world, job["id"])) == 1

    # The service itself has forgotten how far it was, and everything is told anew.
    await world.database.execute("update cursors set position = 0 where owner = 'run'")
    world.peers.run.begin_again()
    await ends(world, id=run.id)
    await ends(world, id=run.id)
    retried = await ends(world, id=run.id, attempt=2)

    triggers = await world.triggered(job["id"], 2)
    assert [each.cause_run_id for each in triggers] == [run.id, run.id]
    assert triggers[1].run_id == str(uuid.uuid5(uuid.UUID(job["id"]), f"{run.id}/2"))
    assert await causes(world, job["id"]) == [(run.id, 1), (retried.id, 2)]


async def test_each_of_many_runs_triggers_each_of_many_jobs_once(world: World) -> None:
    jobs = [await job_on(world, max_concurrency="10") for _ in range(10)]
    runs = [(await ended(world)).id for _ in range(10)]
    for job in jobs:
        triggers = await world.triggered(job["id"], 10)
        assert [each.cause_run_id for each in triggers] == runs
        assert [each.index for each in triggers] == list(range(1, 11))
        assert await world.facts(job["id"]) == ["created", *["triggered"] * 10]


async def test_runs_are_told_apart_by_their_end_pipeline_experiment_and_job(world: World) -> None:
    world.peers.has_version("p2", "v2", await world.blobs.put_manifest(MANIFEST))
    nightly = await world.create(pipeline_spec={"pipeline_id": "p2"}, resource_references=[])
    version = PipelineVersionState(
        id="v1",
        version=1,
        name="fine",
        pipeline_id=PipelineId("p1"),
        manifest_digest="0" * 64,
        created_at=datetime.now(UTC),
    )
    await world.peers.registry.tell(events.PIPELINE_VERSION_CREATED, version)
    await world.peers.registry.until_applied_by("job-scheduler")
    conditions: dict[str, dict[str, Any]] = {
        "p1 succeeded": {"facts": ["succeeded"], "pipeline_id": "p1"},
        "p1 did not": {"facts": ["failed", "error"], "pipeline_id": "p1"},
        "p2 ended": {"facts": ["ended"], "pipeline_id": "p2"},
        "p1 in e1 ended": {"facts": ["ended"], "pipeline_id": "p1", "experiment_id": "e1"},
        "nightly skipped": {"facts": ["skipped"], "job_id": nightly["id"]},
    }
    jobs = {name: (await job_on(world, on=on))["id"] for name, on in conditions.items()}
    runs: list[tuple[RunStatus, dict[str, Any], set[str]]] = [
        (RunStatus.SUCCEEDED, {}, {"p1 succeeded", "p1 in e1 ended"}),
        (RunStatus.ERROR, {"experiment_id": ExperimentId("e2")}, {"p1 did not"}),
        (RunStatus.FAILED, {"pipeline_id": PipelineId("p3")}, set()),
        (RunStatus.SKIPPED, {"pipeline_id": None}, set()),
        (
            RunStatus.SUCCEEDED,
            {"pipeline_id": None, "pipeline_version_id": PipelineVersionId("v1"), "experiment_id": ExperimentId("e2")},
            {"p1 succeeded"},
        ),
        (RunStatus.SKIPPED, {"pipeline_id": None, "job_id": JobId(nightly["id"])}, {"p2 ended", "nightly skipped"}),
    ]
    for status, fields, expected in runs:
        run = await ends(world, status, **fields)
        found = {name for name, job_id in jobs.items() if (run.id, 1) in await causes(world, job_id)}
        assert found == expected, (status, fields)


async def test_what_a_run_does_not_hand_over_makes_no_run_and_the_job_tells_why(world: World) -> None:
    spec = parameters(greeting="{{run.outputs.parameters.train.path}}", whom="x")
    job = await job_on(world, pipeline_spec=spec)
    run = await ends(world)

    (fact,) = await missed(world, job["id"], 1)
    assert (fact.count, fact.cause_run_id) == (1, run.id)
    assert fact.reason == (await world.get(job["id"]))["error"]
    assert fact.reason == f"Run {run.id} triggers no other one. Run {run.id} has no 'train.path'."
    world.peers.values = {"train.path": "x" * 20_000}
    await ends(world)
    assert "exceed maximum size" in (await missed(world, job["id"], 2))[1].reason
    world.peers.values = {"train.path": "a\x00b"}
    await ends(world)
    assert "NUL" in (await missed(world, job["id"], 3))[2].reason
    world.peers.values = {"train.path": "found"}
    await ends(world)
    (trigger,) = await world.triggered(job["id"], 1)
    assert trigger.index == 1
    assert "error" not in await world.get(job["id"])
    assert (await world.row(job["id"]))["pending_causes"] == 0


async def test_outputs_and_metrics_are_asked_for_until_somebody_answers_and_other_jobs_go_on(world: World) -> None:
    spec = parameters(
        greeting="{{run.outputs.parameters.train.v2.path}}", whom="{{run.metrics.accuracy}} {{run.metrics.rows}}"
    )
    waiting, other = await job_on(world, pipeline_spec=spec), await job_on(world)
    world.peers.values = None
    run = await ends(world)
    await world.triggered(other["id"], 1)
    assert (await world.extended(waiting["id"]))["pending_causes"] == 1
    world.peers.values = {"train.v2.path": "s3://{{run.id}}/[[Index]]", "accuracy": 0.25, "rows": 3.0}
    (trigger,) = await world.triggered(waiting["id"], 1)
    assert trigger.cause_run_id == run.id
    assert [each.value for each in trigger.parameters] == ["s3://{{run.id}}/[[Index]]", "0.25 3"]
    assert await world.facts(waiting["id"]) == ["created", "triggered"]


async def test_a_loop_over_several_jobs_is_refused_where_it_closes(world: World) -> None:
    for nth in (1, 2, 3):
        world.peers.has_version(f"p{nth}", f"v{nth}", await world.blobs.put_manifest(MANIFEST))

    async def job(nth: int, on: dict[str, Any]) -> dict[str, Any]:
        return await job_on(world, name=f"job {nth}", pipeline_spec={"pipeline_id": f"p{nth}"}, on=on)

    second = await job(2, {"facts": ["ended"], "pipeline_id": "p1"})
    third = await job(3, {"facts": ["ended"], "job_id": second["id"]})
    closing = {"facts": ["failed"], "pipeline_id": "p3"}
    status, refusal = await world.client.refused(
        "POST", "/jobs", plain_job(name="job 1", pipeline_spec={"pipeline_id": "p1"}, on=closing)
    )
    assert status == 400
    assert "job 1 -> job 2 -> job 3 -> job 1" in refusal["error"]

    answer = await world.client.call("PATCH", f"{JOBS}/{second['id']}", json={"on": closing})
    assert (answer.status, "job 2 -> job 3 -> job 2" in answer.body.decode()) == (400, True)
    answer = await world.client.call(
        "PATCH", f"{JOBS}/{third['id']}", json={"on": {"facts": ["failed"], "job_id": third["id"]}}
    )
    assert answer.status == 400


async def test_a_loop_that_nobody_has_seen_ends_with_the_longest_chain(world: World) -> None:
    first, second = await job_on(world), await job_on(world)
    follow = "update jobs set on_pipeline_id = null, on_job_id = $2, on_facts = array['ended'] where id = $1"
    await world.database.execute(follow, second["id"], first["id"])
    run = await ends(world)
    (trigger,) = await world.triggered(first["id"], 1)
    await world.database.execute(follow, first["id"], second["id"])

    for depth in range(1, 10):
        assert (trigger.trigger_depth, trigger.cause_run_id) == (depth, run.id)
        run = run_of(trigger, 2, status=RunStatus.SUCCEEDED, trigger_depth=depth)
        following = second if depth % 2 else first
        await world.peers.run.tell(events.RUN_SUCCEEDED, run)
        if depth < 9:
            trigger = (await world.triggered(following["id"], (depth + 1) // 2 + (depth % 2 == 0)))[-1]
    (fact,) = await missed(world, following["id"], 1)
    assert fact.reason == f"Run {run.id} triggers no other one. It is the last of 10 runs that may trigger one another."
    assert (await world.get(following["id"]))["error"] == fact.reason


async def test_what_ends_while_a_job_is_disabled_or_before_it_is_there_triggers_nothing(world: World) -> None:
    world.peers.has_experiment("e9", "archive")
    job = await job_on(world, enabled=False)
    archived = await job_on(world, resource_references=[reference("EXPERIMENT", "e9")])
    await world.peers.experiment.tell(events.EXPERIMENT_ARCHIVED, experiment_state("e9", version=2))
    await world.peers.experiment.until_applied_by("job-scheduler")
    await ends(world)
    await world.client.post(f"/jobs/{job['id']}/enable")
    run = await ends(world)
    assert await causes(world, job["id"]) == [(run.id, 1)]
    assert await causes(world, archived["id"]) == []
    assert [each.cause_run_id for each in await world.triggered(job["id"], 1)] == [run.id]

    # Neither is one by runs that ended before somebody asked for them.
    job = await job_on(world)
    await ends(world, at=datetime.now(UTC) - timedelta(seconds=5))
    assert await causes(world, job["id"]) == []
    since = datetime.now(UTC)
    await patched(world, job["id"], on={"facts": ["failed"], "pipeline_id": "p1"})
    await ends(world, RunStatus.FAILED, at=since)
    assert await causes(world, job["id"]) == []
    run = await ends(world, RunStatus.FAILED)
    assert await causes(world, job["id"]) == [(run.id, 1)]


async def patched(world: World, job_id: str, **fields: Any) -> dict[str, Any]:
    answer = await world.client.call("PATCH", f"{JOBS}/{job_id}", json=fields)
    assert answer.status == 200, answer.body
    return dict(answer.json)


async def test_ends_of_runs_wait_for_room(world: World) -> None:
    job_id = (await job_on(world, pause_on_failures=1))["id"]
    await ends(world)
    (trigger,) = await world.triggered(job_id, 1)
    later = [await ends(world), await ends(world)]
    assert (await world.extended(job_id))["pending_causes"] == 2
    for nth, run in enumerate(later, start=2):
        await world.tell_of_run(events.RUN_SUCCEEDED, trigger, 2, status=RunStatus.SUCCEEDED)
        trigger = (await world.triggered(job_id, nth))[-1]
        assert (trigger.cause_run_id, trigger.index) == (run.id, nth)
    assert "pending_causes" not in await world.extended(job_id)

    # A job rests when its runs fail, and who changes what triggers it does not want what waits.
    await ends(world)
    await world.tell_of_run(events.RUN_FAILED, trigger, 2, status=RunStatus.FAILED)
    assert (await world.facts(job_id))[-1] == "disabled"
    await patched(world, job_id, trigger=NIGHTLY)
    assert await world.database.fetchval("select count(*) from causes where decided_at is null") == 0
    assert "pending_causes" not in await world.extended(job_id)


async def test_runs_that_end_at_one_time_are_slots_of_their_own(world: World) -> None:
    job = await job_on(world, max_concurrency="2")
    at = datetime.now(UTC) + timedelta(seconds=1)
    for _ in range(3):
        await ends(world, at=at)
    first, second = await world.triggered(job["id"], 2)
    assert first.slot == second.slot
    await world.tell_of_run(events.RUN_FAILED, first, 2, status=RunStatus.FAILED)
    assert len({each.run_id for each in await world.triggered(job["id"], 3)}) == 3
    assert (await world.row(job["id"]))["active_runs"] == 2


async def test_what_becomes_of_ends_without_room_is_for_the_job_to_say(world: World) -> None:
    skips, replaces = await job_on(world, overlap="skip"), await job_on(world, overlap="replace")
    await ends(world)
    (oldest,) = await world.triggered(replaces["id"], 1)
    await world.triggered(skips["id"], 1)
    run = await ends(world)
    assert (await world.triggered(replaces["id"], 2))[1].replaces == (oldest.run_id,)
    (fact,) = await missed(world, skips["id"], 1)
    assert (fact.count, fact.cause_run_id) == (1, run.id)
    assert fact.reason == f"Run {run.id} triggers no other one. There was no room, or it was too late."
    assert "error" not in await world.get(skips["id"])
    assert len(await world.triggers(skips["id"])) == 1


async def test_clients_that_know_nothing_of_it_see_a_job_without_a_schedule(world: World) -> None:
    job = await job_on(world)
    shown = await world.get(job["id"])
    assert "on" not in job
    assert "on" not in shown
    assert (shown["trigger"], shown["status"], shown["enabled"]) == ({}, "Enabled", True)
    extended = await world.extended(job["id"])
    assert extended["on"] == ON_SUCCESS
    assert "next_slot_at" not in extended

    answer = await world.client.call("GET", f"{JOBS}/{job['id']}:preview")
    assert (answer.status, answer.json) == (200, {"time_zone": "UTC"})
    backfill = {"start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-02T00:00:00Z"}
    assert (await world.client.call("POST", f"{JOBS}/{job['id']}:backfill", json=backfill)).status == 400

    scheduled = await patched(world, job["id"], trigger=NIGHTLY)
    assert "on" not in scheduled
    assert "next_slot_at" in scheduled
    again = await patched(world, job["id"], on=ON_SUCCESS)
    assert again["on"] == ON_SUCCESS
    assert "next_slot_at" not in again


async def test_a_job_that_cannot_be_meant_so_is_refused(world: World) -> None:
    world.peers.has_version("p1", "v1", await world.blobs.put_manifest(MANIFEST))
    world.peers.has_experiment("e1", "mill")
    its_own: dict[str, Any] = {
        "pipeline_spec": {"pipeline_id": "p1"},
        "resource_references": [reference("EXPERIMENT", "e1")],
    }
    refusals: list[tuple[dict[str, Any], str]] = [
        (its_own | {"on": {"facts": ["ended"], "pipeline_id": "p1"}}, "its own runs: a job -> a job"),
        (its_own | {"on": {"facts": ["failed"], "experiment_id": "e1"}}, "its own runs: a job -> a job"),
        ({"on": {"facts": ["succeeded"]}}, "the pipeline, the experiment or the job"),
        ({"on": {"pipeline_id": "p2"}}, "which facts"),
        ({"trigger": NIGHTLY}, "either by a schedule or by runs"),
        ({"pipeline_spec": parameters(greeting="{{run.outputs.parameters.path}}", whom="")}, "Unknown value"),
    ]
    for fields, said in refusals:
        status, refusal = await world.client.refused("POST", "/jobs", plain_job(**fields))
        assert (status, refusal["code"], said in refusal["error"]) == (400, 3, True), refusal
    external = await world.start_replica(engine=EngineName.EXTERNAL)
    status, refusal = await external.refused("POST", "/jobs", plain_job())
    assert (status, "external engine" in refusal["error"]) == (400, True)
