"""Nodes: the records a run's status is made of, with upstream's names and ids (specification §3 and §14).

The shapes here are what clients read in `status.nodes`. Nothing in this file knows how a node comes to its phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Any

import msgspec


class NodeType(Enum):
    POD = "Pod"
    DAG = "DAG"
    STEPS = "Steps"
    STEP_GROUP = "StepGroup"
    TASK_GROUP = "TaskGroup"
    RETRY = "Retry"
    SKIPPED = "Skipped"
    SUSPEND = "Suspend"


class Phase(Enum):
    """Phases of nodes and, without Skipped and Omitted, of runs."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    ERROR = "Error"
    SKIPPED = "Skipped"
    OMITTED = "Omitted"

    @property
    def is_fulfilled(self) -> bool:
        return self not in _OPEN

    @property
    def is_completed(self) -> bool:
        """Whether something ran to an end, well or badly."""
        return self in _COMPLETED

    @property
    def is_failure(self) -> bool:
        return self is Phase.FAILED or self is Phase.ERROR


_OPEN = frozenset({Phase.PENDING, Phase.RUNNING})
_COMPLETED = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.ERROR})


class NodeParameter(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    name: str
    value: str | None = None
    value_from: Mapping[str, Any] | None = None


class NodeArtifact(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An artifact with the place it lies at: `s3`, `raw` or `http`, or none when an optional one was not written."""

    name: str
    path: str | None = None
    s3: Mapping[str, Any] | None = None
    raw: Mapping[str, str] | None = None
    http: Mapping[str, Any] | None = None
    optional: bool = False
    archive: Mapping[str, Any] | None = None
    archive_logs: bool = False
    mode: int | None = None
    global_name: str | None = None

    @property
    def has_location(self) -> bool:
        return self.s3 is not None or self.raw is not None or self.http is not None


class NodeInputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    parameters: tuple[NodeParameter, ...] = ()
    artifacts: tuple[NodeArtifact, ...] = ()


class NodeOutputs(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    parameters: tuple[NodeParameter, ...] = ()
    artifacts: tuple[NodeArtifact, ...] = ()
    result: str | None = None
    exit_code: str | None = None

    def parameter(self, name: str) -> str | None:
        return next((each.value for each in self.parameters if each.name == name), None)

    def artifact(self, name: str) -> NodeArtifact | None:
        return next((each for each in self.artifacts if each.name == name), None)


class Node(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One entry of `status.nodes`. Once its phase is fulfilled, only `children` may still grow."""

    id: str
    name: str
    display_name: str
    type: NodeType
    phase: Phase
    started_at: datetime
    """UTC, whole seconds, as the wire shows it."""
    finished_at: datetime | None
    """`null` on the wire while the node is open."""
    template_name: str = ""
    template_scope: str = ""
    boundary_id: str = msgspec.field(default="", name="boundaryID")
    message: str = ""
    inputs: NodeInputs | None = None
    outputs: NodeOutputs | None = None
    children: tuple[str, ...] = ()
    outbound_nodes: tuple[str, ...] = ()


@lru_cache(maxsize=8192)
def node_id(workflow_name: str, node_name: str) -> str:
    """The id of a node, which is also the pod name (v1) and part of the keys of its artifacts."""
    if node_name == workflow_name:
        return workflow_name
    return f"{workflow_name}-{fnv1a_32(node_name.encode())}"


def fnv1a_32(data: bytes) -> int:
    digest = 2166136261
    for byte in data:
        digest = ((digest ^ byte) * 16777619) & 0xFFFFFFFF
    return digest


def display_name(node_name: str, boundary_name: str | None) -> str:
    """The name without its boundary's: a step group keeps its `[i]`, a step loses its group's."""
    if boundary_name is None or not node_name.startswith(boundary_name):
        return node_name
    rest = node_name[len(boundary_name) :]
    if rest.startswith("["):
        _group, closing, step = rest.partition("].")
        return step if closing else rest
    return rest.removeprefix(".")


def task_name(boundary: str, task: str) -> str:
    return f"{boundary}.{task}"


def group_name(boundary: str, index: int) -> str:
    return f"{boundary}[{index}]"


def item_name(name: str, index: int, item_text: str) -> str:
    return f"{name}({index}:{item_text.replace('(', '').replace(')', '')})"


def attempt_name(retry: str, attempt: int) -> str:
    return f"{retry}({attempt})"


def exit_name(node_name: str) -> str:
    """The exit handler of the run, for the workflow's name, or the hook of a task."""
    return f"{node_name}.onExit"


def whole_seconds(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)


def timestamp(moment: datetime) -> str:
    """RFC 3339 with `Z` and without fractions."""
    return whole_seconds(moment).strftime("%Y-%m-%dT%H:%M:%SZ")
