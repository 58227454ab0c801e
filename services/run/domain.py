"""What a run is, how it may change, and what is refused."""

from __future__ import annotations

import re
import secrets
from datetime import datetime
from enum import StrEnum
from typing import NewType

import msgspec

from shared.errors import AlreadyExists, InvalidInput, NotFound, WrongState

RunId = NewType("RunId", str)
WorkflowName = NewType("WorkflowName", str)

LARGEST_PARAMETERS_BYTES = 10_000
LONGEST_NAME_BYTES = 2_000
"""What an index can hold. The original server refuses far shorter ones, as a database error."""
DEFAULT_SERVICE_ACCOUNT = "pipeline-runner"

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


class ResourceType(StrEnum):
    """What a run may refer to. Sorted by value, references stand in the order that replies use."""

    EXPERIMENT = "EXPERIMENT"
    JOB = "JOB"
    NAMESPACE = "NAMESPACE"
    PIPELINE_VERSION = "PIPELINE_VERSION"


class Relationship(StrEnum):
    OWNER = "OWNER"
    CREATOR = "CREATOR"


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    type: ResourceType
    id: str
    name: str
    relationship: Relationship


class Parameter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str = ""
    value: str = ""


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
    workflow_name: WorkflowName
    attempt: int = 1
    version: int = 1
    traceparent: str = ""
    created_at: datetime
    scheduled_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    retried_at: datetime | None = None
    terminate_requested_at: datetime | None = None


class AskedReference(msgspec.Struct, frozen=True, kw_only=True):
    """A resource reference as a client sent it: the words are not checked."""

    type: str
    id: str
    relationship: str


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a run. Empty texts are absent."""

    name: str
    description: str = ""
    service_account: str = ""
    pipeline_id: str = ""
    manifest: str = ""
    parameters: tuple[Parameter, ...] = ()
    references: tuple[AskedReference, ...] = ()

    @property
    def version_id(self) -> str:
        """The version to run: the last one that is referred to as the creator."""
        ids = [each.id for each in self.references if (each.type, each.relationship) == ("PIPELINE_VERSION", "CREATOR")]
        return ids[-1] if ids else ""

    @property
    def experiment_id(self) -> str:
        ids = [each.id for each in self.references if (each.type, each.relationship) == ("EXPERIMENT", "OWNER")]
        return ids[0] if ids else ""


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
    if len(name.encode()) > LONGEST_NAME_BYTES:
        raise InvalidInput(f"The run name is longer than {LONGEST_NAME_BYTES} bytes. Please specify a valid name.")


def check_source(*, has_manifest: bool, has_pipeline: bool, has_version: bool) -> None:
    if not (has_manifest or has_pipeline or has_version):
        raise InvalidInput(
            "Please specify a pipeline by providing a (workflow manifest) or (pipeline id or/and pipeline version)."
        )
    if has_manifest and (has_pipeline or has_version):
        raise InvalidInput(
            "Please don't specify a pipeline version or pipeline ID when you specify a workflow manifest."
        )


def check_parameters_size(parameters: tuple[Parameter, ...]) -> None:
    """The size is that of Go's compact JSON, where `<`, `>` and `&` take six bytes."""
    text = msgspec.json.encode(parameters)
    size = len(text) + 5 * sum(text.count(letter) for letter in (b"<", b">", b"&"))
    if parameters and size > LARGEST_PARAMETERS_BYTES:
        raise InvalidInput(f"The input parameter length exceed maximum size of {LARGEST_PARAMETERS_BYTES}.")


def not_a_workflow(manifest: str) -> InvalidInput:
    return InvalidInput(f"Invalid argo workflow format. Workflow: {manifest}")


def not_our_kind(reason: str) -> InvalidInput:
    return InvalidInput(f"Failed to unmarshal workflow spec manifest. {reason}")


def unrecognized_parameter(name: str) -> InvalidInput:
    return InvalidInput(f"Unrecognized input parameter: {name}")


def invalid_workflow(name: str, reason: str) -> InvalidInput:
    return InvalidInput(f"Failed to validate workflow for ({name}): {reason}")


def unknown(run_id: str) -> NotFound:
    return NotFound.of("Run", run_id)


def manifest_gone(run_name: str) -> NotFound:
    return NotFound.of("WorkflowSpecManifest", run_name)


def artifact_unknown(run_id: str, node_id: str, artifact_name: str) -> NotFound:
    return NotFound.of("artifact", f"runs/{run_id}/nodes/{node_id}/artifacts/{artifact_name}")


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


def names_exhausted(name: str) -> AlreadyExists:
    return AlreadyExists(f"Failed to create a workflow for ({name})")
