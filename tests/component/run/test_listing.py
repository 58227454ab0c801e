"""Lists of runs: what they are sorted and filtered by, and that their totals are right (specification, section 5)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from services.run import store
from shared.contracts.states import Metric
from tests.component.run.conftest import MANIFEST, World, until
from tests.component.run.test_following import applied, report
from tests.component.run.test_refusals import reference

LIVE = [{"op": "NOT_EQUALS", "key": "storage_state", "string_value": "STORAGESTATE_ARCHIVED"}]
ARCHIVED = [{"op": "EQUALS", "key": "storage_state", "string_value": "STORAGESTATE_ARCHIVED"}]


async def names(world: World, predicates: list[dict[str, Any]] | None = None, /, **query: str) -> list[str]:
    if predicates:
        query["filter"] = filter_of(predicates)
    answer = await world.client.call("GET", "/runs", **query)
    assert answer.status == 200, answer.body
    runs = answer.body.get("runs", [])
    if "page_size" not in query:
        assert answer.body.get("total_size", 0) == len(runs)
    return [run["name"] for run in runs]


def of(kind: str, resource_id: str) -> dict[str, str]:
    return {"resource_reference_key.type": kind, "resource_reference_key.id": resource_id}


async def test_no_runs_are_an_empty_object(world: World) -> None:
    assert (await world.client.call("GET", "/runs")).body == {}


async def test_pages_follow_one_another_to_the_end_and_show_the_total(world: World) -> None:
    for n in range(5):
        await world.client.create(name=f"r{n}")

    seen: list[str] = []
    query = {"page_size": "2", "sort_by": "created_at desc"}
    while True:
        page = (await world.client.call("GET", "/runs", **query)).body
        assert page["total_size"] == 5
        seen += [run["name"] for run in page["runs"]]
        if "next_page_token" not in page:
            break
        query = {"page_size": "2", "page_token": page["next_page_token"]}
    assert seen == ["r4", "r3", "r2", "r1", "r0"]


async def test_runs_are_filtered_by_what_they_refer_to(world: World) -> None:
    digest = await world.blobs.put_manifest(MANIFEST)
    world.peers.has_version("p", "v", digest)
    mine = world.peers.has_experiment("mine")
    await world.client.create(name="mine", resource_references=[reference("EXPERIMENT", mine)])
    await world.client.create(name="versioned", pipeline_spec={"pipeline_id": "p"})
    elsewhere = [reference("PIPELINE_VERSION", "v", "OWNER"), reference("NAMESPACE", "elsewhere")]
    await world.client.create(name="owned", resource_references=elsewhere)
    await world.client.create(name="last")

    assert await names(world, **of("EXPERIMENT", mine)) == ["mine"]
    assert await names(world, **of("PIPELINE_VERSION", "v")) == ["versioned", "owned"], "whatever the relationship"
    assert await names(world, **of("NAMESPACE", "kubeflow")) == ["mine", "versioned", "owned", "last"]
    assert await names(world, **of("NAMESPACE", "elsewhere")) == [], "a run's workflow is where the installation is"
    for kind in ("EXPERIMENT", "JOB", "PIPELINE_VERSION", "NAMESPACE"):
        assert await names(world, **of(kind, "nope")) == []
    assert await names(world, **of("EXPERIMENT", "")) == []
    for kind in ("PIPELINE", "UNKNOWN_RESOURCE_TYPE"):
        answer = await world.client.call("GET", "/runs", **of(kind, "x"))
        assert (answer.status, answer.message) == (400, f"Unsupported resource type: {kind}")
    answer = await world.client.call("GET", "/runs", **{"resource_reference_key.id": mine})
    assert (answer.status, answer.message) == (400, "Unsupported resource type: UNKNOWN_RESOURCE_TYPE")
    first = await world.client.call("GET", "/runs", page_size="1", **of("PIPELINE_VERSION", "v"))
    token = {"page_size": "5", "page_token": first.body["next_page_token"]}
    assert await names(world, **token, **of("PIPELINE_VERSION", "v")) == ["owned"]
    assert await names(world, **token) == ["owned", "last"], "a token does not remember the reference"


async def test_every_field_sorts_and_filters(world: World) -> None:
    first = await world.client.create(name="alpha", description="zz")
    second = await world.client.create(name="Beta", description="aa")
    await world.client.call("POST", f"/runs/{second['id']}:archive")
    await world.observe(first["id"], "Running")

    for field in ("id", "name", "created_at", "description", "scheduled_at", "storage_state", "status"):
        up, down = await names(world, sort_by=field), await names(world, sort_by=f"{field} desc")
        assert sorted(up) == ["Beta", "alpha"]
        assert up == down[::-1], field
    assert await names(world, sort_by="description") == ["Beta", "alpha"]
    assert await names(world, LIVE) == ["alpha"]
    assert await names(world, ARCHIVED) == ["Beta"]
    assert await names(world, [{"op": 9, "key": "name", "stringValue": "ET"}]) == ["Beta"]
    assert await names(world, [{"op": 1, "key": "status", "string_value": "Running"}]) == ["alpha"]
    assert await names(world, [{"op": 1, "key": "id", "string_value": first["id"]}]) == ["alpha"]
    epoch = {"op": "EQUALS", "key": "scheduled_at", "timestamp_value": "1970-01-01T00:00:00Z"}
    assert await names(world, [epoch]) == ["alpha", "Beta"]
    answer = await world.client.call("GET", "/runs", sort_by="error")
    assert answer.message == 'Invalid sorting field: "error" on listable type Run'


async def test_runs_without_a_metric_come_last_when_it_sorts(world: World) -> None:
    ids = {name: (await world.client.create(name=name))["id"] for name in ("none", "low", "high")}
    await report(world, ids["low"], Metric(node_id="a", name="acc", number=0.1))
    position = await report(
        world,
        ids["high"],
        Metric(node_id="a", name="acc", number=0.05),
        Metric(node_id="b", name="acc", number=0.9),
    )
    await applied(world, position, owner="metrics")

    assert await names(world, sort_by="metric:acc") == ["low", "high", "none"]
    assert await names(world, sort_by="metric:acc desc") == ["high", "low", "none"]
    seen: list[str] = []
    query = {"page_size": "1", "sort_by": "metric:acc desc"}
    for _ in ids:
        page = (await world.client.call("GET", "/runs", **query)).body
        seen += [run["name"] for run in page["runs"]]
        query = {"page_size": "1", "page_token": page.get("next_page_token", "")}
    assert seen == ["high", "low", "none"]


async def test_kept_counts_agree_with_the_rows_before_and_after_they_are_folded(world: World) -> None:
    mine, other = world.peers.has_experiment("mine"), world.peers.has_experiment("other")
    ids = [(await world.client.create(resource_references=[reference("EXPERIMENT", mine)]))["id"] for _ in range(4)]
    await world.client.create(resource_references=[reference("EXPERIMENT", other)])
    await until(lambda: _is_folded(world))
    await world.client.call("POST", f"/runs/{ids[0]}:archive")
    await world.client.call("DELETE", f"/runs/{ids[1]}")

    for _ in ("unfolded", "folded"):
        for experiment_id in (None, mine, other, "nope"):
            for state in (None, "available", "archived"):
                asked = {"experiment_id": experiment_id, "storage_state": state}
                equalities = {key: value for key, value in asked.items() if value is not None}
                counted = await world.database.fetchval(
                    """
                    select count(*) from runs where ($1::text is null or experiment_id = $1)
                    and ($2::text is null or storage_state = $2)
                    """,
                    experiment_id,
                    state,
                )
                assert await store.kept_count(world.database, equalities) == counted, equalities
        await until(lambda: _is_folded(world))


@pytest.mark.parametrize("columns", [{"namespace": "kubeflow"}, {"job_id": "j", "storage_state": "available"}])
async def test_no_count_is_kept_of_other_columns(world: World, columns: dict[str, str]) -> None:
    assert await store.kept_count(world.database, columns) is None


async def _is_folded(world: World) -> bool:
    return bool(await world.database.fetchval("select count(*) = 0 from run_count_deltas"))


async def test_runs_are_filtered_by_more_than_the_original_knows(world: World) -> None:
    digest = await world.blobs.put_manifest(MANIFEST)
    world.peers.has_version("p", "v", digest)
    mine = world.peers.has_experiment("mine")
    done = (await world.client.create(name="done", resource_references=[reference("EXPERIMENT", mine)]))["id"]
    failed = (await world.client.create(name="failed", pipeline_spec={"pipeline_id": "p"}))["id"]
    await world.client.create(name="open")
    await world.observe(done, "Succeeded", finished_at=datetime(2026, 1, 2, tzinfo=UTC))
    await world.observe(failed, "Failed", finished_at=datetime(2026, 1, 3, tzinfo=UTC))

    def where(key: str, op: str, value: str) -> list[dict[str, Any]]:
        kind = "timestamp_value" if key.endswith("_at") else "string_value"
        return [{"op": op, "key": key, kind: value}]

    assert await names(world, where("status", "EQUALS", "Failed")) == ["failed"]
    assert await names(world, where("status", "NOT_EQUALS", "Failed")) == ["done", "open"]
    assert await names(world, where("experiment_id", "EQUALS", mine)) == ["done"]
    assert await names(world, where("pipeline_id", "EQUALS", "p")) == ["failed"]
    assert await names(world, where("pipeline_id", "NOT_EQUALS", "p")) == ["done", "open"]
    assert await names(world, where("finished_at", "LESS_THAN", "2026-01-03T00:00:00Z")) == ["done"]
    assert await names(world, where("finished_at", "GREATER_THAN_EQUALS", "2026-01-03T00:00:00Z")) == ["failed"]
    assert await names(world, where("finished_at", "GREATER_THAN", "1960-01-01T00:00:00Z")) == ["done", "failed"]
    assert await names(world, where("pipeline_id", "EQUALS", "")) == ["done", "open"], "as replies have it"
    assert await names(world, where("pipeline_id", "NOT_EQUALS", "")) == ["failed"]
    assert await names(world, where("finished_at", "EQUALS", "1970-01-01T00:00:00Z")) == ["open"], "as replies have it"
    assert await names(world, where("finished_at", "NOT_EQUALS", "1970-01-01T00:00:00Z")) == ["done", "failed"]
    assert await names(world, sort_by="finished_at desc") == ["failed", "done", "open"]
    paged = where("status", "IS_SUBSTRING", "e")
    first = (await world.client.call("GET", "/runs", page_size="1", filter=filter_of(paged))).body
    assert first["total_size"] == 2
    second = (await world.client.call("GET", "/runs", page_size="1", page_token=first["next_page_token"])).body
    assert [page["runs"][0]["name"] for page in (first, second)] == ["done", "failed"]


def filter_of(predicates: list[dict[str, Any]]) -> str:
    return msgspec.json.encode({"predicates": predicates}).decode()
