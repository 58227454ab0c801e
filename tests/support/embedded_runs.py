"""Runs of the embedded engine's pure core without processes: the test says how each step ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import yaml

from services.run.engine.embedded.manifest import Workflow, parse
from services.run.engine.embedded.nodes import Node
from services.run.engine.embedded.orders import StepOrder
from services.run.engine.embedded.reconcile import (
    Collected,
    Event,
    Kill,
    Limits,
    State,
    StepFinished,
    StepStarted,
    Terminated,
    Turn,
    advance,
)
from services.run.engine.embedded.variables import Identity

PIPELINES = Path(__file__).parent.parent / "pipelines"
MIDNIGHT = datetime(2026, 11, 23, tzinfo=UTC)
NAME = "wf-x7k2p"


def workflow(text: str, **arguments: str) -> Workflow:
    """A workflow from YAML, its arguments overridden and completed as the creation of a run does."""
    document = yaml.safe_load(text)
    document.setdefault("apiVersion", "argoproj.io/v1alpha1")
    document.setdefault("kind", "Workflow")
    parameters = document["spec"].get("arguments", {}).get("parameters", [])
    for parameter in parameters:
        if parameter["name"] in arguments:
            parameter["value"] = arguments[parameter["name"]]
        if parameter.get("value") is None:
            parameter["value"] = ""
    return parse(document)


def identity(**changes: Any) -> Identity:
    fields: dict[str, Any] = {
        "name": NAME,
        "namespace": "kubeflow",
        "uid": "00000000-0000-4000-8000-000000000001",
        "created_at": MIDNIGHT,
        "service_account": "pipeline-runner",
    }
    return Identity(**{**fields, **changes})


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a step ends, and how long it takes."""

    exit_code: int | None = 0
    parameters: Mapping[str, str] = msgspec.field(default_factory=dict)
    artifacts: tuple[str, ...] | None = None
    """None: every declared one."""
    result: str | None = None
    """What the step printed, if anybody asks."""
    error: str | None = None
    seconds: float = 1


Script = Callable[[StepOrder], Outcome]


def succeed(_order: StepOrder) -> Outcome:
    return Outcome()


class FakeExecutor:
    """Carries out orders in simulated time, and keeps what a store would keep."""

    def __init__(
        self, manifest: Workflow, script: Script = succeed, *, who: Identity | None = None, limits: Limits | None = None
    ) -> None:
        self.identity = who or identity()
        self.workflow = manifest
        self.limits = limits
        self.state = State.new(manifest, self.identity, limits=limits)
        self.script = script
        self.now = MIDNIGHT
        self.stored: dict[str, Node] = {}
        self.orders: list[StepOrder] = []
        self.kills: list[Kill] = []
        self.messages: list[tuple[str, str]] = []
        self.running: dict[str, tuple[datetime, StepOrder, Outcome]] = {}
        self.max_running = 0
        self.pending_events: list[Event] = []
        self.turn = self.take(())

    # -- one move ------------------------------------------------------------------------------------------------------

    def take(self, events: tuple[Event, ...]) -> Turn:
        self.turn = advance(self.state, events, self.now)
        for node in self.turn.changed:
            self.stored[node.id] = node
            if node.message:
                self.messages.append((node.name, node.message))
        for kill in self.turn.kill:
            self.kills.append(kill)
        for order in self.turn.start:
            if order.node_id not in self.running:
                self._start(order)
        for kill in self.turn.kill:
            self._stop(kill)
        self.max_running = max(self.max_running, len(self.running))
        return self.turn

    def _start(self, order: StepOrder) -> None:
        outcome = self.script(order)
        self.orders.append(order)
        self.running[order.node_id] = (self.now + timedelta(seconds=outcome.seconds), order, outcome)
        self.pending_events.append(StepStarted(node_id=order.node_id, at=self.now))

    def _stop(self, kill: Kill) -> None:
        if self.running.pop(kill.node_id, None):
            self.pending_events.append(
                StepFinished(node_id=kill.node_id, at=self.now, exit_code=143, killed=kill.reason)
            )

    def step(self) -> bool:
        """Let the next thing happen. False when the run is over."""
        if self.turn.finished:
            return False
        if self.pending_events:
            events = tuple(self.pending_events)
            self.pending_events.clear()
            self.take(events)
            return True
        ends = [(due, node_id) for node_id, (due, _, _) in self.running.items()]
        times = [due for due, _ in ends]
        if self.turn.wake_at is not None:
            times.append(self.turn.wake_at)
        assert times, f"the run hangs: {[(n.name, n.phase.value) for n in self.stored.values()]}"
        self.now = max(self.now, min(times))
        finished = sorted(node_id for due, node_id in ends if due <= self.now)
        self.take(tuple(self._finish(node_id) for node_id in finished[:1]))
        return True

    def _finish(self, node_id: str) -> StepFinished:
        _, order, outcome = self.running.pop(node_id)
        return finished_event(order, outcome, self.now)

    # -- many moves ----------------------------------------------------------------------------------------------------

    def run(self, *, at_most: int = 200_000) -> FakeExecutor:
        for _ in range(at_most):
            if not self.step():
                return self
        raise AssertionError("the run does not end")

    def run_for(self, seconds: float) -> FakeExecutor:
        end = self.now + timedelta(seconds=seconds)
        while not self.turn.finished and (self.pending_events or self._next_time() <= end):
            self.step()
        self.now = max(self.now, end)
        return self

    def _next_time(self) -> datetime:
        times = [due for due, _, _ in self.running.values()]
        if self.turn.wake_at is not None:
            times.append(self.turn.wake_at)
        return min(times, default=datetime.max.replace(tzinfo=UTC))

    def terminate(self) -> FakeExecutor:
        self.take((Terminated(at=self.now),))
        return self

    def restart(self) -> FakeExecutor:
        """Forget everything but what is stored, and go on; the steps went on meanwhile."""
        self.state = State.resume(
            self.workflow,
            self.identity,
            self.stored.values(),
            started_at=self.state.started_at,
            terminated=self.state.terminated,
            limits=self.limits,
        )
        self.take(())
        return self

    # -- what came of it -----------------------------------------------------------------------------------------------

    def node(self, name: str) -> Node:
        """By the part of the name after the workflow's."""
        full = NAME + name
        return next(node for node in self.stored.values() if node.name == full)

    def names(self) -> set[str]:
        return {node.name.removeprefix(NAME) for node in self.stored.values()}

    def phases(self) -> dict[str, str]:
        return {node.name.removeprefix(NAME): node.phase.value for node in self.stored.values()}

    def order(self, name: str) -> StepOrder:
        full = NAME + name
        return next(order for order in self.orders if order.node_name == full)

    def children(self, name: str) -> list[str]:
        return [self.stored[each].name.removeprefix(NAME) for each in self.node(name).children]


def finished_event(order: StepOrder, outcome: Outcome, at: datetime) -> StepFinished:
    names = [each.name for each in order.output_artifacts] if outcome.artifacts is None else outcome.artifacts
    values = {each.name: each.value for each in order.output_parameters if each.value is not None}
    folder = f"artifacts/{NAME}/{order.node_id}"
    return StepFinished(
        node_id=order.node_id,
        at=at,
        exit_code=outcome.exit_code,
        error=outcome.error,
        outputs=Collected(
            parameters={**values, **outcome.parameters},
            artifacts={name: {"bucket": "mlpipeline", "key": f"{folder}/{name}.tgz"} for name in names},
            log={"bucket": "mlpipeline", "key": f"{folder}/main.log"},
            result=outcome.result,
        ),
    )
