"""Workflow objects as the versions of Argo write them, and what the port speaks of."""

from __future__ import annotations

import base64
import gzip
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from services.run.engine import Submission, WorkflowName
from services.run.engine.argo import shapes
from services.run.engine.embedded.nodes import Node
from services.run.engine.shards import shard_of

STARTED = "2024-05-01T10:00:00Z"
ENDED = "2024-05-01T10:00:09Z"
REPOSITORY = {
    "artifactRepository": {
        "archiveLogs": True,
        "s3": {
            "accessKeySecret": {"key": "accesskey", "name": "mlpipeline-minio-artifact"},
            "bucket": "mlpipeline",
            "endpoint": "minio-service.kubeflow:9000",
            "insecure": True,
            "keyFormat": "artifacts/{{workflow.name}}/{{pod.name}}",
            "secretKeySecret": {"key": "secretkey", "name": "mlpipeline-minio-artifact"},
        },
    },
    "default": True,
}
POD: dict[str, Any] = {
    "boundaryID": "wf",
    "displayName": "a",
    "finishedAt": ENDED,
    "hostNodeName": "node-1",
    "id": "wf-4017264233",
    "name": "wf.a",
    "outputs": {
        "artifacts": [
            {"name": "out", "path": "/tmp/out", "s3": {"key": "artifacts/wf/wf-4017264233/out.tgz"}},
            {"name": "left-out", "optional": True, "path": "/tmp/x"},
            {"archiveLogs": True, "name": "main-logs", "s3": {"key": "artifacts/wf/wf-4017264233/main.log"}},
        ],
        "exitCode": "0",
    },
    "phase": "Succeeded",
    "progress": "1/1",
    "resourcesDuration": {"cpu": 1, "memory": 0},
    "startedAt": STARTED,
    "templateName": "step",
    "templateScope": "local/wf",
    "type": "Pod",
}
ROOT: dict[str, Any] = {
    "children": ["wf-4017264233"],
    "displayName": "wf",
    "finishedAt": None,
    "id": "wf",
    "name": "wf",
    "phase": "Running",
    "startedAt": STARTED,
    "templateName": "main",
    "type": "DAG",
}
FAILED = POD | {"id": "wf-77", "name": "wf.b", "displayName": "b", "phase": "Failed", "templateName": "other"}


def nodes_of(*nodes: dict[str, Any]) -> dict[str, Any]:
    return {node["id"]: node for node in nodes}


def written(status: dict[str, Any] | None = None, **metadata: Any) -> bytes:
    labels = {"pipeline/runid": "run-1", "headrace.dev/shard": "7", "workflows.argoproj.io/phase": "Running"}
    return msgspec.json.encode(
        {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {
                "name": "wf",
                "namespace": "kubeflow",
                "uid": "u-1",
                "resourceVersion": "412",
                "creationTimestamp": STARTED,
                "generation": 3,
                "managedFields": [{"manager": "argo"}],
                "labels": labels,
                "annotations": {"headrace.dev/attempt": "1"},
                **metadata,
            },
            "spec": {"entrypoint": "main", "templates": [], "arguments": {}},
            **({} if status is None else {"status": status}),
        }
    )


def packed(nodes: dict[str, Any]) -> str:
    return base64.b64encode(gzip.compress(msgspec.json.encode(nodes))).decode()


def running(**more: Any) -> dict[str, Any]:
    return {"phase": "Running", "startedAt": STARTED, "finishedAt": None, **more}


def documents(text: bytes) -> dict[str, Any]:
    seen = shapes.read(text)
    return {node_id: seen.document(node) for node_id, node in seen.nodes().items()}


def submission(**changes: Any) -> Submission:
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {
            "name": "wf",
            "namespace": "kubeflow",
            "uid": "run-1",
            "creationTimestamp": STARTED,
            "labels": {"own": "yes"},
            "annotations": {"own": "too"},
        },
        "spec": {"entrypoint": "main", "templates": []},
    }
    fields: dict[str, Any] = {"workflow_name": WorkflowName("wf"), "run_id": "run-1", "workflow": workflow}
    return Submission(**{**fields, **changes})


# -- read --------------------------------------------------------------------------------------------------------------


def test_an_object_that_argo_has_not_touched_is_pending() -> None:
    for status in (None, {}, {"startedAt": None, "finishedAt": None}, {"nodes": None}):
        seen = shapes.read(written(status))
        assert (seen.phase, seen.message, seen.started_at, seen.finished_at) == ("Pending", "", None, None)
        assert seen.nodes() == {}
        assert not seen.is_final


def test_whose_object_it_is_stands_in_its_metadata() -> None:
    metadata = shapes.read(written()).metadata

    assert (metadata.name, metadata.namespace, metadata.uid, metadata.resource_version) == (
        "wf",
        "kubeflow",
        "u-1",
        "412",
    )
    assert (metadata.run_id, metadata.attempt, metadata.is_persisted) == ("run-1", 1, False)
    assert metadata.has({shapes.RUN_ID: "run-1", shapes.SHARD: "7"})
    assert not metadata.has({shapes.RUN_ID: "run-1", shapes.SHARD: "8"})
    other = {"labels": {shapes.RUN_ID: "r", shapes.PERSISTED: "true"}, "annotations": {shapes.ATTEMPT: "12"}}
    metadata = shapes.read(written(**other)).metadata
    assert (metadata.attempt, metadata.is_persisted, metadata.has({shapes.SHARD: "7"})) == (12, True, False)


@pytest.mark.parametrize(
    "annotations",
    [
        None,
        {},
        {shapes.ATTEMPT: "many"},
        {shapes.ATTEMPT: "-1"},
        {shapes.ATTEMPT: ""},
        {shapes.ATTEMPT: "9" * 5000},
    ],
)
def test_an_object_that_does_not_say_which_attempt_it_is_is_the_first(annotations: Any) -> None:
    assert shapes.read(written(annotations=annotations)).metadata.attempt == 1


def test_a_final_phase_has_an_end_even_where_the_object_does_not_say_when() -> None:
    ended = shapes.read(written({"phase": "Failed", "message": "m", "startedAt": STARTED, "finishedAt": ENDED}))
    assert (ended.is_final, ended.message) == (True, "m")
    assert ended.finished_at == datetime(2024, 5, 1, 10, 0, 9, tzinfo=UTC)

    for status in ({"phase": "Error", "startedAt": STARTED}, {"phase": "Error"}):
        assert shapes.read(written(status)).finished_at == datetime(2024, 5, 1, 10, 0, 0, tzinfo=UTC)


def test_nodes_are_the_same_however_argo_stores_them() -> None:
    nodes = nodes_of(ROOT, POD)
    plain = documents(written(running(nodes=nodes)))

    assert documents(written(running(compressedNodes=packed(nodes)))) == plain
    assert documents(written(running(compressedNodes=packed(nodes), nodes={}))) == plain
    assert documents(written(running(compressedNodes=packed(nodes), nodes=None))) == plain
    assert plain["wf-4017264233"] == POD


def test_nodes_that_argo_keeps_elsewhere_are_told_of_as_such() -> None:
    offloaded = shapes.read(written(running(offloadNodeStatusVersion="fnv:1234")))
    assert offloaded.is_offloaded
    with pytest.raises(shapes.Unreadable, match="nodeStatusOffLoad"):
        offloaded.nodes()

    assert not shapes.read(written(running(offloadNodeStatusVersion="fnv:1", nodes=nodes_of(ROOT)))).is_offloaded
    assert not shapes.read(written(running())).is_offloaded


def test_a_key_alone_is_completed_by_the_repository_of_the_status() -> None:
    nodes = documents(written(running(nodes=nodes_of(POD), artifactRepositoryRef=REPOSITORY)))

    out, left_out, log = nodes["wf-4017264233"]["outputs"]["artifacts"]
    assert out["s3"] == {
        "accessKeySecret": {"key": "accesskey", "name": "mlpipeline-minio-artifact"},
        "bucket": "mlpipeline",
        "endpoint": "minio-service.kubeflow:9000",
        "insecure": True,
        "key": "artifacts/wf/wf-4017264233/out.tgz",
        "secretKeySecret": {"key": "secretkey", "name": "mlpipeline-minio-artifact"},
    }
    assert "s3" not in left_out
    assert (log["name"], log["archiveLogs"], log["s3"]["bucket"]) == ("main-logs", True, "mlpipeline")


def test_a_place_that_is_complete_is_left_as_it_is() -> None:
    place = {"key": "k", "bucket": "elsewhere", "endpoint": "s3.amazonaws.com"}
    pod = POD | {"inputs": {"artifacts": [{"name": "i", "s3": place}, {"name": "r", "raw": {"data": "x"}}]}}

    nodes = documents(written(running(nodes=nodes_of(pod), artifactRepositoryRef=REPOSITORY)))

    assert [each.get("s3") for each in nodes[POD["id"]]["inputs"]["artifacts"]] == [place, None]


@pytest.mark.parametrize(
    "reference", [None, {}, {"default": True}, {"artifactRepository": {"gcs": {"bucket": "b"}}}, "x"]
)
def test_a_reference_without_a_store_that_we_know_completes_nothing(reference: Any) -> None:
    nodes = documents(written(running(nodes=nodes_of(POD), artifactRepositoryRef=reference)))

    assert nodes[POD["id"]] == POD


def test_every_node_is_one_that_records_can_be_retried_from() -> None:
    """A server may have dropped what is null, and Argo 3.1 writes no display name for some."""
    root = {key: value for key, value in ROOT.items() if key not in ("finishedAt", "displayName")}

    (document,) = documents(written(running(nodes=nodes_of(root)))).values()

    node = msgspec.convert(document, Node)
    assert (node.display_name, node.finished_at) == ("wf", None)


@pytest.mark.parametrize(
    "status",
    [
        running(compressedNodes="not base64!"),
        running(compressedNodes=base64.b64encode(b"not gzip").decode()),
        running(compressedNodes=base64.b64encode(gzip.compress(b"not json")).decode()),
        running(nodes=["a list"]),
    ],
)
def test_nodes_that_cannot_be_read_are_said_to_be_so(status: dict[str, Any]) -> None:
    with pytest.raises(shapes.Unreadable):
        shapes.read(written(status)).nodes()


@pytest.mark.parametrize("said", ["2020-01-01T00:00:00", "yesterday", ""])
def test_what_does_not_say_when_it_was_recorded_was_so_at_its_creation(said: str) -> None:
    metadata = shapes.read_metadata(written(annotations={shapes.RECORDED_AT: said}))

    assert metadata.recorded_at == metadata.creation_timestamp


def test_a_phase_that_argo_does_not_know_is_said_to_be_none() -> None:
    with pytest.raises(shapes.Unreadable, match="Odd"):
        shapes.read(written({"phase": "Odd"}))


@pytest.mark.parametrize(
    "node",
    [
        {key: value for key, value in POD.items() if key != "id"},
        POD | {"id": "a\x00"},
        POD | {"id": "a" * 5000},
        POD | {"phase": "Run\x00ning"},
        POD | {"type": ["Pod"]},
        POD | {"name": 3},
        POD | {"outputs": ["a"]},
        POD | {"outputs": {"artifacts": {"name": "a"}}},
        POD | {"inputs": {"artifacts": ["a"]}},
        POD | {"outputs": {"artifacts": [{"name": "a", "s3": "key"}]}},
    ],
)
def test_a_node_that_argo_would_not_write_is_said_to_be_unreadable(node: dict[str, Any]) -> None:
    seen = shapes.read(written(running(nodes={"wf-1": node})))

    with pytest.raises(shapes.Unreadable):
        seen.document(seen.nodes()["wf-1"])


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"metadata": {}}', b'{"metadata": {"name": "x"}, "status": 1}'])
def test_what_is_no_workflow_is_said_to_be_none(text: bytes) -> None:
    with pytest.raises(shapes.Unreadable):
        shapes.read(text)


def test_what_is_nested_beyond_measure_is_said_to_be_unreadable() -> None:
    nested = msgspec.Raw(b'{"a":' * 5000 + b"1" + b"}" * 5000)

    with pytest.raises(shapes.Unreadable):
        shapes.read(written(running(artifactRepositoryRef=nested)))
    with pytest.raises(shapes.Unreadable):
        shapes.read(written()).document(nested)


@pytest.mark.parametrize(
    ("written_as", "at"),
    [
        (STARTED, datetime(2024, 5, 1, 10, tzinfo=UTC)),
        ("2024-05-01T12:00:00+02:00", datetime(2024, 5, 1, 10, tzinfo=UTC)),
        ("2024-05-01T10:00:00", datetime(2024, 5, 1, 10, tzinfo=UTC)),
        ("0001-01-01T00:00:00+05:00", None),
    ],
)
def test_times_are_told_in_utc_or_not_at_all(written_as: str, at: datetime | None) -> None:
    seen = shapes.read(written({"phase": "Failed", "startedAt": written_as, "finishedAt": written_as}))

    assert (seen.started_at, seen.finished_at) == (at, at or seen.metadata.creation_timestamp)


@pytest.mark.parametrize(("deadline", "is_stopping"), [(0, True), (1, False), (None, False), ("0", True), (600, False)])
def test_a_deadline_of_nothing_is_a_stop(deadline: Any, is_stopping: bool) -> None:
    document = msgspec.json.decode(written())
    document["spec"]["activeDeadlineSeconds"] = deadline

    assert shapes.read(msgspec.json.encode(document)).is_stopping is is_stopping


# -- names of pods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format_", "names"),
    [("v1", ("wf-77",)), ("v2", ("wf-other-77",)), ("", ("wf-77", "wf-other-77"))],
)
def test_a_pod_is_named_as_the_object_says(format_: str, names: tuple[str, ...]) -> None:
    assert shapes.pod_names("wf", FAILED, format_) == names


@pytest.mark.parametrize("format_", ["", "v1", "v2"])
def test_the_pod_of_a_single_step_has_the_name_of_its_workflow(format_: str) -> None:
    assert shapes.pod_names("wf", {"id": "wf", "templateName": "main"}, format_) == ("wf",)


def test_a_long_name_is_cut_so_that_the_hash_stays_whole() -> None:
    (name,) = shapes.pod_names("wf", {"id": "wf-1234567890", "templateName": "t" * 300}, "v2")

    assert len(name) == 253
    assert name.endswith("t-1234567890")


@pytest.mark.parametrize(
    ("pods", "found"),
    [
        (["wf-77", "wf-78"], "wf-77"),
        (["wf-other-77", "wf-other-78"], "wf-other-77"),
        (["wf-other-177"], None),
        ([], None),
    ],
)
def test_the_pod_of_a_step_is_found_whichever_way_it_is_named(pods: list[str], found: str | None) -> None:
    assert shapes.pod_of("wf-77", "wf", pods) == found
    assert shapes.pod_of("wf", "wf", pods) is None


# -- objects to create and to replace ----------------------------------------------------------------------------------


def test_a_new_object_has_what_makes_it_ours_and_nothing_that_is_the_servers() -> None:
    given = submission()
    metadata = dict(given.workflow["metadata"])
    metadata |= {"finalizers": ["x"], "ownerReferences": [{}], "resourceVersion": "5", "managedFields": []}
    metadata["labels"] = {"own": "yes", shapes.PERSISTED: "true", "workflows.argoproj.io/completed": "true"}
    metadata["annotations"] = {"own": "too", shapes.RECORDED_AT: "2020-01-01T00:00:00+00:00"}

    made = shapes.new_object(
        submission(workflow={**given.workflow, "metadata": metadata, "status": {"phase": "Failed"}})
    )

    assert made == {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {
            "name": "wf",
            "namespace": "kubeflow",
            "labels": {"own": "yes", shapes.RUN_ID: "run-1", shapes.SHARD: str(shard_of("run-1"))},
            "annotations": {"own": "too", shapes.ATTEMPT: "1", shapes.MADE_AS: "kubeflow/wf"},
        },
        "spec": given.workflow["spec"],
    }


def failed_object(**status: Any) -> bytes:
    document = msgspec.json.decode(
        written(
            {
                "phase": "Failed",
                "message": "why",
                "startedAt": STARTED,
                "finishedAt": ENDED,
                "nodes": nodes_of(
                    ROOT | {"phase": "Failed", "finishedAt": ENDED, "children": [POD["id"], "wf-77"]}, POD, FAILED
                ),
                "artifactRepositoryRef": REPOSITORY,
                "conditions": [{"type": "Completed", "status": "True"}],
                "storedTemplates": {"kept": {}},
                **status,
            }
        )
    )
    document["metadata"]["labels"] |= {
        shapes.PERSISTED: "true",
        "workflows.argoproj.io/completed": "true",
        "own": "yes",
    }
    document["spec"]["activeDeadlineSeconds"] = 0
    return msgspec.json.encode(document)


RETRIED = submission(attempt=2, nodes=(ROOT, POD))


def test_a_retried_object_runs_again_from_the_nodes_on_record() -> None:
    document, pods = shapes.reopened(failed_object(), RETRIED)

    metadata, status = document["metadata"], document["status"]
    assert metadata["labels"] == {
        "own": "yes",
        shapes.RUN_ID: "run-1",
        shapes.SHARD: str(shard_of("run-1")),
        "workflows.argoproj.io/phase": "Running",
    }
    assert metadata["annotations"][shapes.ATTEMPT] == "2"
    assert (metadata["uid"], metadata["resourceVersion"]) == ("u-1", "412")
    assert "activeDeadlineSeconds" not in document["spec"]
    assert status == {
        "phase": "Running",
        "startedAt": STARTED,
        "finishedAt": None,
        "nodes": nodes_of(ROOT, POD),
        "artifactRepositoryRef": REPOSITORY,
        "storedTemplates": {"kept": {}},
    }
    assert pods == ("wf-77", "wf-other-77")


def test_a_retried_object_keeps_what_argo_has_written_into_nodes_that_are_done() -> None:
    """The record completes the places of artifacts for its readers; Argo wants its own words back."""
    on_record = POD | {
        "outputs": {"artifacts": [{"name": "out", "s3": {"key": "k", "bucket": "b"}}]},
        "children": ["wf-9"],
    }

    document, _ = shapes.reopened(failed_object(), submission(attempt=2, nodes=(ROOT, on_record)))

    assert document["status"]["nodes"][POD["id"]] == POD | {"children": ["wf-9"]}


def test_a_stop_that_argo_was_asked_for_ends_with_the_attempt() -> None:
    text = msgspec.json.decode(failed_object(storedWorkflowTemplateSpec={"entrypoint": "main", "shutdown": "Stop"}))
    text["spec"]["shutdown"] = "Terminate"

    document, _ = shapes.reopened(msgspec.json.encode(text), RETRIED)

    assert "shutdown" not in document["spec"]
    assert document["status"]["storedWorkflowTemplateSpec"] == {"entrypoint": "main"}


def test_results_of_steps_that_run_again_have_not_come() -> None:
    text = failed_object(taskResultsCompletionStatus={POD["id"]: True, FAILED["id"]: True})

    document, _ = shapes.reopened(text, RETRIED)

    assert document["status"]["taskResultsCompletionStatus"] == {POD["id"]: True}


def test_a_retried_object_is_unpacked() -> None:
    nodes = nodes_of(ROOT | {"phase": "Failed"}, POD, FAILED)
    text = failed_object(nodes={}, compressedNodes=packed(nodes))

    document, pods = shapes.reopened(text, RETRIED)

    assert document["status"]["nodes"] == nodes_of(ROOT, POD)
    assert "compressedNodes" not in document["status"]
    assert pods == ("wf-77", "wf-other-77")


def test_the_pods_of_steps_that_run_again_are_named_as_the_object_says() -> None:
    text = msgspec.json.decode(failed_object())
    text["metadata"]["annotations"]["workflows.argoproj.io/pod-name-format"] = "v2"

    assert shapes.reopened(msgspec.json.encode(text), RETRIED).pods == ("wf-other-77",)


def test_a_run_whose_object_is_gone_is_made_anew_with_its_nodes() -> None:
    made = shapes.reopened_object(
        submission(attempt=3, nodes=(ROOT, POD), started_at=datetime(2024, 5, 1, 10, 0, 0, tzinfo=UTC))
    )

    assert made["metadata"]["annotations"][shapes.ATTEMPT] == "3"
    assert "uid" not in made["metadata"]
    assert made["status"] == {
        "phase": "Running",
        "startedAt": STARTED,
        "finishedAt": None,
        "nodes": nodes_of(ROOT, POD),
    }


def test_the_deadline_of_a_retried_run_counts_from_the_retry() -> None:
    given = submission(
        attempt=2,
        nodes=(ROOT,),
        started_at=datetime(2024, 5, 1, 10, 0, 0, tzinfo=UTC),
        retried_at=datetime(2024, 5, 1, 11, 0, 0, tzinfo=UTC),
    )
    given.workflow["spec"]["activeDeadlineSeconds"] = 600

    assert shapes.reopened(failed_object(), given).document["spec"]["activeDeadlineSeconds"] == 4200
    assert shapes.reopened_object(given)["spec"]["activeDeadlineSeconds"] == 4200
    assert shapes.new_object(given)["spec"]["activeDeadlineSeconds"] == 600


def test_an_object_that_would_be_too_large_is_packed_as_argo_does_it() -> None:
    made = shapes.compressed(shapes.reopened_object(submission(attempt=2, nodes=(ROOT, POD))))

    assert "nodes" not in made["status"]
    assert documents(msgspec.json.encode(made)) == nodes_of(ROOT, POD)


def test_steps_that_have_begun_and_not_ended_are_open() -> None:
    assert not shapes.open_steps([ROOT, POD])
    for phase in ("Pending", "Running"):
        assert shapes.open_steps([ROOT, POD | {"phase": phase}])
