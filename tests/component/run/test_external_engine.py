"""Runs that another engine drives: nothing of them is the controller's business."""

from __future__ import annotations

from services.run.domain import EngineName
from tests.component.run.conftest import World
from tests.component.run.test_life import node


async def test_a_run_keeps_the_engine_it_was_created_for_and_the_controller_leaves_others_alone(world: World) -> None:
    external = await world.start_replica(engine=EngineName.EXTERNAL)
    theirs = (await external.create())["id"]
    ours = (await world.client.create())["id"]

    assert [(await world.row(run_id))["engine"] for run_id in (theirs, ours)] == ["external", "embedded"]
    assert (await world.records.due(10)).submissions == (ours,)
    assert await world.records.active() == (ours,)
    assert (await world.client.call("POST", f"/runs/{theirs}/terminate")).status == 200
    assert (await world.records.due(10)).terminations == ()


async def test_a_deleted_run_of_another_engine_leaves_nothing_to_be_erased(world: World) -> None:
    external = await world.start_replica(engine=EngineName.EXTERNAL)
    run_id = (await external.create())["id"]
    await world.observe(run_id, "Running", nodes=(node("a", "Running"),))

    assert (await world.client.call("DELETE", f"/runs/{run_id}")).status == 200

    assert (await world.records.due(10)).is_empty
    assert await world.database.fetchval("select count(*) from nodes where run_id = $1", run_id) == 0
    assert await world.facts(run_id) == ["created", "started", "deleted"]
