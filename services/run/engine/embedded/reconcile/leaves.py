"""Leaves of the graph: steps, which somebody runs, and pauses."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import msgspec

from services.run.engine.embedded.durations import duration_seconds
from services.run.engine.embedded.manifest import Template
from services.run.engine.embedded.nodes import Node, NodeInputs, NodeType, Phase, whole_seconds
from services.run.engine.embedded.orders import StepOrder
from services.run.engine.embedded.reconcile.frames import Call, Leaf, Pause, Retry
from services.run.engine.embedded.reconcile.outcomes import finished_node, lost_node
from services.run.engine.embedded.reconcile.part import Part
from services.run.engine.embedded.reconcile.turn import Kill, KillReason, StepFinished, StepLost, StepStarted, StepWaits
from services.run.engine.embedded.template import fill, first_of
from services.run.engine.embedded.variables import inputs_lookup


class Leaves(Part):
    """The steps and pauses of one turn."""

    def open_step(self, call: Call, inputs: NodeInputs) -> None:
        reason = self._walk.stopping(call)
        is_stored = self._graph.id_of(call.name) in self._state.nodes
        order = None if reason and not is_stored else self._order(call, inputs)
        node = self._graph.find_or_create(call, NodeType.POD, inputs, phase=Phase.PENDING)
        frame = Leaf(call=call, node_id=node.id, inputs=inputs)
        if isinstance(call.caller, Retry):
            frame.deadline = self._walk.retries.max_duration_end(call.caller)
        self._state.frames[node.id] = frame
        if order is None:
            self._walk.end(frame, Phase.FAILED, reason.value if reason else "")
            return
        frame.deadline_seconds = order.deadline_seconds
        if node.phase is Phase.PENDING:
            self._walk.start[node.id] = order
        else:
            self._walk.reattach.append(order)
            # The stored start is rounded down: a second more never kills early.
            self._watch_deadline(frame, node.started_at + timedelta(seconds=1))
        if reason is not None:
            self.kill(frame, reason)

    def _order(self, call: Call, inputs: NodeInputs) -> StepOrder:
        """Raises ManifestError, before there is a node: a text that makes no sense is no execution to be retried."""
        return self._plan.order(
            call.template,
            inputs,
            node_id=self._graph.id_of(call.name),
            node_name=call.name,
            attempt=call.attempt,
            needs_result=call.needs_result,
        )

    def open_pause(self, call: Call, inputs: NodeInputs) -> None:
        assert call.template.suspend is not None
        seconds = duration_seconds(self._plan.filled(call.template.suspend.duration or "", inputs))
        node = self._graph.find_or_create(call, NodeType.SUSPEND, inputs)
        frame = Pause(call=call, node_id=node.id, until=node.started_at + timedelta(seconds=seconds))
        self._state.frames[node.id] = frame
        reason = self._walk.stopping(call)
        if reason is not None:
            self._walk.end(frame, Phase.FAILED, reason.value)
        else:
            self._state.set_timer(frame.until, node.id)

    def waits(self, event: StepWaits) -> None:
        node = self._state.nodes.get(event.node_id)
        if node is not None and node.phase is Phase.PENDING and node.message != event.reason:
            self._graph.put(msgspec.structs.replace(node, message=event.reason))

    def started(self, event: StepStarted) -> None:
        frame = self._state.frames.get(event.node_id)
        node = self._state.nodes.get(event.node_id)
        if not isinstance(frame, Leaf) or node is None or node.phase is not Phase.PENDING:
            return
        started_at = whole_seconds(event.at)
        self._graph.put(msgspec.structs.replace(node, phase=Phase.RUNNING, message="", started_at=started_at))
        self._watch_deadline(frame, event.at)

    def finished(self, event: StepFinished) -> None:
        """A step that died of TERM or KILL after we ordered its end was ended by us, even if nobody says so."""
        frame = self._state.frames.get(event.node_id)
        if event.killed is None and event.exit_code in {137, 143} and isinstance(frame, Leaf):
            event = msgspec.structs.replace(event, killed=frame.killing)
        self._ended(event.node_id, event.at, partial(finished_node, event))

    def lost(self, event: StepLost) -> None:
        self._ended(event.node_id, event.at, lost_node)

    def _ended(self, ended_id: str, at: datetime, outcome: Callable[[Template, Node], Node]) -> None:
        frame = self._state.frames.get(ended_id)
        if isinstance(frame, Leaf):
            node = outcome(self._declared(frame), self._state.nodes[ended_id])
            self._walk.fulfil(frame, msgspec.structs.replace(node, finished_at=whole_seconds(at)), at)

    def _declared(self, frame: Leaf) -> Template:
        """The leaf's template with its outputs filled: literal values and paths may hold variables."""
        node = self._state.nodes[frame.node_id]
        lookup = first_of(
            self._plan.globals,
            inputs_lookup(frame.inputs),
            {"pod.name": node.id, "retries": str(frame.call.attempt or 0)}.get,
        )
        template = frame.call.template
        return msgspec.structs.replace(template, outputs=fill(template.outputs, lookup))

    def _watch_deadline(self, leaf: Leaf, started: datetime) -> None:
        """A step's own deadline counts from its process's start, each attempt anew."""
        if leaf.deadline_seconds is not None:
            due = started + timedelta(seconds=leaf.deadline_seconds)
            leaf.deadline = min(due, leaf.deadline) if leaf.deadline else due
        if leaf.deadline is not None:
            self._state.set_timer(leaf.deadline, leaf.node_id)

    def kill(self, leaf: Leaf, reason: KillReason) -> None:
        leaf.killing = leaf.killing or reason
        self._walk.kill.append(Kill(node_id=leaf.node_id, reason=reason))
        node = self._state.nodes[leaf.node_id]
        if node.phase is Phase.PENDING:
            self._walk.end(leaf, Phase.FAILED, reason.value)
