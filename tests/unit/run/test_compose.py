"""What a run's creation changes in its manifest, row by row of the API specification, sections 9.4, 11.6 and 14."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from services.run import compose
from services.run.compose import Repository, Rules
from services.run.domain import EngineName, Parameter, Run, RunId, Status, WorkflowName
from services.run.engine.embedded.collection import artifact_prefix

RUN_ID = "8f2c3d1e-0000-4000-8000-000000000001"
NOW = datetime(1970, 1, 1, 0, 0, 26, tzinfo=UTC)
REPOSITORY = Repository(endpoint="127.0.0.1:9000", bucket="mlpipeline", is_insecure=True)


def a_run(**fields: Any) -> Run:
    usual: dict[str, Any] = {
        "id": RunId(RUN_ID),
        "name": "my run",
        "experiment_id": "e",
        "namespace": "kubeflow",
        "references": (),
        "service_account": "pipeline-runner",
        "manifest_digest": "d",
        "workflow_name": WorkflowName("w-abcde"),
        "created_at": NOW,
    }
    return Run(**(usual | fields))


def prepared(document: dict[str, Any], rules: Rules | None = None) -> compose.Prepared:
    return compose.prepare(msgspec.json.encode(document).decode(), "d", rules or Rules())


def composed(spec: dict[str, Any], *, run: Run | None = None, rules: Rules | None = None, **top: Any) -> dict[str, Any]:
    workflow = compose.workflow(prepared({"spec": spec} | top, rules), run or a_run())
    return dict(msgspec.json.decode(workflow))


def shown(run: Run, nodes: list[tuple[str, str]] | None = None) -> dict[str, Any]:
    document = compose.workflow_document(prepared({"spec": {}}), run, nodes or [], REPOSITORY)
    return dict(msgspec.json.decode(document))


def test_each_declared_parameter_gets_the_clients_value_or_keeps_its_own_and_nothing_else() -> None:
    declared = [
        {"name": "a", "value": "own", "default": "d", "enum": ["x"]},
        {"name": "b", "valueFrom": {"configMapKeyRef": {}}},
        {"name": "c", "value": "own"},
        {"name": "d", "value": "own"},
    ]
    given = (
        Parameter(name="c", value="first"),
        Parameter(name="c", value="last"),
        Parameter(name="d", value=""),
    )
    spec = composed({"arguments": {"parameters": declared, "artifacts": [{"name": "x"}]}}, run=a_run(parameters=given))
    assert spec["spec"]["arguments"] == {
        "artifacts": [{"name": "x"}],
        "parameters": [
            {"name": "a", "value": "own"},
            {"name": "b", "value": ""},
            {"name": "c", "value": "last"},
            {"name": "d", "value": ""},
        ],
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""), (True, "true"), (False, "false"), (5, "5"), (1.0, "1"), (0.1, "0.1"), (1e-05, "0.00001"),
        (1.5e20, "150000000000000000000"), (100, "100"), ([1, "a"], '[1,"a"]'), ({"k": 1}, '{"k":1}'),
    ],
)  # fmt: skip
def test_numbers_and_booleans_become_the_text_they_say(value: Any, text: str) -> None:
    spec = composed({"arguments": {"parameters": [{"name": "a", "value": value}]}})["spec"]
    assert spec["arguments"]["parameters"] == [{"name": "a", "value": text}]


def test_macros_are_expanded_in_the_clients_values_and_in_the_manifests_own() -> None:
    declared = [{"name": "a", "value": "[[RunUUID]]"}, {"name": "b"}]
    run = a_run(parameters=(Parameter(name="b", value="at [[CurrentTime]]"),))
    spec = composed({"arguments": {"parameters": declared}}, run=run)["spec"]
    assert [each["value"] for each in spec["arguments"]["parameters"]] == [RUN_ID, "at 19700101000026"]


def test_the_manifests_own_account_counts_unless_it_is_the_usual_one() -> None:
    rules = Rules(default_service_account="ours")
    for own, effective in (("theirs", "theirs"), ("pipeline-runner", "ours"), ("", "ours")):
        assert prepared({"spec": {"serviceAccountName": own}}, rules).service_account == effective
    assert composed({}, run=a_run(service_account="asked"))["spec"]["serviceAccountName"] == "asked"


def test_templates_get_their_annotation_and_label_and_keep_what_they_had() -> None:
    own = {"annotations": {"sidecar.istio.io/inject": "true", "k": "v"}, "labels": {"l": "v"}}
    templates = composed({"templates": [{"name": "a"}, {"name": "b", "metadata": own}]})["spec"]["templates"]
    assert templates[0]["metadata"] == {
        "annotations": {"sidecar.istio.io/inject": "false"},
        "labels": {"pipelines.kubeflow.org/cache_enabled": "true"},
    }
    assert templates[1]["metadata"] == {
        "annotations": {"sidecar.istio.io/inject": "true", "k": "v"},
        "labels": {"l": "v", "pipelines.kubeflow.org/cache_enabled": "true"},
    }
    fired = a_run(scheduled_at=NOW, workflow_name=WorkflowName("jobabcde-1-1117443087"))
    templates = composed({"templates": [{"name": "a"}, {"name": "b", "metadata": own}]}, run=fired)["spec"]["templates"]
    assert templates[0]["metadata"] == {"annotations": {"sidecar.istio.io/inject": "false"}}
    assert templates[1]["metadata"] == own
    (off,) = composed({"templates": [{"name": "a"}]}, rules=Rules(cache_enabled=False))["spec"]["templates"]
    assert off["metadata"]["labels"] == {"pipelines.kubeflow.org/cache_enabled": "false"}


def test_metrics_and_ui_metadata_are_always_optional() -> None:
    artifacts = [{"name": name, "path": "/x"} for name in ("mlpipeline-metrics", "mlpipeline-ui-metadata", "model")]
    (template,) = composed({"templates": [{"name": "a", "outputs": {"artifacts": artifacts, "parameters": [1]}}]})[
        "spec"
    ]["templates"]
    assert [artifact.get("optional") for artifact in template["outputs"]["artifacts"]] == [True, True, None]
    assert template["outputs"]["parameters"] == [1]


def test_the_run_is_named_in_labels_and_annotations_beside_those_of_the_manifest() -> None:
    own = {"generateName": "w-", "labels": {"l": "v"}, "annotations": {"a": "v"}, "namespace": "theirs"}
    workflow = composed({"podMetadata": {"labels": {"p": "v"}, "annotations": {"q": "v"}}}, metadata=own)
    assert workflow["metadata"] == {
        "name": "w-abcde",
        "generateName": "w-",
        "namespace": "kubeflow",
        "uid": RUN_ID,
        "creationTimestamp": "1970-01-01T00:00:26Z",
        "labels": {"l": "v", "pipeline/runid": RUN_ID},
        "annotations": {"a": "v", "pipelines.kubeflow.org/run_name": "my run"},
    }
    assert workflow["spec"]["podMetadata"] == {
        "labels": {"p": "v", "pipeline/runid": RUN_ID},
        "annotations": {"q": "v"},
    }


def test_the_uid_becomes_the_run_id_in_the_whole_document() -> None:
    parameters = (Parameter(name="p", value="{{workflow.uid}}"),)
    workflow = composed(
        {
            "arguments": {"parameters": [{"name": "p"}]},
            "templates": [{"name": "a", "container": {"args": ["x-{{workflow.uid}}"]}}],
            "onExit": "{{workflow.uid}}",
        },
        run=a_run(parameters=parameters),
        metadata={"annotations": {"a": "{{workflow.uid}}"}},
    )
    assert "workflow.uid" not in str(workflow)
    assert workflow["spec"]["templates"][0]["container"]["args"] == [f"x-{RUN_ID}"]
    assert workflow["spec"]["arguments"]["parameters"][0]["value"] == RUN_ID


def test_kind_and_version_are_written_whether_the_manifest_has_them_or_not() -> None:
    for workflow in (composed({}), composed({}, apiVersion="argoproj.io/v1alpha1", kind="Workflow")):
        assert (workflow["apiVersion"], workflow["kind"]) == ("argoproj.io/v1alpha1", "Workflow")


@pytest.mark.parametrize(
    "text",
    [
        "", "a: b", "[]", "1", "null", '{"spec":[]}', '{"metadata":1}', '{"spec":{"templates":{}}}', '{} {}',
        '{"spec":{"templates":["x"]}}', '{"spec":{"arguments":{"parameters":[{"name":1}]}}}', "[" * 100_000,
        '{"spec":' + '{"a":' * 996 + "1" + "}" * 997,
        '{"metadata":{"labels":[]}}', '{"spec":{"templates":[{"outputs":1}]}}', '{"spec":{"podMetadata":"x"}}',
    ],
)  # fmt: skip
def test_what_is_no_workflow_is_malformed(text: str) -> None:
    with pytest.raises(compose.Malformed):
        compose.prepare(text, "d", Rules())


@pytest.mark.parametrize("head", [{"kind": "Pod"}, {"apiVersion": "v1"}, {"kind": 1}])
def test_what_names_another_kind_is_told_apart(head: dict[str, Any]) -> None:
    with pytest.raises(compose.OfAnotherKind):
        prepared(head)


def test_a_workflow_is_the_same_each_time_it_is_composed() -> None:
    template = prepared({"spec": {"arguments": {"parameters": [{"name": "a", "value": "[[CurrentTime.05.000]]"}]}}})
    run = a_run()
    assert compose.workflow(template, run) == compose.workflow(template, run)


def test_a_new_run_shows_a_workflow_without_phase_and_nodes() -> None:
    document = shown(a_run())
    assert document["status"].keys() == {"startedAt", "finishedAt", "artifactRepositoryRef"}
    assert document["status"]["finishedAt"] is None
    assert "workflows.argoproj.io/phase" not in document["metadata"]["labels"]


def test_a_final_run_shows_its_end_its_message_and_its_nodes_as_they_were_written() -> None:
    run = a_run(status=Status.FAILED, error="terminated", started_at=NOW, finished_at=NOW, terminate_requested_at=NOW)
    document = shown(run, [("w-abcde", '{"id":"w-abcde","value":"{{workflow.uid}}"}')])
    status = document["status"]
    assert (status["phase"], status["message"], status["finishedAt"]) == (
        "Failed",
        "terminated",
        "1970-01-01T00:00:26Z",
    )
    assert status["nodes"] == {"w-abcde": {"id": "w-abcde", "value": "{{workflow.uid}}"}}
    assert status["conditions"] == [{"type": "Completed", "status": "True"}]
    assert document["metadata"]["labels"]["pipeline/persistedFinalState"] == "true"
    assert document["spec"]["activeDeadlineSeconds"] == 0


def test_what_nodes_export_is_the_runs_own() -> None:
    outputs = {
        "parameters": [{"name": "o", "globalName": "all"}, {"name": "own"}],
        "artifacts": [{"name": "a", "globalName": "file"}, {"name": "b", "globalName": "absent", "optional": True}],
    }
    told = {
        "parameters": [{"name": "o", "value": "%s"}],
        "artifacts": [{"name": "a", "s3": {"key": "k"}}, {"name": "b"}],
    }
    nodes = [
        (
            name,
            msgspec.json.encode(
                {"id": name, "type": kind, "phase": phase, "finishedAt": at, "templateName": "t", "outputs": told}
            )
            .decode()
            .replace("%s", name),
        )
        for name, kind, phase, at in (
            ("late", "Pod", "Succeeded", "2026-01-02T00:00:09Z"),
            ("early", "Pod", "Succeeded", "2026-01-02T00:00:01Z"),
            ("failed", "Pod", "Failed", "2026-01-02T00:00:10Z"),
            ("group", "TaskGroup", "Succeeded", "2026-01-02T00:00:11Z"),
        )
    ]
    manifest = prepared({"spec": {"templates": [{"name": "t", "outputs": outputs}]}})
    document = msgspec.json.decode(compose.workflow_document(manifest, a_run(), nodes, REPOSITORY))
    assert document["status"]["outputs"] == {
        "parameters": [{"name": "all", "value": "late"}],
        "artifacts": [{"name": "file", "s3": {"key": "k"}}],
    }


def test_artifacts_lie_where_the_status_says() -> None:
    values = {"{{workflow.name}}": "w", "{{pod.name}}": "n", "{{workflow.creationTimestamp.Y}}": "2026"}
    values |= {"{{workflow.creationTimestamp.m}}": "01", "{{workflow.creationTimestamp.d}}": "02"}
    told = shown(a_run())["status"]["artifactRepositoryRef"]["artifactRepository"]["s3"]["keyFormat"]
    for tag, value in values.items():
        told = told.replace(tag, value)
    assert told == f"{artifact_prefix('w', datetime(2026, 1, 2, tzinfo=UTC))}/n"


def test_children_that_wait_for_room_are_not_shown() -> None:
    group = '{"id":"g","type":"TaskGroup","children":["g-0","g-1"]}'
    nodes = shown(a_run(status=Status.RUNNING, started_at=NOW), [("g", group), ("g-0", '{"id":"g-0"}')])["status"][
        "nodes"
    ]
    assert nodes == {"g": {"id": "g", "type": "TaskGroup", "children": ["g-0"]}, "g-0": {"id": "g-0"}}


def test_terminating_is_shown_as_the_phase_that_workflows_know() -> None:
    run = a_run(status=Status.TERMINATING, terminate_requested_at=NOW)
    assert shown(run)["status"]["phase"] == "Pending"
    assert shown(msgspec.structs.replace(run, started_at=NOW))["status"]["phase"] == "Running"


def test_the_repository_is_where_the_ui_looks_for_it() -> None:
    reference = shown(a_run())["status"]["artifactRepositoryRef"]
    assert reference["default"] is True
    s3 = reference["artifactRepository"]["s3"]
    assert (s3["endpoint"], s3["bucket"], s3["insecure"]) == ("127.0.0.1:9000", "mlpipeline", True)


def test_an_artifact_whose_name_is_no_text_is_left_to_the_engine() -> None:
    artifacts = [{"name": ["mlpipeline-metrics"]}, {"name": {}}]
    (template,) = composed({"templates": [{"outputs": {"artifacts": artifacts}}]})["spec"]["templates"]
    assert template["outputs"]["artifacts"] == artifacts


def test_argo_gets_nothing_of_an_exported_object_that_only_a_cluster_may_say_and_no_time_to_live() -> None:
    metadata = {
        "name": "old",
        "resourceVersion": "7",
        "ownerReferences": [{"kind": "CronWorkflow"}],
        "finalizers": ["x"],
        "labels": {"team": "mill"},
        "annotations": {"note": "n"},
    }
    spec = {"ttlStrategy": {"secondsAfterCompletion": 0}, "ttlSecondsAfterFinished": 0, "podGC": {}}
    workflow = composed(spec, run=a_run(engine=EngineName.ARGO), metadata=metadata)
    assert workflow["metadata"] == {
        "name": "w-abcde",
        "namespace": "kubeflow",
        "uid": RUN_ID,
        "creationTimestamp": "1970-01-01T00:00:26Z",
        "labels": {"team": "mill", "pipeline/runid": RUN_ID},
        "annotations": {"note": "n", "pipelines.kubeflow.org/run_name": "my run"},
    }
    assert workflow["spec"].keys() == {"podGC", "templates", "arguments", "serviceAccountName", "podMetadata"}


def test_a_run_that_a_job_has_fired_on_argo_is_composed_as_any_fired_one() -> None:
    fired = a_run(scheduled_at=NOW, workflow_name=WorkflowName("nightly-3-123"))
    on_argo = composed({}, run=msgspec.structs.replace(fired, engine=EngineName.ARGO))
    assert on_argo == composed({}, run=fired)
    assert on_argo["metadata"]["labels"]["scheduledworkflows.kubeflow.org/workflowIndex"] == "3"
