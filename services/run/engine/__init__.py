"""The port behind which runs are executed. Two engines stand behind it; one conformance suite holds for both.

An engine is told what to run and reports what it sees, in the shape Argo writes. It knows no run record, no fact
and no HTTP; the controller tells it and records its reports.

Reports are hints and records are the truth: whatever an engine forgets (a restart, a vanished object), the
controller submits again together with the nodes on record, and the engine goes on from there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from datetime import datetime
from typing import Any, NewType, Protocol

import msgspec

WorkflowName = NewType("WorkflowName", str)
NodeId = NewType("NodeId", str)

NodeDocument = Mapping[str, Any]
"""One entry of `status.nodes` (workflow specification, section 14): JSON with at least id, name, type and phase."""


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow to run. Repeating it is harmless: the name is the identity, the run id the proof."""

    workflow_name: WorkflowName
    run_id: str
    experiment_id: str = ""
    """Where there is no room for all runs, experiments take turns."""
    attempt: int = 1
    """Raised by each retry of the run."""
    workflow: Mapping[str, Any]
    """The manifest as run: apiVersion, kind, metadata (with name, uid, creationTimestamp) and spec."""
    nodes: tuple[NodeDocument, ...] = ()
    """What the record knows: empty for a new run; finished nodes are not executed again."""
    started_at: datetime | None = None
    is_taken: bool = False
    """This attempt is on record as one that the engine has had."""
    retried_at: datetime | None = None
    """The last retry, from which the deadline of the whole run counts."""
    is_terminating: bool = False
    traceparent: str = ""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine sees of one workflow: the state of the whole and the nodes that changed."""

    workflow_name: WorkflowName
    run_id: str
    attempt: int
    phase: str
    """`status.phase`: Pending, Running, Succeeded, Failed or Error."""
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    nodes: tuple[NodeDocument, ...] = ()
    is_complete: bool = False
    """`nodes` is every node there is: what is on record beyond them is gone."""
    is_taken: bool = False
    """The engine has it, and says so for the first time: once it is gone, it is not submitted again."""
    is_vanished: bool = False
    """The workflow is not there any more, and nobody asked for that."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine says of itself."""

    name: str
    runtime: str
    """What steps run in; `none` where they cannot."""
    weaker: str | None = None
    """What that lacks, why, and how to mend it."""


class NameTaken(Exception):
    """A workflow of this name runs for another run id."""


class Engine(Protocol):
    """All calls are idempotent and may be repeated after a crash. They raise `shared.errors.Unavailable` when the
    engine cannot be reached; the caller tries again."""

    async def submit(self, submission: Submission) -> None:
        """Start or continue the workflow. Raises NameTaken."""

    async def terminate(self, workflow_name: WorkflowName) -> None:
        """Ask for the stop; the end is observed, not assumed. Harmless when absent."""

    async def erase(self, run_id: str, *, up_to_attempt: int | None = None) -> None:
        """Stop what runs for this run and forget everything. Harmless when there is nothing.

        With `up_to_attempt` later attempts are left alone: who decides on what was read may be overtaken by a retry.
        """

    async def own(self, shards: frozenset[int]) -> None:
        """From now on drive and report the runs of these shards alone (`shards.shard_of`). What is given up is
        forgotten, not stopped: another controller goes on with it."""

    async def known(self) -> set[str]:
        """The runs that are being driven now; an open run beyond them has to be submitted again. It may have to look
        first, for as long as that takes."""

    async def leftovers(self) -> dict[str, int]:
        """The runs that are not driven and of which something is left, with its latest attempt; `erase` removes it."""

    def observe(self) -> AsyncIterator[Observation]:
        """What happens from now on, in order per workflow."""

    async def recorded(self, observation: Observation) -> None:
        """The observation is durable. An engine without records of its own starts nothing before this."""

    def logs(
        self, workflow_name: WorkflowName, node_id: NodeId, *, follow: bool, offset: int = 0
    ) -> AsyncGenerator[bytes, None]:
        """The text a step wrote, from the byte `offset` on, while the engine still holds it. Empty when unknown."""

    async def about(self) -> About:
        """Asked anew each time: what a machine allows may change."""

    async def check(self) -> None:
        """Raise Unavailable when the engine cannot work."""
