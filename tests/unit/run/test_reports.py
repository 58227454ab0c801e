"""How the report of a workflow is read (API specification, sections 12.1 and 12.2)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from services.run import reports
from services.run.domain import Run, RunId, Status, WorkflowName
from shared.errors import InvalidInput

RUN_ID = "8f2c3d1e-0000-4000-8000-000000000001"
OWNER = {"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow", "name": "nightly", "uid": "j-1"}
ENDED = datetime(2026, 1, 2, 3, 4, 9, tzinfo=UTC)


def workflow(*, status: Any = None, spec: Any = None, **metadata: Any) -> str:
    named = {"name": "w-abcde", "namespace": "kubeflow", "uid": "u", "labels": {"pipeline/runid": RUN_ID}}
    document = {"metadata": named | metadata, "spec": spec if spec is not None else {"entrypoint": "main"}}
    return msgspec.json.encode(document | ({} if status is None else {"status": status})).decode()


def run(**fields: Any) -> Run:
    given: dict[str, Any] = {
        "id": RunId(RUN_ID),
        "name": "n",
        "experiment_id": "e",
        "namespace": "kubeflow",
        "references": (),
        "service_account": "",
        "manifest_digest": "d",
        "workflow_name": WorkflowName("w-abcde"),
        "created_at": ENDED,
    }
    return Run(**(given | fields))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Could not unmarshal workflow: Input data was truncated"),
        ("no JSON", "Could not unmarshal workflow: JSON is malformed"),
        ("[]", "Could not unmarshal workflow: Expected `object`"),
        ('{"metadata": {"name": 5}}', "Could not unmarshal workflow: Expected `str`"),
        (workflow(status={"phase": "Terminating"}), "Could not unmarshal workflow: 'Terminating' is not a phase"),
        (workflow(status={"phase": "Omitted"}), "Could not unmarshal workflow: 'Omitted' is not a valid Status"),
        (workflow(status={"startedAt": "yesterday"}), "Could not unmarshal workflow: "),
        (workflow(status={"startedAt": "0001-01-01T00:00:00+14:00"}), "Could not unmarshal workflow: "),
        (
            workflow(status={"nodes": {"a": {"phase": "a\x00b"}}}),
            "Could not unmarshal workflow: Expected `str` matching",
        ),
        (workflow(status={"nodes": {"a": {"outputs": []}}}), "Could not unmarshal workflow: Expected `object"),
        (workflow(status={"nodes": {"a\x00b": {}}}), "Could not unmarshal workflow: Expected `str` matching"),
        (workflow(namespace="a\x00b"), "Could not unmarshal workflow: "),
        ("{}", "The workflow must have a name: {}"),
        (workflow(name=""), "The workflow must have a name: {"),
        (workflow(namespace=""), "The workflow must have a namespace: {"),
        (workflow(uid=""), "The workflow must have a UID: {"),
        (workflow(name="", namespace="", uid="", labels={}), "The workflow must have a name: {"),
        (workflow(labels={}), "Workflow[w-abcde] missing the Run ID label"),
        (workflow(labels=None), "Workflow[w-abcde] missing the Run ID label"),
        (workflow(labels={"pipeline/runid": "../x"}), "Workflow[w-abcde] has a Run ID label that is no run's: ../x"),
        (workflow(labels={"pipeline/runid": RUN_ID.upper()}), "Workflow[w-abcde] has a Run ID label that is no run's"),
    ],
)
def test_what_is_no_report_is_refused_in_the_words_of_the_specification(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        reports.read(text)
    assert refused.value.message.startswith(message)


def test_a_refusal_quotes_the_beginning_of_the_report_alone() -> None:
    with pytest.raises(InvalidInput) as refused:
        reports.read(workflow(name="", spec={"entrypoint": "x" * 100_000}))
    assert len(refused.value.message) < 2_000


def test_a_report_becomes_an_observation_of_all_there_is() -> None:
    node = {"id": "another", "name": "a", "phase": "Succeeded", "outputs": {"parameters": [{"name": "o"}]}}
    status = {
        "phase": "Failed",
        "message": "broke",
        "startedAt": "2026-01-02T03:04:05Z",
        "finishedAt": "2026-01-02T05:04:09+02:00",
        "nodes": {"w-1": node},
    }
    seen = reports.read(workflow(status=status)).observation(run(attempt=3))
    assert (seen.run_id, seen.workflow_name, seen.attempt) == (RUN_ID, "w-abcde", 3)
    assert (seen.phase, seen.message, seen.finished_at) == ("Failed", "broke", ENDED)
    assert seen.started_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert (seen.nodes, seen.is_complete) == ((node | {"id": "w-1"},), True)


@pytest.mark.parametrize("status", [None, {}, {"nodes": None}, {"phase": "Running", "compressedNodes": "H4sI"}])
def test_a_report_without_nodes_says_nothing_about_them(status: Any) -> None:
    seen = reports.read(workflow(status=status)).observation(run())
    assert (seen.nodes, seen.is_complete) == ((), False)
    assert seen.phase == (status or {}).get("phase", "")


def test_an_end_counts_in_a_final_phase_alone() -> None:
    ended = "2026-01-02T03:04:09Z"
    for phase, finished_at in (("Running", None), ("", None), ("Skipped", ENDED), ("Error", ENDED)):
        report = reports.read(workflow(status={"phase": phase, "finishedAt": ended}))
        assert report.observation(run()).finished_at == finished_at, phase


@pytest.mark.parametrize(
    ("seconds", "phase", "is_terminating"),
    [(0, "Running", True), (0, "", True), (0, "Failed", False), (60, "Running", False), (None, "Running", False)],
)
def test_a_deadline_of_no_seconds_is_how_an_engine_is_asked_for_the_stop(
    seconds: int | None, phase: str, is_terminating: bool
) -> None:
    report = reports.read(workflow(status={"phase": phase}, spec={"activeDeadlineSeconds": seconds}))
    assert report.is_terminating is is_terminating


@pytest.mark.parametrize(
    ("retried_after_seconds", "is_before"), [(None, False), (-1, False), (0, False), (0.9, False), (1, True)]
)
def test_what_ended_before_a_retry_was_the_attempt_before(retried_after_seconds: float | None, is_before: bool) -> None:
    report = reports.read(workflow(status={"phase": "Failed", "finishedAt": "2026-01-02T03:04:09Z"}))
    retried_at = None if retried_after_seconds is None else ENDED + timedelta(seconds=retried_after_seconds)
    assert report.is_of_attempt_before(run(retried_at=retried_at, attempt=2)) is is_before
    assert not reports.read(workflow(status={"phase": "Running"})).is_of_attempt_before(run(retried_at=retried_at))


def test_a_workflow_of_a_scheduler_becomes_the_run_of_a_job() -> None:
    labels = {"pipeline/runid": RUN_ID, "scheduledworkflows.kubeflow.org/workflowEpoch": "1767323045"}
    text = workflow(
        labels=labels,
        creationTimestamp="2026-01-02T03:04:09Z",
        ownerReferences=[{"apiVersion": "v1", "kind": "Pod", "uid": "p"}, OWNER],
        status={"phase": "Running"},
    )
    found = reports.read(text).run_of_job()
    assert found is not None
    assert (found.id, found.job_id, found.workflow_name, found.namespace) == (RUN_ID, "j-1", "w-abcde", "kubeflow")
    assert found.created_at == ENDED
    assert found.scheduled_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert msgspec.json.decode(found.manifest) == {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "w-abcde"},
        "spec": {"entrypoint": "main"},
    }


@pytest.mark.parametrize(
    "owners", [None, [], [OWNER | {"kind": "Workflow"}], [OWNER | {"apiVersion": "v1"}], [OWNER | {"uid": ""}]]
)
def test_a_workflow_without_a_scheduler_is_no_run_of_a_job(owners: Any) -> None:
    assert reports.read(workflow(ownerReferences=owners)).run_of_job() is None


@pytest.mark.parametrize("slot", ["", "soon", "9" * 30, "9" * 5000])
def test_a_slot_that_cannot_be_read_is_none(slot: str) -> None:
    labels = {"pipeline/runid": RUN_ID, "scheduledworkflows.kubeflow.org/workflowEpoch": slot}
    found = reports.read(workflow(labels=labels, ownerReferences=[OWNER])).run_of_job()
    assert found is not None
    assert found.scheduled_at is None


def test_a_phase_is_one_of_those_that_a_run_can_have() -> None:
    for phase in ("", "Pending", "Running", "Succeeded", "Skipped", "Failed", "Error"):
        assert reports.read(workflow(status={"phase": phase})).phase is Status(phase)
