"""The small states that facts and answers carry, after the change, with the version that orders them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NewType

import msgspec

ExperimentId = NewType("ExperimentId", str)
PipelineId = NewType("PipelineId", str)
PipelineVersionId = NewType("PipelineVersionId", str)
RunId = NewType("RunId", str)
JobId = NewType("JobId", str)


class StorageState(StrEnum):
    AVAILABLE = "available"
    ARCHIVED = "archived"


class RunStatus(StrEnum):
    """API specification, section 12.3; the empty text stands for a run that nothing has happened to yet."""

    NONE = ""
    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    SKIPPED = "Skipped"
    FAILED = "Failed"
    ERROR = "Error"
    TERMINATING = "Terminating"

    @property
    def is_final(self) -> bool:
        return self in _FINAL


_FINAL = frozenset({RunStatus.SUCCEEDED, RunStatus.SKIPPED, RunStatus.FAILED, RunStatus.ERROR})


class NodePhase(StrEnum):
    """Of the nodes that facts tell of."""

    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    ERROR = "Error"
    SKIPPED = "Skipped"
    OMITTED = "Omitted"


class MetricFormat(StrEnum):
    UNSPECIFIED = "UNSPECIFIED"
    RAW = "RAW"
    PERCENTAGE = "PERCENTAGE"


class State(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What every fact carries: whose it is and how new.

    `created_by`, where a state has it, is the subject of the caller who made the record: `token:ci`, `oidc:4711`; empty
    where nobody was asked who they are.
    """

    id: str
    version: int


class ExperimentState(State, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    storage_state: StorageState = StorageState.AVAILABLE
    created_at: datetime
    created_by: str = ""
    is_deleted: bool = False


class PipelineState(State, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    default_version_id: PipelineVersionId | None = None
    created_at: datetime
    created_by: str = ""
    is_deleted: bool = False


class PipelineVersionState(State, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    pipeline_id: PipelineId
    manifest_digest: str
    created_at: datetime
    created_by: str = ""
    is_deleted: bool = False


class RunState(State, frozen=True, kw_only=True, omit_defaults=True):
    """A run fact carries what filters need; manifests, descriptions and nodes never travel in facts."""

    name: str
    status: RunStatus = RunStatus.NONE
    error: str = ""
    storage_state: StorageState = StorageState.AVAILABLE
    experiment_id: ExperimentId
    pipeline_id: PipelineId | None = None
    pipeline_version_id: PipelineVersionId | None = None
    job_id: JobId | None = None
    workflow_name: str = ""
    attempt: int = 1
    created_at: datetime
    created_by: str = ""
    scheduled_at: datetime | None = None
    trigger_depth: int = 0
    """How many runs led to it, each triggered by the end of the one before."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    is_deleted: bool = False


class NodeState(State, frozen=True, kw_only=True, omit_defaults=True):
    """A step of a run; `id` is the run's, and `version` grows with what becomes of this node."""

    node_id: str
    name: str
    """The whole one, with its place in the workflow: `train-x7[0].fit`."""
    display_name: str = ""
    template_name: str = ""
    type: str
    """`Pod` is one that runs something."""
    phase: NodePhase
    message: str = ""
    exit_code: int | None = None
    attempt: int = 1
    """Of the run."""
    experiment_id: ExperimentId
    pipeline_id: PipelineId | None = None
    pipeline_version_id: PipelineVersionId | None = None
    job_id: JobId | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


class JobState(State, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    is_enabled: bool = False
    experiment_id: ExperimentId
    pipeline_id: PipelineId | None = None
    pipeline_version_id: PipelineVersionId | None = None
    created_at: datetime
    created_by: str = ""
    updated_at: datetime
    is_deleted: bool = False


class ParameterValue(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str = ""
    value: str = ""


class TriggerState(State, frozen=True, kw_only=True, omit_defaults=True):
    """A slot of a job has come, or a run has ended that triggers it. Everything that its run is made from is here, as
    it was decided then; `id` is the job's."""

    run_id: RunId
    slot: datetime
    """The scheduled time, which is not the time at which this was said; of a job that runs trigger, the time at which
    the end of one of them was told."""
    index: int
    """Which run of its job it is, counted from one."""
    name: str
    """The job's."""
    workflow_name: str
    namespace: str
    experiment_id: ExperimentId
    experiment_name: str = ""
    pipeline_id: PipelineId | None = None
    pipeline_version_id: PipelineVersionId | None = None
    manifest_digest: str
    parameters: tuple[ParameterValue, ...] = ()
    """The job's own, with their macros expanded."""
    service_account: str = ""
    engine: str = "embedded"
    created_by: str = ""
    """Of the job."""
    replaces: tuple[RunId, ...] = ()
    """Runs of the job that have to go for this one."""
    cause_run_id: RunId | None = None
    """The run whose end triggered it."""
    trigger_depth: int = 0
    """That its run will have."""


class MissedState(State, frozen=True, kw_only=True, omit_defaults=True):
    """Slots of a job that no run will be made for, because its policy passes over them, or for the given reason; `id`
    is the job's."""

    name: str
    experiment_id: ExperimentId
    count: int
    """How many slots there are from the first to the last."""
    first: datetime
    last: datetime
    reason: str = ""
    cause_run_id: RunId | None = None
    """The run whose end would have triggered one, where it is passed over alone."""


class Metric(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    node_id: str
    name: str
    number: float
    format: MetricFormat = MetricFormat.UNSPECIFIED


class MetricsState(State, frozen=True, kw_only=True, omit_defaults=True):
    """Metrics of one run that were recorded just now; `id` is the run's."""

    metrics: tuple[Metric, ...]
