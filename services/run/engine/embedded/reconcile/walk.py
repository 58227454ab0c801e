"""The walk of one turn: calls that begin, and the news of their ends on the way to their callers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import assert_never

import msgspec

from services.run.engine.embedded.expression import ExpressionError
from services.run.engine.embedded.manifest import ManifestError, Task
from services.run.engine.embedded.nodes import Node, NodeInputs, NodeOutputs, Phase, whole_seconds
from services.run.engine.embedded.orders import StepOrder
from services.run.engine.embedded.reconcile.dags import Dags
from services.run.engine.embedded.reconcile.frames import (
    Call,
    Dag,
    Frame,
    Group,
    Hooked,
    Leaf,
    Pause,
    Retry,
    Steps,
    TaskGroup,
)
from services.run.engine.embedded.reconcile.graph import Graph
from services.run.engine.embedded.reconcile.hooks import Hooks
from services.run.engine.embedded.reconcile.leaves import Leaves
from services.run.engine.embedded.reconcile.life import Life
from services.run.engine.embedded.reconcile.retries import Retries
from services.run.engine.embedded.reconcile.state import State
from services.run.engine.embedded.reconcile.step_groups import StepGroups
from services.run.engine.embedded.reconcile.tasks import Tasks, reason_to_skip
from services.run.engine.embedded.reconcile.turn import Kill, KillReason, Turn
from services.run.engine.embedded.template import Lookup


class Walk:
    """What all kinds of templates have in common in one turn; what is their own they have in their modules."""

    def __init__(self, state: State, now: datetime) -> None:
        self.state = state
        self.plan = state.plan
        self.now = now
        self.graph = Graph(state, now)
        self.tasks = Tasks(state, self.graph)
        self.start: dict[str, StepOrder] = {}
        self.reattach: list[StepOrder] = []
        self.kill: list[Kill] = []
        self.crowded: dict[str, Dag] = {}
        """DAGs that may have nothing left but what waits for room."""
        self.newcomers: list[Call] | None = None
        """Calls without a node, while the walk after a resume still finds what went on before."""
        self._todo: deque[Callable[[], None]] = deque()
        self.life = Life(self)
        self.leaves = Leaves(self)
        self.retries = Retries(self)
        self._hooks = Hooks(self)
        self._dags = Dags(self)
        self._step_groups = StepGroups(self)

    def turn(self) -> Turn:
        """What came of it all."""
        self.graph.flush()
        state = self.state
        return Turn(
            changed=tuple(state.nodes[each] for each in self.graph.changed),
            start=tuple(order for each, order in self.start.items() if each in state.frames),
            reattach=tuple(self.reattach),
            kill=tuple(self.kill),
            wake_at=state.wake_at(),
            phase=state.phase,
            message=state.message,
            finished=state.finished_at is not None,
        )

    def work(self) -> None:
        while self._todo or self.crowded:
            while self._todo:
                self._todo.popleft()()
            if self.crowded:
                _, dag = self.crowded.popitem()
                self._dags.fail_fast(dag)

    def soon(self, function: Callable[..., None], *args: object, **kwargs: object) -> None:
        self._todo.append(partial(function, *args, **kwargs))

    def begin(self, call: Call) -> None:
        """Create the node of a call, or find it stored; or hold the call until there is room."""
        stored = self.state.nodes.get(self.graph.id_of(call.name))
        if isinstance(call.caller, Dag):
            call.caller.without_room.discard(call.name)
        if stored is not None and stored.phase.is_fulfilled:
            self.graph.link(call.links, stored.id)
            self.tell(call, stored)
            return
        if stored is None and self.newcomers is not None:
            self.newcomers.append(call)
            return
        if stored is None and not self._has_room(call):
            if isinstance(call.caller, Dag):
                call.caller.without_room.add(call.name)
                self.crowded[call.caller.node_id] = call.caller
            # Now, together with its siblings: a wide node must not be written anew for each child that finds room.
            self.graph.link(call.links, self.graph.id_of(call.name))
            return
        try:
            inputs = stored.inputs if stored is not None and stored.inputs else None
            inputs = inputs or self.plan.bind(call.template, call.parameters, call.artifacts)
            if stored is None:
                self._check_limits(call)
            self._open(call, inputs)
        except ManifestError as error:
            self.refuse(call, error.reason)

    def begin_unless_skipped(self, group: Dag | Steps, task: Task, call: Call) -> None:
        """The call of one step, or of one item of a loop: what is wrong with it is its own."""
        try:
            reason = reason_to_skip(task)
            call.artifacts = {} if reason else self.tasks.artifacts(group, task)
        except (ManifestError, ExpressionError, RecursionError) as error:
            self.refuse(call, str(error))
            return
        if reason is None:
            self.begin(call)
        else:
            self.skip(call, Phase.SKIPPED, reason)

    def _open(self, call: Call, inputs: NodeInputs) -> None:
        template = call.template
        strategy = self.plan.retry_strategy(template)
        if strategy is not None and call.attempt is None:
            self.retries.open(call, inputs, strategy)
        elif template.dag is not None:
            self._dags.open(call, inputs)
        elif template.steps is not None:
            self._step_groups.open(call, inputs)
        elif template.suspend is not None:
            self.leaves.open_pause(call, inputs)
        else:
            self.leaves.open_step(call, inputs)

    def _check_limits(self, call: Call) -> None:
        limits = self.state.limits
        if call.template.is_group and call.depth > limits.depth:
            raise ManifestError(f"templates are nested deeper than {limits.depth} levels (HEADRACE_MOST_LEVELS)")
        if len(self.state.nodes) >= limits.nodes:
            raise ManifestError(f"the run has more than {limits.nodes} nodes (HEADRACE_MOST_NODES)")

    def refuse(self, call: Call, reason: str) -> None:
        """The call makes no sense: a node of type Skipped says why, in phase Error."""
        node = self.graph.add_not_run(call.name, call.boundary, call.template.name, Phase.ERROR, reason)
        self.graph.link(call.links, node.id)
        if isinstance(call.caller, Steps):
            call.caller.problem = call.caller.problem or reason
        self.tell(call, node)

    def _has_room(self, call: Call) -> bool:
        """Whether the limits let the call begin; if not, it is queued where room will appear (§11)."""
        template = call.template
        is_retry = call.attempt is None and self.plan.retry_strategy(template) is not None
        if is_retry or self.stopping(call) is not None or template.suspend is not None:
            return True
        boundary = call.boundary
        limit = boundary.call.template.parallelism if boundary is not None else None
        if boundary is not None and limit and self.state.active_children.get(boundary.node_id, 0) >= limit:
            boundary.held.append(call)
            return False
        pods = self.state.workflow.spec.parallelism
        if not template.is_group and pods and self.state.active_pods >= pods:
            self.state.held.append(call)
            return False
        return True

    def _release(self, boundary: Group | None) -> None:
        """A node ended: as many held calls begin as there is room for now."""
        if boundary is not None and boundary.held:
            limit = boundary.call.template.parallelism or math.inf
            while boundary.held and self.state.active_children.get(boundary.node_id, 0) < limit:
                self.begin(boundary.held.popleft())
        held = self.state.held
        pods = self.state.workflow.spec.parallelism or math.inf
        while held and self.state.active_pods < pods:
            self.begin(held.popleft())

    def _release_all(self, held: deque[Call]) -> None:
        while held:
            self.soon(self.begin, held.popleft())

    def tell(self, call: Call, node: Node) -> None:
        """The node is fulfilled: tell the caller, after the hook if there is one."""
        if call.hook is not None and self._hooks.has_ended(node):
            self.soon(self._hooks.begin, call, call.hook, node)
        else:
            self.tell_caller(call, node)

    def tell_caller(self, call: Call, node: Node) -> None:
        match call.caller:
            case None:
                self.soon(self.life.top_ended, node)
            case Dag() as dag:
                self.soon(self._dags.task_done, dag, call.task, node.id)
            case Steps() as steps:
                self.soon(self._step_groups.step_done, steps)
            case TaskGroup() as group:
                self.soon(self._dags.item_done, group)
            case Retry() as retry:
                self.soon(self.retries.attempt_done, retry, node.id)
            case Hooked() as hooked:
                self.soon(self._hooks.done, hooked)
            case _:
                assert_never(call.caller)

    def skip(self, call: Call, phase: Phase, reason: str) -> None:
        node = self.graph.add_not_run(call.name, call.boundary, call.template.name, phase, reason)
        self.graph.link(call.links, node.id)
        self.tell(call, node)

    def end(self, frame: Frame, phase: Phase, message: str = "", outputs: NodeOutputs | None = None) -> None:
        node = msgspec.structs.replace(self.state.nodes[frame.node_id], phase=phase, message=message)
        self.fulfil(frame, msgspec.structs.replace(node, outputs=outputs) if outputs else node)

    def fulfil(self, frame: Frame, node: Node, at: datetime | None = None) -> None:
        """The node is over: store it, forget the frame, tell the caller, use the room."""
        if node.finished_at is None:
            node = msgspec.structs.replace(node, finished_at=whole_seconds(at or self.now))
        self.graph.put(node)
        self.state.export(node)
        self.state.frames.pop(node.id, None)
        self.start.pop(node.id, None)
        self.tell(frame.call, node)
        if self.state.held or (frame.call.boundary is not None and frame.call.boundary.held):
            self.soon(self._release, frame.call.boundary)

    def end_group(self, group: Group, phase: Phase, message: str, outbound: tuple[str, ...], scope: Lookup) -> None:
        outputs = None
        if phase is Phase.SUCCEEDED:
            try:
                outputs = self.tasks.outputs(group, scope)
            except ManifestError as error:
                phase, message = Phase.ERROR, error.reason
        node = self.state.nodes[group.node_id]
        node = msgspec.structs.replace(node, phase=phase, message=message, outputs=outputs, outbound_nodes=outbound)
        self.fulfil(group, node)

    def stop(self, reason: KillReason) -> None:
        """Nothing new starts; what runs is killed and ends when its end is reported; what waits has failed."""
        state = self.state
        # A user's word outranks the deadline's: who waits for the end of a step may have more patience with the latter.
        if state.stopping in (reason, KillReason.TERMINATED):
            return
        state.stopping = reason
        for frame in [each for each in state.frames.values() if not each.call.exempt]:
            match frame:
                case Leaf():
                    self.leaves.kill(frame, reason)
                case Pause():
                    self.end(frame, Phase.FAILED, reason.value)
                case Retry() if frame.wait_until is not None:
                    self.retries.give_up(frame)
                case Group():
                    self._release_all(frame.held)
                case _:
                    pass
        self._release_all(state.held)

    def stopping(self, call: Call) -> KillReason | None:
        return None if call.exempt else self.state.stopping
