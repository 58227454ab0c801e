"""Which runs trigger a job by their end, and what they hand over. Pure.

Knows what facts say of runs; knows no rows, and not where a run's outputs are kept.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid5

import msgspec

from shared.contracts.questions import StepOutput
from shared.contracts.states import RunState

from . import domain
from .domain import ON_TIME_SECONDS, Job, JobId, Missed, Overlap, Parameter, RunTrigger


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a run that triggers a job."""

    run: RunState
    at: datetime
    """When it was told."""

    def run_id_of(self, job_id: JobId) -> str:
        """What the run is called that it triggers: the same, whoever orders it and however often."""
        return str(uuid5(UUID(job_id), f"{self.run.id}/{self.run.attempt}"))


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A job that runs trigger, as far as its own runs may trigger others."""

    id: str
    name: str
    pipeline_id: str | None
    experiment_id: str
    trigger: RunTrigger

    def is_triggered_by(self, other: Link) -> bool:
        """Whether a run of the other one may do it, however it ends."""
        wanted = self.trigger
        return (
            wanted.job_id in (None, other.id)
            and wanted.pipeline_id in (None, other.pipeline_id)
            and wanted.experiment_id in (None, other.experiment_id)
        )


def find_loop(job: Link, others: Sequence[Link]) -> tuple[str, ...]:
    """The names of jobs that trigger one another, from this one back to it; empty where there is no such way."""
    ways: deque[tuple[Link, tuple[str, ...]]] = deque([(job, (job.name,))])
    unseen = [each for each in others if each.id != job.id]
    while ways:
        reached, way = ways.popleft()
        if job.is_triggered_by(reached):
            return (*way, job.name)
        ways.extend((each, (*way, each.name)) for each in unseen if each.is_triggered_by(reached))
        unseen = [each for each in unseen if not each.is_triggered_by(reached)]
    return ()


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of causes that wait; those that are in neither go on waiting."""

    fires: tuple[Cause, ...]
    passed_over: tuple[Cause, ...]


def choose(job: Job, waiting: Sequence[Cause], now: datetime) -> Choice:
    """`waiting`: the oldest first."""
    free = max(job.max_concurrency - job.active_runs, 0)
    room = max(free, 1) if job.overlap is Overlap.REPLACE else free
    oldest = _oldest(job, now)
    passed_over = [each for each in waiting if oldest is not None and each.at < oldest]
    left = list(waiting[len(passed_over) :])
    is_latest_enough = job.missed is Missed.LATEST or (job.missed is None and job.no_catchup)
    if is_latest_enough or job.overlap is Overlap.REPLACE:
        kept = max(room, 1)
        passed_over += left[:-kept]
        left = left[-kept:]
    if job.overlap is Overlap.SKIP:
        passed_over += left[room:]
    return Choice(fires=tuple(left[:room]), passed_over=tuple(passed_over))


def _oldest(job: Job, now: datetime) -> datetime | None:
    seconds = job.missed_window_seconds
    if seconds is None and job.missed is Missed.NONE:
        seconds = ON_TIME_SECONDS
    return None if seconds is None else now - timedelta(seconds=seconds)


# What a run hands over: `{{run.…}}` in the values of a job's parameters.

_VALUE: Final = re.compile(r"\{\{\s*run\.([^{}]*?)\s*\}\}")
_OUTPUT: Final = "outputs.parameters."
_METRIC: Final = "metrics."
_FIELDS: Final = ("id", "name", "status", "error", "attempt", "experiment_id", "workflow_name")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What only the owner of the run can tell."""

    outputs: tuple[StepOutput, ...]
    metrics: tuple[str, ...]


def wanted_by(parameters: Sequence[Parameter]) -> Wanted:
    """Raises InvalidInput for a value that no run has."""
    outputs: dict[StepOutput, None] = {}
    metrics: dict[str, None] = {}
    for parameter in parameters:
        for found in _VALUE.finditer(parameter.value):
            text = found[1]
            if text in _FIELDS:
                continue
            if output := _output(text):
                outputs[output] = None
            elif name := _metric(text):
                metrics[name] = None
            else:
                raise domain.unknown_value(found[0])
    return Wanted(outputs=tuple(outputs), metrics=tuple(metrics))


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the parameters of a job want of a cause."""

    cause: Cause
    outputs: Mapping[StepOutput, str] = msgspec.field(default_factory=dict)
    metrics: Mapping[str, float] = msgspec.field(default_factory=dict)

    def into(self, text: str) -> str:
        """The text with the values of the run. What they say themselves is not looked into."""
        return _VALUE.sub(self._value, text)

    def _value(self, found: re.Match[str]) -> str:
        text = found[1]
        if text in _FIELDS:
            return str(getattr(self.cause.run, text))
        if output := _output(text):
            return self.outputs[output]
        return _number(self.metrics[_metric(text)])


def _output(text: str) -> StepOutput | None:
    """The name of a parameter holds no dot; that of a step may."""
    node, _, name = text.removeprefix(_OUTPUT).rpartition(".")
    return StepOutput(node=node, name=name) if text.startswith(_OUTPUT) and node and name else None


def _metric(text: str) -> str:
    return text.removeprefix(_METRIC) if text.startswith(_METRIC) else ""


def _number(number: float) -> str:
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)
