"""What a run has left for one that it triggers, as the job scheduler asks for it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shared.contracts import events
from shared.contracts.questions import GET_RUN_VALUES, StepOutput, ValuesAnswer, ValuesRequest
from shared.contracts.states import Metric, MetricsState, RunId, RunState
from shared.errors import InvalidInput, NotFound
from tests.component.run.conftest import World
from tests.component.run.test_fired import ordered, tell
from tests.component.run.test_following import applied
from tests.component.run.test_life import node


def step(identity: str, name: str, **values: str) -> dict[str, Any]:
    parameters = [{"name": key, "value": value} for key, value in values.items()]
    return node(identity, "Succeeded", displayName=name, outputs={"parameters": [*parameters, {"name": "unset"}]})


async def ended_run(world: World) -> str:
    run_id = str((await world.client.create())["id"])
    nodes = (
        step("w-1", "train", path="s3://model", note=""),
        step("w-2", "evaluate(0:a)", loss="0.25"),
        step("w-3", "twice", same="x", other="1"),
        step("w-4", "twice", same="x", other="2"),
    )
    await world.observe(run_id, "Succeeded", nodes=nodes)
    metrics = [Metric(node_id=node_id, name="accuracy", number=number) for node_id, number in (("a", 0.5), ("b", 0.9))]
    position = await world.peers.tell(
        events.METRICS_REPORTED, MetricsState(id=run_id, version=1, metrics=tuple(metrics))
    )
    await applied(world, position, owner="metrics")
    return run_id


async def ask(world: World, run_id: str, *outputs: tuple[str, str], **fields: Any) -> ValuesAnswer:
    request = ValuesRequest(
        run_id=RunId(run_id),
        outputs=tuple(StepOutput(node=called, name=name) for called, name in outputs),
        **({"attempt": 1} | fields),
    )
    return await world.peers.buses["job-scheduler"].ask(GET_RUN_VALUES, request, within_seconds=5)


async def test_values_are_found_by_the_name_or_the_id_of_a_step(world: World) -> None:
    run_id = await ended_run(world)

    wanted = (("train", "path"), ("w-1", "note"), ("evaluate(0:a)", "loss"), ("twice", "same"), ("w-4", "other"))
    answer = await ask(world, run_id, *wanted, metrics=("accuracy",))

    assert answer == ValuesAnswer(outputs=("s3://model", "", "0.25", "x", "2"), metrics=(0.9,))
    assert await ask(world, run_id) == ValuesAnswer()


async def test_what_a_run_does_not_have_is_refused_by_its_name(world: World) -> None:
    run_id = await ended_run(world)

    for output in (("train", "unset"), ("train", "loss"), ("nobody", "path")):
        with pytest.raises(InvalidInput, match=f"no step {output[0]} with an output parameter {output[1]}"):
            await ask(world, run_id, ("train", "path"), output)
    with pytest.raises(InvalidInput, match="Several steps"):
        await ask(world, run_id, ("twice", "other"))
    with pytest.raises(InvalidInput, match="no metric recall"):
        await ask(world, run_id, metrics=("accuracy", "recall"))
    with pytest.raises(InvalidInput, match="has been retried since its attempt 2"):
        await ask(world, run_id, attempt=2)
    with pytest.raises(NotFound):
        await ask(world, "nobody")


async def test_a_run_tells_how_many_others_led_to_it(world: World) -> None:
    trigger = await ordered(world, trigger_depth=3, cause_run_id=RunId("cause"))
    await tell(world, trigger)

    rows = await world.database.fetch("select body from outbox where resource_id = $1", trigger.run_id)
    assert [msgspec.json.decode(row["body"], type=RunState).trigger_depth for row in rows] == [3]
    assert "trigger_depth" not in await world.client.get(trigger.run_id)
