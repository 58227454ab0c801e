"""What the agent of an external engine reports: a workflow as it stands there, applied to the run that it is.

The engine's own objects are out of reach: where the original server labels or deletes a workflow, nothing is done here
(API specification, section 12.1), and the answer tells the agent what is not known any more. An agent reports the
states of one workflow in their order, and repeats the last one now and then; repeating changes nothing. Metrics come by
their own way.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec

from shared import clock
from shared.bus import Bus
from shared.database import Database
from shared.errors import InvalidInput, layer

from . import domain, store
from .compose import API_VERSION, KIND, RUN_ID_LABEL
from .domain import EngineName, ReportedRun, Run, RunId, Status, WorkflowName
from .engine import Observation
from .engine import WorkflowName as EngineWorkflowName
from .records import Records
from .usecases import Runs

SCHEDULER_API_VERSION = "kubeflow.org/v1beta1"
SCHEDULER_KIND = "ScheduledWorkflow"
SLOT_LABEL = "scheduledworkflows.kubeflow.org/workflowEpoch"

_LONGEST_GENERATE_NAME = 200
_LONGEST_QUOTE = 1_000


class Reports:
    def __init__(self, database: Database, bus: Bus, runs: Runs, records: Records) -> None:
        self._database = database
        self._bus = bus
        self._runs = runs
        self._records = records

    async def take_in(self, text: str) -> None:
        """Raises NotFound for a run that is not known, unless the scheduler of the engine has made it of a job."""
        with layer("Report workflow failed."):
            report = read(text)
            run = await self._run_of(report)
            if run.engine is not EngineName.EXTERNAL:
                raise domain.driven_here(run.id)
            if run.workflow_name != report.workflow_name:
                raise domain.of_another_workflow(run.id, run.workflow_name, report.workflow_name)
            if report.is_of_attempt_before(run):
                return
            if report.is_terminating:
                await self._runs.follow_termination(run.id)
            if await self._records.record(report.observation(run)):
                await self._bus.ping(f"kfp.ping.run-nodes.{run.id}")

    async def _run_of(self, report: Report) -> Run:
        run = await store.find(self._database, report.run_id)
        if run is not None:
            return run
        reported = report.run_of_job()
        if reported is None:
            raise domain.unknown(report.run_id)
        return await self._runs.adopt(reported)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow, as far as it says something about a run."""

    run_id: RunId
    workflow_name: WorkflowName
    namespace: str
    job_id: str
    """The job that the workflow belongs to; empty where it was asked for by somebody."""
    created_at: datetime | None
    scheduled_at: datetime | None
    spec: msgspec.Raw
    phase: Status
    is_terminating: bool
    message: str
    started_at: datetime | None
    finished_at: datetime | None
    nodes: tuple[Mapping[str, Any], ...]

    def is_of_attempt_before(self, run: Run) -> bool:
        """A workflow says nothing of attempts: what ended before the last retry was another one. In whole seconds, as
        workflows tell their times."""
        if self.finished_at is None or run.retried_at is None:
            return False
        return self.finished_at < run.retried_at.replace(microsecond=0)

    def observation(self, run: Run) -> Observation:
        return Observation(
            workflow_name=EngineWorkflowName(self.workflow_name),
            run_id=run.id,
            attempt=run.attempt,
            phase=self.phase.value,
            message=self.message,
            started_at=self.started_at,
            finished_at=self.finished_at if self.phase.is_final else None,
            nodes=self.nodes,
            # An engine that has too many keeps them elsewhere, and shows none.
            is_complete=bool(self.nodes),
        )

    def run_of_job(self) -> ReportedRun | None:
        if not self.job_id:
            return None
        manifest = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"generateName": self.workflow_name[:_LONGEST_GENERATE_NAME]},
            "spec": self.spec,
        }
        return ReportedRun(
            id=self.run_id,
            job_id=self.job_id,
            workflow_name=self.workflow_name,
            namespace=self.namespace,
            manifest=msgspec.json.encode(manifest).decode(),
            created_at=self.created_at or clock.now(),
            scheduled_at=self.scheduled_at,
        )


# Reading a workflow. What a column could not hold is refused.

_Text = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$")]
_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class _Owner(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    api_version: str = ""
    kind: str = ""
    uid: _Text = ""


class _Metadata(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: _Text = ""
    namespace: _Text = ""
    uid: str = ""
    creation_timestamp: _Time | None = None
    labels: dict[str, str] | None = None
    owner_references: tuple[_Owner, ...] | None = None


class _S3(msgspec.Struct, frozen=True, kw_only=True):
    key: str = ""


class _Artifact(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""
    s3: _S3 | None = None


class _Outputs(msgspec.Struct, frozen=True, kw_only=True):
    artifacts: tuple[_Artifact, ...] | None = None


class _Node(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of the nodes on record. Everything else in one is shown as it came."""

    type: str = ""
    phase: _Text = ""
    children: tuple[str, ...] | None = None
    outputs: _Outputs | None = None


class _Status(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    phase: str = ""
    message: str = ""
    started_at: _Time | None = None
    finished_at: _Time | None = None
    nodes: dict[_Text, dict[str, Any]] | None = None


class _Workflow(msgspec.Struct, frozen=True, kw_only=True):
    metadata: _Metadata | None = None
    spec: msgspec.Raw = msgspec.Raw(b"{}")
    status: _Status | None = None


class _Spec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    active_deadline_seconds: Any = None


def read(text: str) -> Report:
    """API specification, section 12.1, in the order of its checks."""
    try:
        workflow = msgspec.json.decode(text, type=_Workflow)
        spec = msgspec.json.decode(workflow.spec, type=_Spec | None) or _Spec()
        metadata, status = workflow.metadata or _Metadata(), workflow.status or _Status()
        phase = _phase(status.phase)
        nodes = tuple(_node(node_id, node) for node_id, node in (status.nodes or {}).items())
        times = (metadata.creation_timestamp, status.started_at, status.finished_at)
        created_at, started_at, finished_at = (_utc(at) for at in times)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise domain.not_a_report(str(error)) from error
    for value, what in ((metadata.name, "a name"), (metadata.namespace, "a namespace"), (metadata.uid, "a UID")):
        if not value:
            raise InvalidInput(f"The workflow must have {what}: {text[:_LONGEST_QUOTE]}")
    labels = metadata.labels or {}
    return Report(
        run_id=_run_id(metadata.name, labels.get(RUN_ID_LABEL, "")),
        workflow_name=WorkflowName(metadata.name),
        namespace=metadata.namespace,
        job_id=next((each.uid for each in metadata.owner_references or () if _is_scheduler(each)), ""),
        created_at=created_at,
        scheduled_at=_slot(labels.get(SLOT_LABEL, "")),
        spec=workflow.spec,
        phase=phase,
        is_terminating=spec.active_deadline_seconds == 0 and not phase.is_final,
        message=status.message,
        started_at=started_at,
        finished_at=finished_at,
        nodes=nodes,
    )


def _phase(text: str) -> Status:
    if text == Status.TERMINATING:
        raise ValueError(f"{text!r} is not a phase of a workflow")
    return Status(text)


def _node(node_id: str, node: dict[str, Any]) -> dict[str, Any]:
    msgspec.convert(node, _Node)
    return {**node, "id": node_id}


def _utc(at: datetime | None) -> datetime | None:
    try:
        return None if at is None else at.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{at} is beyond all times") from error


def _run_id(name: str, label: str) -> RunId:
    if not label:
        raise InvalidInput(f"Workflow[{name}] missing the Run ID label")
    try:
        is_one = str(UUID(label)) == label
    except ValueError:
        is_one = False
    if not is_one:
        raise InvalidInput(f"Workflow[{name}] has a Run ID label that is no run's: {label}")
    return RunId(label)


def _is_scheduler(owner: _Owner) -> bool:
    return bool(owner.uid) and (owner.api_version, owner.kind) == (SCHEDULER_API_VERSION, SCHEDULER_KIND)


def _slot(label: str) -> datetime | None:
    try:
        return datetime.fromtimestamp(int(label), UTC)
    except (ValueError, OverflowError, OSError):
        return None
