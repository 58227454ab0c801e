"""Metrics that steps left as artifacts: real objects and rows, and the metrics service played on the bus."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from services.metrics import domain
from services.run.step_metrics import MOST_PER_RUN, StepMetrics
from shared.contracts import events
from shared.contracts.questions import REPORT_METRICS, ReportAnswer, ReportRequest
from shared.contracts.states import Metric, MetricsState
from tests.component.run.conftest import World
from tests.component.run.test_life import node


@dataclass
class PlayedMetrics:
    """Records by the real rules, in memory, and tells of it."""

    world: World
    recorded: dict[tuple[str, str, str], Metric] = field(default_factory=dict)

    async def report(self, question: ReportRequest) -> ReportAnswer:
        outcomes, new = [], []
        for metric in question.metrics:
            given = domain.Metric(
                node_id=metric.node_id,
                name=metric.name,
                number=metric.number,
                format=domain.Format(metric.format.value),
            )
            key = (question.run_id, *given.key)
            if (reason := domain.why_invalid(given)) is not None:
                outcomes.append((domain.Status.INVALID_ARGUMENT.value, reason))
            elif key in self.recorded:
                outcomes.append((domain.Status.DUPLICATE_REPORTING.value, domain.duplicate(given)))
            else:
                self.recorded[key] = metric
                new.append(metric)
                outcomes.append((domain.Status.OK.value, ""))
        position = 0
        if new:
            state = MetricsState(id=question.run_id, version=len(self.recorded), metrics=tuple(new))
            position = await self.world.peers.tell(events.METRICS_REPORTED, state)
        return ReportAnswer(outcomes=tuple(outcomes), position=position)


@dataclass
class Steps:
    world: World
    metrics: StepMetrics
    run_id: str

    async def left(self, node_id: str, *metrics: dict[str, Any]) -> str:
        """The key of what a step of this node has stored."""
        key = f"artifacts/{self.run_id}/{node_id}/mlpipeline-metrics.tgz"
        await self.world.blobs.put(key, packed({"metrics": list(metrics)}))
        return key

    async def report(self, node_id: str, *metrics: dict[str, Any]) -> None:
        await self.metrics.report(self.run_id, node_id, await self.left(node_id, *metrics))

    async def shown(self) -> list[tuple[str, str, Any]]:
        """Node, name and value of each metric of the run."""
        run = await self.world.client.get(self.run_id)
        return [(each["node_id"], each["name"], each.get("number_value")) for each in run.get("metrics", ())]


def packed(document: Any) -> bytes:
    text = msgspec.json.encode(document)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as file:
        entry = tarfile.TarInfo("mlpipeline-metrics.json")
        entry.size = len(text)
        file.addfile(entry, io.BytesIO(text))
    return archive.getvalue()


def numbered(count: int) -> Sequence[dict[str, Any]]:
    return [{"name": f"m{number}", "numberValue": number} for number in range(count)]


@pytest.fixture
async def steps(world: World) -> Steps:
    await world.peers.buses["metrics"].answer(REPORT_METRICS, PlayedMetrics(world).report)
    metrics = StepMetrics(world.blobs, world.peers.buses["run-controller"], world.database)
    return Steps(world, metrics, (await world.client.create())["id"])


async def test_two_branches_of_a_loop_may_give_a_metric_of_one_name(steps: Steps) -> None:
    await asyncio.gather(
        *(steps.report(f"wf-{branch}", {"name": "accuracy", "numberValue": branch / 4}) for branch in (1, 2))
    )

    assert await steps.shown() == [("wf-1", "accuracy", 0.25), ("wf-2", "accuracy", 0.5)]


async def test_a_metric_with_an_invalid_name_keeps_no_other_and_no_run_back(steps: Steps) -> None:
    await steps.report("wf-1", {"name": "not a name", "numberValue": 1}, {"name": "good", "numberValue": 0.9})
    now = datetime.now(UTC)
    await steps.world.observe(
        steps.run_id, "Succeeded", started_at=now, finished_at=now, nodes=(node("wf-1", "Succeeded"),)
    )

    assert await steps.shown() == [("wf-1", "good", 0.9)]
    assert (await steps.world.client.get(steps.run_id))["status"] == "Succeeded"


async def test_a_run_has_so_many_metrics_however_many_steps_write_them_at_once(steps: Steps) -> None:
    await asyncio.gather(*(steps.report(f"wf-{number}", *numbered(30)) for number in range(3)))
    shown = await steps.shown()
    await steps.report("wf-late", {"name": "late", "numberValue": 1})

    assert len(shown) == MOST_PER_RUN
    assert sorted(len([1 for each in shown if each[0] == f"wf-{number}"]) for number in range(3)) == [0, 20, 30]
    assert await steps.shown() == shown


async def test_a_report_that_is_repeated_changes_nothing(steps: Steps) -> None:
    await steps.report("wf-1", *numbered(40))
    await steps.report("wf-2", *numbered(40))
    before = await steps.shown()
    assert len(before) == MOST_PER_RUN

    await steps.report("wf-1", *numbered(40))
    await steps.report("wf-2", *numbered(40))

    assert await steps.shown() == before


async def test_a_file_that_is_none_of_metrics_is_left_out(steps: Steps) -> None:
    unknown_field = {"metrics": [{"name": "a", "numberValue": 1, "unknown": 2}]}
    documents: list[Any] = [unknown_field, {"metrics": {}}, [], {"metrics": [{"name": 1}]}]
    for document in documents:
        await steps.world.blobs.put("artifacts/odd.tgz", packed(document))
        await steps.metrics.report(steps.run_id, "wf-1", "artifacts/odd.tgz")
    await steps.metrics.report(steps.run_id, "wf-1", "artifacts/nowhere.tgz")
    await steps.report("wf-2", {"name": "good", "number_value": "0.5"})

    assert await steps.shown() == [("wf-2", "good", 0.5)]
