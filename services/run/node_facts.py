"""What is told of the nodes of a run: the steps that run something, or would have; not the groups they are in.

Pure. Whether there is something new to tell is decided by the record.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from shared.contracts import events
from shared.contracts.events import FactKind
from shared.contracts.states import ExperimentId, NodePhase, NodeState

from .engine import NodeDocument

LONGEST_MESSAGE: Final = 1024

KINDS: Final[dict[NodePhase, FactKind[NodeState]]] = {
    NodePhase.RUNNING: events.NODE_STARTED,
    NodePhase.SUCCEEDED: events.NODE_SUCCEEDED,
    NodePhase.FAILED: events.NODE_FAILED,
    NodePhase.ERROR: events.NODE_ERROR,
    NodePhase.SKIPPED: events.NODE_SKIPPED,
    NodePhase.OMITTED: events.NODE_SKIPPED,
}
_PHASES: Final = frozenset(KINDS)
_GROUPS: Final = frozenset({"DAG", "Steps", "StepGroup", "TaskGroup", "Retry"})


class _Outputs(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    exit_code: int | None = None


class _Node(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Of a node's document, what facts tell (workflow specification, section 14)."""

    id: str
    name: str = ""
    display_name: str = ""
    template_name: str = ""
    type: str
    phase: NodePhase
    message: str = ""
    outputs: _Outputs | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


def state_of(run_id: str, attempt: int, node: NodeDocument) -> NodeState | None:
    """The body of the fact; None where nothing is told of such a node. The run's references are the record's to add."""
    if node.get("type") in _GROUPS or node.get("phase") not in _PHASES:
        return None
    try:
        read = msgspec.convert(node, _Node, strict=False)
    except msgspec.ValidationError:
        return None  # An agent reported it, and its record is as it came; progress is told where it can be read.
    return NodeState(
        id=run_id,
        # A node begins once and ends once in each attempt of its run.
        version=2 * attempt - (read.phase is NodePhase.RUNNING),
        node_id=read.id,
        name=_plain(read.name),
        display_name=_plain(read.display_name),
        template_name=_plain(read.template_name),
        type=read.type,
        phase=read.phase,
        message=_plain(read.message),
        exit_code=None if read.outputs is None else read.outputs.exit_code,
        attempt=attempt,
        experiment_id=ExperimentId(""),
        started_at=read.started_at,
        finished_at=read.finished_at,
    )


def _plain(text: str) -> str:
    """What the database reads as JSON."""
    return text.replace("\x00", "\ufffd")[:LONGEST_MESSAGE]
