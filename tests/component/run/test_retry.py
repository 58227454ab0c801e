"""Retrying a run (API specification, section 9.6; engine specification, section 15)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from shared.contracts.states import Metric
from tests.component.run.conftest import World
from tests.component.run.test_following import applied, report

AT = "2026-01-02T03:04:05Z"
STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ENDED = datetime(2026, 1, 2, 3, 4, 9, tzinfo=UTC)


def node(name: str, type_: str, phase: str, **fields: Any) -> dict[str, Any]:
    ended = None if phase in ("Pending", "Running") else AT
    return {
        "id": f"id-{name}",
        "name": name,
        "displayName": name,
        "type": type_,
        "templateName": name,
        "phase": phase,
        "startedAt": AT,
        "finishedAt": ended,
    } | fields


async def failed(world: World, *, phase: str = "Failed") -> str:
    """A run whose first step is done and whose second has failed."""
    run_id = (await world.client.create())["id"]
    name = (await world.row(run_id))["workflow_name"]
    await world.records.mark_submitted(run_id, 1)
    root = node(name, "DAG", phase, id=name, children=[f"id-{name}.a"], message="child failed")
    done = node(f"{name}.a", "Pod", "Succeeded", boundaryID=name, children=[f"id-{name}.b"], hostNodeName="n1")
    bad = node(f"{name}.b", "Pod", "Failed", boundaryID=name, message="Error (exit code 1)")
    exit_ = node(f"{name}.onExit", "Pod", "Succeeded")
    await world.observe(
        run_id, phase, started_at=STARTED, finished_at=ENDED, message="child failed", nodes=(root, done, bad, exit_)
    )
    return str(run_id)


@pytest.mark.parametrize("phase", ["Failed", "Error"])
async def test_a_failed_run_goes_on_with_what_was_done(world: World, phase: str) -> None:
    run_id = await failed(world, phase=phase)
    name = (await world.row(run_id))["workflow_name"]

    answer = await world.client.call("POST", f"/runs/{run_id}/retry")

    assert (answer.status, answer.body) == (200, {})
    run = await world.client.get(run_id)
    assert (run["status"], run["finished_at"]) == ("Running", "1970-01-01T00:00:00Z")
    workflow = await world.client.workflow(run_id)
    assert workflow["metadata"]["labels"]["workflows.argoproj.io/phase"] == "Running"
    assert "workflows.argoproj.io/completed" not in workflow["metadata"]["labels"]
    assert "pipeline/persistedFinalState" not in workflow["metadata"]["labels"]
    status = workflow["status"]
    assert (status["phase"], status.get("message"), status["finishedAt"]) == ("Running", None, None)
    assert {id_: each["phase"] for id_, each in status["nodes"].items()} == {
        name: "Running",
        f"id-{name}.a": "Succeeded",
    }
    assert status["nodes"][f"id-{name}.a"]["hostNodeName"] == "n1"
    assert status["nodes"][f"id-{name}.a"].get("children", []) == []

    assert (await world.records.due(10)).submissions == (run_id,)
    submission = await world.records.submission(run_id)
    assert submission is not None
    assert (submission.attempt, submission.started_at, submission.is_terminating) == (2, STARTED, False)
    assert submission.retried_at is not None
    assert {each["id"] for each in submission.nodes} == {name, f"id-{name}.a"}
    assert (await world.facts(run_id))[-2:] == [phase.lower(), "retried"]


async def test_only_the_present_attempt_is_recorded(world: World) -> None:
    run_id = await failed(world)
    await world.client.call("POST", f"/runs/{run_id}/retry")

    assert not await world.observe(run_id, "Failed", attempt=1, finished_at=ENDED)
    await world.records.mark_submitted(run_id, 1)
    assert (await world.records.due(10)).submissions == (run_id,)
    assert await world.observe(run_id, "Succeeded", finished_at=ENDED)

    assert (await world.client.get(run_id))["status"] == "Succeeded"
    assert (await world.facts(run_id))[-2:] == ["retried", "succeeded"]


async def test_a_retry_that_the_records_have_lost_is_learned_from_the_engine(world: World) -> None:
    """As after they were restored: else its end would never be recorded."""
    run_id = (await world.client.create())["id"]
    await world.observe(run_id, "Running", started_at=STARTED)

    assert await world.observe(run_id, "Running", attempt=3, started_at=STARTED, nodes=(node("a", "Pod", "Running"),))
    assert (await world.row(run_id))["attempt"] == 3
    assert not await world.observe(run_id, "Failed", attempt=2, finished_at=ENDED)
    assert await world.observe(run_id, "Succeeded", attempt=3, finished_at=ENDED)
    assert not await world.observe(run_id, "Succeeded", attempt=4, finished_at=ENDED)
    assert (await world.client.get(run_id))["status"] == "Succeeded"


async def test_that_the_engine_has_taken_a_run_is_remembered_of_its_present_attempt(world: World) -> None:
    run_id = (await world.client.create())["id"]

    async def is_taken() -> bool:
        submission = await world.records.submission(run_id)
        assert submission is not None
        return submission.is_taken

    assert not await is_taken()
    await world.observe(run_id, "Pending", is_taken=True)
    assert await is_taken()
    assert (await world.client.get(run_id))["status"] == "Pending"
    await world.observe(run_id, "Failed", started_at=STARTED, finished_at=ENDED)
    await world.client.call("POST", f"/runs/{run_id}/retry")
    assert not await is_taken()
    await world.observe(run_id, "Running", nodes=(node("a", "Pod", "Running"),), is_taken=True)
    assert await is_taken()


async def test_a_terminated_run_is_retried_and_can_be_terminated_again(world: World) -> None:
    run_id = (await world.client.create())["id"]
    await world.observe(run_id, "Running", started_at=STARTED)
    await world.records.mark_submitted(run_id, 1)
    await world.client.call("POST", f"/runs/{run_id}/terminate")
    await world.records.mark_terminated(run_id, 1)
    await world.observe(run_id, "Failed", message="terminated", finished_at=ENDED)

    assert (await world.client.call("POST", f"/runs/{run_id}/retry")).status == 200
    assert "activeDeadlineSeconds" not in (await world.client.workflow(run_id))["spec"]
    await world.records.mark_submitted(run_id, 2)
    assert (await world.records.due(10)).is_empty

    assert (await world.client.call("POST", f"/runs/{run_id}/terminate")).status == 200
    (termination,) = (await world.records.due(10)).terminations
    assert termination.attempt == 2


async def test_a_run_that_never_started_is_retried_from_its_beginning(world: World) -> None:
    run_id = (await world.client.create())["id"]
    await world.records.fail(run_id, 1, "the name is taken")

    assert (await world.client.call("POST", f"/runs/{run_id}/retry")).status == 200
    assert (await world.client.get(run_id))["status"] == "Running"
    assert (await world.records.due(10)).submissions == (run_id,)


async def test_of_retries_at_the_same_moment_one_is_done(world: World) -> None:
    run_id = await failed(world)
    other = await world.start_replica()

    answers = await asyncio.gather(
        *(client.call("POST", f"/runs/{run_id}/retry") for client in (world.client, other) for _ in range(4))
    )

    assert sorted(answer.status for answer in answers) == [200, *[409] * 7]
    assert (await world.row(run_id))["attempt"] == 2
    assert (await world.facts(run_id)).count("retried") == 1


async def test_metrics_stay_with_a_retried_run(world: World) -> None:
    run_id = await failed(world)
    await applied(world, await report(world, run_id, Metric(node_id="a", name="acc", number=0.5)), owner="metrics")
    before = (await world.client.get(run_id))["metrics"]

    await world.client.call("POST", f"/runs/{run_id}/retry")

    assert (await world.client.get(run_id))["metrics"] == before


@pytest.mark.parametrize("phase", ["", "Pending", "Running", "Terminating", "Succeeded", "Skipped"])
async def test_a_run_that_has_not_failed_is_not_retried(world: World, phase: str) -> None:
    run_id = (await world.client.create())["id"]
    if phase == "Terminating":
        await world.client.call("POST", f"/runs/{run_id}/terminate")
    elif phase:
        await world.observe(run_id, phase, started_at=STARTED)

    answer = await world.client.call("POST", f"/runs/{run_id}/retry")

    assert (answer.status, answer.body["code"]) == (409, 10)
    assert answer.message == "Workflow must be Failed/Error to retry"
    assert answer.body["error"] == (
        "Retry run failed.: BadRequestError: Workflow must be Failed/Error to retry: workflow cannot be retried"
    )
    assert (await world.row(run_id))["attempt"] == 1


async def test_a_run_with_an_open_node_is_not_retried_yet(world: World) -> None:
    run_id = (await world.client.create())["id"]
    await world.observe(run_id, "Running", started_at=STARTED, nodes=(node("step", "Pod", "Running"),))
    await world.observe(run_id, "Failed", finished_at=ENDED)

    answer = await world.client.call("POST", f"/runs/{run_id}/retry")

    assert (answer.status, answer.message) == (409, "Workflow cannot be retried with node step in Running phase")
    assert (await world.client.get(run_id))["status"] == "Failed"


async def test_an_unknown_run_is_not_retried(world: World) -> None:
    answer = await world.client.call("POST", "/runs/nope/retry")

    assert (answer.status, answer.body["error"]) == (
        404,
        "Retry run failed: Check run exist failed: ResourceNotFoundError: Run nope not found.",
    )
