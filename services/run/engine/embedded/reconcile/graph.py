"""The nodes of a run as a graph: made, changed and linked in one turn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import assert_never

import msgspec

from services.run.engine.embedded.nodes import (
    Node,
    NodeInputs,
    NodeType,
    Phase,
    display_name,
    node_id,
    whole_seconds,
)
from services.run.engine.embedded.reconcile.frames import Call, Group
from services.run.engine.embedded.reconcile.state import State


class Graph:
    """What this turn makes of the nodes; what it changed is in `changed`, in that order."""

    def __init__(self, state: State, now: datetime) -> None:
        self._state = state
        self._now = now
        self._new_children: dict[str, list[str]] = {}
        self.changed: dict[str, None] = {}

    def id_of(self, name: str) -> str:
        return node_id(self._state.identity.name, name)

    def new(self, name: str, type_: NodeType, phase: Phase, boundary: Group | None, template: str = "") -> Node:
        now = whole_seconds(self._now)
        return Node(
            id=self.id_of(name),
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

    def find_or_create(
        self, call: Call, type_: NodeType, inputs: NodeInputs | None, *, phase: Phase = Phase.RUNNING
    ) -> Node:
        node = self._state.nodes.get(self.id_of(call.name))
        if node is None:
            node = self.new(call.name, type_, phase, call.boundary, call.template.name)
            if inputs is not None and (inputs.parameters or inputs.artifacts):
                node = msgspec.structs.replace(node, inputs=inputs)
            self.put(node)
        self._state.count(node)
        self.link(call.links, node.id)
        return node

    def add_not_run(self, name: str, boundary: Group | None, template: str, phase: Phase, message: str) -> Node:
        node = self.new(name, NodeType.SKIPPED, phase, boundary, template)
        node = msgspec.structs.replace(node, message=message)
        self.put(node)
        return node

    def put(self, node: Node) -> None:
        self._state.nodes[node.id] = node
        self._state.count(node)
        self.changed[node.id] = None

    def link(self, parents: Iterable[str], child: str) -> None:
        for parent in parents:
            linked = self._state.linked.get(parent)
            if linked is None:
                linked = self._state.linked[parent] = set(self._state.nodes[parent].children)
            if child not in linked:
                linked.add(child)
                self._new_children.setdefault(parent, []).append(child)

    def unlink(self, parents: Iterable[str], child: str) -> None:
        for parent in parents:
            self._state.linked[parent].discard(child)
            if child in self._new_children.get(parent, ()):
                self._new_children[parent].remove(child)
            else:
                node = self._state.nodes[parent]
                kept = tuple(each for each in node.children if each != child)
                self.put(msgspec.structs.replace(node, children=kept))

    def flush(self) -> None:
        """New links are added once a turn, so that a wide node's list is copied once."""
        for parent, new in self._new_children.items():
            node = self._state.nodes[parent]
            self._state.nodes[parent] = msgspec.structs.replace(node, children=(*node.children, *new))
            self.changed[parent] = None
        self._new_children.clear()

    def children(self, parent: str) -> Iterator[str]:
        yield from self._state.nodes[parent].children
        yield from self._new_children.get(parent, ())

    def items(self, node: Node) -> Iterator[Node]:
        """The items of a TaskGroup or the attempts of a Retry, in numeric order."""
        children = (self._state.nodes.get(each) for each in self.children(node.id))
        yield from in_index_order((each for each in children if each is not None), node.name)

    def outbound(self, last_id: str) -> tuple[str, ...]:
        """The nodes at which what follows this one hangs (§6, outboundNodes)."""
        node = self._state.nodes[last_id]
        match node.type:
            case NodeType.POD | NodeType.SKIPPED | NodeType.SUSPEND | NodeType.STEP_GROUP:
                return (node.id,)
            case NodeType.DAG | NodeType.STEPS:
                return node.outbound_nodes or (node.id,)
            case NodeType.TASK_GROUP:
                items = list(self.items(node))
                return tuple(each for item in items for each in self.outbound(item.id)) or (node.id,)
            case NodeType.RETRY:
                last = self.effective(node)
                return (node.id,) if last is node else self.outbound(last.id)
            case _:
                assert_never(node.type)

    def effective(self, node: Node) -> Node:
        """For a Retry node its last attempt, which is what references to it mean (§10)."""
        if node.type is not NodeType.RETRY:
            return node
        attempts = list(self.items(node))
        return attempts[-1] if attempts else node


def in_index_order(nodes: Iterable[Node], name: str) -> list[Node]:
    """Those named `<name>(<index>…)`, by index: 10 comes after 9."""
    prefix = f"{name}("
    return sorted((each for each in nodes if each.name.startswith(prefix)), key=partial(_index, len(prefix)))


def _index(start: int, node: Node) -> int:
    digits = re.match(r"\d+", node.name[start:])
    return int(digits[0]) if digits else 0
