"""What goes into a turn of a run, and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import Any, TypeAlias

import msgspec

from services.run.engine.embedded.nodes import Node, Phase
from services.run.engine.embedded.orders import StepOrder


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
    """The `s3` block of the log, which may still be on its way there."""
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
