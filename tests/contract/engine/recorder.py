"""Plays the controller: submits, records in memory what the engine reports, acknowledges, and waits for states."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from services.run.engine import Engine, NodeId, Observation, Submission, WorkflowName
from services.run.engine.retry import rewrite

FINAL = ("Succeeded", "Failed", "Error")

_numbers = itertools.count()


@dataclass(kw_only=True)
class Run:
    """What is on record of one run."""

    name: WorkflowName
    run_id: str
    workflow: Mapping[str, Any]
    experiment_id: str = ""
    attempt: int = 1
    phase: str = ""
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    nodes: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    history: list[Observation] = field(default_factory=list)

    @property
    def is_final(self) -> bool:
        return self.finished_at is not None

    def take(self, observation: Observation) -> None:
        assert observation.run_id == self.run_id
        assert not self.is_final, "nothing is reported after the end"
        self.history.append(observation)
        self.phase, self.message = observation.phase, observation.message
        self.started_at, self.finished_at = observation.started_at, observation.finished_at
        if observation.is_complete:
            self.nodes.clear()
        self.nodes.update({node["id"]: node for node in observation.nodes})

    def reopen(self) -> None:
        """Begin the next attempt, as the retry of the run does on record."""
        texts = [(node_id, msgspec.json.encode(node).decode()) for node_id, node in self.nodes.items()]
        rewritten = rewrite(self.name, texts)
        for node_id in rewritten.removed:
            del self.nodes[node_id]
        self.nodes.update({node_id: msgspec.json.decode(text) for node_id, _, text in rewritten.changed})
        self.attempt += 1
        self.finished_at = None

    def submission(self, **changes: Any) -> Submission:
        """What a controller submits of it now, the first time and after a restart."""
        fields: dict[str, Any] = {
            "workflow_name": self.name,
            "run_id": self.run_id,
            "experiment_id": self.experiment_id,
            "attempt": self.attempt,
            "workflow": self.workflow,
            "nodes": tuple(self.nodes.values()),
            "started_at": self.started_at,
        }
        return Submission(**{**fields, **changes})

    # What a test reads: nodes by the part of their name after the workflow's.

    def node(self, name: str = "") -> Mapping[str, Any]:
        return self.by_name()[name]

    def by_name(self) -> dict[str, Mapping[str, Any]]:
        return {node["name"].removeprefix(self.name): node for node in self.nodes.values()}

    def phases(self) -> dict[str, str]:
        return {name: node["phase"] for name, node in self.by_name().items()}

    def children(self, name: str = "") -> set[str]:
        names = {node["id"]: node["name"].removeprefix(self.name) for node in self.nodes.values()}
        return {names[child] for child in self.node(name).get("children", ())}

    def value(self, name: str, parameter: str = "o") -> str:
        found = {each["name"]: each["value"] for each in self.node(name)["outputs"]["parameters"]}
        return str(found[parameter])

    def given(self, name: str, parameter: str) -> str:
        found = {each["name"]: each["value"] for each in self.node(name)["inputs"]["parameters"]}
        return str(found[parameter])

    def artifact(self, name: str, artifact: str) -> Mapping[str, Any]:
        found = {each["name"]: each for each in self.node(name)["outputs"]["artifacts"]}
        return dict(found[artifact])

    def id_of(self, name: str = "") -> NodeId:
        return NodeId(self.node(name)["id"])

    def seconds(self) -> float:
        assert self.started_at is not None
        assert self.finished_at is not None
        return (self.finished_at - self.started_at).total_seconds()


def new_run(workflow: Mapping[str, Any], *, name: str = "", experiment_id: str = "") -> Run:
    """A run as its creation leaves it: named, dated, with podMetadata's run id."""
    run_id = str(uuid.uuid4())
    name = name or f"wf-{next(_numbers)}-{run_id[:5]}"
    metadata = {
        **workflow.get("metadata", {}),
        "name": name,
        "namespace": "kubeflow",
        "uid": run_id,
        "creationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    document = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", **workflow, "metadata": metadata}
    return Run(name=WorkflowName(name), run_id=run_id, workflow=document, experiment_id=experiment_id)


class Recorder:
    """Records for as long as `follow` runs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.runs: dict[WorkflowName, Run] = {}
        self.holds: set[WorkflowName] = set()
        """Workflows whose observations are taken in and not acknowledged."""
        self._changed = asyncio.Condition()

    async def follow(self) -> None:
        async for observation in self.engine.observe():
            await self._record(observation)

    async def _record(self, observation: Observation) -> None:
        run = self.runs[observation.workflow_name]
        run.take(observation)
        if run.name not in self.holds:
            await self.engine.recorded(observation)
        async with self._changed:
            self._changed.notify_all()

    async def begin(self, workflow: Mapping[str, Any], *, experiment_id: str = "") -> Run:
        run = new_run(workflow, experiment_id=experiment_id)
        self.runs[run.name] = run
        await self.engine.submit(run.submission())
        return run

    async def until(self, run: Run, state: Callable[[Run], bool], *, within_seconds: float = 30) -> Run:
        try:
            async with asyncio.timeout(within_seconds), self._changed:
                await self._changed.wait_for(lambda: state(run))
        except TimeoutError:
            raise AssertionError(f"not within {within_seconds} s; {run.phase}: {run.phases()}") from None
        return run

    async def end_of(self, run: Run, *, within_seconds: float = 30) -> Run:
        return await self.until(run, lambda run: run.is_final, within_seconds=within_seconds)

    async def carry_out(self, workflow: Mapping[str, Any], *, within_seconds: float = 30) -> Run:
        return await self.end_of(await self.begin(workflow), within_seconds=within_seconds)

    async def running(self, run: Run, *names: str) -> Run:
        """Until these nodes run."""
        return await self.until(run, lambda run: all(run.phases().get(name) == "Running" for name in names))


@contextlib.asynccontextmanager
async def recording(engine: Engine) -> AsyncIterator[Recorder]:
    """A recorder that follows the engine meanwhile."""
    recorder = Recorder(engine)
    following = asyncio.create_task(recorder.follow())
    try:
        yield recorder
    finally:
        following.cancel()
        await asyncio.wait([following])


async def said(recorder: Recorder, run: Run, name: str, text: str) -> None:
    """Until the running step has written the text."""
    await recorder.running(run, name)
    written = b""
    async with (
        asyncio.timeout(20),
        contextlib.aclosing(recorder.engine.logs(run.name, run.id_of(name), follow=True)) as chunks,
    ):
        async for chunk in chunks:
            written += chunk
            if text.encode() in written:
                return
    raise AssertionError(f"{text!r} never came: {written!r}")
