"""v1beta1 JSON of runs (API specification, sections 2 and 9.1), to and from the domain."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import IntEnum

import msgspec

from shared.contracts.questions import EngineAnswer
from shared.pipeline_spec import WireParameter, WirePipelineSpec, check_generation
from shared.protojson import named
from shared.references import Relationship, ResourceType, WireReference, WireReferenceKey

from .domain import AskedReference, Detail, NewRun, Parameter, Reference, Run, StorageState, View

_EPOCH = datetime.fromtimestamp(0, UTC)


@named("Run.StorageState")
class WireStorageState(IntEnum):
    """A run's zero value is AVAILABLE, so that it does not show in replies."""

    STORAGESTATE_AVAILABLE = 0
    STORAGESTATE_ARCHIVED = 1


@named("RunMetric.Format")
class WireMetricFormat(IntEnum):
    UNSPECIFIED = 0
    RAW = 1
    PERCENTAGE = 2


class WireMetric(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""
    node_id: str = ""
    number_value: float | None = None
    format: WireMetricFormat = WireMetricFormat.UNSPECIFIED


class WireRun(msgspec.Struct, frozen=True, kw_only=True):
    id: str = ""
    name: str = ""
    storage_state: WireStorageState = WireStorageState.STORAGESTATE_AVAILABLE
    description: str = ""
    pipeline_spec: WirePipelineSpec | None = None
    resource_references: tuple[WireReference, ...] = ()
    service_account: str = ""
    created_at: datetime | None = None
    scheduled_at: datetime | None = None
    finished_at: datetime | None = None
    status: str = ""
    error: str = ""
    metrics: tuple[WireMetric, ...] = ()


class WirePipelineRuntime(msgspec.Struct, frozen=True, kw_only=True):
    pipeline_manifest: str = ""
    workflow_manifest: str = ""


class WireRunDetail(msgspec.Struct, frozen=True, kw_only=True):
    run: WireRun | None = None
    pipeline_runtime: WirePipelineRuntime | None = None


class WireRuns(msgspec.Struct, frozen=True, kw_only=True):
    runs: tuple[WireRun, ...] = ()
    total_size: int = 0
    next_page_token: str = ""


@named("AuthorizeRequest.Resources")
class Resources(IntEnum):
    UNASSIGNED_RESOURCES = 0
    VIEWERS = 1


@named("AuthorizeRequest.Verb")
class Verb(IntEnum):
    UNASSIGNED_VERB = 0
    CREATE = 1
    GET = 2
    DELETE = 3


class WireAuthorization(msgspec.Struct, frozen=True, kw_only=True):
    namespace: str = ""
    resources: Resources = Resources.UNASSIGNED_RESOURCES
    verb: Verb = Verb.UNASSIGNED_VERB


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    follow: bool = False


def to_new_run(wire: WireRun) -> NewRun:
    """Raises InvalidInput for what only pipelines of the second generation have."""
    spec = wire.pipeline_spec or WirePipelineSpec()
    check_generation(spec)
    return NewRun(
        name=wire.name,
        description=wire.description,
        service_account=wire.service_account,
        pipeline_id=spec.pipeline_id,
        manifest=spec.workflow_manifest,
        parameters=tuple(Parameter(name=each.name, value=each.value) for each in spec.parameters),
        references=tuple(_asked(each) for each in wire.resource_references),
    )


class WireEngine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An extension of the API."""

    name: str
    runtime: str
    weaker: str | None = None


def from_engine(engine: EngineAnswer) -> WireEngine:
    return WireEngine(name=engine.name, runtime=engine.runtime, weaker=engine.weaker)


def from_detail(detail: Detail) -> WireRunDetail:
    return WireRunDetail(
        run=from_view(detail.view),
        pipeline_runtime=WirePipelineRuntime(workflow_manifest=detail.workflow.decode()),
    )


def from_view(view: View) -> WireRun:
    run = view.run
    return WireRun(
        id=run.id,
        name=run.name,
        storage_state=(
            WireStorageState.STORAGESTATE_ARCHIVED
            if run.storage_state is StorageState.ARCHIVED
            else WireStorageState.STORAGESTATE_AVAILABLE
        ),
        description=run.description,
        pipeline_spec=_spec(run, view.manifest),
        resource_references=tuple(_reference(each) for each in run.references),
        service_account="" if run.is_fired else run.service_account,
        created_at=run.created_at,
        # Zero is a time to Go: a run without a slot, or without an end yet, shows the epoch.
        scheduled_at=run.scheduled_at or _EPOCH,
        finished_at=run.finished_at or _EPOCH,
        status=run.status.value,
        metrics=tuple(
            WireMetric(
                name=metric.name,
                node_id=metric.node_id,
                number_value=metric.number,
                format=WireMetricFormat[metric.format],
            )
            for metric in view.metrics
        ),
    )


def _asked(wire: WireReference) -> AskedReference:
    key = wire.key or WireReferenceKey()
    return AskedReference(type=key.type.name, id=key.id, relationship=wire.relationship.name)


def _spec(run: Run, manifest: str) -> WirePipelineSpec:
    return WirePipelineSpec(
        pipeline_id=run.pipeline_id or "",
        pipeline_name=run.pipeline_name or "",
        workflow_manifest=manifest,
        parameters=tuple(
            WireParameter(name=each.name, value=each.value) for each in (() if run.is_fired else run.parameters)
        ),
    )


def _reference(reference: Reference) -> WireReference:
    return WireReference(
        key=WireReferenceKey(type=ResourceType[reference.type.value], id=reference.id),
        name=reference.name,
        relationship=Relationship[reference.relationship.value],
    )
