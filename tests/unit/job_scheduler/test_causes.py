"""Which runs trigger a job, what becomes of their ends, and what they hand over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.job_scheduler.causes import Cause, Handover, Link, Wanted, choose, find_loop, wanted_by
from services.job_scheduler.domain import Ending, Missed, Overlap, Parameter, RunTrigger
from services.job_scheduler.firing import plan_caused
from shared.contracts.questions import StepOutput
from shared.contracts.states import ExperimentId, RunState, RunStatus
from shared.errors import InvalidInput
from tests.support.jobs import job

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
ANY_END = (Ending.ENDED,)
TRIGGER = RunTrigger(facts=ANY_END, pipeline_id="p")


def cause(nth: int, seconds_ago: float = 0) -> Cause:
    run = RunState(
        id=f"r{nth}",
        version=1,
        name=f"run {nth}",
        status=RunStatus.FAILED,
        experiment_id=ExperimentId("e"),
        workflow_name="w-1",
        attempt=2,
        created_at=NOW,
    )
    return Cause(run=run, at=NOW - timedelta(seconds=seconds_ago))


CHOICES: dict[str, tuple[dict[str, Any], int, str, str]] = {
    # What the job says, how many of its three runs are alive, and which of the four causes fire and are passed over.
    "those that there is room for": ({}, 1, "12", ""),
    "all where there is room": ({"max_concurrency": 9}, 0, "1234", ""),
    "none where there is none": ({}, 3, "", ""),
    "none where a retried run takes more than there is": ({}, 4, "", ""),
    "skip: the rest is given up": ({"overlap": Overlap.SKIP}, 1, "12", "34"),
    "replace: the latest, for the oldest run": ({"overlap": Overlap.REPLACE}, 3, "4", "123"),
    "replace: nothing goes where there is room": ({"overlap": Overlap.REPLACE}, 1, "34", "12"),
    "latest: as many as there is room for": ({"missed": Missed.LATEST}, 1, "34", "12"),
    "latest: one waits": ({"missed": Missed.LATEST}, 3, "", "123"),
    "old clients' word for it": ({"no_catchup": True}, 1, "34", "12"),
    "which another one overrules": ({"no_catchup": True, "missed": Missed.ALL}, 1, "12", ""),
    "none: what is late is given up": ({"missed": Missed.NONE}, 1, "34", "12"),
    "none: unless it may be later": ({"missed": Missed.NONE, "missed_window_seconds": 150}, 1, "23", "1"),
    "a window": ({"missed_window_seconds": 90}, 2, "3", "12"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_becomes_of_causes_that_wait(name: str) -> None:
    fields, active, fires, passed_over = CHOICES[name]
    given = {"max_concurrency": 3, "active_runs": active} | fields
    waiting = [cause(nth, ago) for nth, ago in ((1, 200), (2, 100), (3, 50), (4, 0))]
    choice = choose(job(1, TRIGGER, NOW, **given), waiting, NOW)
    assert "".join(each.run.id[1:] for each in choice.fires) == fires
    assert "".join(each.run.id[1:] for each in choice.passed_over) == passed_over


@pytest.mark.parametrize(("last", "seconds_ago", "expected"), [(None, 5, 5), (60, 5, 5), (5, 60, 5)])
def test_the_last_slot_of_a_job_never_goes_back(last: int | None, seconds_ago: int, expected: int) -> None:
    last_slot = None if last is None else NOW - timedelta(seconds=last)
    handover = Handover(cause=cause(1, seconds_ago))
    plan = plan_caused(job(1, TRIGGER, NOW, last_slot=last_slot), [handover], passed_over=(), refused=())
    assert plan.last_slot == NOW - timedelta(seconds=expected)


def link(name: str, pipeline: str | None = None, experiment: str = "e", **on: str) -> Link:
    return Link(
        id=name,
        name=name,
        pipeline_id=pipeline,
        experiment_id=experiment,
        trigger=RunTrigger(facts=ANY_END, **on),
    )


LOOPS: dict[str, tuple[list[Link], str]] = {
    "nobody": ([], ""),
    "its own pipeline": ([link("a", "p", pipeline_id="p")], "aa"),
    "its own experiment": ([link("a", "p", experiment_id="e")], "aa"),
    "itself": ([link("a", job_id="a")], "aa"),
    "its own pipeline in another experiment": ([link("a", "p", pipeline_id="p", experiment_id="f")], ""),
    "two": ([link("a", "p", pipeline_id="q"), link("b", "q", pipeline_id="p")], "aba"),
    "two, one by the other's id": ([link("a", "p", job_id="b"), link("b", "q", experiment_id="e")], "aba"),
    "a chain": ([link("a", "p", pipeline_id="q"), link("b", "q", pipeline_id="r")], ""),
    "three, the shortest way": (
        [
            link("a", "p", pipeline_id="r"),
            link("b", "q", pipeline_id="p"),
            link("c", "r", pipeline_id="q"),
            link("d", "x", pipeline_id="p"),
        ],
        "abca",
    ),
    "a loop of others": (
        [link("a", "p", pipeline_id="z"), link("b", "q", pipeline_id="q"), link("c", "r", pipeline_id="p")],
        "",
    ),
    "no pipeline is none": ([link("a", None, pipeline_id="p")], ""),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_found(name: str) -> None:
    links, expected = LOOPS[name]
    # As it is changed, not as it is on record.
    others = [*links, link("a", "p", pipeline_id="p")]
    first = links[0] if links else link("a", "p", pipeline_id="q")
    assert "".join(find_loop(first, others)) == expected


TEXTS = {
    "nothing": "nothing",
    "{{run.id}}/{{ run.attempt }}/{{run.status}}": "r1/2/Failed",
    "{{run.name}} {{run.error}}|{{run.experiment_id}} {{run.workflow_name}}": "run 1 |e w-1",
    "{{run.outputs.parameters.train.path}}": "{{run.id}}",
    "{{run.outputs.parameters.eval(0:a.b).x}}": "",
    "{{run.metrics.accuracy}} {{run.metrics.rows}} {{run.metrics.huge}}": "0.1 -3 1e+300",
    "{{workflow.uid}} {{inputs.parameters.run.id}} {run.id}": "{{workflow.uid}} {{inputs.parameters.run.id}} {run.id}",
}


@pytest.mark.parametrize("text", TEXTS)
def test_values_of_the_run_take_their_places(text: str) -> None:
    handover = Handover(
        cause=cause(1),
        outputs={
            StepOutput(node="train", name="path"): "{{run.id}}",
            StepOutput(node="eval(0:a.b)", name="x"): "",
        },
        metrics={"accuracy": 0.1, "rows": -3.0, "huge": 1e300},
    )
    assert handover.into(text) == TEXTS[text]


def test_what_is_wanted_is_asked_for_once() -> None:
    text = "{{run.metrics.b}} {{run.outputs.parameters.s.a}} {{run.metrics.a}} {{run.id}}"
    parameters = [Parameter(name="x", value=text), Parameter(name="y", value=text), Parameter(name="z", value="")]
    assert wanted_by(parameters) == Wanted(outputs=(StepOutput(node="s", name="a"),), metrics=("b", "a"))


@pytest.mark.parametrize(
    "text", ["run.", "run.owner", "run.outputs.parameters.x", "run.outputs.parameters..x", "run.metrics.", "run.id.x"]
)
def test_what_no_run_has_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="Unknown value"):
        wanted_by([Parameter(name="x", value=f"{{{{{text}}}}}")])
