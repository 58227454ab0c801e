"""The heart of the engine: a workflow and what happened to it → what is true now and what to do next.

`advance(state, events, now)` is pure in all that matters: no I/O, no clock, no randomness; the same state, events and
time give the same turn. For the sake of cost it moves the state it is given instead of copying it, so a state has one
owner. Nothing in it is irreplaceable: `State.resume` builds an equal one from the manifest and the stored nodes.

How it works. Every open node has a *frame*, which knows its caller and how many things it waits for. An event ends a
step; the end of a node is told to its caller's frame, which starts what has become possible or ends in turn. Only
frames on that path are touched, and a work list carries the news instead of recursion, so neither wide nor deep
workflows make a step dearer. Creating a node and finding it already stored are one operation: a resumed state walks
down from the entry exactly as a new one does, and skips whatever is fulfilled.
"""

from __future__ import annotations

import heapq
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial
from typing import Any, TypeAlias, assert_never

import msgspec

from services.run.engine.embedded.durations import duration_seconds, spoken_duration
from services.run.engine.embedded.expr import holds, read, text_of
from services.run.engine.embedded.expression import ExpressionError, Outcome, evaluate_when
from services.run.engine.embedded.loops import expand, item_lookup, item_text
from services.run.engine.embedded.manifest import (
    Arguments,
    ContinueOn,
    Hook,
    ManifestError,
    Parameter,
    RetryStrategy,
    Task,
    TaskName,
    Template,
    TemplateName,
    ValueFrom,
    Workflow,
    scalar_text,
)
from services.run.engine.embedded.nodes import (
    Node,
    NodeArtifact,
    NodeInputs,
    NodeOutputs,
    NodeParameter,
    NodeType,
    Phase,
    attempt_name,
    display_name,
    exit_name,
    group_name,
    item_name,
    node_id,
    task_name,
    timestamp,
    whole_seconds,
)
from services.run.engine.embedded.orders import StepOrder
from services.run.engine.embedded.plan import DagPlan, Plan, RetryRule, located, workflow_artifacts
from services.run.engine.embedded.template import Lookup, expressions, fill, first_of, has_item_tag, only_tag
from services.run.engine.embedded.variables import (
    Exiting,
    Identity,
    aggregate,
    inputs_lookup,
    node_value,
)

# -- what goes in ------------------------------------------------------------------------------------------------------


class KillReason(Enum):
    """Why a step was stopped from outside. The values are the messages of the nodes."""

    TERMINATED = "terminated"
    STEP_DEADLINE = "Pod was active on the node longer than the specified deadline"
    RUN_DEADLINE = "Step exceeded its deadline"


class StepStarted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The step's process runs."""

    node_id: str
    at: datetime


class StepWaits(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The step is not being started yet; empty once it is."""

    node_id: str
    reason: str


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What was found after a step. Parameters and artifacts that were not found are absent."""

    parameters: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Text with one trailing newline removed; defaults already applied; literal values may be left out."""
    artifacts: Mapping[str, Mapping[str, Any]] = msgspec.field(default_factory=dict)
    """Artifact name → its `s3` block."""
    log: Mapping[str, Any] | None = None
    """The `s3` block of the stored log."""
    result: str | None = None


class StepFinished(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The step is over, and its outputs are where they belong.

    `exit_code` is the main process's; None if it never ran. `error` is what went wrong beside it (it cannot start, an
    init container failed, an output is missing, a sidecar failed) and `error_phase` what that makes of the node,
    unless the main process failed itself: then its exit code wins. `killed` is set when a stop reached the step
    before its end.
    """

    node_id: str
    at: datetime
    exit_code: int | None = None
    out_of_memory: bool = False
    """That is why the main process ended."""
    error: str | None = None
    error_phase: Phase = Phase.ERROR
    killed: KillReason | None = None
    outputs: Collected = msgspec.field(default_factory=Collected)


def exit_message(exit_code: int, *, out_of_memory: bool = False) -> str:
    """What a node says of a container that ended otherwise than with 0."""
    return f"{'OOMKilled' if out_of_memory else 'Error'} (exit code {exit_code})"


class StepLost(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Nobody knows what became of the step."""

    node_id: str
    at: datetime


class Terminated(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A user asked for the end of the run."""

    at: datetime


Event: TypeAlias = StepWaits | StepStarted | StepFinished | StepLost | Terminated


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Where a workflow that calls itself without end is stopped."""

    depth: int = 1000
    """Nested group templates."""
    nodes: int = 100_000
    """Nodes of one run."""


# -- what comes out ----------------------------------------------------------------------------------------------------


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    node_id: str
    reason: KillReason


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What changed and what to do. `changed` is to be stored before anything is started."""

    changed: tuple[Node, ...]
    """Complete new records, each node once, of those nodes that changed."""
    start: tuple[StepOrder, ...]
    """Steps to start. After a resume also those that were ordered before: an order may come twice for one node id."""
    reattach: tuple[StepOrder, ...]
    """After a resume: steps that ran, to be found again or reported as lost."""
    kill: tuple[Kill, ...]
    wake_at: datetime | None
    """When to advance again even if nothing happens."""
    phase: Phase
    message: str
    finished: bool


# -- state -------------------------------------------------------------------------------------------------------------


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

    _frames: dict[str, _Frame] = field(default_factory=dict)
    """The open nodes' frames, by node id."""
    _linked: dict[str, set[str]] = field(default_factory=dict)
    """Children as sets, beside the ordered tuples of the records."""
    _counted: set[str] = field(default_factory=set)
    """The open nodes that parallelism counts."""
    _active_pods: int = 0
    _active_children: dict[str, int] = field(default_factory=dict)
    """Boundary id → its open pods, DAGs and Steps: what a template's parallelism counts."""
    _held: deque[_Call] = field(default_factory=deque)
    """Calls of leaves that wait for `spec.parallelism`."""
    _timers: list[tuple[datetime, int, str]] = field(default_factory=list)
    _timers_set: int = 0
    _awake: bool = False
    _stopping: KillReason | None = None
    _exit_begun: bool = False

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
            state._export(node)
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

    def _count(self, node: Node) -> None:
        """Parallelism counts what is open: pods in the run; pods, DAGs and Steps in a boundary (§11).

        A stored node counts from the moment it goes on. One that a retry has reopened may have to wait for others.
        """
        is_open = node.type in _COUNTED and not node.phase.is_fulfilled
        if is_open is (node.id in self._counted):
            return
        by = 1 if is_open else -1
        self._counted ^= {node.id}
        if node.type is NodeType.POD:
            self._active_pods += by
        if node.boundary_id:
            self._active_children[node.boundary_id] = self._active_children.get(node.boundary_id, 0) + by

    def _export(self, node: Node) -> None:
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


_COUNTED = frozenset({NodeType.POD, NodeType.DAG, NodeType.STEPS})


_NO_TASK = TaskName("")


@dataclass(kw_only=True, slots=True)
class _Call:
    """A template called at a place, with everything known but whether there is room for it yet."""

    caller: _Caller | None
    """Who is told of the end; None for the entry and the exit handler."""
    name: str
    template: Template
    boundary: _Group | None
    task: TaskName = _NO_TASK
    """The task or step it is a call of; the entry and the exit handler are none."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    artifacts: Mapping[str, NodeArtifact] = field(default_factory=dict)
    links: tuple[str, ...] = ()
    """The nodes whose child it becomes."""
    needs_result: bool = False
    depth: int = 0
    exempt: bool = False
    """Below the exit handler: neither deadline nor termination of the run applies."""
    attempt: int | None = None
    """Its number, if this is an attempt under a Retry node."""
    hook: Hook | None = None
    """What is called at its end, before the caller is told."""


@dataclass(kw_only=True, slots=True)
class _Hooked:
    """A task that has ended and whose hook has not."""

    call: _Call
    node_id: str


@dataclass(kw_only=True, slots=True)
class _Frame:
    call: _Call
    node_id: str


@dataclass(kw_only=True, slots=True)
class _Leaf(_Frame):
    inputs: NodeInputs
    deadline_seconds: int | None = None
    killing: KillReason | None = None
    deadline: datetime | None = None
    """Its own, when the retry strategy's maxDuration ends earlier than the template's deadline."""


@dataclass(kw_only=True, slots=True)
class _Pause(_Frame):
    """A suspend template: nothing runs, time passes."""

    until: datetime


@dataclass(kw_only=True, slots=True)
class _Retry(_Frame):
    rule: RetryRule
    inputs: NodeInputs
    attempts: int = 0
    wait_until: datetime | None = None


@dataclass(kw_only=True, slots=True)
class _TaskGroup(_Frame):
    open: int = 0


@dataclass(kw_only=True, slots=True)
class _Group(_Frame):
    """A boundary: a running DAG or Steps template."""

    inputs: NodeInputs
    held: deque[_Call] = field(default_factory=deque)
    """Calls that wait for the template's parallelism."""


@dataclass(kw_only=True, slots=True)
class _Dag(_Group):
    plan: DagPlan
    waiting: dict[TaskName, int]
    """Task → how many of its dependencies are not fulfilled."""
    done: dict[TaskName, str] = field(default_factory=dict)
    """Task → its fulfilled node."""
    settled: int = 0
    """How many tasks are done, and their hooks."""
    considered: int = 0
    """How many tasks are done, run, or wait for room."""
    without_room: set[str] = field(default_factory=set)
    """The node names of tasks that wait for room: they have no node yet."""


@dataclass(kw_only=True, slots=True)
class _Steps(_Group):
    index: int = 0
    open: int = 0
    steps: dict[TaskName, list[str]] = field(default_factory=dict)
    """Step → its nodes: one, or one per item."""
    current: list[TaskName] = field(default_factory=list)
    problem: str | None = None
    """A template error in the running group, as opposed to a step that failed."""


_Caller: TypeAlias = _Dag | _Steps | _Retry | _TaskGroup | _Hooked


# -- advance -----------------------------------------------------------------------------------------------------------


def advance(state: State, events: Sequence[Event], now: datetime) -> Turn:
    """Take in what happened up to `now`, and say what follows.

    Events about nodes that are over, or that never were, are ignored: reports may come twice.
    """
    return _Pass(state, now).run(events)


class _Pass:
    """One call of `advance`."""

    def __init__(self, state: State, now: datetime) -> None:
        self._state = state
        self._plan = state.plan
        self._now = now.astimezone(UTC)
        self._todo: deque[Callable[[], None]] = deque()
        self._changed: dict[str, None] = {}
        self._new_children: dict[str, list[str]] = {}
        self._start: dict[str, StepOrder] = {}
        self._reattach: list[StepOrder] = []
        self._kill: list[Kill] = []
        self._crowded: dict[str, _Dag] = {}
        """DAGs that may have nothing left but what waits for room."""
        self._newcomers: list[_Call] | None = None
        """Calls without a node, while the walk after a resume still finds what went on before."""

    def run(self, events: Sequence[Event]) -> Turn:
        state = self._state
        if state.finished_at is None:
            if not state._awake:
                self._awaken()
                self._work()
                self._let_in()
            self._work()
            for event in events:
                self._take(event)
                self._work()
            if state.finished_at is None:
                self._ring()
                self._work()
        return self._turn()

    def _turn(self) -> Turn:
        self._flush_children()
        state = self._state
        return Turn(
            changed=tuple(state.nodes[each] for each in self._changed),
            start=tuple(order for each, order in self._start.items() if each in state._frames),
            reattach=tuple(self._reattach),
            kill=tuple(self._kill),
            wake_at=self._wake_at(),
            phase=state.phase,
            message=state.message,
            finished=state.finished_at is not None,
        )

    def _work(self) -> None:
        while self._todo or self._crowded:
            while self._todo:
                self._todo.popleft()()
            if self._crowded:
                _, dag = self._crowded.popitem()
                self._fail_fast(dag)

    # -- beginning and end of the run ----------------------------------------------------------------------------------

    def _awaken(self) -> None:
        state = self._state
        state._awake = True
        if state.nodes:
            self._newcomers = []
        state.phase = Phase.RUNNING
        state.started_at = state.started_at or whole_seconds(self._now)
        spec = state.workflow.spec
        try:
            deadline = self._run_deadline()
        except ManifestError as error:
            self._finish(Phase.ERROR, error.reason)
            return
        if state.terminated:
            state._stopping = KillReason.TERMINATED
        elif deadline is not None and self._now >= deadline:
            state._stopping = KillReason.RUN_DEADLINE
        self._soon(self._enter, spec.entrypoint, state.identity.name, exempt=False)

    def _let_in(self) -> None:
        """By now it is known what takes room."""
        for call in self._newcomers or ():
            self._soon(self._begin, call)
        self._newcomers = None

    def _enter(self, name: TemplateName, node_name: str, *, exempt: bool) -> None:
        arguments = self._plan.globals.arguments
        try:
            call = _Call(
                caller=None,
                name=node_name,
                template=self._plan.template(name),
                boundary=None,
                parameters={each.name: each.value or "" for each in arguments.parameters},
                artifacts=workflow_artifacts(arguments),
                exempt=exempt,
            )
            self._plan.bind(call.template, call.parameters, call.artifacts)
        except ManifestError as error:
            place = "exit" if exempt else "entry"
            self._finish(Phase.ERROR, f"error in {place} template execution: {error.reason}")
            return
        self._begin(call)

    def _top_ended(self, node: Node) -> None:
        """The entry or the exit handler is over."""
        state = self._state
        if state._exit_begun:
            self._finish_after_exit(node)
            return
        if not state.workflow.spec.on_exit:
            self._finish(*self._main_result(node))
            return
        state._exit_begun = True
        phase, _ = self._main_result(node)
        failed = [each for each in state.nodes.values() if each.phase.is_failure and not self._belongs_to_exit(each)]
        ended = node.finished_at or self._now
        self._plan.globals.exiting = Exiting(
            status=phase,
            failures=tuple(sorted(failed, key=lambda each: (each.finished_at or ended, each.id))),
            duration_seconds=(ended - (state.started_at or ended)).total_seconds(),
        )
        self._soon(self._enter, state.workflow.spec.on_exit, exit_name(state.identity.name), exempt=True)

    def _belongs_to_exit(self, node: Node) -> bool:
        return node.name.startswith(exit_name(self._state.identity.name))

    def _finish_after_exit(self, handler: Node) -> None:
        entry = self._state.nodes[self._state.identity.name]
        phase, message = self._main_result(entry)
        if phase is Phase.SUCCEEDED and handler.phase.is_failure:
            phase, message = handler.phase, handler.message
        self._finish(phase, message)

    def _main_result(self, entry: Node) -> tuple[Phase, str]:
        """What the entry node makes of the run (§11), and a termination of it (§15)."""
        if self._state.terminated and (entry.phase.is_failure or self._anything_was_stopped()):
            return Phase.FAILED, KillReason.TERMINATED.value
        if entry.phase.is_failure:
            return entry.phase, entry.message
        return Phase.SUCCEEDED, ""

    def _anything_was_stopped(self) -> bool:
        stopped = KillReason.TERMINATED.value
        return any(node.phase is Phase.FAILED and node.message == stopped for node in self._state.nodes.values())

    def _finish(self, phase: Phase, message: str) -> None:
        self._state.phase = phase
        self._state.message = message
        self._state.finished_at = whole_seconds(self._now)

    # -- events --------------------------------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        match event:
            case Terminated():
                self._state.terminated = True
                self._stop(KillReason.TERMINATED)
            case StepWaits():
                self._step_waits(event)
            case StepStarted():
                self._step_started(event)
            case StepFinished():
                event = self._with_reason(event)
                self._step_ended(event.node_id, event.at, partial(_finished_node, event))
            case StepLost():
                self._step_ended(event.node_id, event.at, _lost_node)
            case _:
                assert_never(event)

    def _with_reason(self, event: StepFinished) -> StepFinished:
        """A step that died of TERM or KILL after we ordered its end was ended by us, even if nobody says so."""
        frame = self._state._frames.get(event.node_id)
        if event.killed is None and event.exit_code in {137, 143} and isinstance(frame, _Leaf):
            return msgspec.structs.replace(event, killed=frame.killing)
        return event

    def _step_waits(self, event: StepWaits) -> None:
        node = self._state.nodes.get(event.node_id)
        if node is not None and node.phase is Phase.PENDING and node.message != event.reason:
            self._put(msgspec.structs.replace(node, message=event.reason))

    def _step_started(self, event: StepStarted) -> None:
        frame = self._state._frames.get(event.node_id)
        node = self._state.nodes.get(event.node_id)
        if not isinstance(frame, _Leaf) or node is None or node.phase is not Phase.PENDING:
            return
        started_at = whole_seconds(event.at)
        self._put(msgspec.structs.replace(node, phase=Phase.RUNNING, message="", started_at=started_at))
        self._watch_deadline(frame, event.at)

    def _step_ended(self, ended_id: str, at: datetime, outcome: Callable[[Template, Node], Node]) -> None:
        frame = self._state._frames.get(ended_id)
        if isinstance(frame, _Leaf):
            node = outcome(self._declared(frame), self._state.nodes[ended_id])
            self._fulfil(frame, msgspec.structs.replace(node, finished_at=whole_seconds(at)), at)

    def _declared(self, frame: _Leaf) -> Template:
        """The leaf's template with its outputs filled: literal values and paths may hold variables."""
        node = self._state.nodes[frame.node_id]
        lookup = first_of(
            self._plan.globals,
            inputs_lookup(frame.inputs),
            {"pod.name": node.id, "retries": str(frame.call.attempt or 0)}.get,
        )
        template = frame.call.template
        return msgspec.structs.replace(template, outputs=fill(template.outputs, lookup))

    # -- time ----------------------------------------------------------------------------------------------------------

    def _ring(self) -> None:
        """Whatever was due by now."""
        deadline = self._run_deadline()
        if deadline is not None and self._now >= deadline:
            self._stop(KillReason.RUN_DEADLINE)
            self._work()
        timers = self._state._timers
        while timers and timers[0][0] <= self._now:
            due, _, frame_id = heapq.heappop(timers)
            self._ring_frame(frame_id, due)
            self._work()

    def _ring_frame(self, frame_id: str, due: datetime) -> None:
        frame = self._state._frames.get(frame_id)
        match frame:
            case _Leaf() if frame.killing is None and frame.deadline is not None and frame.deadline <= due:
                self._kill_step(frame, KillReason.STEP_DEADLINE)
            case _Pause() if frame.until <= due:
                self._end(frame, Phase.SUCCEEDED)
            case _Retry() if frame.wait_until is not None and frame.wait_until <= due:
                self._next_attempt(frame)
            case _:
                pass  # The timer of something that ended, or of an attempt with the same name before it.

    def _set_timer(self, when: datetime, frame_id: str) -> None:
        self._state._timers_set += 1
        heapq.heappush(self._state._timers, (when, self._state._timers_set, frame_id))

    def _wake_at(self) -> datetime | None:
        state = self._state
        if state.finished_at is not None:
            return None
        timers = state._timers
        while timers and timers[0][2] not in state._frames:
            heapq.heappop(timers)
        due = [timers[0][0]] if timers else []
        deadline = self._run_deadline()
        if deadline is not None and state._stopping is None:
            due.append(deadline)
        return min(due, default=None)

    def _run_deadline(self) -> datetime | None:
        """When the main part must be over; the exit handler has no such limit (§11)."""
        seconds = self._plan.run_deadline_seconds
        begun = self._state.deadline_from or self._state.started_at
        if seconds is None or begun is None or self._state._exit_begun:
            return None
        return begun + timedelta(seconds=seconds)

    def _watch_deadline(self, leaf: _Leaf, started: datetime) -> None:
        """A step's own deadline counts from its process's start, each attempt anew."""
        if leaf.deadline_seconds is not None:
            due = started + timedelta(seconds=leaf.deadline_seconds)
            leaf.deadline = min(due, leaf.deadline) if leaf.deadline else due
        if leaf.deadline is not None:
            self._set_timer(leaf.deadline, leaf.node_id)

    # -- stopping ------------------------------------------------------------------------------------------------------

    def _stop(self, reason: KillReason) -> None:
        """Nothing new starts; what runs is killed and ends when its end is reported; what waits has failed."""
        state = self._state
        # A user's word outranks the deadline's: who waits for the end of a step may have more patience with the latter.
        if state._stopping in (reason, KillReason.TERMINATED):
            return
        state._stopping = reason
        for frame in [each for each in state._frames.values() if not each.call.exempt]:
            match frame:
                case _Leaf():
                    self._kill_step(frame, reason)
                case _Pause():
                    self._end(frame, Phase.FAILED, reason.value)
                case _Retry() if frame.wait_until is not None:
                    self._give_up_retry(frame)
                case _Group():
                    self._release_all(frame.held)
                case _:
                    pass
        self._release_all(state._held)

    def _kill_step(self, leaf: _Leaf, reason: KillReason) -> None:
        leaf.killing = leaf.killing or reason
        self._kill.append(Kill(node_id=leaf.node_id, reason=reason))
        node = self._state.nodes[leaf.node_id]
        if node.phase is Phase.PENDING:
            self._end(leaf, Phase.FAILED, reason.value)

    def _stopping(self, call: _Call) -> KillReason | None:
        return None if call.exempt else self._state._stopping

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _soon(self, function: Callable[..., None], *args: object, **kwargs: object) -> None:
        self._todo.append(partial(function, *args, **kwargs))

    def _begin(self, call: _Call) -> None:
        """Create the node of a call, or find it stored; or hold the call until there is room."""
        stored = self._state.nodes.get(self._id(call.name))
        if isinstance(call.caller, _Dag):
            call.caller.without_room.discard(call.name)
        if stored is not None and stored.phase.is_fulfilled:
            self._link_all(call.links, stored.id)
            self._tell(call, stored)
            return
        if stored is None and self._newcomers is not None:
            self._newcomers.append(call)
            return
        if stored is None and not self._has_room(call):
            if isinstance(call.caller, _Dag):
                call.caller.without_room.add(call.name)
                self._crowded[call.caller.node_id] = call.caller
            # Now, together with its siblings: a wide node must not be written anew for each child that finds room.
            self._link_all(call.links, self._id(call.name))
            return
        try:
            inputs = stored.inputs if stored is not None and stored.inputs else None
            inputs = inputs or self._plan.bind(call.template, call.parameters, call.artifacts)
            if stored is None:
                self._check_limits(call)
            self._open(call, inputs)
        except ManifestError as error:
            self._refuse(call, error.reason)

    def _open(self, call: _Call, inputs: NodeInputs) -> None:
        template = call.template
        strategy = self._plan.retry_strategy(template)
        if strategy is not None and call.attempt is None:
            self._open_retry(call, inputs, strategy)
        elif template.dag is not None:
            self._open_dag(call, inputs)
        elif template.steps is not None:
            self._open_steps(call, inputs)
        elif template.suspend is not None:
            self._open_pause(call, inputs)
        else:
            self._open_leaf(call, inputs)

    def _check_limits(self, call: _Call) -> None:
        limits = self._state.limits
        if call.template.is_group and call.depth > limits.depth:
            raise ManifestError(f"templates are nested deeper than {limits.depth} levels (HEADRACE_MOST_LEVELS)")
        if len(self._state.nodes) >= limits.nodes:
            raise ManifestError(f"the run has more than {limits.nodes} nodes (HEADRACE_MOST_NODES)")

    def _refuse(self, call: _Call, reason: str) -> None:
        """The call makes no sense: a node of type Skipped says why, in phase Error."""
        node = self._not_run(call.name, call.boundary, call.template.name, Phase.ERROR, reason)
        self._link_all(call.links, node.id)
        if isinstance(call.caller, _Steps):
            call.caller.problem = call.caller.problem or reason
        self._tell(call, node)

    def _has_room(self, call: _Call) -> bool:
        """Whether the limits let the call begin; if not, it is queued where room will appear (§11)."""
        template = call.template
        is_retry = call.attempt is None and self._plan.retry_strategy(template) is not None
        if is_retry or self._stopping(call) is not None or template.suspend is not None:
            return True
        boundary = call.boundary
        limit = boundary.call.template.parallelism if boundary is not None else None
        if boundary is not None and limit and self._state._active_children.get(boundary.node_id, 0) >= limit:
            boundary.held.append(call)
            return False
        pods = self._state.workflow.spec.parallelism
        if not template.is_group and pods and self._state._active_pods >= pods:
            self._state._held.append(call)
            return False
        return True

    def _release(self, boundary: _Group | None) -> None:
        """A node ended: as many held calls begin as there is room for now."""
        if boundary is not None and boundary.held:
            limit = boundary.call.template.parallelism or math.inf
            while boundary.held and self._state._active_children.get(boundary.node_id, 0) < limit:
                self._begin(boundary.held.popleft())
        held = self._state._held
        pods = self._state.workflow.spec.parallelism or math.inf
        while held and self._state._active_pods < pods:
            self._begin(held.popleft())

    def _release_all(self, held: deque[_Call]) -> None:
        while held:
            self._soon(self._begin, held.popleft())

    def _tell(self, call: _Call, node: Node) -> None:
        """The node is fulfilled: tell the caller, after the hook if there is one."""
        if call.hook is not None and self._has_ended(node):
            self._soon(self._begin_hook, call, call.hook, node)
        else:
            self._tell_caller(call, node)

    def _tell_caller(self, call: _Call, node: Node) -> None:
        match call.caller:
            case None:
                self._soon(self._top_ended, node)
            case _Dag() as dag:
                self._soon(self._task_done, dag, call.task, node.id)
            case _Steps() as steps:
                self._soon(self._step_done, steps)
            case _TaskGroup() as group:
                self._soon(self._item_done, group)
            case _Retry() as retry:
                self._soon(self._attempt_done, retry, node.id)
            case _Hooked() as hooked:
                self._soon(self._hook_done, hooked)
            case _:
                assert_never(call.caller)

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def _has_ended(self, node: Node) -> bool:
        """Whether something ran to an end; what a stop kept from beginning has no end to speak of."""
        stopping = self._state._stopping
        was_kept = stopping is not None and node.outputs is None and node.message == stopping.value
        return node.phase.is_completed and not was_kept

    def _begin_hook(self, call: _Call, hook: Hook, ended: Node) -> None:
        """As the run's exit handler, it runs also when the run is stopped; what becomes of it fails nobody."""
        group = call.boundary
        assert isinstance(group, _Dag | _Steps)
        if isinstance(group, _Dag):
            group.done[call.task] = ended.id  # The hook may ask for what its own task gave.
        hooked = _Hooked(call=call, node_id=ended.id)
        name = exit_name(call.name)
        scope = self._hook_scope(call, ended, group)
        try:
            if hook.expression and not holds(hook.expression, scope):
                self._hook_done(hooked)
                return
            task, artifacts = self._hook_task(call, hook, scope, group)
            of_hook = self._call_of(group, task, name, hooked, (ended.id,), artifacts)
        except (ManifestError, ExpressionError) as error:
            node = self._not_run(name, group, hook.template, Phase.ERROR, str(error))
            self._link_all((ended.id,), node.id)
            self._hook_done(hooked)
            return
        of_hook.exempt = True
        self._begin(of_hook)

    def _hook_task(
        self, call: _Call, hook: Hook, scope: Lookup, group: _Dag | _Steps
    ) -> tuple[Task, dict[str, NodeArtifact]]:
        """The hook as a task of the group, and its artifacts. Without arguments it gets the run's own."""
        arguments = hook.arguments
        if not arguments.parameters and not arguments.artifacts:
            of_run = self._plan.globals.arguments
            parameters = Arguments(parameters=of_run.parameters)
            return Task(name=call.task, template=hook.template, arguments=parameters), workflow_artifacts(of_run)
        task = Task(name=call.task, template=hook.template, arguments=arguments)
        task = self._filled_task(task, group, scope)
        return task, self._artifact_arguments(group, task)

    def _hook_scope(self, call: _Call, ended: Node, group: _Dag | _Steps) -> Lookup:
        of_group = partial(self._step_value, group) if isinstance(group, _Steps) else partial(self._task_value, group)
        own = partial(self._own_step_value, call, ended)
        return first_of(self._plan.globals, inputs_lookup(group.inputs), own, of_group)

    def _own_step_value(self, call: _Call, ended: Node, name: str) -> str | None:
        """`steps.S.…` of the step whose hook asks: of this item, where it expands."""
        prefix = f"steps.{call.task}."
        return node_value(self._effective(ended), name.removeprefix(prefix)) if name.startswith(prefix) else None

    def _hook_done(self, hooked: _Hooked) -> None:
        self._tell_caller(hooked.call, self._state.nodes[hooked.node_id])

    # -- leaves --------------------------------------------------------------------------------------------------------

    def _open_leaf(self, call: _Call, inputs: NodeInputs) -> None:
        reason = self._stopping(call)
        is_stored = self._id(call.name) in self._state.nodes
        order = None if reason and not is_stored else self._order(call, inputs)
        node = self._find_or_create(call, NodeType.POD, inputs, phase=Phase.PENDING)
        frame = _Leaf(call=call, node_id=node.id, inputs=inputs)
        if isinstance(call.caller, _Retry):
            frame.deadline = self._max_duration_end(call.caller)
        self._state._frames[node.id] = frame
        if order is None:
            self._end(frame, Phase.FAILED, reason.value if reason else "")
            return
        frame.deadline_seconds = order.deadline_seconds
        if node.phase is Phase.PENDING:
            self._start[node.id] = order
        else:
            self._reattach.append(order)
            # The stored start is rounded down: a second more never kills early.
            self._watch_deadline(frame, node.started_at + timedelta(seconds=1))
        if reason is not None:
            self._kill_step(frame, reason)

    def _order(self, call: _Call, inputs: NodeInputs) -> StepOrder:
        """Raises ManifestError, before there is a node: a text that makes no sense is no execution to be retried."""
        return self._plan.order(
            call.template,
            inputs,
            node_id=self._id(call.name),
            node_name=call.name,
            attempt=call.attempt,
            needs_result=call.needs_result,
        )

    def _open_pause(self, call: _Call, inputs: NodeInputs) -> None:
        assert call.template.suspend is not None
        seconds = duration_seconds(self._plan.filled(call.template.suspend.duration or "", inputs))
        node = self._find_or_create(call, NodeType.SUSPEND, inputs)
        frame = _Pause(call=call, node_id=node.id, until=node.started_at + timedelta(seconds=seconds))
        self._state._frames[node.id] = frame
        reason = self._stopping(call)
        if reason is not None:
            self._end(frame, Phase.FAILED, reason.value)
        else:
            self._set_timer(frame.until, node.id)

    # -- retries -------------------------------------------------------------------------------------------------------

    def _open_retry(self, call: _Call, inputs: NodeInputs, strategy: RetryStrategy) -> None:
        rule = self._plan.retry_rule(strategy, inputs)
        node = self._find_or_create(call, NodeType.RETRY, inputs)
        frame = _Retry(call=call, node_id=node.id, rule=rule, inputs=inputs)
        self._state._frames[node.id] = frame
        while self._id(attempt_name(call.name, frame.attempts + 1)) in self._state.nodes:
            frame.attempts += 1  # After a restart: the last attempt goes on at once, not after another wait.
        self._begin_attempt(frame)

    def _next_attempt(self, frame: _Retry) -> None:
        frame.wait_until = None
        frame.attempts += 1
        self._put(msgspec.structs.replace(self._state.nodes[frame.node_id], message=""))
        self._begin_attempt(frame)

    def _begin_attempt(self, frame: _Retry) -> None:
        """Attempt number `attempts`, counted from 0; earlier ones are over."""
        call = frame.call
        self._begin(
            _Call(
                caller=frame,
                name=attempt_name(call.name, frame.attempts),
                template=call.template,
                boundary=call.boundary,
                parameters={each.name: each.value or "" for each in frame.inputs.parameters},
                artifacts={each.name: each for each in frame.inputs.artifacts if each.has_location},
                links=(frame.node_id,),
                needs_result=call.needs_result,
                depth=call.depth,
                exempt=call.exempt,
                attempt=frame.attempts,
            )
        )

    def _attempt_done(self, frame: _Retry, attempt_id: str) -> None:
        attempt = self._state.nodes[attempt_id]
        if not attempt.phase.is_failure:
            node = self._state.nodes[frame.node_id]
            self._fulfil(frame, msgspec.structs.replace(node, phase=attempt.phase, message="", outputs=attempt.outputs))
            return
        if self._stopping(frame.call) is not None:
            self._give_up_retry(frame)
            return
        try:
            verdict = self._retry_verdict(frame, attempt)
        except ExpressionError as error:
            self._end(frame, Phase.ERROR, f"retryStrategy.expression: {error}", outputs=attempt.outputs)
            return
        if isinstance(verdict, str):
            self._end(frame, attempt.phase, verdict, outputs=attempt.outputs)
            return
        if verdict <= self._now:
            self._next_attempt(frame)
            return
        frame.wait_until = verdict
        self._set_timer(verdict, frame.node_id)
        node = self._state.nodes[frame.node_id]
        wait = math.ceil((verdict - self._now).total_seconds())
        self._put(msgspec.structs.replace(node, message=f"Backoff for {spoken_duration(wait)}"))

    def _retry_verdict(self, frame: _Retry, attempt: Node) -> str | datetime:
        """When the next attempt begins, or why there is none (§10)."""
        rule = frame.rule
        # An attempt of type Skipped was never executed: the next one would be refused for the same reason.
        if attempt.type is NodeType.SKIPPED or not _policy_matches(rule.policy, attempt):
            return attempt.message
        if rule.expression and not holds(rule.expression, self._attempt_values(frame, attempt)):
            return "retryStrategy.expression evaluated to false"
        if rule.limit is not None and frame.attempts >= rule.limit:
            return "No more retries left"
        if rule.wait_seconds is None:
            return self._now
        ended = self._now
        if attempt.finished_at is not None and self._now - attempt.finished_at > timedelta(seconds=1):
            ended = attempt.finished_at + timedelta(seconds=1)  # Found after a restart; rounded up, as it was cut off.
        last = self._max_duration_end(frame)
        if last is not None and self._now >= last:
            return "Max duration limit exceeded"
        begins = ended + timedelta(seconds=rule.wait_seconds_after(frame.attempts))
        if last is not None and begins > last:
            return "Backoff would exceed max duration limit"
        return begins

    def _attempt_values(self, frame: _Retry, attempt: Node) -> Lookup:
        """What the strategy's expression may ask for."""
        exit_code = attempt.outputs.exit_code if attempt.outputs else None
        seconds = ((attempt.finished_at or self._now) - attempt.started_at).total_seconds()
        own = {
            "retries": str(frame.attempts),
            "lastRetry.status": attempt.phase.value,
            "lastRetry.exitCode": exit_code or "-1",
            "lastRetry.message": attempt.message,
            "lastRetry.duration": scalar_text(seconds),
        }
        return first_of(own.get, inputs_lookup(frame.inputs), self._plan.globals)

    def _max_duration_end(self, frame: _Retry) -> datetime | None:
        if frame.rule.longest_seconds is None:
            return None
        first = self._state.nodes.get(self._id(attempt_name(frame.call.name, 0)))
        begun = first.started_at if first else self._now
        return begun + timedelta(seconds=frame.rule.longest_seconds)

    def _give_up_retry(self, frame: _Retry) -> None:
        """The run ends: phase of the last attempt, and no new one."""
        last = self._state.nodes[self._id(attempt_name(frame.call.name, frame.attempts))]
        message = last.message
        deadline = self._run_deadline()
        if self._state._stopping is KillReason.RUN_DEADLINE and deadline is not None:
            message = f"retry exceeded workflow deadline {timestamp(deadline)}"
        self._end(frame, last.phase, message, outputs=last.outputs)

    # -- DAGs ----------------------------------------------------------------------------------------------------------

    def _open_dag(self, call: _Call, inputs: NodeInputs) -> None:
        plan = self._plan.dag(call.template)
        node = self._find_or_create(call, NodeType.DAG, inputs)
        frame = _Dag(
            call=call,
            node_id=node.id,
            inputs=inputs,
            plan=plan,
            waiting={name: len(task.dependencies) for name, task in plan.tasks.items()},
        )
        self._state._frames[node.id] = frame
        for name, task in plan.tasks.items():
            if not task.dependencies:
                self._soon(self._consider, frame, name)

    def _consider(self, dag: _Dag, name: TaskName) -> None:
        """All that the task depends on is fulfilled: run, skip or omit it."""
        dag.considered += 1
        planned = dag.plan.tasks[name]
        node_name = task_name(dag.call.name, name)
        links = tuple(self._task_links(dag, planned.dependencies))
        stored = self._state.nodes.get(self._id(node_name))
        if stored is not None and stored.phase.is_fulfilled:
            self._link_all(links, stored.id)
            self._tell(self._call_of(dag, planned.task, node_name, dag, links, artifacts={}), stored)
            return
        if planned.condition is not None and not planned.condition.holds(self._outcomes(dag, planned.dependencies)):
            message = "omitted: depends condition not met"
            self._skip_task(dag, planned.task, node_name, links, Phase.OMITTED, message)
            return
        try:
            self._begin_task(dag, planned.task, node_name, links)
        except (ManifestError, ExpressionError, RecursionError) as error:
            self._skip_task(dag, planned.task, node_name, links, Phase.ERROR, str(error))

    def _begin_task(self, dag: _Dag, declared: Task, node_name: str, links: tuple[str, ...]) -> None:
        lookup = first_of(self._plan.globals, inputs_lookup(dag.inputs), partial(self._task_value, dag))
        task = self._filled_task(declared, dag, lookup)
        if task.expands:
            self._begin_loop(dag, task, node_name, links, lookup)
            return
        if (reason := _reason_to_skip(task)) is not None:
            self._skip_task(dag, task, node_name, links, Phase.SKIPPED, reason)
            return
        self._begin(self._call_of(dag, task, node_name, dag, links))

    def _skip_task(
        self, dag: _Dag, task: Task, node_name: str, links: tuple[str, ...], phase: Phase, message: str
    ) -> None:
        self._skip_call(self._call_of(dag, task, node_name, dag, links, artifacts={}), phase, message)

    def _begin_loop(self, dag: _Dag, task: Task, node_name: str, links: tuple[str, ...], lookup: Lookup) -> None:
        """A TaskGroup, and below it one call per item. Errors are the task's, so they come before the first node."""
        if not task.when or has_item_tag(task.when) or _reason_to_skip(task) is None:
            self._artifact_arguments(dag, task)
        plain = _without_loop(task)
        items = [(item_text(item), fill(plain, item_lookup(item), lookup)) for item in expand(task)]
        call = self._call_of(dag, task, node_name, dag, links, artifacts={})
        node = self._find_or_create(call, NodeType.TASK_GROUP, None)
        group = _TaskGroup(call=call, node_id=node.id, open=len(items))
        self._state._frames[node.id] = group
        if not items:
            self._end(group, Phase.SUCCEEDED)
        for index, (text, item_task) in enumerate(items):
            self._soon(self._begin_item, dag, group, item_task, item_name(node_name, index, text))

    def _begin_item(self, dag: _Dag, group: _TaskGroup, task: Task, node_name: str) -> None:
        call = self._call_of(dag, task, node_name, group, (group.node_id,), artifacts={})
        try:
            reason = _reason_to_skip(task)
            call.artifacts = {} if reason else self._artifact_arguments(dag, task)
        except (ManifestError, ExpressionError, RecursionError) as error:
            self._refuse(call, str(error))
            return
        if reason is None:
            self._begin(call)
        else:
            self._skip_call(call, Phase.SKIPPED, reason)

    def _skip_call(self, call: _Call, phase: Phase, reason: str) -> None:
        node = self._not_run(call.name, call.boundary, call.template.name, phase, reason)
        self._link_all(call.links, node.id)
        self._tell(call, node)

    def _item_done(self, group: _TaskGroup) -> None:
        group.open -= 1
        if group.open:
            return
        failed = [node.phase for node in self._items(self._state.nodes[group.node_id]) if node.phase.is_failure]
        self._end(group, failed[-1] if failed else Phase.SUCCEEDED)

    def _task_done(self, dag: _Dag, name: TaskName, done_id: str) -> None:
        dag.done[name] = done_id
        dag.settled += 1
        for dependent in dag.plan.tasks[name].dependents:
            dag.waiting[dependent] -= 1
            if dag.waiting[dependent] == 0:
                self._soon(self._consider, dag, dependent)
        if dag.settled == len(dag.plan.tasks):
            self._end_dag(dag, self._dag_phase(dag))
        elif dag.without_room:
            self._crowded[dag.node_id] = dag

    def _fail_fast(self, dag: _Dag) -> None:
        """A DAG that has failed does not wait for room: when nothing of it runs, the rest gets no node (§6)."""
        assert dag.call.template.dag is not None
        waiting = len(dag.without_room)
        is_idle = waiting > 0 and waiting == dag.considered - dag.settled
        if not is_idle or not dag.call.template.dag.fail_fast or dag.node_id not in self._state._frames:
            return
        phase = self._dag_phase(dag)
        if not phase.is_failure:
            return
        for held in (dag.held, self._state._held):
            calls = list(held)
            held.clear()
            held.extend(call for call in calls if call.caller is not dag)
            for call in calls:
                if call.caller is dag:
                    self._unlink(call.links, self._id(call.name))
        self._end_dag(dag, phase)

    def _end_dag(self, dag: _Dag, phase: Phase) -> None:
        ends = (dag.done[target] for target in dag.plan.targets if target in dag.done)
        outbound = tuple(dict.fromkeys(each for end in ends for each in self._outbound(end)))
        self._end_group(dag, phase, "", outbound, partial(self._task_value, dag))

    def _end_group(self, group: _Group, phase: Phase, message: str, outbound: tuple[str, ...], scope: Lookup) -> None:
        outputs = None
        if phase is Phase.SUCCEEDED:
            try:
                outputs = self._group_outputs(group, scope)
            except ManifestError as error:
                phase, message = Phase.ERROR, error.reason
        node = self._state.nodes[group.node_id]
        node = msgspec.structs.replace(node, phase=phase, message=message, outputs=outputs, outbound_nodes=outbound)
        self._fulfil(group, node)

    def _dag_phase(self, dag: _Dag) -> Phase:
        """The phase of the first failed target in name order; a target that did not run carries its ancestors' (§6)."""
        template = dag.call.template
        assert template.dag is not None
        carried: dict[TaskName, frozenset[Phase]] = {}
        failed = []
        for target in dag.plan.targets:
            if target not in dag.done:
                continue
            phases = self._carried_out(dag, target, carried)
            phase = next((each for each in (Phase.FAILED, Phase.ERROR) if each in phases), None)
            if phase is not None and not _continues_on(dag.plan.tasks[target].task.continue_on, phase):
                failed.append(phase)
        if not failed:
            return Phase.SUCCEEDED
        return failed[0] if template.dag.fail_fast else failed[-1]

    def _carried_out(self, dag: _Dag, task: TaskName, known: dict[TaskName, frozenset[Phase]]) -> frozenset[Phase]:
        """The phases of what completed last on the paths through this task.

        A task that completed carries its own phase; one that was skipped or omitted those of its dependencies. Inside
        a nested group the group's own phase stands for its members'.
        """
        stack = [task]
        while stack:
            name = stack[-1]
            phase = self._state.nodes[dag.done[name]].phase
            dependencies = dag.plan.tasks[name].dependencies
            unknown = [] if phase.is_completed else [each for each in dependencies if each not in known]
            if unknown:
                stack.extend(unknown)
                continue
            stack.pop()
            known[name] = (
                frozenset({phase}) if phase.is_completed else frozenset().union(*(known[each] for each in dependencies))
            )
        return known[task]

    def _outcomes(self, dag: _Dag, names: Iterable[TaskName]) -> dict[str, frozenset[Outcome]]:
        return {name: self._outcome(self._state.nodes[dag.done[name]]) for name in names}

    def _outcome(self, node: Node) -> frozenset[Outcome]:
        outcomes = {_OUTCOMES[node.phase]} if node.phase in _OUTCOMES else set()
        if node.type is NodeType.TASK_GROUP:
            phases = [item.phase for item in self._items(node)]
            if Phase.SUCCEEDED in phases:
                outcomes.add(Outcome.ANY_SUCCEEDED)
            if phases and all(phase.is_failure for phase in phases):
                outcomes.add(Outcome.ALL_FAILED)
        return frozenset(outcomes)

    def _task_links(self, dag: _Dag, dependencies: Iterable[TaskName]) -> Iterator[str]:
        """Whose child a task is: the DAG's without dependencies, else of all their last nodes."""
        found = False
        for name in dependencies:
            found = True
            yield from self._outbound(dag.done[name])
        if not found:
            yield dag.node_id

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _open_steps(self, call: _Call, inputs: NodeInputs) -> None:
        node = self._find_or_create(call, NodeType.STEPS, inputs)
        frame = _Steps(call=call, node_id=node.id, inputs=inputs)
        self._state._frames[node.id] = frame
        self._soon(self._begin_group, frame)

    def _begin_group(self, frame: _Steps) -> None:
        """Open the step group `index`, or step over a stored one that is over."""
        assert frame.call.template.steps is not None
        declared = frame.call.template.steps[frame.index]
        name = group_name(frame.call.name, frame.index)
        links = tuple(self._step_outbound(frame)) if frame.index else (frame.node_id,)
        frame.current = [step.name for step in declared]
        group = self._state.nodes.get(self._id(name))
        if group is None:
            group = self._new_node(name, NodeType.STEP_GROUP, Phase.RUNNING, frame)
            self._put(group)
        self._link_all(links, group.id)
        if group.phase.is_fulfilled:
            self._recall_steps(frame, group, declared)
            self._soon(self._group_ended, frame, group.id)
            return
        frame.open = 1  # Held while the steps are laid out, so that an early end does not close the group.
        frame.problem = None
        for step in declared:
            self._soon(self._lay_out_step, frame, step, name, group.id)
        self._soon(self._step_done, frame)

    def _recall_steps(self, frame: _Steps, group: Node, declared: Sequence[Task]) -> None:
        for step in declared:
            name = task_name(group.name, step.name)
            children = [self._state.nodes[each] for each in self._children(group.id) if each in self._state.nodes]
            single = [each for each in children if each.name == name]
            frame.steps[step.name] = [each.id for each in single or _in_index_order(children, name)]

    def _lay_out_step(self, frame: _Steps, declared: Task, group: str, group_id: str) -> None:
        node_name = task_name(group, declared.name)
        frame.steps[declared.name] = []
        try:
            lookup = first_of(self._plan.globals, inputs_lookup(frame.inputs), partial(self._step_value, frame))
            task = self._filled_task(declared, frame, lookup)
            tasks = self._step_tasks(task, node_name, lookup)
        except (ManifestError, ExpressionError, RecursionError) as error:
            self._place_step(frame, declared, node_name, group_id, partial(self._broken_step, str(error)))
            return
        if not tasks:
            self._place_step(frame, task, node_name, group_id, partial(self._skipped_step, "Skipped, empty params"))
        for name, each in tasks:
            self._place_step(frame, each, name, group_id, partial(self._begin_step, frame, each))

    def _step_tasks(self, task: Task, node_name: str, lookup: Lookup) -> list[tuple[str, Task]]:
        if not task.expands:
            return [(node_name, task)]
        plain = _without_loop(task)
        return [
            (item_name(node_name, index, item_text(item)), fill(plain, item_lookup(item), lookup))
            for index, item in enumerate(expand(task))
        ]

    def _place_step(
        self, frame: _Steps, task: Task, node_name: str, group_id: str, begin: Callable[[_Call], None]
    ) -> None:
        frame.open += 1
        frame.steps[task.name].append(self._id(node_name))
        begin(self._call_of(frame, task, node_name, frame, (group_id,), artifacts={}))

    def _begin_step(self, frame: _Steps, task: Task, call: _Call) -> None:
        try:
            reason = _reason_to_skip(task)
            call.artifacts = {} if reason else self._artifact_arguments(frame, task)
        except (ManifestError, ExpressionError, RecursionError) as error:
            self._refuse(call, str(error))
            return
        if reason is None:
            self._begin(call)
        else:
            self._skip_call(call, Phase.SKIPPED, reason)

    def _broken_step(self, reason: str, call: _Call) -> None:
        self._refuse(call, reason)

    def _skipped_step(self, reason: str, call: _Call) -> None:
        self._skip_call(call, Phase.SKIPPED, reason)

    def _step_done(self, frame: _Steps) -> None:
        frame.open -= 1
        if frame.open:
            return
        group = self._state.nodes[self._id(group_name(frame.call.name, frame.index))]
        phase, message = self._group_result(frame)
        self._put(msgspec.structs.replace(group, phase=phase, message=message, finished_at=whole_seconds(self._now)))
        self._group_ended(frame, group.id)

    def _group_result(self, frame: _Steps) -> tuple[Phase, str]:
        if frame.problem is not None:
            return Phase.ERROR, frame.problem
        assert frame.call.template.steps is not None
        for step in frame.call.template.steps[frame.index]:
            for each in frame.steps[step.name]:
                phase = self._state.nodes[each].phase
                if phase.is_failure and not _continues_on(step.continue_on, phase):
                    return Phase.FAILED, f"child '{each}' failed"
        return Phase.SUCCEEDED, ""

    def _group_ended(self, frame: _Steps, group_id: str) -> None:
        assert frame.call.template.steps is not None
        group = self._state.nodes[group_id]
        outbound = tuple(self._step_outbound(frame))
        scope = partial(self._step_value, frame)
        if group.phase.is_failure:
            self._end_group(frame, Phase.FAILED, group.message, outbound, scope)
        elif frame.index + 1 < len(frame.call.template.steps):
            frame.index += 1
            self._soon(self._begin_group, frame)
        else:
            self._end_group(frame, Phase.SUCCEEDED, "", outbound, scope)

    def _step_outbound(self, frame: _Steps) -> Iterator[str]:
        for step in frame.current:
            for each in frame.steps[step]:
                yield from self._outbound(each)

    # -- tasks and what they refer to ----------------------------------------------------------------------------------

    def _filled_task(self, task: Task, group: _Group, lookup: Lookup) -> Task:
        """The task after its replacements: globals, inputs, then both again with the outputs of others (§4)."""
        of_call = first_of(inputs_lookup(group.inputs), self._plan.globals)
        return fill(self._plan.filled(task, group.inputs), lookup, of_call)

    def _call_of(
        self,
        group: _Dag | _Steps,
        task: Task,
        node_name: str,
        caller: _Caller,
        links: tuple[str, ...],
        artifacts: Mapping[str, NodeArtifact] | None = None,
    ) -> _Call:
        return _Call(
            caller=caller,
            name=node_name,
            template=self._plan.template(task.template),
            boundary=group,
            task=task.name,
            parameters=_parameter_arguments(task.arguments, group.inputs),
            artifacts=self._artifact_arguments(group, task) if artifacts is None else artifacts,
            links=links,
            needs_result=self._plan.asks_result(group.call.template, task.name),
            depth=group.call.depth + 1,
            exempt=group.call.exempt,
            # The items of a DAG's loop have none: it is called once, for all of them.
            hook=task.exit_hook if caller is group else None,
        )

    def _artifact_arguments(self, group: _Group, task: Task) -> dict[str, NodeArtifact]:
        """Where the artifacts lie that a task hands on. Raises ManifestError for one that must be there and is not."""
        found = {}
        for each in task.arguments.artifacts:
            artifact = located(each)
            if each.from_ is not None:
                artifact = self._artifact(group, only_tag(each.from_) or each.from_)
            if artifact is not None and artifact.has_location:
                found[each.name] = artifact
            elif not each.optional:
                raise ManifestError(f'Unable to resolve: "{only_tag(each.from_ or "") or each.from_}"')
        return found

    def _artifact(self, group: _Group, name: str) -> NodeArtifact | None:
        kind, _, rest = name.partition(".")
        if kind == "inputs":
            wanted = rest.removeprefix("artifacts.")
            return next((each for each in group.inputs.artifacts if each.name == wanted), None)
        if kind == "workflow":
            return self._plan.globals.exported_artifacts.get(rest.removeprefix("outputs.artifacts."))
        task, _, what = rest.partition(".")
        nodes = self._produced(group, TaskName(task))
        if not nodes or not what.startswith("outputs.artifacts."):
            return None
        outputs = self._effective(nodes[0]).outputs
        return outputs.artifact(what.removeprefix("outputs.artifacts.")) if outputs else None

    def _produced(self, group: _Group, task: TaskName) -> list[Node]:
        match group:
            case _Dag():
                return [self._state.nodes[group.done[task]]] if task in group.done else []
            case _Steps():
                ids = group.steps.get(task, [])
                return [self._state.nodes[each] for each in ids if each in self._state.nodes]
            case _:
                return []

    def _task_value(self, dag: _Dag, name: str) -> str | None:
        """`tasks.T.…` of a fulfilled task of the DAG."""
        kind, _, rest = name.partition(".")
        task, _, what = rest.partition(".")
        if kind != "tasks" or TaskName(task) not in dag.done:
            return None
        node = self._state.nodes[dag.done[TaskName(task)]]
        if node.type is NodeType.TASK_GROUP and what.startswith("outputs."):
            return self._aggregate(list(self._items(node)), node.template_name, what)
        return node_value(self._effective(node), what)

    def _step_value(self, frame: _Steps, name: str) -> str | None:
        """`steps.S.…` of the steps in earlier groups."""
        kind, _, rest = name.partition(".")
        step, _, what = rest.partition(".")
        declared = next((each for each in frame.call.template.tasks if each.name == step), None)
        nodes = self._produced(frame, TaskName(step))
        if kind != "steps" or declared is None or not nodes:
            return None
        if declared.expands and what.startswith("outputs."):
            return self._aggregate(nodes, declared.template, what)
        return node_value(self._effective(nodes[0]), what)

    def _aggregate(self, items: Sequence[Node], template: str, what: str) -> str | None:
        return aggregate(items, self._plan.template(TemplateName(template)).outputs, what)

    def _effective(self, node: Node) -> Node:
        """For a Retry node its last attempt, which is what references to it mean (§10)."""
        if node.type is not NodeType.RETRY:
            return node
        attempts = list(self._items(node))
        return attempts[-1] if attempts else node

    def _group_outputs(self, group: _Group, scope: Lookup) -> NodeOutputs | None:
        declared = group.call.template.outputs
        lookup = first_of(self._plan.globals, inputs_lookup(group.inputs), scope)
        parameters = tuple(
            NodeParameter(
                name=each.name,
                value=_group_output(each, lookup),
                value_from=msgspec.to_builtins(each.value_from) if each.value_from else None,
            )
            for each in declared.parameters
        )
        artifacts = []
        for each in declared.artifacts:
            name = only_tag(each.from_ or "") or each.from_ or ""
            artifact = self._artifact(group, name)
            if artifact is not None and artifact.has_location:
                artifacts.append(msgspec.structs.replace(artifact, name=each.name))
            elif not each.optional:
                raise ManifestError(f'Unable to resolve: "{name}"')
        if not parameters and not artifacts:
            return None
        return NodeOutputs(parameters=parameters, artifacts=tuple(artifacts))

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _id(self, name: str) -> str:
        return node_id(self._state.identity.name, name)

    def _new_node(self, name: str, type_: NodeType, phase: Phase, boundary: _Group | None, template: str = "") -> Node:
        now = whole_seconds(self._now)
        return Node(
            id=self._id(name),
            name=name,
            display_name=display_name(name, boundary.call.name if boundary else None),
            type=type_,
            phase=phase,
            started_at=now,
            finished_at=now if phase.is_fulfilled else None,
            template_name=template,
            template_scope=f"local/{self._state.identity.name}",
            boundary_id=boundary.node_id if boundary else "",
        )

    def _find_or_create(
        self, call: _Call, type_: NodeType, inputs: NodeInputs | None, *, phase: Phase = Phase.RUNNING
    ) -> Node:
        node = self._state.nodes.get(self._id(call.name))
        if node is None:
            node = self._new_node(call.name, type_, phase, call.boundary, call.template.name)
            if inputs is not None and (inputs.parameters or inputs.artifacts):
                node = msgspec.structs.replace(node, inputs=inputs)
            self._put(node)
        self._state._count(node)
        self._link_all(call.links, node.id)
        return node

    def _not_run(self, name: str, boundary: _Group | None, template: str, phase: Phase, message: str) -> Node:
        node = self._new_node(name, NodeType.SKIPPED, phase, boundary, template)
        node = msgspec.structs.replace(node, message=message)
        self._put(node)
        return node

    def _end(self, frame: _Frame, phase: Phase, message: str = "", outputs: NodeOutputs | None = None) -> None:
        node = msgspec.structs.replace(self._state.nodes[frame.node_id], phase=phase, message=message)
        self._fulfil(frame, msgspec.structs.replace(node, outputs=outputs) if outputs else node)

    def _fulfil(self, frame: _Frame, node: Node, at: datetime | None = None) -> None:
        """The node is over: store it, forget the frame, tell the caller, use the room."""
        if node.finished_at is None:
            node = msgspec.structs.replace(node, finished_at=whole_seconds(at or self._now))
        self._put(node)
        self._state._export(node)
        self._state._frames.pop(node.id, None)
        self._start.pop(node.id, None)
        self._tell(frame.call, node)
        if self._state._held or (frame.call.boundary is not None and frame.call.boundary.held):
            self._soon(self._release, frame.call.boundary)

    def _put(self, node: Node) -> None:
        self._state.nodes[node.id] = node
        self._state._count(node)
        self._changed[node.id] = None

    def _link_all(self, parents: Iterable[str], child: str) -> None:
        for parent in parents:
            linked = self._state._linked.get(parent)
            if linked is None:
                linked = self._state._linked[parent] = set(self._state.nodes[parent].children)
            if child not in linked:
                linked.add(child)
                self._new_children.setdefault(parent, []).append(child)

    def _unlink(self, parents: Iterable[str], child: str) -> None:
        for parent in parents:
            self._state._linked[parent].discard(child)
            if child in self._new_children.get(parent, ()):
                self._new_children[parent].remove(child)
            else:
                node = self._state.nodes[parent]
                kept = tuple(each for each in node.children if each != child)
                self._put(msgspec.structs.replace(node, children=kept))

    def _flush_children(self) -> None:
        """New links are added once a turn, so that a wide node's list is copied once."""
        for parent, new in self._new_children.items():
            node = self._state.nodes[parent]
            self._state.nodes[parent] = msgspec.structs.replace(node, children=(*node.children, *new))
            self._changed[parent] = None
        self._new_children.clear()

    def _children(self, parent: str) -> Iterator[str]:
        yield from self._state.nodes[parent].children
        yield from self._new_children.get(parent, ())

    def _items(self, node: Node) -> Iterator[Node]:
        """The items of a TaskGroup or the attempts of a Retry, in numeric order."""
        children = (self._state.nodes.get(each) for each in self._children(node.id))
        yield from _in_index_order((each for each in children if each is not None), node.name)

    def _outbound(self, last_id: str) -> tuple[str, ...]:
        """The nodes at which what follows this one hangs (§6, outboundNodes)."""
        node = self._state.nodes[last_id]
        match node.type:
            case NodeType.POD | NodeType.SKIPPED | NodeType.SUSPEND | NodeType.STEP_GROUP:
                return (node.id,)
            case NodeType.DAG | NodeType.STEPS:
                return node.outbound_nodes or (node.id,)
            case NodeType.TASK_GROUP:
                items = list(self._items(node))
                return tuple(each for item in items for each in self._outbound(item.id)) or (node.id,)
            case NodeType.RETRY:
                last = self._effective(node)
                return (node.id,) if last is node else self._outbound(last.id)
            case _:
                assert_never(node.type)


# -- rules without state -----------------------------------------------------------------------------------------------

_OUTCOMES = {
    Phase.SUCCEEDED: Outcome.SUCCEEDED,
    Phase.FAILED: Outcome.FAILED,
    Phase.ERROR: Outcome.ERRORED,
    Phase.SKIPPED: Outcome.SKIPPED,
}
"""Omitted is none of these: under plain dependencies it goes on down the line."""


def _finished_node(event: StepFinished, template: Template, node: Node) -> Node:
    """Who is to blame, in the order of §9: a stop from outside, the main process, then what went wrong beside it."""
    phase, message = Phase.SUCCEEDED, ""
    if event.killed is not None:
        phase, message = Phase.FAILED, event.killed.value
    elif event.exit_code is None:
        phase, message = event.error_phase, event.error or "the step did not start"
    elif event.exit_code != 0:
        phase, message = Phase.FAILED, exit_message(event.exit_code, out_of_memory=event.out_of_memory)
    elif event.error is not None:
        phase, message = event.error_phase, event.error
    outputs = _collected_outputs(template.outputs, event)
    return msgspec.structs.replace(node, phase=phase, message=message, outputs=outputs)


def _collected_outputs(declared: Arguments, event: StepFinished) -> NodeOutputs:
    """The declared outputs in the template's order; the log comes last (§9)."""
    found = event.outputs
    artifacts = [
        NodeArtifact(
            name=each.name,
            path=each.path,
            s3=found.artifacts.get(each.name),
            optional=each.optional,
            archive=each.archive,
            global_name=each.global_name,
        )
        for each in declared.artifacts
        if each.name in found.artifacts or each.optional
    ]
    if found.log is not None:
        artifacts.append(NodeArtifact(name="main-logs", s3=found.log, archive_logs=True))
    return NodeOutputs(
        parameters=tuple(_collected_parameters(declared.parameters, found)),
        artifacts=tuple(artifacts),
        result=found.result,
        exit_code=None if event.exit_code is None else str(event.exit_code),
    )


def _collected_parameters(declared: Iterable[Parameter], found: Collected) -> Iterator[NodeParameter]:
    for each in declared:
        value = found.parameters.get(each.name, each.value)
        if value is not None:
            value_from = msgspec.to_builtins(each.value_from) if each.value_from else None
            yield NodeParameter(name=each.name, value=value, value_from=value_from)


def _lost_node(_template: Template, node: Node) -> Node:
    return msgspec.structs.replace(node, phase=Phase.ERROR, message="pod deleted")


def _reason_to_skip(task: Task) -> str | None:
    """The message of a task whose `when` is false. Raises ExpressionError for one that cannot be read."""
    if not task.when or evaluate_when(task.when):
        return None
    return f"when '{task.when}' evaluated false"


def _without_loop(task: Task) -> Task:
    return msgspec.structs.replace(task, with_items=None, with_param=None, with_sequence=None)


def _parameter_arguments(arguments: Arguments, inputs: NodeInputs) -> dict[str, str]:
    return {each.name: each.value for each in arguments.parameters if each.value is not None}


def _group_output(parameter: Parameter, lookup: Lookup) -> str:
    """The value of a DAG's or Steps' output parameter; a text without braces is the value itself."""
    if parameter.value is not None:
        return fill(parameter.value, lookup)
    source = parameter.value_from
    value = None if source is None else _source_value(source, lookup)
    if value is not None:
        return value
    if source is not None and source.default is not None:
        return fill(source.default, lookup)
    raise ManifestError(f"Unable to resolve: {source and (source.expression or source.parameter)}")


def _source_value(source: ValueFrom, lookup: Lookup) -> str | None:
    if source.expression is not None:
        try:
            return text_of(read(source.expression), lookup)
        except ExpressionError as error:
            raise ManifestError(f"failed to evaluate {source.expression}: {error}") from error
    text = source.parameter
    if text is None:
        return None
    tag = only_tag(text)
    if tag is not None:
        return lookup(tag)
    value = fill(text, lookup)
    return None if value == text and any(expressions(text)) else value


def _continues_on(rule: ContinueOn | None, phase: Phase) -> bool:
    return rule is not None and ((phase is Phase.FAILED and rule.failed) or (phase is Phase.ERROR and rule.error))


_TRANSIENT = re.compile(r"timed? ?out|connection (reset|refused)|temporarily unavailable|too many requests", re.I)


def _policy_matches(policy: str, attempt: Node) -> bool:
    match policy:
        case "Always":
            return True
        case "OnError":
            return attempt.phase is Phase.ERROR
        case "OnTransientError":
            return _TRANSIENT.search(attempt.message) is not None
        case _:
            return attempt.phase is Phase.FAILED


def _in_index_order(nodes: Iterable[Node], name: str) -> list[Node]:
    """Those named `<name>(<index>…)`, by index: 10 comes after 9."""
    prefix = f"{name}("
    return sorted((each for each in nodes if each.name.startswith(prefix)), key=partial(_index, len(prefix)))


def _index(start: int, node: Node) -> int:
    digits = re.match(r"\d+", node.name[start:])
    return int(digits[0]) if digits else 0
