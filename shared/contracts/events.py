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
    NodeState,
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
    says: str = ""
    """In a sentence, for whoever decides whether to listen."""

    @property
    def type(self) -> str:
        return f"kfp.{self.owner}.{self.what}.v{self.revision}"

    def subject(self, resource_id: str) -> str:
        return f"kfp.event.{self.owner}.{self.what}.{resource_id}"


EXPERIMENT_CREATED = FactKind(
    "experiment",
    "created",
    ExperimentState,
    says="An experiment is there.",
)
EXPERIMENT_ARCHIVED = FactKind(
    "experiment",
    "archived",
    ExperimentState,
    says="An experiment was put away: its runs follow, and its jobs are disabled.",
)
EXPERIMENT_UNARCHIVED = FactKind(
    "experiment",
    "unarchived",
    ExperimentState,
    says="An experiment is back; its runs and jobs stay as they are.",
)
EXPERIMENT_DELETED = FactKind(
    "experiment",
    "deleted",
    ExperimentState,
    says="An experiment is gone. Its runs and jobs stay.",
)

PIPELINE_CREATED = FactKind(
    "pipeline-registry",
    "created",
    PipelineState,
    says="A pipeline was uploaded.",
)
PIPELINE_DELETED = FactKind(
    "pipeline-registry",
    "deleted",
    PipelineState,
    says="A pipeline is gone, and its versions with it.",
)
PIPELINE_VERSION_CREATED = FactKind(
    "pipeline-registry",
    "version-created",
    PipelineVersionState,
    says="A pipeline has a further version.",
)
PIPELINE_VERSION_DELETED = FactKind(
    "pipeline-registry",
    "version-deleted",
    PipelineVersionState,
    says="A version of a pipeline is gone.",
)
PIPELINE_DEFAULT_CHANGED = FactKind(
    "pipeline-registry",
    "default-changed",
    PipelineState,
    says="Runs of a pipeline are made from another version from now on.",
)

RUN_CREATED = FactKind(
    "run",
    "created",
    RunState,
    says="A run was accepted. Nothing of it has been started.",
)
RUN_STARTED = FactKind(
    "run",
    "started",
    RunState,
    says="The engine is at work on a run.",
)
RUN_SUCCEEDED = FactKind(
    "run",
    "succeeded",
    RunState,
    says="A run is over, and did what it should.",
)
RUN_FAILED = FactKind(
    "run",
    "failed",
    RunState,
    says="A run is over: a step of it failed, or it was terminated.",
)
RUN_ERROR = FactKind(
    "run",
    "error",
    RunState,
    says="A run is over because of something outside its steps.",
)
RUN_SKIPPED = FactKind(
    "run",
    "skipped",
    RunState,
    says="A run is over without having done anything.",
)
RUN_TERMINATING = FactKind(
    "run",
    "terminating",
    RunState,
    says="Somebody wants a run to end.",
)
RUN_RETRIED = FactKind(
    "run",
    "retried",
    RunState,
    says="A run that was over goes on, with a further attempt: what had failed in it is repeated.",
)
RUN_ARCHIVED = FactKind(
    "run",
    "archived",
    RunState,
    says="A run was put away.",
)
RUN_UNARCHIVED = FactKind(
    "run",
    "unarchived",
    RunState,
    says="A run is back among the others.",
)
RUN_DELETED = FactKind(
    "run",
    "deleted",
    RunState,
    says="A run is gone, whether it was over or not.",
)
RUN_LOST = FactKind(
    "run",
    "lost",
    RunState,
    says="The engine knows a run no longer that was not over; it ends as an error.",
)
RUN_REJECTED = FactKind(
    "run",
    "rejected",
    RunState,
    says="A job's slot has come, and there is no run of it. The state is that of a run which has never been there.",
)

NODE_STARTED = FactKind(
    "node",
    "started",
    NodeState,
    says="A step of a run is at work.",
)
NODE_SUCCEEDED = FactKind(
    "node",
    "succeeded",
    NodeState,
    says="A step of a run is over, and did what it should.",
)
NODE_FAILED = FactKind(
    "node",
    "failed",
    NodeState,
    says="A step of a run is over: what it ran went wrong. It may be tried again, as another node.",
)
NODE_ERROR = FactKind(
    "node",
    "error",
    NodeState,
    says="A step of a run is over because of something outside it.",
)
NODE_SKIPPED = FactKind(
    "node",
    "skipped",
    NodeState,
    says="A step of a run is not done: its condition does not hold, or what it depends on went another way.",
)

JOB_CREATED = FactKind(
    "job-scheduler",
    "created",
    JobState,
    says="A recurring run is there.",
)
JOB_ENABLED = FactKind(
    "job-scheduler",
    "enabled",
    JobState,
    says="A recurring run fires from now on.",
)
JOB_DISABLED = FactKind(
    "job-scheduler",
    "disabled",
    JobState,
    says="A recurring run fires no more. Runs that it has made go on.",
)
JOB_UPDATED = FactKind(
    "job-scheduler",
    "updated",
    JobState,
    says="A recurring run was changed in place. Runs that are alive stay as they are.",
)
JOB_DELETED = FactKind(
    "job-scheduler",
    "deleted",
    JobState,
    says="A recurring run is gone. Runs that it has made stay.",
)
JOB_TRIGGERED = FactKind(
    "job-scheduler",
    "triggered",
    TriggerState,
    says="A slot of a recurring run has come, or a run that triggers it has ended. A run follows, or a rejection.",
)
JOB_MISSED = FactKind(
    "job-scheduler",
    "missed",
    MissedState,
    says="Slots of a recurring run were passed over, or a run that triggers it ended in vain.",
)

METRICS_REPORTED = FactKind(
    "metrics",
    "reported",
    MetricsState,
    says="A run has metrics that it did not have before.",
)

FACTS: dict[str, FactKind[Any]] = {kind.type: kind for kind in tuple(globals().values()) if isinstance(kind, FactKind)}
"""Every published kind of fact, by its CloudEvents type."""
