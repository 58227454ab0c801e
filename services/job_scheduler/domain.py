"""What a recurring run ("job") is, and what is refused."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NewType, assert_never

import msgspec

from shared.errors import AlreadyExists, InvalidInput, NotFound
from shared.lengths import check_length
from shared.pipeline_spec import Asked, not_a_workflow
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
from shared.pipeline_spec import not_our_kind as not_our_kind
from shared.pipeline_spec import unrecognized_parameter as unrecognized_parameter

JobId = NewType("JobId", str)
ObjectName = NewType("ObjectName", str)
"""What Kubernetes would call the scheduler object. The names of a job's workflows start with it."""

MOST_CONCURRENT = 10
ON_TIME_SECONDS = 60
"""How late a run of a job that makes up for nothing may be, unless the job says otherwise."""
MOST_FAILURES = 1000
MOST_SLOTS = 1000
LONGEST_RANGE = timedelta(days=3660)
LONGEST_WINDOW_SECONDS = 10 * 366 * 86_400
LONGEST_TOLD = 10_000
"""Characters of what a field was, in a history: any parameters, and enough of a description."""

_NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_LONGEST_BASE = 25
_SUFFIX_LENGTH = 5
_NAMES_TO_TRY = 3
_NOT_IN_NAMES = re.compile(r"[^a-z0-9-]")
# FNV-1a of 32 bits.
_FNV_OFFSET = 0x811C9DC5
_FNV_PRIME = 0x01000193


class Status(StrEnum):
    """API specification, section 11.5."""

    NO_STATUS = "NO_STATUS"
    ENABLED = "Enabled"
    DISABLED = "Disabled"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    ERROR = "Error"


class Missed(StrEnum):
    """What becomes of slots that nobody fired in time."""

    ALL = "all"
    """Each is fired later, the oldest first."""
    LATEST = "latest"
    """The latest one is, for all."""
    NONE = "none"
    """None is: a slot fires on time or not at all."""


class Overlap(StrEnum):
    """What becomes of a slot that comes while as many runs are alive as may be."""

    QUEUE = "queue"
    """It waits until one of them is over."""
    SKIP = "skip"
    """It is given up."""
    REPLACE = "replace"
    """The oldest of them is terminated for it."""


class OneOff(msgspec.Struct, frozen=True, kw_only=True):
    """No trigger at all: one run, as soon as the job is enabled."""


class CronTrigger(msgspec.Struct, frozen=True, kw_only=True):
    cron: str
    """As the client wrote it."""
    starts_at: datetime | None = None
    ends_at: datetime | None = None


class PeriodicTrigger(msgspec.Struct, frozen=True, kw_only=True):
    interval_seconds: int
    starts_at: datetime | None = None
    ends_at: datetime | None = None


class Ending(StrEnum):
    """How a run may end, and any of it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"
    ENDED = "ended"


class RunTrigger(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a run, of which all is true that is named here."""

    facts: tuple[Ending, ...]
    pipeline_id: str | None = None
    experiment_id: str | None = None
    job_id: str | None = None


Trigger = OneOff | CronTrigger | PeriodicTrigger | RunTrigger


class Job(msgspec.Struct, frozen=True, kw_only=True):
    id: JobId
    object_name: ObjectName
    name: str
    description: str = ""
    is_enabled: bool
    no_catchup: bool
    max_concurrency: int
    trigger: Trigger
    time_zone: str = "UTC"
    """In which a cron expression is read."""
    missed: Missed | None = None
    """None: as `no_catchup` says."""
    missed_window_seconds: int | None = None
    pause_on_failures: int = 0
    """After how many failed runs in a row it is disabled; 0 is never."""
    overlap: Overlap = Overlap.QUEUE
    experiment_id: str
    namespace: str
    references: tuple[Reference, ...]
    pipeline_id: str | None = None
    """What the client sent; a job made from a version reference alone has none."""
    pipeline_name: str | None = None
    pipeline_version_id: str | None = None
    version_pipeline_id: str | None = None
    """Of which pipeline the version is, whether the client named that or not."""
    referred_job_id: str | None = None
    service_account: str
    parameters: tuple[Parameter, ...] = ()
    manifest_digest: str
    engine: EngineName = EngineName.EMBEDDED
    """What fires it."""
    reported_status: Status | None = None
    """What an external engine's scheduler says of it; None until it has said something."""
    next_slot_at: datetime | None = None
    """The first slot after the last one, due or not; None where there is none."""
    last_slot: datetime | None = None
    last_index: int = 0
    """How many slots have come so far."""
    active_runs: int = 0
    pending_slots: int = 0
    """How many slots of the past have been asked for and wait for room."""
    pending_causes: int = 0
    """How many runs have ended that trigger it, of which nothing has been made yet."""
    error: str = ""
    """Why the last slot has no run."""
    failures: int = 0
    """How many runs have failed in a row, in the order of their ends."""
    pause_reason: str = ""
    """Why it was disabled by itself."""
    version: int = 1
    created_by: str = ""
    created_at: datetime
    updated_at: datetime

    @property
    def status(self) -> Status:
        if self.engine is EngineName.EXTERNAL:
            return self.reported_status or Status.NO_STATUS
        match self.trigger:
            case OneOff():
                return Status.SUCCEEDED if self.last_index and not self.active_runs else Status.RUNNING
            case CronTrigger() | PeriodicTrigger() | RunTrigger():
                return Status.ENABLED if self.is_enabled else Status.DISABLED
            case _ as unreachable:
                assert_never(unreachable)


class NewJob(Asked, frozen=True, kw_only=True):
    """A request for a job."""

    is_enabled: bool = False
    no_catchup: bool = False
    max_concurrency: int = 0
    trigger: Trigger
    time_zone: str = ""
    """Empty: that of the installation."""
    missed: Missed | None = None
    missed_window_seconds: int | None = None
    pause_on_failures: int = 0
    overlap: Overlap = Overlap.QUEUE


class JobChange(msgspec.Struct, frozen=True, kw_only=True):
    """What is to become of a job that exists. None: it stays as it is."""

    name: str | None = None
    description: str | None = None
    max_concurrency: int | None = None
    no_catchup: bool | None = None
    trigger: Trigger | None = None
    time_zone: str | None = None
    missed: Missed | None = None
    missed_window_seconds: int | None = None
    """0 takes it away."""
    pause_on_failures: int | None = None
    overlap: Overlap | None = None
    parameters: tuple[Parameter, ...] | None = None


class FieldChange(msgspec.Struct, frozen=True, kw_only=True):
    field: str
    before: str
    """A text as it is; anything else in JSON. Of a long one the beginning."""
    after: str


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody changed of a job at once."""

    version: int
    """The job's, since then."""
    changed_at: datetime
    changed_by: str
    fields: tuple[FieldChange, ...]


def changed(job: Job, change: JobChange) -> Job:
    fields = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not None}
    if "missed_window_seconds" in fields:
        fields["missed_window_seconds"] = fields["missed_window_seconds"] or None
    if "no_catchup" in fields and "missed" not in fields:
        # Who speaks the original's language means what that says.
        fields["missed"] = None
    return msgspec.structs.replace(job, **fields)


def differences(before: Job, after: Job) -> tuple[FieldChange, ...]:
    return tuple(
        FieldChange(field=name, before=_told(getattr(before, name)), after=_told(getattr(after, name)))
        for name in JobChange.__struct_fields__
        if getattr(before, name) != getattr(after, name)
    )


def _told(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= LONGEST_TOLD else f"{text[:LONGEST_TOLD]}…"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler of an external engine holds of a job."""

    job_id: str
    object_name: ObjectName
    namespace: str
    is_enabled: bool
    no_catchup: bool
    max_concurrency: int
    trigger: Trigger
    parameters: tuple[Parameter, ...]
    status: Status


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A job with what replies show beside its row."""

    job: Job
    status: Status
    manifest: str


def object_names(name: str) -> tuple[ObjectName, ...]:
    """Names to try for the scheduler object, with random endings (API specification, section 10.2).

    Kubernetes takes no name that starts with a hyphen; the original server fails there.
    """
    base = _NOT_IN_NAMES.sub("", name.lower()).lstrip("-") or "job-"
    return tuple(ObjectName(base[:_LONGEST_BASE] + _ending()) for _ in range(_NAMES_TO_TRY))


def _ending() -> str:
    return "".join(secrets.choice(_NAME_LETTERS) for _ in range(_SUFFIX_LENGTH))


def workflow_name(object_name: str, index: int) -> str:
    """What the workflow of a job's run is called, the same however often it is asked (section 11.7)."""
    base = f"{object_name}-{index}"
    digest = _FNV_OFFSET
    for byte in base.encode():
        digest = (digest ^ byte) * _FNV_PRIME % 2**32
    return f"{base}-{digest}"


# Refusals, in the words of the API specification, sections 6, 9.2, 9.3 and 10.2.


def check_name(name: str) -> None:
    """A job may be called by nothing at all."""
    check_length("job name", name)


_Skipped = dict[str, msgspec.Raw]
"""A mapping of anything. What it holds is not built: of a large manifest that would take long."""


class _Arguments(msgspec.Struct, frozen=True):
    parameters: list[_Skipped] | None = None


class _Spec(msgspec.Struct, frozen=True):
    arguments: _Arguments | None = None
    templates: list[_Skipped] | None = None


class _Workflow(msgspec.Struct, frozen=True):
    metadata: _Skipped | None = None
    spec: _Spec | None = None


def check_is_workflow(manifest: str) -> None:
    """The outline alone: whether it can run is the run service's to say."""
    try:
        msgspec.json.decode(manifest, type=_Workflow)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise not_a_workflow(manifest, str(error)) from error


def check_max_concurrency(number: int) -> None:
    if not 1 <= number <= MOST_CONCURRENT:
        raise InvalidInput(
            f"The max concurrency of the job is out of range. Support 1-{MOST_CONCURRENT}. Received {number}."
        )


def check_interval(seconds: int) -> None:
    if seconds < 1:
        raise InvalidInput(f"Found invalid period schedule interval {seconds}. Set at interval to least 1 second.")


def check_missed_window(seconds: int | None) -> None:
    """0 is none."""
    if seconds and not 1 <= seconds <= LONGEST_WINDOW_SECONDS:
        raise InvalidInput(
            f"The window for missed slots is out of range. Support 1-{LONGEST_WINDOW_SECONDS} seconds. "
            f"Received {seconds}."
        )


def unknown_zone(name: str) -> InvalidInput:
    return InvalidInput(f"Unknown time zone: {name}. The IANA database has names such as Europe/Berlin.")


def check_pause_on_failures(number: int) -> None:
    if not 0 <= number <= MOST_FAILURES:
        raise InvalidInput(
            f"The number of failures to pause on is out of range. Support 0-{MOST_FAILURES}. Received {number}."
        )


def pause_reason(failures: int, run_id: str) -> str:
    runs = "its last run has failed" if failures == 1 else f"its last {failures} runs have failed"
    return f"Disabled, because {runs}. The last one is {run_id}."


def check_interval_floor(seconds: int | None, floor_seconds: int) -> None:
    if seconds is not None and seconds < floor_seconds:
        raise InvalidInput(
            f"The schedule has slots {seconds} seconds apart. This installation takes none that are closer than "
            f"{floor_seconds} seconds."
        )


def check_foreseen(count: int, most: int) -> None:
    if not 0 <= count <= most:
        raise InvalidInput(f"The number of slots is out of range. Support 1-{most}. Received {count}.")


def check_range(since: datetime | None, until: datetime, now: datetime) -> datetime:
    """Where it begins."""
    if since is None:
        raise InvalidInput("Please specify from when on slots are asked for.")
    if since > until:
        raise InvalidInput("The range of slots ends before it begins.")
    if until > now:
        raise InvalidInput("The range of slots ends in the future: what comes is fired by the schedule.")
    if until - since > LONGEST_RANGE:
        raise InvalidInput(f"The range of slots is longer than {LONGEST_RANGE.days} days.")
    return since


def check_number_of_slots(number: int) -> None:
    if number > MOST_SLOTS:
        raise InvalidInput(f"The range holds {number} slots. At most {MOST_SLOTS} may be asked for at once.")


def check_has_slots(trigger: Trigger) -> None:
    if isinstance(trigger, RunTrigger):
        raise InvalidInput("The job is triggered by runs: there are no slots to make up for.")


def check_run_trigger(trigger: RunTrigger) -> None:
    if not trigger.facts:
        raise InvalidInput("Please specify which facts of a run trigger the job.")
    if not (trigger.pipeline_id or trigger.experiment_id or trigger.job_id):
        raise InvalidInput("Please specify the pipeline, the experiment or the job whose runs trigger the job.")


def triggers_itself(chain: Sequence[str]) -> InvalidInput:
    return InvalidInput(f"The job would be triggered by its own runs: {' -> '.join(chain)}.")


def triggered_here_alone() -> InvalidInput:
    return InvalidInput("The scheduler of an external engine knows no jobs that runs trigger.")


def unknown_value(text: str) -> InvalidInput:
    return InvalidInput(
        f"Unknown value of the run that triggers the job: {text}. There are {{{{run.id}}}}, {{{{run.name}}}}, "
        "{{run.status}}, {{run.error}}, {{run.attempt}}, {{run.experiment_id}}, {{run.workflow_name}}, "
        "{{run.outputs.parameters.STEP.NAME}} and {{run.metrics.NAME}}."
    )


def check_depth(depth: int, longest_chain: int) -> None:
    if depth >= longest_chain:
        raise InvalidInput(f"It is the last of {longest_chain} runs that may trigger one another.")


def check_can_be_kept(parameters: Sequence[Parameter]) -> None:
    """What steps write is anything; no row takes this."""
    for parameter in parameters:
        if "\x00" in parameter.value:
            raise InvalidInput(f"The value of the parameter {parameter.name} would hold a NUL character.")


def not_triggered(run_id: str, why: str) -> str:
    return f"Run {run_id} triggers no other one. {why}"


def passed_over(run_id: str) -> str:
    return not_triggered(run_id, "There was no room, or it was too late.")


def check_is_scheduled(trigger: Trigger | None) -> None:
    if isinstance(trigger, OneOff):
        raise InvalidInput("A job that has been created keeps a trigger: disable it instead, or delete it.")


def unsupported_cron(reason: str) -> InvalidInput:
    return InvalidInput(
        f"Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron). Error: {reason}"
    )


def check_references(references: tuple[Reference, ...]) -> None:
    if len({reference.type for reference in references}) < len(references):
        raise InvalidInput("A job refers to at most one resource of each type.")


def unknown(job_id: str) -> NotFound:
    return NotFound.of("Job", job_id)


def not_a_report(reason: str) -> InvalidInput:
    return InvalidInput(f"Could not unmarshal scheduled workflow: {reason}")


def no_job_reported(report: Report) -> InvalidInput:
    identity = f"{report.job_id}/{report.namespace}/{report.object_name}"
    return InvalidInput(f"There is no job corresponding to this scheduled workflow: {identity}")


def fired_here(job_id: str) -> InvalidInput:
    """Invalid input, because the original's agent repeats what is refused for another reason."""
    return InvalidInput(
        f"Job {job_id} is fired by the scheduler of this installation: reports are accepted of the jobs of an external "
        "engine alone."
    )


def fired_elsewhere(job_id: str) -> InvalidInput:
    return InvalidInput(f"Job {job_id} is fired by the scheduler of an external engine: it is changed there.")


def object_name_taken(name: str) -> AlreadyExists:
    return AlreadyExists(f"The scheduled workflow {name} has the name that another job's has.")


def names_exhausted(name: str) -> AlreadyExists:
    return AlreadyExists(f"Failed to create a scheduled workflow for ({name})")
