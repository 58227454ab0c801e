"""What is open in a run: calls of templates, and the frames of their nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from services.run.engine.embedded.manifest import Hook, TaskName, Template
from services.run.engine.embedded.nodes import NodeArtifact, NodeInputs
from services.run.engine.embedded.plan import DagPlan, RetryRule
from services.run.engine.embedded.reconcile.turn import KillReason

_NO_TASK = TaskName("")


@dataclass(kw_only=True, slots=True)
class Call:
    """A template called at a place, with everything known but whether there is room for it yet."""

    caller: Caller | None
    """Who is told of the end; None for the entry and the exit handler."""
    name: str
    template: Template
    boundary: Group | None
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
class Hooked:
    """A task that has ended and whose hook has not."""

    call: Call
    node_id: str


@dataclass(kw_only=True, slots=True)
class Frame:
    """What is kept of an open node: whose call it is, and, in those below, what it waits for."""

    call: Call
    node_id: str


@dataclass(kw_only=True, slots=True)
class Leaf(Frame):
    inputs: NodeInputs
    deadline_seconds: int | None = None
    killing: KillReason | None = None
    deadline: datetime | None = None
    """Its own, when the retry strategy's maxDuration ends earlier than the template's deadline."""


@dataclass(kw_only=True, slots=True)
class Pause(Frame):
    """A suspend template: nothing runs, time passes."""

    until: datetime


@dataclass(kw_only=True, slots=True)
class Retry(Frame):
    rule: RetryRule
    inputs: NodeInputs
    attempts: int = 0
    wait_until: datetime | None = None


@dataclass(kw_only=True, slots=True)
class TaskGroup(Frame):
    open: int = 0


@dataclass(kw_only=True, slots=True)
class Group(Frame):
    """A boundary: a running DAG or Steps template."""

    inputs: NodeInputs
    held: deque[Call] = field(default_factory=deque)
    """Calls that wait for the template's parallelism."""


@dataclass(kw_only=True, slots=True)
class Dag(Group):
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
class Steps(Group):
    index: int = 0
    open: int = 0
    steps: dict[TaskName, list[str]] = field(default_factory=dict)
    """Step → its nodes: one, or one per item."""
    current: list[TaskName] = field(default_factory=list)
    problem: str | None = None
    """A template error in the running group, as opposed to a step that failed."""


Caller: TypeAlias = Dag | Steps | Retry | TaskGroup | Hooked
