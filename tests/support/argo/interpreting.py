"""A brain that carries workflows out: the embedded engine interprets them, and what it reports is written as Argo
writes it.

So whatever holds for one engine can be asked of the other, too. Where the interpreter has words of its own, such as
`terminated`, they stay as they are. The state of a workflow is its object alone, as it is Argo's: what a restart or a
retry finds there is what the interpreter goes on from.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from services.run.engine import NodeId, Observation, Submission, WorkflowName
from services.run.engine.embedded.driver import EmbeddedEngine
from services.run.engine.embedded.nodes import timestamp
from shared.blobs import Blobs
from tests.support.argo.held import FINAL, Held
from tests.support.argo.pods import Pods
from tests.support.kubernetes.client import ApiClient

RUN_ID = "pipeline/runid"
ATTEMPT = "headrace.dev/attempt"


class Interpreting:
    def __init__(self, api: ApiClient, engine: EmbeddedEngine, blobs: Blobs) -> None:
        """The engine is driven and followed by this brain alone. `blobs` is where its artifacts go."""
        self._api = api
        self._engine = engine
        self._blobs = blobs
        self._reports: dict[str, asyncio.Queue[Observation]] = {}
        self._logged: dict[tuple[str, str], int] = {}
        """How much of a step's log its pod has by now, by the attempt of the run and the node."""
        self._retried_at: dict[str, datetime] = {}

    async def work(self) -> None:
        async with asyncio.TaskGroup() as together:
            together.create_task(self._engine.run())
            together.create_task(self._listen())

    async def live(self, workflow: Held) -> None:
        submission = self._submission(workflow)
        reports = self._reports[workflow.name] = asyncio.Queue()
        await self._engine.submit(submission)
        async with asyncio.TaskGroup() as together:
            stopping = together.create_task(self._stop(workflow))
            steps = _Steps(self._engine, Pods(self._api, workflow), submission, self._logged, together)
            while True:
                observation = await reports.get()
                if (observation.run_id, observation.attempt) != (submission.run_id, submission.attempt):
                    continue
                for node in observation.nodes:
                    if node["type"] == "Pod":
                        await steps.show(node)
                await workflow.write(
                    nodes={node["id"]: as_argo_writes(node) for node in observation.nodes},
                    phase=observation.phase,
                    message=observation.message,
                    **self._times(observation),
                    artifactRepositoryRef=self._repository(),
                )
                await self._engine.recorded(observation)
                if observation.phase in FINAL:
                    break
            stopping.cancel()

    async def forget(self, workflow: Held) -> None:
        submission = self._submission(workflow)
        await self._engine.erase(submission.run_id, up_to_attempt=submission.attempt)
        await Pods(self._api, workflow).delete_all()

    async def _listen(self) -> None:
        async for observation in self._engine.observe():
            if (reports := self._reports.get(observation.workflow_name)) is not None:
                reports.put_nowait(observation)

    async def _stop(self, workflow: Held) -> None:
        await workflow.until(lambda seen: seen.is_stopped)
        await self._engine.terminate(WorkflowName(workflow.name))

    def _submission(self, workflow: Held) -> Submission:
        """The object as the interpreter is told of it, from its beginning or from wherever it is."""
        run_id = workflow.labels.get(RUN_ID, workflow.uid)
        attempt = int(workflow.annotations.get(ATTEMPT, "1"))
        started_at = workflow.status.get("startedAt")
        is_retried = attempt > 1
        return Submission(
            workflow_name=WorkflowName(workflow.name),
            run_id=run_id,
            attempt=attempt,
            workflow={**workflow.document, "status": {}, "spec": _without_stop(workflow.spec)},
            nodes=tuple({"finishedAt": None, **node} for node in workflow.nodes.values()),
            started_at=datetime.fromisoformat(started_at) if started_at else None,
            retried_at=self._retried_at.setdefault(f"{run_id}.{attempt}", datetime.now(UTC)) if is_retried else None,
            is_terminating=workflow.is_stopped,
        )

    def _times(self, observation: Observation) -> dict[str, Any]:
        """Of a workflow that waits for its turn there is none yet."""
        started = {} if observation.started_at is None else {"startedAt": timestamp(observation.started_at)}
        ended = None if observation.finished_at is None else timestamp(observation.finished_at)
        return {**started, "finishedAt": ended}

    def _repository(self) -> dict[str, Any]:
        s3 = {
            "endpoint": self._blobs.endpoint,
            "bucket": self._blobs.bucket,
            "insecure": self._blobs.is_insecure,
            "accessKeySecret": {"name": "mlpipeline-minio-artifact", "key": "accesskey"},
            "secretKeySecret": {"name": "mlpipeline-minio-artifact", "key": "secretkey"},
        }
        return {"default": True, "artifactRepository": {"archiveLogs": True, "s3": s3}}


class _Steps:
    """The pods of the steps of one workflow, and what they say."""

    def __init__(
        self,
        engine: EmbeddedEngine,
        pods: Pods,
        submission: Submission,
        logged: dict[tuple[str, str], int],
        together: asyncio.TaskGroup,
    ) -> None:
        self._engine = engine
        self._pods = pods
        self._submission = submission
        self._logged = logged
        self._together = together
        self._shown: dict[str, str] = {}
        self._logging: dict[str, asyncio.Task[None]] = {}

    async def show(self, node: Mapping[str, Any]) -> None:
        """Bring the pod to where its node is, before anybody can see the node there."""
        node_id, phase = node["id"], node["phase"]
        if phase == self._shown.get(node_id) or phase in ("Skipped", "Omitted"):
            return
        if node_id not in self._shown:
            await self._pods.create(node)
        self._shown[node_id] = phase
        if phase != "Pending":
            if node_id not in self._logging:
                self._logging[node_id] = self._together.create_task(self._log(node_id, phase == "Running"))
            if phase != "Running":
                await self._logging[node_id]
            await self._pods.show(node_id, phase)

    async def _log(self, node_id: str, follow: bool) -> None:
        key = (f"{self._submission.run_id}.{self._submission.attempt}", node_id)
        chunks = self._engine.logs(
            self._submission.workflow_name, NodeId(node_id), follow=follow, offset=self._logged.get(key, 0)
        )
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                await self._pods.hand_in_log(node_id, "main", chunk)
                self._logged[key] = self._logged.get(key, 0) + len(chunk)


def as_argo_writes(node: Mapping[str, Any]) -> dict[str, Any]:
    """Since 3.0 an artifact has its key, and the workflow the repository."""
    return {
        field: _with_keys_alone(value) if field in ("inputs", "outputs") else value for field, value in node.items()
    }


def _with_keys_alone(passed: Mapping[str, Any]) -> dict[str, Any]:
    artifacts = [
        {**each, "s3": {"key": each["s3"]["key"]}} if "s3" in each else each for each in passed.get("artifacts", ())
    ]
    return {**passed, **({"artifacts": artifacts} if artifacts else {})}


def _without_stop(spec: dict[str, Any]) -> dict[str, Any]:
    """A deadline of nought is a stop, and none that a workflow begins with."""
    stops = {"shutdown"} | ({"activeDeadlineSeconds"} if spec.get("activeDeadlineSeconds") == 0 else set())
    return {key: value for key, value in spec.items() if key not in stops}
