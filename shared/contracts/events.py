"""Facts: what has happened, past tense, said once by its owner.

A fact travels as a CloudEvent 1.0 in the NATS binary binding on `kfp.event.<owner>.<what>.<resource id>`, with
its body as JSON and the owner's gap-free position in the header `ce-position`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from shared.contracts.states import (
    ExperimentState,
    JobState,
    MetricsState,
    MissedState,
    PipelineState,
    PipelineVersionState,
    RunState,
    State,
    TriggerState,
)

B = TypeVar("B", bound=State, covariant=True)

LARGEST_FACT_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class FactKind(Generic[B]):
    """One kind of fact. `owner` and `what` are words of the subject grammar (lower case, joined by `-`)."""

    owner: str
    what: str
    body: type[B]
    revision: int = 1

    @property
    def type(self) -> str:
        return f"kfp.{self.owner}.{self.what}.v{self.revision}"

    def subject(self, resource_id: str) -> str:
        return f"kfp.event.{self.owner}.{self.what}.{resource_id}"


EXPERIMENT_CREATED = FactKind("experiment", "created", ExperimentState)
EXPERIMENT_ARCHIVED = FactKind("experiment", "archived", ExperimentState)
EXPERIMENT_UNARCHIVED = FactKind("experiment", "unarchived", ExperimentState)
EXPERIMENT_DELETED = FactKind("experiment", "deleted", ExperimentState)

PIPELINE_CREATED = FactKind("pipeline-registry", "created", PipelineState)
PIPELINE_DELETED = FactKind("pipeline-registry", "deleted", PipelineState)
PIPELINE_VERSION_CREATED = FactKind("pipeline-registry", "version-created", PipelineVersionState)
PIPELINE_VERSION_DELETED = FactKind("pipeline-registry", "version-deleted", PipelineVersionState)
PIPELINE_DEFAULT_CHANGED = FactKind("pipeline-registry", "default-changed", PipelineState)

RUN_CREATED = FactKind("run", "created", RunState)
RUN_STARTED = FactKind("run", "started", RunState)
RUN_SUCCEEDED = FactKind("run", "succeeded", RunState)
RUN_FAILED = FactKind("run", "failed", RunState)
RUN_ERROR = FactKind("run", "error", RunState)
RUN_SKIPPED = FactKind("run", "skipped", RunState)
RUN_TERMINATING = FactKind("run", "terminating", RunState)
RUN_RETRIED = FactKind("run", "retried", RunState)
RUN_ARCHIVED = FactKind("run", "archived", RunState)
RUN_UNARCHIVED = FactKind("run", "unarchived", RunState)
RUN_DELETED = FactKind("run", "deleted", RunState)
RUN_LOST = FactKind("run", "lost", RunState)
RUN_REJECTED = FactKind("run", "rejected", RunState)
"""A job's slot has come, and there will be no run of it. The state is that of a run which has never been there."""

JOB_CREATED = FactKind("job-scheduler", "created", JobState)
JOB_ENABLED = FactKind("job-scheduler", "enabled", JobState)
JOB_DISABLED = FactKind("job-scheduler", "disabled", JobState)
JOB_DELETED = FactKind("job-scheduler", "deleted", JobState)
JOB_TRIGGERED = FactKind("job-scheduler", "triggered", TriggerState)
JOB_MISSED = FactKind("job-scheduler", "missed", MissedState)

METRICS_REPORTED = FactKind("metrics", "reported", MetricsState)

FACTS: dict[str, FactKind[Any]] = {kind.type: kind for kind in tuple(globals().values()) if isinstance(kind, FactKind)}
"""Every published kind of fact, by its CloudEvents type."""
