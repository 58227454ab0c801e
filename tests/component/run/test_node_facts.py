"""What is told of the steps of a run: each change once, beside the run's own facts and never in their way."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from services.run.records import Records
from shared.bus import Message
from shared.contracts.questions import RepeatRequest, repeat
from shared.contracts.states import NodeState
from shared.outbox import Outbox
from tests.component.run.conftest import World, until
from tests.component.run.test_life import ENDED, STARTED, node

AT = "2026-01-02T03:04:05Z"


async def test_each_change_of_a_step_is_told_once_in_order(world: World) -> None:
    run_id = await started(world)
    for shown in (
        [node("a", "Pending")],
        [node("a", "Running", startedAt=AT)],
        [node("a", "Running", startedAt=AT, message="still")],
        [node("a", "Succeeded", startedAt=AT, finishedAt=AT), node("b", "Running")],
        [node("a", "Succeeded", startedAt=AT, finishedAt=AT, children=["b"])],
        [node("b", "Failed", message="exit 3", outputs={"exitCode": "3"}), node("c", "Omitted", type="Skipped")],
    ):
        assert await world.observe(run_id, "Running", started_at=STARTED, nodes=tuple(shown))

    told = await world.node_facts(run_id)
    assert [(what, state.node_id) for what, state in told] == [
        ("started", "a"),
        ("succeeded", "a"),
        ("started", "b"),
        ("failed", "b"),
        ("skipped", "c"),
    ]
    _, first = told[0]
    assert (first.id, first.version, first.type, first.phase) == (run_id, 1, "Pod", "Running")
    assert (first.started_at, first.finished_at) == (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), None)
    assert first.experiment_id == (await world.row(run_id))["experiment_id"]
    assert (first.pipeline_id, first.job_id) == (None, None)
    _, failed = told[3]
    assert (failed.exit_code, failed.message, failed.version) == (3, "exit 3", 2)


async def test_groups_of_steps_and_what_cannot_be_read_are_not_told_of(world: World) -> None:
    run_id = await started(world)
    nodes = (
        node("group", "Running", type="DAG"),
        node("tries", "Running", type="Retry"),
        node("odd", "Running", startedAt="yesterday"),
        node("nul", "Failed", message="a\x00b", outputs={"exitCode": "x"}),
        node("text", "Error", message="a\x00b" + "c" * 5000),
    )
    assert await world.observe(run_id, "Running", started_at=STARTED, nodes=nodes)
    ((what, state),) = await world.node_facts(run_id)
    assert (what, state.message) == ("error", "a\ufffdb" + "c" * 1021)


async def test_the_last_step_is_told_of_with_the_end_of_its_run_and_open_ones_when_it_vanishes(world: World) -> None:
    first, second = await started(world), await started(world)
    for run_id in (first, second):
        assert await world.observe(run_id, "Running", started_at=STARTED, nodes=(node("a", "Running"),))
    ended = node("a", "Succeeded", startedAt=AT, finishedAt=AT)
    assert await world.observe(first, "Succeeded", started_at=STARTED, finished_at=ENDED, nodes=(ended,))
    assert await world.observe(second, "Running", is_vanished=True, finished_at=ENDED)

    assert [what for what, _ in await world.node_facts(first)] == ["started", "succeeded"]
    assert [what for what, _ in await world.node_facts(second)] == ["started", "error"]
    assert await world.facts(first) == ["created", "started", "succeeded"]


async def test_a_step_that_is_repeated_by_a_retry_is_told_of_again(world: World) -> None:
    run_id = await started(world)
    nodes = (node("a", "Failed", startedAt=AT, finishedAt=AT),)
    assert await world.observe(run_id, "Failed", started_at=STARTED, finished_at=ENDED, nodes=nodes)
    assert (await world.client.call("POST", f"/runs/{run_id}/retry")).status == 200
    assert await world.observe(run_id, "Running", started_at=STARTED, nodes=(node("a", "Running"),))
    told = [(what, state.attempt, state.version) for what, state in await world.node_facts(run_id)]
    assert told == [("failed", 1, 2), ("started", 2, 3)]


async def test_facts_about_steps_have_positions_of_their_own_and_can_be_had_again(world: World) -> None:
    heard: asyncio.Queue[Message] = asyncio.Queue()
    bus = world.peers.buses["run-controller"]
    await bus.watch("kfp.event.node.>", heard.put_nowait)
    run_id = await started(world)
    for phase in ("Running", "Succeeded"):
        assert await world.observe(run_id, "Running", started_at=STARTED, nodes=(node("a", phase),))

    messages = [await asyncio.wait_for(heard.get(), 20) for _ in range(2)]

    assert [(each.what, each.position) for each in messages] == [("started", 1), ("succeeded", 2)]
    assert {each.resource_id for each in messages} == {run_id}
    assert {msgspec.json.decode(each.body, type=NodeState).node_id for each in messages} == {"a"}
    trace = (await world.row(run_id))["traceparent"]
    assert {each.traceparent for each in messages} == {trace}

    async def are_counted_apart() -> bool:
        rows = await world.database.fetch("select position from outbox where owner = 'run' order by position")
        return [row["position"] for row in rows] == [1, 2]  # The run's own: created and started.

    await until(are_counted_apart, within_seconds=20)
    answer = await bus.ask(repeat("node"), RepeatRequest(position=2), within_seconds=5)
    assert answer.position == 2


@pytest.mark.parametrize("nodes", [None, Outbox("node")])
async def test_facts_about_steps_can_be_turned_off(world: World, nodes: Outbox | None) -> None:
    records: Any = world.records
    world.records = Records(records._database, records._outbox, records._manifests, nodes=nodes)
    run_id = await started(world)
    assert await world.observe(run_id, "Running", started_at=STARTED, nodes=(node("a", "Running"),))
    ended = (node("a", "Succeeded"),)
    assert await world.observe(run_id, "Succeeded", started_at=STARTED, finished_at=ENDED, nodes=ended)
    assert len(await world.node_facts(run_id)) == (0 if nodes is None else 2)


async def started(world: World) -> str:
    run_id: str = (await world.client.create())["id"]
    assert await world.observe(run_id, "Running", started_at=STARTED)
    return run_id
