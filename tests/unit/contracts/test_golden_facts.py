"""What facts look like on the wire, word for word: others read them with programs that we cannot see.

A field may be added with a default. One that is renamed, retyped or removed breaks a test here, and must.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from shared.contracts.events import FACTS
from shared.contracts.states import (
    ExperimentId,
    ExperimentState,
    JobId,
    JobState,
    Metric,
    MetricFormat,
    MetricsState,
    MissedState,
    NodePhase,
    NodeState,
    ParameterValue,
    PipelineId,
    PipelineState,
    PipelineVersionId,
    PipelineVersionState,
    RunId,
    RunState,
    RunStatus,
    State,
    StorageState,
    TriggerState,
)

AT = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)

EXAMPLES: dict[type[State], tuple[State, bytes]] = {
    ExperimentState: (
        ExperimentState(
            id="e",
            version=3,
            name="mill",
            storage_state=StorageState.ARCHIVED,
            created_at=AT,
            created_by="token:ci",
            is_deleted=True,
        ),
        b'{"id":"e","version":3,"name":"mill","storage_state":"archived",'
        b'"created_at":"2024-05-06T07:08:09.123456Z","created_by":"token:ci","is_deleted":true}',
    ),
    PipelineState: (
        PipelineState(
            id="p",
            version=2,
            name="grind",
            default_version_id=PipelineVersionId("v"),
            created_at=AT,
            created_by="token:ci",
            is_deleted=True,
        ),
        b'{"id":"p","version":2,"name":"grind","default_version_id":"v",'
        b'"created_at":"2024-05-06T07:08:09.123456Z","created_by":"token:ci","is_deleted":true}',
    ),
    PipelineVersionState: (
        PipelineVersionState(
            id="v",
            version=1,
            name="fine",
            pipeline_id=PipelineId("p"),
            manifest_digest="abc",
            created_at=AT,
            created_by="token:ci",
            is_deleted=True,
        ),
        b'{"id":"v","version":1,"name":"fine","pipeline_id":"p","manifest_digest":"abc",'
        b'"created_at":"2024-05-06T07:08:09.123456Z","created_by":"token:ci","is_deleted":true}',
    ),
    RunState: (
        RunState(
            id="r",
            version=7,
            name="run",
            status=RunStatus.FAILED,
            error="broke",
            storage_state=StorageState.ARCHIVED,
            experiment_id=ExperimentId("e"),
            pipeline_id=PipelineId("p"),
            pipeline_version_id=PipelineVersionId("v"),
            job_id=JobId("j"),
            workflow_name="run-x",
            attempt=2,
            created_at=AT,
            created_by="token:ci",
            scheduled_at=AT,
            trigger_depth=1,
            started_at=AT,
            finished_at=AT,
            is_deleted=True,
        ),
        b'{"id":"r","version":7,"name":"run","status":"Failed","error":"broke","storage_state":"archived",'
        b'"experiment_id":"e","pipeline_id":"p","pipeline_version_id":"v","job_id":"j","workflow_name":"run-x",'
        b'"attempt":2,"created_at":"2024-05-06T07:08:09.123456Z","created_by":"token:ci",'
        b'"scheduled_at":"2024-05-06T07:08:09.123456Z","trigger_depth":1,'
        b'"started_at":"2024-05-06T07:08:09.123456Z","finished_at":"2024-05-06T07:08:09.123456Z","is_deleted":true}',
    ),
    NodeState: (
        NodeState(
            id="r",
            version=2,
            node_id="run-x-123",
            name="run-x[0].fit",
            display_name="fit",
            template_name="train",
            type="Pod",
            phase=NodePhase.FAILED,
            message="broke",
            exit_code=3,
            attempt=2,
            experiment_id=ExperimentId("e"),
            pipeline_id=PipelineId("p"),
            pipeline_version_id=PipelineVersionId("v"),
            job_id=JobId("j"),
            started_at=AT,
            finished_at=AT,
        ),
        b'{"id":"r","version":2,"node_id":"run-x-123","name":"run-x[0].fit","display_name":"fit",'
        b'"template_name":"train","type":"Pod","phase":"Failed","message":"broke","exit_code":3,"attempt":2,'
        b'"experiment_id":"e","pipeline_id":"p","pipeline_version_id":"v","job_id":"j",'
        b'"started_at":"2024-05-06T07:08:09.123456Z","finished_at":"2024-05-06T07:08:09.123456Z"}',
    ),
    JobState: (
        JobState(
            id="j",
            version=4,
            name="nightly",
            is_enabled=True,
            experiment_id=ExperimentId("e"),
            pipeline_id=PipelineId("p"),
            pipeline_version_id=PipelineVersionId("v"),
            created_at=AT,
            created_by="token:ci",
            updated_at=AT,
            is_deleted=True,
        ),
        b'{"id":"j","version":4,"name":"nightly","is_enabled":true,"experiment_id":"e","pipeline_id":"p",'
        b'"pipeline_version_id":"v","created_at":"2024-05-06T07:08:09.123456Z","created_by":"token:ci",'
        b'"updated_at":"2024-05-06T07:08:09.123456Z","is_deleted":true}',
    ),
    TriggerState: (
        TriggerState(
            id="j",
            version=5,
            run_id=RunId("r"),
            slot=AT,
            index=7,
            name="nightly",
            workflow_name="nightly-7-1",
            namespace="kubeflow",
            experiment_id=ExperimentId("e"),
            experiment_name="mill",
            pipeline_id=PipelineId("p"),
            pipeline_version_id=PipelineVersionId("v"),
            manifest_digest="abc",
            parameters=(ParameterValue(name="day", value="20240506"),),
            service_account="miller",
            engine="external",
            created_by="token:ci",
            replaces=(RunId("q"),),
            cause_run_id=RunId("c"),
            trigger_depth=2,
        ),
        b'{"id":"j","version":5,"run_id":"r","slot":"2024-05-06T07:08:09.123456Z","index":7,"name":"nightly",'
        b'"workflow_name":"nightly-7-1","namespace":"kubeflow","experiment_id":"e","experiment_name":"mill",'
        b'"pipeline_id":"p","pipeline_version_id":"v","manifest_digest":"abc",'
        b'"parameters":[{"name":"day","value":"20240506"}],"service_account":"miller","engine":"external",'
        b'"created_by":"token:ci","replaces":["q"],"cause_run_id":"c","trigger_depth":2}',
    ),
    MissedState: (
        MissedState(
            id="j",
            version=6,
            name="nightly",
            experiment_id=ExperimentId("e"),
            count=2,
            first=AT,
            last=AT,
            reason="it was too late",
            cause_run_id=RunId("c"),
        ),
        b'{"id":"j","version":6,"name":"nightly","experiment_id":"e","count":2,"first":"2024-05-06T07:08:09.123456Z",'
        b'"last":"2024-05-06T07:08:09.123456Z","reason":"it was too late","cause_run_id":"c"}',
    ),
    MetricsState: (
        MetricsState(
            id="r",
            version=1,
            metrics=(Metric(node_id="n", name="accuracy", number=0.5, format=MetricFormat.PERCENTAGE),),
        ),
        b'{"id":"r","version":1,"metrics":[{"node_id":"n","name":"accuracy","number":0.5,"format":"PERCENTAGE"}]}',
    ),
}
"""Per body, a state in which every field says something, and how it travels."""

SMALLEST: dict[type[State], bytes] = {
    ExperimentState: b'{"id":"e","version":1,"name":"","created_at":"2024-05-06T07:08:09Z"}',
    PipelineState: b'{"id":"p","version":1,"name":"","created_at":"2024-05-06T07:08:09Z"}',
    PipelineVersionState: (
        b'{"id":"v","version":1,"name":"","pipeline_id":"p","manifest_digest":"abc","created_at":"2024-05-06T07:08:09Z"}'
    ),
    RunState: b'{"id":"r","version":1,"name":"","experiment_id":"e","created_at":"2024-05-06T07:08:09Z"}',
    NodeState: b'{"id":"r","version":1,"node_id":"n","name":"","type":"Pod","phase":"Running","experiment_id":"e"}',
    JobState: (
        b'{"id":"j","version":1,"name":"","experiment_id":"e","created_at":"2024-05-06T07:08:09Z",'
        b'"updated_at":"2024-05-06T07:08:09Z"}'
    ),
    TriggerState: (
        b'{"id":"j","version":1,"run_id":"r","slot":"2024-05-06T07:08:09Z","index":1,"name":"","workflow_name":"j-1-1",'
        b'"namespace":"kubeflow","experiment_id":"e","manifest_digest":"abc"}'
    ),
    MissedState: (
        b'{"id":"j","version":1,"name":"","experiment_id":"e","count":1,"first":"2024-05-06T07:08:09Z",'
        b'"last":"2024-05-06T07:08:09Z"}'
    ),
    MetricsState: b'{"id":"r","version":1,"metrics":[]}',
}
"""What the first release's smallest facts hold. Every later release must read them."""

PUBLISHED = {
    "kfp.experiment.archived.v1": ExperimentState,
    "kfp.experiment.created.v1": ExperimentState,
    "kfp.experiment.deleted.v1": ExperimentState,
    "kfp.experiment.unarchived.v1": ExperimentState,
    "kfp.job-scheduler.created.v1": JobState,
    "kfp.job-scheduler.deleted.v1": JobState,
    "kfp.job-scheduler.disabled.v1": JobState,
    "kfp.job-scheduler.enabled.v1": JobState,
    "kfp.job-scheduler.missed.v1": MissedState,
    "kfp.job-scheduler.triggered.v1": TriggerState,
    "kfp.job-scheduler.updated.v1": JobState,
    "kfp.metrics.reported.v1": MetricsState,
    "kfp.node.error.v1": NodeState,
    "kfp.node.failed.v1": NodeState,
    "kfp.node.skipped.v1": NodeState,
    "kfp.node.started.v1": NodeState,
    "kfp.node.succeeded.v1": NodeState,
    "kfp.pipeline-registry.created.v1": PipelineState,
    "kfp.pipeline-registry.default-changed.v1": PipelineState,
    "kfp.pipeline-registry.deleted.v1": PipelineState,
    "kfp.pipeline-registry.version-created.v1": PipelineVersionState,
    "kfp.pipeline-registry.version-deleted.v1": PipelineVersionState,
    "kfp.run.archived.v1": RunState,
    "kfp.run.created.v1": RunState,
    "kfp.run.deleted.v1": RunState,
    "kfp.run.error.v1": RunState,
    "kfp.run.failed.v1": RunState,
    "kfp.run.lost.v1": RunState,
    "kfp.run.rejected.v1": RunState,
    "kfp.run.retried.v1": RunState,
    "kfp.run.skipped.v1": RunState,
    "kfp.run.started.v1": RunState,
    "kfp.run.succeeded.v1": RunState,
    "kfp.run.terminating.v1": RunState,
    "kfp.run.unarchived.v1": RunState,
}


@pytest.mark.parametrize("kind", sorted(PUBLISHED))
def test_a_published_kind_of_fact_keeps_its_name_and_body(kind: str) -> None:
    assert FACTS[kind].body is PUBLISHED[kind]
    assert FACTS[kind].subject("x") == f"kfp.event.{kind.removeprefix('kfp.').removesuffix('.v1')}.x"


@pytest.mark.parametrize("kind", sorted(FACTS))
def test_every_kind_of_fact_has_a_golden_example(kind: str) -> None:
    assert FACTS[kind].body in EXAMPLES
    assert FACTS[kind].body in SMALLEST


@pytest.mark.parametrize("body", EXAMPLES, ids=lambda body: body.__name__)
def test_a_fact_travels_as_it_always_did(body: type[State]) -> None:
    state, wire = EXAMPLES[body]
    sent: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(state))
    golden: dict[str, Any] = msgspec.json.decode(wire)
    # A field that was added since may come with it.
    assert {name: sent.get(name) for name in golden} == golden
    assert msgspec.json.decode(wire, type=body) == state


@pytest.mark.parametrize("body", EXAMPLES, ids=lambda body: body.__name__)
def test_an_example_gives_every_field_a_value_of_its_own(body: type[State]) -> None:
    """Else the field is left out on the wire, and its name is tested by nobody."""
    _, wire = EXAMPLES[body]
    assert set(msgspec.json.decode(wire)) == set(body.__struct_fields__)


@pytest.mark.parametrize("body", SMALLEST, ids=lambda body: body.__name__)
def test_the_smallest_fact_of_the_first_release_still_reads(body: type[State]) -> None:
    state = msgspec.json.decode(SMALLEST[body], type=body)
    assert msgspec.json.encode(state) == SMALLEST[body]


@pytest.mark.parametrize("body", SMALLEST, ids=lambda body: body.__name__)
def test_a_field_from_a_later_release_is_passed_over(body: type[State]) -> None:
    later = SMALLEST[body][:-1] + b',"a_field_from_the_future":{"x":[1]}}'
    assert msgspec.json.decode(later, type=body) == msgspec.json.decode(SMALLEST[body], type=body)
