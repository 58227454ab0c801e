"""What a run is, how it may change, and what is refused."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from datetime import datetime
from enum import StrEnum
from typing import NewType

import msgspec

from shared.errors import AlreadyExists, InvalidInput, NotFound, WrongState
from shared.lengths import check_length
from shared.pipeline_spec import Asked
from shared.pipeline_spec import AskedReference as AskedReference
from shared.pipeline_spec import EngineName as EngineName
from shared.pipeline_spec import Parameter as Parameter
from shared.pipeline_spec import Reference as Reference
from shared.pipeline_spec import Relationship as Relationship
from shared.pipeline_spec import ResourceType as ResourceType
from shared.pipeline_spec import check_lengths as check_lengths
from shared.pipeline_spec import check_parameters_size as check_parameters_size
from shared.pipeline_spec import check_source as check_source
from shared.pipeline_spec import invalid_workflow as invalid_workflow
from shared.pipeline_spec import manifest_gone as manifest_gone
from shared.pipeline_spec import not_a_workflow as not_a_workflow
from shared.pipeline_spec import not_our_kind as not_our_kind
from shared.pipeline_spec import unrecognized_parameter as unrecognized_parameter

RunId = NewType("RunId", str)
WorkflowName = NewType("WorkflowName", str)

DEFAULT_SERVICE_ACCOUNT = "pipeline-runner"
LOG_ARTIFACT = "main-logs"
"""The artifact of a node that is what its step wrote."""

_NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_LONGEST_NAME = 63
_SUFFIX_LENGTH = 5
_WORKFLOW_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class StorageState(StrEnum):
    AVAILABLE = "available"
    ARCHIVED = "archived"


class Status(StrEnum):
    """API specification, section 12.3. A run that nothing has happened to yet has no status."""

    NONE = ""
    PENDING = "Pending"
    RUNNING = "Running"
    TERMINATING = "Terminating"
    SUCCEEDED = "Succeeded"
    SKIPPED = "Skipped"
    FAILED = "Failed"
    ERROR = "Error"

    @property
    def is_final(self) -> bool:
        return self in _FINAL


_FINAL = frozenset({Status.SUCCEEDED, Status.SKIPPED, Status.FAILED, Status.ERROR})
TERMINABLE = (Status.NONE, Status.PENDING, Status.RUNNING)
RETRYABLE = (Status.FAILED, Status.ERROR)
_FOLLOWERS: dict[Status, frozenset[Status]] = {
    Status.NONE: frozenset({Status.PENDING, Status.RUNNING, Status.TERMINATING}) | _FINAL,
    Status.PENDING: frozenset({Status.RUNNING, Status.TERMINATING}) | _FINAL,
    Status.RUNNING: frozenset({Status.TERMINATING}) | _FINAL,
    Status.TERMINATING: _FINAL,
} | {final: frozenset() for final in _FINAL}


def after(current: Status, observed: Status) -> Status:
    """The status of a run that was `current` when the engine showed `observed`: forward or as it was."""
    return observed if observed in _FOLLOWERS[current] else current


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    run_id: str
    node_id: str
    name: str
    number: float
    format: str


class Run(msgspec.Struct, frozen=True, kw_only=True):
    id: RunId
    name: str
    description: str = ""
    storage_state: StorageState = StorageState.AVAILABLE
    status: Status = Status.NONE
    error: str = ""
    experiment_id: str
    namespace: str
    references: tuple[Reference, ...]
    pipeline_id: str | None = None
    """What the client sent; a run made from a version reference alone has none."""
    pipeline_name: str | None = None
    pipeline_version_id: str | None = None
    job_id: str | None = None
    service_account: str
    parameters: tuple[Parameter, ...] = ()
    manifest_digest: str
    engine: EngineName = EngineName.EMBEDDED
    """What drives it, from its creation to its end."""
    workflow_name: WorkflowName
    attempt: int = 1
    taken_attempt: int = 0
    """The latest that the engine is known to have had; engines that keep what they know need not say."""
    version: int = 1
    created_by: str = ""
    traceparent: str = ""
    created_at: datetime
    scheduled_at: datetime | None = None
    trigger_depth: int = 0
    """How many runs led to it, each triggered by the end of the one before."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    retried_at: datetime | None = None
    terminate_requested_at: datetime | None = None

    @property
    def is_fired(self) -> bool:
        """Whether a job's slot made it here: then only its workflow tells what it was made from (section 12.2)."""
        return self.scheduled_at is not None and self.engine.is_told


class NewRun(Asked, frozen=True, kw_only=True):
    """A request for a run."""


class ReportedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was not asked for here: the scheduler of an external engine has made it of a job (section 12.2)."""

    id: RunId
    job_id: str
    workflow_name: WorkflowName
    namespace: str
    manifest: str
    created_at: datetime
    scheduled_at: datetime | None


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A run with what lists show beside its row."""

    run: Run
    manifest: str
    metrics: tuple[Metric, ...] = ()


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    view: View
    workflow: bytes
    """JSON: the workflow as it runs, with its status."""


# Names of workflows (engine specification, section 3).


def workflow_names(name: str, generate_name: str) -> tuple[WorkflowName, ...]:
    """Names to try, in order: the manifest's own first, then with a random ending.

    Names are keys of our records, so two runs of a manifest with a fixed name must differ.
    """
    if name:
        return WorkflowName(name), generated(f"{name}-"), generated(f"{name}-"), generated(f"{name}-")
    base = generate_name or "run-"
    return generated(base), generated(base), generated(base)


def generated(base: str) -> WorkflowName:
    ending = "".join(secrets.choice(_NAME_LETTERS) for _ in range(_SUFFIX_LENGTH))
    return WorkflowName(base[: _LONGEST_NAME - _SUFFIX_LENGTH] + ending)


def check_workflow_name(name: str) -> None:
    """Kubernetes' rule. It also keeps what is not a plain name out of paths and object keys."""
    if len(name) > _LONGEST_NAME or not _WORKFLOW_NAME.fullmatch(name):
        raise InvalidInput(
            f"Failed to create a workflow for ({name})",
            cause="a name has at most 63 lower case letters, digits, '-' or '.', and starts and ends with a letter "
            "or a digit",
        )


# Refusals, in the words of the API specification, sections 9.2 to 9.7.


def check_name(name: str) -> None:
    if not name:
        raise InvalidInput("The run name is empty. Please specify a valid name.")
    check_length("run name", name)


def unknown(run_id: str) -> NotFound:
    return NotFound.of("Run", run_id)


def artifact_unknown(run_id: str, node_id: str, artifact_name: str) -> NotFound:
    return NotFound.of("artifact", f"runs/{run_id}/nodes/{node_id}/artifacts/{artifact_name}")


def retried_since(run_id: str, attempt: int) -> InvalidInput:
    return InvalidInput(f"Run {run_id} has been retried since its attempt {attempt}.")


def get_output(run_id: str, node: str, name: str, values: Collection[str]) -> str:
    """The value of an output parameter. Raises InvalidInput where there is none, or more than one."""
    if len(values) == 1:
        return next(iter(values))
    if values:
        raise InvalidInput(f"Several steps of run {run_id} are called {node}, and their outputs {name} differ.")
    raise InvalidInput(f"Run {run_id} has no step {node} with an output parameter {name}.")


def metric_unknown(run_id: str, name: str) -> InvalidInput:
    return InvalidInput(f"Run {run_id} has no metric {name}.")


def values_too_large(run_id: str, most_bytes: int) -> InvalidInput:
    return InvalidInput(f"The outputs of run {run_id} that are asked for are larger than {most_bytes} bytes.")


def log_unknown(run_id: str, node_id: str) -> NotFound:
    return NotFound.of("log", f"runs/{run_id}/nodes/{node_id}/log")


def not_terminable(run_id: str) -> InvalidInput:
    return InvalidInput(f"Failed to terminate run {run_id}. Row not found.")


def not_retryable() -> WrongState:
    return WrongState("Workflow must be Failed/Error to retry", cause="workflow cannot be retried")


def not_retryable_yet(node_name: str, phase: str) -> WrongState:
    return WrongState(
        f"Workflow cannot be retried with node {node_name} in {phase} phase", cause="workflow cannot be retried"
    )


def not_retryable_here(reason: str) -> WrongState:
    return WrongState("Workflow cannot be retried with nodes of a kind that only another engine has", cause=reason)


def not_a_report(reason: str) -> InvalidInput:
    return InvalidInput(f"Could not unmarshal workflow: {reason}")


def driven_here(run_id: str) -> InvalidInput:
    """Invalid input, because the original's agent repeats what is refused for another reason, but for unknown runs."""
    return InvalidInput(
        f"Run {run_id} is driven by the engine of this installation: reports are accepted of the runs of an external "
        "engine alone."
    )


def of_another_workflow(run_id: str, name: str, reported: str) -> InvalidInput:
    return InvalidInput(f"Workflow[{reported}] has the Run ID label of run {run_id}, whose workflow is {name}.")


def experiment_gone(experiment_id: str) -> NotFound:
    return NotFound.of("Experiment", experiment_id)


def workflow_name_taken(name: str) -> AlreadyExists:
    return AlreadyExists(f"Workflow[{name}] has the name that the workflow of another run has.")


def names_exhausted(name: str) -> AlreadyExists:
    return AlreadyExists(f"Failed to create a workflow for ({name})")
