"""What the steps of an engine's runs come to, counted as their nodes are recorded.

An engine may report a node again, in the same state or among all the nodes of a run. A step is counted once for each
state that it enters while this process watches its run: what is remembered of a run is forgotten with its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from prometheus_client import Counter, Histogram

from shared import clock, telemetry

from .engine import Observation

_started = Counter("headrace_steps_started_total", "Steps that began to run.", registry=telemetry.metrics)
_finished = Counter(
    "headrace_steps_finished_total", "Steps that are over, by phase.", ("phase",), registry=telemetry.metrics
)
_durations = Histogram(
    "headrace_step_duration_seconds",
    "From a step's start to its end, by the engine's clock.",
    ("phase",),
    buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600),
    registry=telemetry.metrics,
)

_RUNNING: Final = "Running"
_FINAL: Final = frozenset({"Succeeded", "Failed", "Error", "Skipped", "Omitted"})


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One that is over."""

    node_id: str
    template: str
    phase: str
    message: str
    started_at: datetime
    finished_at: datetime


class StepFigures:
    """Of the runs that one controller watches."""

    def __init__(self) -> None:
        self._since = clock.now()
        self._seen: dict[str, dict[str, str]] = {}
        """Run → node → the phase that was counted last."""

    def count(self, observation: Observation) -> tuple[Step, ...]:
        """Count what an observation says that was recorded; the steps that are over by it."""
        return tuple(self._over(observation))

    @property
    def watched(self) -> set[str]:
        """The runs of which something is remembered."""
        return set(self._seen)

    def keep(self, is_ours: Callable[[str], bool]) -> None:
        """Forget the runs that another controller watches from now on."""
        self._seen = {run_id: nodes for run_id, nodes in self._seen.items() if is_ours(run_id)}

    def forget(self, run_id: str) -> None:
        self._seen.pop(run_id, None)

    def _over(self, observation: Observation) -> Iterator[Step]:
        for node in observation.nodes:
            if node.get("type") != "Pod":
                continue
            seen = self._seen.setdefault(observation.run_id, {})
            node_id, phase = str(node["id"]), str(node.get("phase", ""))
            before = seen.get(node_id, "")
            if phase == before or (phase != _RUNNING and phase not in _FINAL):
                continue
            seen[node_id] = phase
            if phase == _RUNNING:
                _started.inc()
            elif step := _step(node_id, phase, node, since=self._since):
                if not before:
                    _started.inc()
                _finished.labels(phase).inc()
                _durations.labels(phase).observe(max((step.finished_at - step.started_at).total_seconds(), 0))
                yield step
        if observation.finished_at is not None:
            self.forget(observation.run_id)


def _step(node_id: str, phase: str, node: Mapping[str, Any], *, since: datetime) -> Step | None:
    """None for one that never ran, and for one that was over before this process began to watch."""
    started_at, finished_at = _time(node.get("startedAt")), _time(node.get("finishedAt"))
    # The engine's times are whole seconds.
    if started_at is None or finished_at is None or finished_at < since.replace(microsecond=0):
        return None
    return Step(
        node_id=node_id,
        template=str(node.get("templateName", "")),
        phase=phase,
        message=str(node.get("message", "")),
        started_at=started_at,
        finished_at=finished_at,
    )


def _time(text: object) -> datetime | None:
    """A time that lacks its zone is taken for UTC, as all of an engine's are."""
    try:
        at = datetime.fromisoformat(text.replace("Z", "+00:00")) if isinstance(text, str) and text else None
    except ValueError:
        return None
    return at if at is None else at.replace(tzinfo=at.tzinfo or UTC)
