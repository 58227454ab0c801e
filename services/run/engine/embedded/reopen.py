"""Retrying a whole run: which of its nodes stay, which start over (specification §15, Retry).

Computed from the stored nodes alone; `reconcile.State.resume` goes on from what is kept. Whether the run may be retried
at all is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from services.run.engine.embedded.nodes import Node, NodeType, Phase, exit_name


class Reopened(msgspec.Struct, frozen=True, kw_only=True):
    kept: tuple[Node, ...]
    """The nodes of the run from now on, those that changed included."""
    changed: tuple[Node, ...]
    """New records among `kept`: reopened DAGs, and nodes whose children are no more."""
    removed: tuple[str, ...]
    """Ids of nodes to forget; the steps among them run again under the same ids."""


def reopen(workflow_name: str, nodes: Iterable[Node]) -> Reopened:
    """Keep what is done, reopen the failed DAGs above it, and forget every other failure and the exit handler.

    A failure that a done group or a done retry has got over is part of what is done: nothing would run it again, so
    forgetting it would leave a hole in the graph.
    """
    stored = {node.id: node for node in nodes}
    settled = _settled(stored)
    removed = {
        node.id
        for node in stored.values()
        if node.name.startswith(exit_name(workflow_name)) or (node.id not in settled and node.type is not NodeType.DAG)
    }
    removed |= _later_attempts(stored.values(), removed)
    removed |= _hooks(stored, {node.id for node in stored.values() if node.id not in settled} | removed)
    before = [node for node in stored.values() if node.id not in removed]
    kept = tuple(_kept(node, removed, is_settled=node.id in settled) for node in before)
    changed = tuple(new for new, old in zip(kept, before, strict=True) if new is not old)
    return Reopened(kept=kept, changed=changed, removed=tuple(sorted(removed)))


def _settled(stored: Mapping[str, Node]) -> set[str]:
    """The ids of nodes that are done, or lie below one that is."""
    owners = {
        child: node.id
        for node in stored.values()
        if node.type in _HOLDERS
        for child in node.children
        if child in stored and stored[child].name.startswith((f"{node.name}(", f"{node.name}."))
    }
    tasks = {exit_name(node.name): node for node in stored.values()}
    for node in stored.values():
        task = tasks.get(node.name)
        if task is not None and task.boundary_id == node.boundary_id:
            owners[node.id] = owners.get(task.id, task.boundary_id)  # A hook belongs where its task does.
    settled: set[str] = set()
    # An owner's name begins every name below it, so owners come first.
    for node in sorted(stored.values(), key=lambda each: len(each.name)):
        if _is_done(node) or owners.get(node.id, node.boundary_id) in settled:
            settled.add(node.id)
    return settled


_HOLDERS = frozenset({NodeType.RETRY, NodeType.TASK_GROUP, NodeType.STEP_GROUP})
"""Nodes that stand between a boundary and its members."""


def _is_done(node: Node) -> bool:
    return node.phase is Phase.SUCCEEDED or node.phase is Phase.SKIPPED


def _later_attempts(nodes: Iterable[Node], removed: set[str]) -> set[str]:
    """All below the attempts of a failed Retry node but the first: it starts over at attempt 0.

    Only attempts of DAGs are concerned, as failed steps are forgotten anyway. What attempt 0 has done is done.
    """
    nodes = list(nodes)
    retries = tuple(f"{node.name}(" for node in nodes if node.id in removed and node.type is NodeType.RETRY)
    return {
        node.id
        for node in nodes
        for retry in retries
        if node.name.startswith(retry) and not node.name.startswith(f"{retry}0)")
    }


def _hooks(stored: Mapping[str, Node], again: set[str]) -> set[str]:
    """The hooks of what runs again, and all below them: they are called anew when it has ended.

    A task of a group may be named like the group's hook; but then the group is its boundary.
    """
    names = {exit_name(stored[each].name): stored[each].boundary_id for each in again}
    hooks = {node.name for node in stored.values() if names.get(node.name) == node.boundary_id}
    return {node.id for node in stored.values() if node.name in hooks or node.name.startswith(_below(hooks))}


def _below(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}{separator}" for name in names for separator in ".([")


def _kept(node: Node, removed: set[str], *, is_settled: bool) -> Node:
    if not is_settled:
        node = msgspec.structs.replace(
            node, phase=Phase.RUNNING, message="", finished_at=None, outputs=None, outbound_nodes=()
        )
    if removed.isdisjoint(node.children):
        return node
    children = tuple(each for each in node.children if each not in removed)
    return msgspec.structs.replace(node, children=children)
