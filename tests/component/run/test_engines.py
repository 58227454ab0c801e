"""Two engines side by side: each has a controller, which leaves the runs of the other alone."""

from __future__ import annotations

from typing import Any, cast

import pytest

from services.run import store
from services.run.domain import EngineName
from services.run.engine.shards import ALL, shard_of
from shared.database import Connection, Row, Transaction
from tests.component.run.conftest import World
from tests.component.run.test_life import STARTED
from tests.component.run.test_refusals import manifest

OTHER = {EngineName.ARGO: EngineName.EMBEDDED, EngineName.EMBEDDED: EngineName.ARGO}


@pytest.mark.parametrize("engine", OTHER)
async def test_the_controller_of_one_engine_leaves_the_runs_of_the_other_alone(
    world: World, engine: EngineName
) -> None:
    client = await world.start_replica(engine=engine)
    records, others = world.records_of(engine), world.records_of(OTHER[engine])
    run_id = (await client.create())["id"]
    assert (await world.row(run_id))["engine"] == engine
    assert (await records.due(10)).submissions == (run_id,)
    assert [run.id for run in await records.active()] == [run_id]
    assert (await others.due(10)).is_empty
    assert await others.active() == ()

    await records.mark_submitted(run_id, 1)
    await world.observe(run_id, "Running", started_at=STARTED)
    assert (await client.call("POST", f"/runs/{run_id}/terminate")).status == 200
    assert [each.run_id for each in (await records.due(10)).terminations] == [run_id]
    assert (await others.due(10)).is_empty

    # Whichever replica deletes it.
    assert (await world.client.call("DELETE", f"/runs/{run_id}")).status == 200
    assert [each.run_id for each in (await records.due(10)).erasures] == [run_id]
    assert (await others.due(10)).is_empty


async def test_a_controller_sees_the_runs_of_the_shards_that_it_holds(world: World) -> None:
    argo = await world.start_replica(engine=EngineName.ARGO)
    records = world.records_of(EngineName.ARGO)
    run_ids = [(await argo.create())["id"] for _ in range(3)]
    held = frozenset({shard_of(run_ids[0])})
    ours = {run_id for run_id in run_ids if shard_of(run_id) in held}
    assert set((await records.due(10, held)).submissions) == ours
    assert {run.id for run in await records.active(held)} == ours
    theirs = ALL - held
    assert set((await records.due(10, theirs)).submissions) == set(run_ids) - ours

    for run_id in run_ids:
        await records.mark_submitted(run_id, 1)
        await world.observe(run_id, "Running", started_at=STARTED)
        assert (await argo.call("POST", f"/runs/{run_id}/terminate")).status == 200
    assert {each.run_id for each in (await records.due(10, held)).terminations} == ours
    for run_id in run_ids:
        assert (await argo.call("DELETE", f"/runs/{run_id}")).status == 200
    assert {each.run_id for each in (await records.due(10, held)).erasures} == ours
    assert {each.run_id for each in (await records.due(10, frozenset())).erasures} == set()


async def test_what_only_the_embedded_engine_cannot_do_is_accepted_for_argo(world: World) -> None:
    argo = await world.start_replica(engine=EngineName.ARGO, most_workflow_bytes=70_000)
    template = {"name": "main", "daemon": True, "container": {"image": "its-own-command"}}
    pipeline = manifest(spec={"entrypoint": "main", "templates": [template]})
    asked = {"name": "n", "pipeline_spec": pipeline}
    assert (await world.client.call("POST", "/runs", asked)).status == 400
    run = await argo.create(pipeline_spec=pipeline)
    assert (await world.row(run["id"]))["engine"] == "argo"

    # What it cannot do either is refused, and leaves no row.
    large = {"name": "main", "container": {"image": "i", "args": ["x" * 70_000]}}
    for spec, said in (
        ({"entrypoint": "nowhere", "templates": [template]}, "template name 'nowhere' undefined"),
        ({"entrypoint": "main", "templates": [large]}, "HEADRACE_MOST_WORKFLOW_BYTES"),
    ):
        answer = await argo.call("POST", "/runs", {"name": "n", "pipeline_spec": manifest(spec=spec)})
        assert answer.status == 400
        assert said in answer.message
    assert await world.database.fetchval("select count(*) from runs") == 1


class Explaining:
    """Notes how the database would go about each statement, instead of having it done."""

    def __init__(self, tx: Transaction) -> None:
        self.plans: list[str] = []
        self._tx = tx

    async def fetch(self, sql: str, *arguments: Any) -> list[Row]:
        self.plans.append("\n".join(row[0] for row in await self._tx.fetch(f"explain {sql}", *arguments)))
        return []


async def test_however_many_runs_are_over_a_controller_finds_its_own_by_index(world: World) -> None:
    for engine, infix in ((EngineName.EMBEDDED, ""), (EngineName.ARGO, "argo_")):
        async with world.database.transaction() as tx:
            await tx.execute("set local enable_seqscan = off")
            explaining = Explaining(tx)
            connection = cast("Connection", explaining)
            await store.list_unsubmitted(connection, engine, ALL, 10)
            await store.list_active(connection, engine, ALL, "", 10)
            await store.list_terminations(connection, engine, ALL, 10)
        unsubmitted, active, terminations = explaining.plans
        assert f"using runs_{infix}unsubmitted_idx" in unsubmitted
        assert f"using runs_{infix}active_idx" in active
        assert "using runs_termination_idx" in terminations
        assert "Sort" not in "".join(explaining.plans)
