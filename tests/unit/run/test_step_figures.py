"""Each step is counted once for each state, however often and in whatever company an engine shows it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from services.run.engine import Observation, WorkflowName
from services.run.step_figures import StepFigures
from shared import telemetry


def node(
    node_id: str, phase: str, *, seconds: float = 5, ago: timedelta = timedelta(), kind: str = "Pod"
) -> dict[str, Any]:
    at = datetime.now(UTC) - ago
    written = {"id": node_id, "type": kind, "phase": phase, "templateName": "main", "startedAt": _text(at)}
    return written if phase == "Running" else written | {"finishedAt": _text(at + timedelta(seconds=seconds))}


def _text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def seen(*nodes: dict[str, Any], run_id: str = "r", is_over: bool = False) -> Observation:
    return Observation(
        workflow_name=WorkflowName(run_id),
        run_id=run_id,
        attempt=1,
        phase="Running",
        nodes=nodes,
        finished_at=datetime.now(UTC) if is_over else None,
    )


class Counts:
    """What was counted since."""

    def __init__(self) -> None:
        self._before = self._now()

    @property
    def since(self) -> dict[str, float]:
        return {name: value - self._before[name] for name, value in self._now().items()}

    def _now(self) -> dict[str, float]:
        def value(name: str, **labels: str) -> float:
            return telemetry.metrics.get_sample_value(f"headrace_{name}", labels) or 0

        return {
            "started": value("steps_started_total"),
            "succeeded": value("steps_finished_total", phase="Succeeded"),
            "failed": value("steps_finished_total", phase="Failed"),
            "seconds": value("step_duration_seconds_sum", phase="Succeeded"),
        }


def test_a_step_that_is_shown_again_and_again_is_counted_once() -> None:
    counts, figures = Counts(), StepFigures()
    assert figures.count(seen(node("a", "Running"), node("dag", "Running", kind="DAG"))) == ()
    assert figures.count(seen(node("a", "Running"))) == ()
    (over,) = figures.count(seen(node("a", "Succeeded", seconds=7)))
    assert (over.node_id, over.phase, over.template) == ("a", "Succeeded", "main")
    assert figures.count(seen(node("a", "Succeeded", seconds=7), node("dag", "Succeeded", kind="DAG"))) == ()
    assert counts.since == {"started": 1, "succeeded": 1, "failed": 0, "seconds": 7}


def test_a_step_whose_start_nobody_saw_has_started_and_one_that_never_ran_has_not() -> None:
    counts, figures = Counts(), StepFigures()
    figures.count(seen(node("quick", "Failed"), {"id": "skipped", "type": "Pod", "phase": "Skipped"}))
    assert counts.since == {"started": 1, "succeeded": 0, "failed": 1, "seconds": 0}


def test_what_was_over_before_this_process_came_is_somebody_elses_to_count() -> None:
    counts, figures = Counts(), StepFigures()
    figures.count(seen(node("old", "Succeeded", ago=timedelta(hours=1))))
    assert counts.since == {"started": 0, "succeeded": 0, "failed": 0, "seconds": 0}


def test_nothing_is_remembered_of_runs_that_are_over_or_anothers() -> None:
    figures = StepFigures()
    figures.count(seen(node("a", "Running"), run_id="over", is_over=True))
    figures.count(seen(node("a", "Running"), run_id="ours"))
    figures.count(seen(node("a", "Running"), run_id="theirs"))
    figures.keep(lambda run_id: run_id == "ours")
    assert figures.watched == {"ours"}


def test_a_step_whose_times_lack_their_zone_is_counted_as_one_in_utc() -> None:
    counts, figures = Counts(), StepFigures()
    times = {"startedAt": "2126-01-01T10:00:00", "finishedAt": "2126-01-01T10:00:05"}

    (step,) = figures.count(seen(node("a", "Succeeded") | times))

    assert (step.started_at.tzinfo, step.finished_at - step.started_at) == (UTC, timedelta(seconds=5))
    assert counts.since == {"started": 1, "succeeded": 1, "failed": 0, "seconds": 5}
