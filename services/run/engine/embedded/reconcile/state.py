"""One run as the engine knows it between two turns."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec

from services.run.engine.embedded.manifest import TemplateName, Workflow
from services.run.engine.embedded.nodes import Node, NodeOutputs, NodeParameter, NodeType, Phase
from services.run.engine.embedded.plan import Plan
from services.run.engine.embedded.reconcile.frames import Call, Frame
from services.run.engine.embedded.reconcile.turn import KillReason, Limits
from services.run.engine.embedded.variables import Identity

_COUNTED = frozenset({NodeType.POD, NodeType.DAG, NodeType.STEPS})


@dataclass(kw_only=True, slots=True)
class State:
    """One run. Made by `new` or `resume`, moved by `advance` alone."""

    plan: Plan
    limits: Limits
    nodes: dict[str, Node] = field(default_factory=dict)
    phase: Phase = Phase.PENDING
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    deadline_from: datetime | None = None
    terminated: bool = False

    frames: dict[str, Frame] = field(default_factory=dict)
    """The open nodes' frames, by node id."""
    linked: dict[str, set[str]] = field(default_factory=dict)
    """Children as sets, beside the ordered tuples of the records."""
    counted: set[str] = field(default_factory=set)
    """The open nodes that parallelism counts."""
    active_pods: int = 0
    active_children: dict[str, int] = field(default_factory=dict)
    """Boundary id → its open pods, DAGs and Steps: what a template's parallelism counts."""
    held: deque[Call] = field(default_factory=deque)
    """Calls of leaves that wait for `spec.parallelism`."""
    timers: list[tuple[datetime, int, str]] = field(default_factory=list)
    timers_set: int = 0
    awake: bool = False
    stopping: KillReason | None = None
    exit_begun: bool = False

    @classmethod
    def new(cls, workflow: Workflow, identity: Identity, *, limits: Limits | None = None) -> State:
        return cls(plan=Plan(workflow, identity), limits=limits or Limits())

    @classmethod
    def resume(
        cls,
        workflow: Workflow,
        identity: Identity,
        nodes: Iterable[Node],
        *,
        started_at: datetime | None,
        terminated: bool = False,
        deadline_from: datetime | None = None,
        limits: Limits | None = None,
    ) -> State:
        """The state of a run that is not finished, from what was stored of it.

        `deadline_from`: where a whole-run deadline counts from, if not `started_at`: a retried run's is its retry.
        """
        state = cls(plan=Plan(workflow, identity), limits=limits or Limits())
        state.nodes = {node.id: node for node in nodes}
        state.started_at = started_at
        state.deadline_from = deadline_from
        state.terminated = terminated
        state.phase = Phase.RUNNING if started_at else Phase.PENDING
        for node in sorted(state.nodes.values(), key=lambda each: (each.finished_at or each.started_at, each.id)):
            state.export(node)
        return state

    @property
    def workflow(self) -> Workflow:
        return self.plan.workflow

    @property
    def identity(self) -> Identity:
        return self.plan.identity

    @property
    def outputs(self) -> NodeOutputs:
        """`status.outputs`: what nodes exported by globalName."""
        exported = self.plan.globals
        return NodeOutputs(
            parameters=tuple(
                NodeParameter(name=name, value=value) for name, value in exported.exported_parameters.items()
            ),
            artifacts=tuple(exported.exported_artifacts.values()),
        )

    def set_timer(self, when: datetime, frame_id: str) -> None:
        self.timers_set += 1
        heapq.heappush(self.timers, (when, self.timers_set, frame_id))

    def wake_at(self) -> datetime | None:
        if self.finished_at is not None:
            return None
        timers = self.timers
        while timers and timers[0][2] not in self.frames:
            heapq.heappop(timers)
        due = [timers[0][0]] if timers else []
        deadline = self.run_deadline()
        if deadline is not None and self.stopping is None:
            due.append(deadline)
        return min(due, default=None)

    def run_deadline(self) -> datetime | None:
        """When the main part must be over; the exit handler has no such limit (§11)."""
        seconds = self.plan.run_deadline_seconds
        begun = self.deadline_from or self.started_at
        if seconds is None or begun is None or self.exit_begun:
            return None
        return begun + timedelta(seconds=seconds)

    def count(self, node: Node) -> None:
        """Parallelism counts what is open: pods in the run; pods, DAGs and Steps in a boundary (§11).

        A stored node counts from the moment it goes on. One that a retry has reopened may have to wait for others.
        """
        is_open = node.type in _COUNTED and not node.phase.is_fulfilled
        if is_open is (node.id in self.counted):
            return
        by = 1 if is_open else -1
        self.counted ^= {node.id}
        if node.type is NodeType.POD:
            self.active_pods += by
        if node.boundary_id:
            self.active_children[node.boundary_id] = self.active_children.get(node.boundary_id, 0) + by

    def export(self, node: Node) -> None:
        """Outputs under a globalName become `workflow.outputs.…` once the node has succeeded."""
        if node.phase is not Phase.SUCCEEDED or node.outputs is None or not node.template_name:
            return
        if node.type is NodeType.TASK_GROUP:
            return
        declared = self.plan.template(TemplateName(node.template_name)).outputs
        for parameter in declared.parameters:
            value = node.outputs.parameter(parameter.name)
            if parameter.global_name and value is not None:
                self.plan.globals.exported_parameters[parameter.global_name] = value
        for artifact in declared.artifacts:
            found = node.outputs.artifact(artifact.name)
            if artifact.global_name and found is not None and found.has_location:
                renamed = msgspec.structs.replace(found, name=artifact.global_name)
                self.plan.globals.exported_artifacts[artifact.global_name] = renamed
