from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from shared.bus import Bus
from shared.contracts.events import LARGEST_FACT_BYTES
from shared.contracts.questions import REPORT_METRICS, ReportAnswer, ReportRequest
from shared.contracts.states import Metric, MetricFormat, MetricsState, RunId
from shared.database import Database
from tests.support.peers import open_buses
from tests.support.service import Client

from .conftest import Replica, RunService


def metric(name: str = "acc", node_id: str = "node", **fields: Any) -> dict[str, Any]:
    return {"name": name, "node_id": node_id, "number_value": 0.5, **fields}


async def report(client: Client, run_id: str, *metrics: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await client.post(f"/runs/{run_id}:reportMetrics", {"metrics": metrics})
    results: list[dict[str, Any]] = answer.get("results", [])
    return results


async def facts(database: Database) -> list[MetricsState]:
    rows = await database.fetch("select body from outbox where type = 'kfp.metrics.reported.v1' order by seq")
    return [msgspec.json.decode(row["body"], type=MetricsState) for row in rows]


async def test_each_metric_has_its_result_in_the_order_of_the_request(
    metrics: Client, runs: RunService, database: Database
) -> None:
    await runs.create("r")
    assert await report(metrics, "r", metric("b"), metric("1"), metric("a", format="PERCENTAGE"), metric("b")) == [
        {"metric_name": "b", "metric_node_id": "node", "status": "OK"},
        {
            "metric_name": "1",
            "metric_node_id": "node",
            "status": "INVALID_ARGUMENT",
            "message": "metric.name '1' doesn't match with the pattern '^[a-zA-Z]([-_a-zA-Z0-9]{0,62}[a-zA-Z0-9])?$'",
        },
        {"metric_name": "a", "metric_node_id": "node", "status": "OK"},
        {
            "metric_name": "b",
            "metric_node_id": "node",
            "status": "DUPLICATE_REPORTING",
            "message": "same metric has been reported before: node/b",
        },
    ]
    (fact,) = await facts(database)
    assert fact == MetricsState(
        id="r",
        version=1,
        metrics=(
            Metric(node_id="node", name="b", number=0.5),
            Metric(node_id="node", name="a", number=0.5, format=MetricFormat.PERCENTAGE),
        ),
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (metric(""), "metric.name '' doesn't match with the pattern"),
        (metric("a" * 65), "doesn't match with the pattern"),
        (metric("a-"), "doesn't match with the pattern"),
        (metric("a\n"), "doesn't match with the pattern"),
        (metric("ä"), "doesn't match with the pattern"),
        (metric(node_id=""), "metric.node_id must not be empty"),
        (metric(node_id="ü" * 65), f"metric.node_id '{'ü' * 65}' cannot be longer than 128 characters"),
        (metric(number_value="NaN"), "metric.number_value nan is not a finite number"),
        (metric(number_value="-Infinity"), "metric.number_value -inf is not a finite number"),
    ],
)
async def test_an_impossible_metric_is_refused_alone(
    metrics: Client, runs: RunService, given: dict[str, Any], message: str
) -> None:
    await runs.create("r")
    refused, accepted = await report(metrics, "r", given, metric("fine"))
    assert refused["status"] == "INVALID_ARGUMENT"
    assert message in refused["message"]
    assert accepted["status"] == "OK"


@pytest.mark.parametrize(
    "given",
    [metric("a"), metric("A" + "b" * 63), metric("x_y-z"), metric(node_id="ü" * 64), {"name": "a", "nodeId": "n"}],
)
async def test_what_just_fits_is_recorded(metrics: Client, runs: RunService, given: dict[str, Any]) -> None:
    await runs.create("r")
    (result,) = await report(metrics, "r", given)
    assert result["status"] == "OK"


async def test_the_first_report_wins_and_an_equal_one_is_a_duplicate_too(
    metrics: Client, runs: RunService, database: Database
) -> None:
    await runs.create("r")
    await runs.create("other")
    await report(metrics, "r", metric(number_value=1))
    for number in (1, 2):
        (result,) = await report(metrics, "r", metric(number_value=number))
        assert result["status"] == "DUPLICATE_REPORTING"
    assert (await report(metrics, "r", metric(node_id="elsewhere")))[0]["status"] == "OK"
    assert (await report(metrics, "other", metric()))[0]["status"] == "OK"
    assert await database.fetchval("select number from metrics where run_id = 'r' and node_id = 'node'") == 1.0
    assert [(fact.id, fact.version) for fact in await facts(database)] == [("r", 1), ("r", 2), ("other", 1)]


async def test_a_missing_value_is_zero_and_numbers_may_be_texts(
    metrics: Client, runs: RunService, database: Database
) -> None:
    await runs.create("r")
    await report(metrics, "r", {"name": "a", "node_id": "n"}, metric("b", "n", number_value="-1.5e3"))
    rows = await database.fetch("select name, number from metrics order by name")
    assert [tuple(row.values()) for row in rows] == [("a", 0.0), ("b", -1500.0)]


async def test_an_unknown_run_is_refused_whatever_is_reported(metrics: Client, runs: RunService) -> None:
    for document in ({"metrics": [metric()]}, {"metrics": [metric("1")]}, {}):
        status, body = await metrics.refused("POST", "/runs/nobody:reportMetrics", document)
        assert status == 404
        assert body["details"][0]["error_message"] == "Run nobody not found."
    assert runs.asked == ["nobody"] * 3


async def test_no_metrics_have_no_results(metrics: Client, runs: RunService) -> None:
    await runs.create("r")
    assert await metrics.post("/runs/r:reportMetrics", {}) == {}
    assert await metrics.post("/runs/r:reportMetrics") == {}


async def test_what_is_no_report_is_refused(metrics: Client, runs: RunService) -> None:
    documents: tuple[Any, ...] = (
        {"metrics": [{"number_value": "x"}]},
        {"metrics": 1},
        {"metrics": [{"format": "NO"}]},
        [],
    )
    for document in documents:
        status, body = await metrics.refused("POST", "/runs/r:reportMetrics", document)
        assert (status, body["code"]) == (400, 3)


async def test_a_run_whose_fact_has_not_come_yet_is_asked_for(
    metrics: Client, runs: RunService, database: Database
) -> None:
    runs.alive.add("young")
    assert (await report(metrics, "young", metric()))[0]["status"] == "OK"
    assert runs.asked == ["young"]
    assert await database.fetchval("select count(*) from replicas") == 0, "only facts write copies"


async def test_a_known_run_is_not_asked_for(metrics: Client, runs: RunService) -> None:
    await runs.create("r")
    await report(metrics, "r", metric())
    assert runs.asked == []


async def test_without_the_run_service_only_known_runs_can_report(
    replica: Replica, nats_urls: Mapping[str, str], runs: RunService
) -> None:
    async with replica(ask_seconds=0.3) as metrics:
        await runs.create("known")
        await runs.peer.bus.close()
        assert (await report(metrics, "known", metric()))[0]["status"] == "OK"
        status, body = await metrics.refused("POST", "/runs/unknown:reportMetrics", {"metrics": [metric()]})
        assert (status, body["code"]) == (503, 14)


async def test_a_deleted_run_takes_its_metrics_along_and_takes_no_more(
    metrics: Client, runs: RunService, database: Database
) -> None:
    await runs.create("r")
    await report(metrics, "r", metric())
    await runs.delete("r")
    assert await database.fetchval("select count(*) from metrics") == 0
    assert await database.fetchval("select count(*) from reported_runs") == 0
    status, _ = await metrics.refused("POST", "/runs/r:reportMetrics", {"metrics": [metric()]})
    assert status == 404
    runs.alive.add("r")  # A late answer of the owner does not bring it back.
    status, _ = await metrics.refused("POST", "/runs/r:reportMetrics", {"metrics": [metric()]})
    assert status == 404
    assert await database.fetchval("select count(*) from metrics") == 0


async def test_parallel_reports_of_one_metric_to_two_replicas_record_exactly_one(
    metrics: Client, runs: RunService, replica: Replica, database: Database
) -> None:
    await runs.create("r")
    async with replica() as other:
        results = await asyncio.gather(
            *(
                report(client, "r", *(metric(f"m{(nth + shift) % 10}", number_value=nth) for nth in range(10)))
                for shift, client in enumerate((metrics, other) * 8)
            )
        )
    statuses = Counter(result["status"] for one in results for result in one)
    assert statuses == {"OK": 10, "DUPLICATE_REPORTING": 150}
    assert await database.fetchval("select count(*) from metrics") == 10
    told = [one.name for fact in await facts(database) for one in fact.metrics]
    assert sorted(told) == sorted(f"m{nth}" for nth in range(10)), "each is told once"


async def test_a_report_returns_after_the_run_service_has_applied_it(metrics: Client, runs: RunService) -> None:
    await runs.create("r")
    await report(metrics, "r", metric("a"))
    await report(metrics, "r", metric("b"))
    await report(metrics, "r", metric("b"))
    assert runs.waited_for == [1, 2], "a duplicate has nothing to wait for"


async def test_many_metrics_are_told_in_facts_that_are_small_enough(
    metrics: Client, runs: RunService, database: Database
) -> None:
    await runs.create("r")
    # What JSON writes longest: control characters, and doubles with all their digits.
    long_names = [
        metric("n" * 60 + f"{nth:04}", "\x01" * 128, number_value=-1.2345678901234567e-300) for nth in range(901)
    ]
    results = await report(metrics, "r", *long_names)
    assert Counter(result["status"] for result in results) == {"OK": 901}
    told = await facts(database)
    assert sum(len(fact.metrics) for fact in told) == 901
    sizes = await database.fetch("select octet_length(body) as size from outbox")
    assert max(row["size"] for row in sizes) <= LARGEST_FACT_BYTES


@pytest.fixture
async def controller(metrics: Client, nats_urls: Mapping[str, str]) -> Any:
    buses = await open_buses(nats_urls, "run-controller")
    yield buses["run-controller"]
    await buses["run-controller"].close()


async def test_the_controller_reports_by_a_question(controller: Bus, runs: RunService) -> None:
    await runs.create("r")
    request = ReportRequest(
        run_id=RunId("r"), metrics=(Metric(node_id="n", name="a", number=1), Metric(node_id="", name="b", number=1))
    )
    answer = await controller.ask(REPORT_METRICS, request, within_seconds=5)
    assert answer == ReportAnswer(
        outcomes=(("OK", ""), ("INVALID_ARGUMENT", "metric.node_id must not be empty")), position=1
    )
    again = await controller.ask(REPORT_METRICS, request, within_seconds=5)
    assert [status for status, _ in again.outcomes] == ["DUPLICATE_REPORTING", "INVALID_ARGUMENT"]
    assert again.position == 0
    assert runs.waited_for == []


async def test_a_report_that_crosses_a_deletion_leaves_nothing_behind(
    metrics: Client, runs: RunService, database: Database
) -> None:
    """Half of the runs are known by their fact, the other half only by their owner's word."""
    names = [f"r{nth}" for nth in range(16)]
    runs.alive.update(names)
    for name in names[:8]:
        await runs.create(name)

    async def keep_reporting(name: str) -> None:
        nth = 0
        while True:
            nth += 1
            document = {"metrics": [metric(f"m{nth}")]}
            answer = await metrics.call("POST", f"/apis/v1beta1/runs/{name}:reportMetrics", json=document)
            if answer.status == 404:
                return
            assert answer.status == 200

    async def delete_all() -> None:
        for name in names[8:]:
            await runs.create(name)
        for name in names:
            await runs.delete(name)

    async with asyncio.timeout(30):
        await asyncio.gather(delete_all(), *(keep_reporting(name) for name in names))
    assert await database.fetchval("select count(*) from metrics") == 0
    assert await database.fetchval("select count(*) from reported_runs") == 0
