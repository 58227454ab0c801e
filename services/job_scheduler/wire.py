"""v1beta1 JSON of jobs (API specification, sections 2 and 10.1), to and from the domain."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import IntEnum
from typing import assert_never

import msgspec

from shared import protojson
from shared.errors import InvalidInput, MalformedRequest
from shared.pipeline_spec import WireParameter, WirePipelineSpec, check_generation
from shared.protojson import Int64, named
from shared.references import Relationship, ResourceType, WireReference, WireReferenceKey

from . import domain
from .domain import (
    AskedReference,
    CronTrigger,
    Ending,
    Job,
    JobChange,
    Missed,
    NewJob,
    ObjectName,
    OneOff,
    Overlap,
    Parameter,
    PeriodicTrigger,
    Reference,
    Report,
    Revision,
    RunTrigger,
    Status,
    Trigger,
    View,
)

_LONGEST_QUOTE = 1_000
_ZERO_TIME = datetime(1, 1, 1, tzinfo=UTC)


@named("Job.Mode")
class WireMode(IntEnum):
    """Clients send it and the API reads `enabled` alone."""

    UNKNOWN_MODE = 0
    ENABLED = 1
    DISABLED = 2


class WireCronSchedule(msgspec.Struct, frozen=True, kw_only=True):
    start_time: datetime | None = None
    end_time: datetime | None = None
    cron: str = ""


class WirePeriodicSchedule(msgspec.Struct, frozen=True, kw_only=True):
    start_time: datetime | None = None
    end_time: datetime | None = None
    interval_second: Int64 = 0


class WireTrigger(msgspec.Struct, frozen=True, kw_only=True):
    """A oneof."""

    cron_schedule: WireCronSchedule | None = None
    periodic_schedule: WirePeriodicSchedule | None = None


class WireJob(msgspec.Struct, frozen=True, kw_only=True):
    id: str = ""
    name: str = ""
    description: str = ""
    pipeline_spec: WirePipelineSpec | None = None
    resource_references: tuple[WireReference, ...] = ()
    service_account: str = ""
    max_concurrency: Int64 = 0
    trigger: WireTrigger | None = None
    mode: WireMode = WireMode.UNKNOWN_MODE
    created_at: datetime | None = None
    updated_at: datetime | None = None
    status: str = ""
    error: str = ""
    enabled: bool = False
    no_catchup: bool = False


class WireOn(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs trigger a job by their end; what is absent may be any."""

    facts: tuple[Ending, ...] = ()
    pipeline_id: str = ""
    experiment_id: str = ""
    job_id: str = ""


class WireExtendedJob(WireJob, frozen=True, kw_only=True):
    """A job with what the original does not have. Read where a job is created, shown under paths of our own alone."""

    on: WireOn | None = None
    """Instead of a trigger."""
    time_zone: str = ""
    missed: Missed | None = None
    missed_window_seconds: int = 0
    pause_on_failures: int = 0
    overlap: Overlap = Overlap.QUEUE
    next_slot_at: datetime | None = None
    """Read only, as are all that follow."""
    last_slot_at: datetime | None = None
    runs_made: Int64 = 0
    failures: int = 0
    pending_slots: int = 0
    pending_causes: int = 0


class WireJobChange(msgspec.Struct, frozen=True, kw_only=True):
    """What is absent stays as it is."""

    name: str | None = None
    description: str | None = None
    max_concurrency: Int64 | None = None
    no_catchup: bool | None = None
    trigger: WireTrigger | None = None
    on: WireOn | None = None
    time_zone: str | None = None
    missed: Missed | None = None
    missed_window_seconds: int | None = None
    pause_on_failures: int | None = None
    overlap: Overlap | None = None
    parameters: tuple[WireParameter, ...] | None = None


class WireFieldChange(msgspec.Struct, frozen=True, kw_only=True):
    field: str = ""
    before: str = ""
    after: str = ""


class WireRevision(msgspec.Struct, frozen=True, kw_only=True):
    version: Int64 = 0
    changed_at: datetime | None = None
    changed_by: str = ""
    fields: tuple[WireFieldChange, ...] = ()


class WireHistory(msgspec.Struct, frozen=True, kw_only=True):
    revisions: tuple[WireRevision, ...] = ()


class PreviewQuery(msgspec.Struct, frozen=True, kw_only=True):
    count: int = 0


class WireBackfill(msgspec.Struct, frozen=True, kw_only=True):
    start_time: datetime | None = None
    end_time: datetime | None = None
    """Now, where it is absent."""
    dry_run: bool = False


class WirePreview(msgspec.Struct, frozen=True, kw_only=True):
    slots: tuple[datetime, ...] = ()
    time_zone: str = ""


class WireJobs(msgspec.Struct, frozen=True, kw_only=True):
    jobs: tuple[WireJob, ...] = ()
    total_size: int = 0
    next_page_token: str = ""


class WireObjectMeta(msgspec.Struct, frozen=True, kw_only=True):
    """Of a Kubernetes object, as far as it is read here."""

    name: str = ""
    namespace: str = ""
    uid: str = ""


class WireScheduledParameters(msgspec.Struct, frozen=True, kw_only=True):
    parameters: tuple[WireParameter, ...] = ()


class WireScheduledSpec(msgspec.Struct, frozen=True, kw_only=True):
    enabled: bool = False
    max_concurrency: Int64 = 0
    no_catchup: bool = False
    trigger: WireTrigger | None = None
    workflow: WireScheduledParameters | None = None


class WireCondition(msgspec.Struct, frozen=True, kw_only=True):
    type: str = ""


class WireScheduledStatus(msgspec.Struct, frozen=True, kw_only=True):
    conditions: tuple[WireCondition, ...] = ()


class WireScheduledWorkflow(msgspec.Struct, frozen=True, kw_only=True):
    """The object of a Kubernetes scheduler: its names are those of the API, in camel case."""

    metadata: WireObjectMeta | None = None
    spec: WireScheduledSpec | None = None
    status: WireScheduledStatus | None = None


def to_report(text: str) -> Report:
    """Raises InvalidInput (API specification, section 12.4)."""
    try:
        wire = protojson.decode(text.encode(), WireScheduledWorkflow)
    except (MalformedRequest, UnicodeError) as error:
        raise domain.not_a_report(str(error)) from error
    metadata, spec = wire.metadata or WireObjectMeta(), wire.spec or WireScheduledSpec()
    for value, what in ((metadata.name, "a name"), (metadata.namespace, "a namespace"), (metadata.uid, "a UID")):
        if not value:
            raise InvalidInput(f"The resource must have {what}: {text[:_LONGEST_QUOTE]}")
    return Report(
        job_id=metadata.uid,
        object_name=ObjectName(metadata.name),
        namespace=metadata.namespace,
        is_enabled=spec.enabled,
        no_catchup=spec.no_catchup,
        max_concurrency=min(max(spec.max_concurrency, 1), domain.MOST_CONCURRENT),
        trigger=_to_trigger(spec.trigger or WireTrigger()),
        parameters=tuple(
            Parameter(name=each.name, value=each.value)
            for each in (spec.workflow or WireScheduledParameters()).parameters
        ),
        status=_status(wire.status or WireScheduledStatus()),
    )


def _status(wire: WireScheduledStatus) -> Status:
    """The last condition counts."""
    if not wire.conditions:
        return Status.NO_STATUS
    try:
        return Status(wire.conditions[-1].type)
    except ValueError as error:
        raise domain.not_a_report(str(error)) from error


def to_new_job(wire: WireExtendedJob) -> NewJob:
    """Raises InvalidInput for two triggers at once, and for what only pipelines of the second generation have."""
    spec = wire.pipeline_spec or WirePipelineSpec()
    check_generation(spec)
    return NewJob(
        name=wire.name,
        description=wire.description,
        is_enabled=wire.enabled,
        no_catchup=wire.no_catchup,
        max_concurrency=wire.max_concurrency,
        trigger=_to_trigger(wire.trigger or WireTrigger(), wire.on),
        time_zone=wire.time_zone,
        missed=wire.missed,
        missed_window_seconds=wire.missed_window_seconds,
        pause_on_failures=wire.pause_on_failures,
        overlap=wire.overlap,
        service_account=wire.service_account,
        pipeline_id=spec.pipeline_id,
        manifest=spec.workflow_manifest,
        parameters=tuple(Parameter(name=each.name, value=each.value) for each in spec.parameters),
        references=tuple(_asked(each) for each in wire.resource_references),
    )


def from_view(view: View) -> WireJob:
    job = view.job
    return WireJob(
        id=job.id,
        name=job.name,
        description=job.description,
        pipeline_spec=_spec(job, view.manifest),
        resource_references=tuple(_reference(each) for each in job.references),
        service_account=job.service_account,
        max_concurrency=job.max_concurrency,
        trigger=_from_trigger(job.trigger),
        created_at=job.created_at,
        updated_at=job.updated_at,
        status=view.status.value,
        error=job.pause_reason or job.error,
        enabled=job.is_enabled,
        no_catchup=job.no_catchup,
    )


def extended(view: View) -> WireExtendedJob:
    job = view.job
    return WireExtendedJob(
        **msgspec.structs.asdict(from_view(view)),
        on=_from_run_trigger(job.trigger) if isinstance(job.trigger, RunTrigger) else None,
        time_zone=job.time_zone,
        missed=job.missed,
        missed_window_seconds=job.missed_window_seconds or 0,
        pause_on_failures=job.pause_on_failures,
        overlap=job.overlap,
        next_slot_at=job.next_slot_at,
        last_slot_at=job.last_slot,
        runs_made=job.last_index,
        failures=job.failures,
        pending_slots=job.pending_slots,
        pending_causes=job.pending_causes,
    )


def to_change(wire: WireJobChange) -> JobChange:
    return JobChange(
        name=wire.name,
        description=wire.description,
        max_concurrency=wire.max_concurrency,
        no_catchup=wire.no_catchup,
        trigger=None
        if wire.trigger is None and wire.on is None
        else _to_trigger(wire.trigger or WireTrigger(), wire.on),
        time_zone=wire.time_zone,
        missed=wire.missed,
        missed_window_seconds=wire.missed_window_seconds,
        pause_on_failures=wire.pause_on_failures,
        overlap=wire.overlap,
        parameters=None
        if wire.parameters is None
        else tuple(Parameter(name=each.name, value=each.value) for each in wire.parameters),
    )


def from_revisions(revisions: tuple[Revision, ...]) -> WireHistory:
    return WireHistory(
        revisions=tuple(
            WireRevision(
                version=each.version,
                changed_at=each.changed_at,
                changed_by=each.changed_by,
                fields=tuple(WireFieldChange(**msgspec.structs.asdict(field)) for field in each.fields),
            )
            for each in revisions
        )
    )


def _to_trigger(wire: WireTrigger, on: WireOn | None = None) -> Trigger:
    cron, periodic = wire.cron_schedule, wire.periodic_schedule
    if on is not None and (cron is not None or periodic is not None):
        raise InvalidInput("A job is triggered either by a schedule or by runs, not by both.")
    if on is not None:
        return RunTrigger(
            facts=on.facts,
            pipeline_id=on.pipeline_id or None,
            experiment_id=on.experiment_id or None,
            job_id=on.job_id or None,
        )
    if cron is not None and periodic is not None:
        raise InvalidInput("A trigger is either a cron schedule or a periodic schedule, not both.")
    if cron is not None:
        return CronTrigger(cron=cron.cron, starts_at=_set(cron.start_time), ends_at=_set(cron.end_time))
    if periodic is not None:
        return PeriodicTrigger(
            interval_seconds=periodic.interval_second,
            starts_at=_set(periodic.start_time),
            ends_at=_set(periodic.end_time),
        )
    return OneOff()


def _set(at: datetime | None) -> datetime | None:
    """The original's scheduler takes Go's zero time for none. Our database driver takes it for minus infinity."""
    return None if at == _ZERO_TIME else at


def _from_trigger(trigger: Trigger) -> WireTrigger:
    match trigger:
        case OneOff() | RunTrigger():
            return WireTrigger()
        case CronTrigger(cron=cron, starts_at=start, ends_at=end):
            return WireTrigger(cron_schedule=WireCronSchedule(start_time=start, end_time=end, cron=cron))
        case PeriodicTrigger(interval_seconds=seconds, starts_at=start, ends_at=end):
            periodic = WirePeriodicSchedule(start_time=start, end_time=end, interval_second=seconds)
            return WireTrigger(periodic_schedule=periodic)
        case _ as unreachable:
            assert_never(unreachable)


def _from_run_trigger(trigger: RunTrigger) -> WireOn:
    return WireOn(
        facts=trigger.facts,
        pipeline_id=trigger.pipeline_id or "",
        experiment_id=trigger.experiment_id or "",
        job_id=trigger.job_id or "",
    )


def _asked(wire: WireReference) -> AskedReference:
    key = wire.key or WireReferenceKey()
    return AskedReference(type=key.type.name, id=key.id, relationship=wire.relationship.name)


def _spec(job: Job, manifest: str) -> WirePipelineSpec:
    return WirePipelineSpec(
        pipeline_id=job.pipeline_id or "",
        pipeline_name=job.pipeline_name or "",
        workflow_manifest=manifest,
        parameters=tuple(WireParameter(name=each.name, value=each.value) for each in job.parameters),
    )


def _reference(reference: Reference) -> WireReference:
    return WireReference(
        key=WireReferenceKey(type=ResourceType[reference.type.value], id=reference.id),
        name=reference.name,
        relationship=Relationship[reference.relationship.value],
    )
