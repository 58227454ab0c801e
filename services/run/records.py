"""The verbs of the controller: what an engine has to be told, and what it was seen doing.

Everything an engine must hear is a row until it is marked as told, so a controller may die at any point and be
replaced. Observations move records forward only; repeating one, or bringing it late, changes nothing. Knows no
engine beyond the port's structs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from prometheus_client import Counter

from shared import clock, telemetry
from shared.contracts import events
from shared.contracts.events import FactKind
from shared.contracts.states import RunState
from shared.database import Database, Transaction
from shared.outbox import Outbox
from shared.readers import OverLimit
from shared.shards import Proof, fence
from shared.telemetry import continue_trace

from . import compose, domain, node_facts, store
from .domain import EngineName, Run, RunId, Status, WorkflowName
from .engine import NodeDocument, Observation, Submission, shards
from .engine import WorkflowName as EngineWorkflowName
from .manifests import Manifests
from .usecases import to_state

_finished = Counter(
    "headrace_runs_finished_total",
    "Runs that were seen to end, by status; a run that is retried ends again.",
    ("status",),
    registry=telemetry.metrics,
)

VANISHED = "The workflow has vanished from the engine."
LARGEST_ERROR = 16_384

_ENTERED: dict[Status, FactKind[RunState]] = {
    Status.RUNNING: events.RUN_STARTED,
    Status.SUCCEEDED: events.RUN_SUCCEEDED,
    Status.FAILED: events.RUN_FAILED,
    Status.ERROR: events.RUN_ERROR,
    Status.SKIPPED: events.RUN_SKIPPED,
}
"""The fact that tells of a status that was entered."""


class Termination(msgspec.Struct, frozen=True, kw_only=True):
    run_id: RunId
    workflow_name: WorkflowName
    attempt: int


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    run_id: RunId
    workflow_name: WorkflowName


class ActiveRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is not final."""

    id: RunId
    created_at: datetime
    has_started: bool


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine has to be told, oldest first of each kind."""

    submissions: tuple[RunId, ...] = ()
    terminations: tuple[Termination, ...] = ()
    erasures: tuple[Erasure, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.submissions or self.terminations or self.erasures)


class Records:
    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        manifests: Manifests,
        *,
        nodes: Outbox | None = None,
        engine: EngineName = EngineName.EMBEDDED,
    ) -> None:
        """`nodes`: where facts about nodes go, which nobody hears of without. `engine`: whose runs are due and active;
        the others are another controller's."""
        self._database = database
        self._outbox = outbox
        self._manifests = manifests
        self._nodes = nodes
        self._engine = engine

    async def due(self, limit: int, held: Collection[int] = shards.ALL) -> Due:
        """At most `limit` of each kind, of the runs in these shards. A run is due for submission until
        `mark_submitted`, and so on."""
        submissions = await store.list_unsubmitted(self._database, self._engine, held, limit)
        terminations = await store.list_terminations(self._database, self._engine, held, limit)
        erasures = await store.list_erasures(self._database, self._engine, held, limit)
        return Due(
            submissions=tuple(submissions),
            terminations=tuple(
                Termination(run_id=run_id, workflow_name=name, attempt=attempt)
                for run_id, name, attempt in terminations
            ),
            erasures=tuple(Erasure(run_id=run_id, workflow_name=name) for run_id, name in erasures),
        )

    async def active(
        self, held: Collection[int] = shards.ALL, *, after: str = "", limit: int = 1000
    ) -> tuple[ActiveRun, ...]:
        """Runs in these shards that are not final, by id: what a controller submits again when it starts. `after` is
        the last id of the page before."""
        rows = await store.list_active(self._database, self._engine, held, after, limit)
        return tuple(
            ActiveRun(id=run_id, created_at=created_at, has_started=started) for run_id, created_at, started in rows
        )

    async def submission(self, run_id: str) -> Submission | None:
        """The workflow with the nodes on record; None where the run is gone or final.

        A run whose manifest takes more to read now than it may ends here: it must not stop the others.
        """
        async with self._database.transaction() as tx:
            run = await store.lock(tx, run_id)
            nodes = await store.list_nodes(tx, run_id)
        if run is None or run.status.is_final:
            return None
        try:
            prepared = await self._manifests.prepared(run.manifest_digest)
        except OverLimit as limit:
            await self.fail(run.id, run.attempt, f"the workflow cannot be read: {limit}")
            return None
        # A large one in a thread: other runs go on meanwhile.
        is_large = self._manifests.is_large(prepared.text)
        workflow = await asyncio.to_thread(_workflow, prepared, run) if is_large else _workflow(prepared, run)
        return Submission(
            workflow_name=EngineWorkflowName(run.workflow_name),
            run_id=run.id,
            experiment_id=run.experiment_id,
            attempt=run.attempt,
            workflow=workflow,
            nodes=tuple(msgspec.json.decode(body) for _, body in nodes),
            started_at=run.started_at,
            is_taken=run.taken_attempt == run.attempt,
            retried_at=run.retried_at,
            is_terminating=run.terminate_requested_at is not None,
            traceparent=run.traceparent,
        )

    async def mark_submitted(self, run_id: str, attempt: int, *, is_to_run: bool = False) -> None:
        """`is_to_run`: the engine was given it as one that nobody wants to stop. Where somebody does by now, and has
        told the engine before it knew the run, the stop is due again."""
        await store.set_submitted(self._database, run_id, attempt, is_to_run)

    async def mark_terminated(self, run_id: str, attempt: int) -> None:
        """The engine has been asked for the stop; its end is still to be observed."""
        await store.set_terminate_sent(self._database, run_id, attempt)

    async def mark_erased(self, run_id: str) -> None:
        """The engine has forgotten the workflow of a deleted run: forget its nodes and metrics too."""
        await store.erase(self._database, run_id)

    async def record(self, observation: Observation, proof: Proof | None = None) -> bool:
        """Write what was seen, in one transaction. False where it says nothing to this record: the run is gone or has
        ended otherwise, or the observation is of another attempt.

        `proof`: that nobody else records what is seen of this run; raises LeaseLost where somebody does by now.
        """
        if await self._record_progress(observation, proof):
            return True
        async with self._database.transaction() as tx:
            if proof is not None:
                await fence(tx, proof)
            run = await store.lock(tx, observation.run_id)
            if run is None or run.attempt > observation.attempt or str(run.workflow_name) != observation.workflow_name:
                return False
            if run.status.is_final:
                # An engine that died before it heard that the end is durable tells it again.
                is_known = observation.finished_at is not None and Status(observation.phase) is run.status
                return is_known and run.attempt == observation.attempt
            if run.attempt < observation.attempt:
                # The records were restored: the engine knows of a retry that they have lost.
                run = await store.catch_up(tx, run.id, observation.attempt)
            if observation.is_taken and run.taken_attempt < run.attempt:
                await store.set_taken(tx, run.id, run.attempt)
            if observation.is_vanished:
                await self._close_open_nodes(tx, run, observation)
            await self._write_nodes(tx, run, observation)
            await self._advance(tx, run, observation)
        return True

    async def fail(self, run_id: str, attempt: int, reason: str) -> bool:
        """End a run that no engine can take: its workflow's name belongs to somebody else, or it does not compose."""
        async with self._database.transaction() as tx:
            run = await store.lock(tx, run_id)
            if run is None or run.status.is_final or run.attempt != attempt:
                return False
            await self._enter(tx, run, Status.ERROR, reason)
        return True

    async def _record_progress(self, observation: Observation, proof: Proof | None) -> bool:
        """Most of what is seen is nodes of a run that goes on as it did. False, with nothing written, where more is."""
        if observation.is_complete or observation.is_vanished or observation.finished_at is not None:
            return False
        if observation.is_taken or not observation.nodes:
            return False
        told = self._told(observation.run_id, observation.attempt, observation.nodes)
        is_written = await store.upsert_nodes_of_open(
            self._database,
            observation.run_id,
            observation.attempt,
            observation.workflow_name,
            Status(observation.phase),
            _plain(observation.message),
            _rows(observation),
            told,
            proof,
        )
        if told and is_written and self._nodes is not None:
            await self._nodes.wake()
        return is_written

    async def _write_nodes(self, tx: Transaction, run: Run, observation: Observation) -> None:
        if observation.nodes:
            await self._tell_of_nodes(tx, run, observation.nodes)
            await store.upsert_nodes(tx, run.id, _rows(observation))
        if observation.is_complete:
            await store.delete_other_nodes(tx, run.id, (str(node["id"]) for node in observation.nodes))

    async def _close_open_nodes(self, tx: Transaction, run: Run, observation: Observation) -> None:
        """Nothing runs any more: a final run has final nodes."""
        ended_at = (observation.finished_at or clock.now()).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        nodes: Iterable[dict[str, Any]] = map(msgspec.json.decode, await store.list_open_nodes(tx, run.id))
        closed = [node | {"phase": "Error", "message": VANISHED, "finishedAt": ended_at} for node in nodes]
        if closed:
            await self._tell_of_nodes(tx, run, closed)
            await store.upsert_nodes(tx, run.id, [_row(str(node["id"]), node) for node in closed])

    async def _tell_of_nodes(self, tx: Transaction, run: Run, nodes: Iterable[NodeDocument]) -> None:
        told = self._told(run.id, run.attempt, nodes)
        if told and self._nodes is not None:
            await store.tell_of_nodes(tx, run.id, told)
            tx.after_commit(self._nodes.wake)

    def _told(self, run_id: str, attempt: int, nodes: Iterable[NodeDocument]) -> list[store.NodeFact]:
        """What is to be said of nodes, wherever their record says something else. Of a node that is told twice the
        later state counts, as in the record."""
        if self._nodes is None:
            return []
        latest = {str(node["id"]): node for node in nodes}
        states = [state for node in latest.values() if (state := node_facts.state_of(run_id, attempt, node))]
        return [
            store.NodeFact(
                node_id=state.node_id,
                phase=state.phase.value,
                entry=self._nodes.entry(node_facts.KINDS[state.phase], state),
            )
            for state in states
        ]

    async def _advance(self, tx: Transaction, run: Run, observation: Observation) -> None:
        if observation.is_vanished:
            lost = await self._enter(tx, run, Status.ERROR, observation.message or VANISHED, observation.finished_at)
            with continue_trace(run.traceparent):
                await self._outbox.add(tx, events.RUN_LOST, to_state(lost))
            return
        seen = Status(observation.phase)
        status = domain.after(run.status, seen)
        if seen is Status.PENDING and status is not seen:
            return  # It does not wait any more, and why it did is no message of what it has become.
        error = _plain(observation.message) if status is not Status.NONE else ""
        is_first_start = run.started_at is None and observation.started_at is not None and status is not Status.NONE
        if status is run.status and error == run.error and not is_first_start:
            return
        await self._enter(tx, run, status, error, observation.finished_at, started_at=observation.started_at)

    async def _enter(
        self,
        tx: Transaction,
        run: Run,
        status: Status,
        error: str,
        finished_at: datetime | None = None,
        *,
        started_at: datetime | None = None,
    ) -> Run:
        now = await store.advance(tx, run.id, status, _plain(error), started_at=started_at, finished_at=finished_at)
        fact = _ENTERED.get(status)
        if status.is_final:
            _finished.labels(status.value).inc()
        if fact is not None and status is not run.status:
            with continue_trace(run.traceparent):
                await self._outbox.add(tx, fact, to_state(now))
        return now


def _workflow(prepared: compose.Prepared, run: Run) -> dict[str, Any]:
    return msgspec.json.decode(compose.workflow(prepared, run), type=dict[str, Any])


def _rows(observation: Observation) -> list[tuple[str, str, str]]:
    """Of a node that is told twice the later state counts: one statement cannot write a row twice."""
    latest = {str(node["id"]): node for node in observation.nodes}
    return [_row(node_id, node) for node_id, node in latest.items()]


def _row(node_id: str, node: Any) -> tuple[str, str, str]:
    """Id, phase and JSON text."""
    return node_id, str(node.get("phase", "")), msgspec.json.encode(node).decode()


def _plain(text: str) -> str:
    """What a text column can hold, and a fact carry."""
    return text.replace("\x00", "\ufffd")[:LARGEST_ERROR]
