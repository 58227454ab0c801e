"""What the official user interface asks, as it asks it: its encoding, its combinations, its shortcuts."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.coverage.plugin import Collector
from tests.support.api import Api, workflow_of
from tests.support.stack import Stack

_V1 = "/apis/v1beta1"
_PACKAGE = Path(__file__).parents[2] / "infra" / "examples" / "ml-train-deploy.yaml"
_WITHIN_SECONDS = 60


@pytest.fixture
def api(stack: Stack, evidence: Collector) -> Iterator[Api]:
    yield Api(stack.url)
    evidence.all_driven_by("user interface")


@pytest.fixture(scope="module")
def finished(stack: Stack) -> dict[str, Any]:
    """A run as the form `new run` makes it: references to an experiment and a version, and nothing else."""
    api = Api(stack.url)
    label = f"ui {uuid.uuid4()}"
    experiment = api.post(f"{_V1}/experiments", {"name": label})["id"]
    pipeline = api.upload(f"{_V1}/pipelines/upload?name={quote(label)}", _PACKAGE.name, _PACKAGE.read_bytes())
    run = api.post(
        f"{_V1}/runs",
        {
            "name": label,
            "description": "",
            "service_account": "",
            "pipeline_spec": {"parameters": [{"name": "rows", "value": "100"}]},
            "resource_references": _references(experiment, pipeline["default_version"]["id"]),
        },
    )["run"]["id"]
    return {
        "label": label,
        "experiment": experiment,
        "pipeline": pipeline["id"],
        "detail": api.run_when(run, within_seconds=_WITHIN_SECONDS),
    }


def test_a_new_run_by_version_alone_has_all_that_the_run_page_reads(api: Api, finished: dict[str, Any]) -> None:
    run, workflow = finished["detail"]["run"], workflow_of(finished["detail"])

    assert run["status"] == "Succeeded"
    assert "storage_state" not in run
    kinds = [(each["key"]["type"], each["relationship"]) for each in run["resource_references"]]
    assert kinds == [("EXPERIMENT", "OWNER"), ("PIPELINE_VERSION", "CREATOR")]
    assert all(each["name"] == finished["label"] for each in run["resource_references"])
    assert (workflow["apiVersion"], workflow["kind"]) == ("argoproj.io/v1alpha1", "Workflow")
    pods = [node for node in workflow["status"]["nodes"].values() if node["type"] == "Pod"]
    assert pods
    for node in pods:
        assert {"id", "name", "displayName", "templateName", "phase", "startedAt", "finishedAt"} <= node.keys()


def test_node_logs_and_artifacts_of_the_run_page(api: Api, finished: dict[str, Any]) -> None:
    run_id, workflow = finished["detail"]["run"]["id"], workflow_of(finished["detail"])
    nodes = workflow["status"]["nodes"].values()
    train = next(each for each in nodes if each["displayName"] == "train")
    artifact = next(each["name"] for each in train["outputs"]["artifacts"] if each["name"] != "main-logs")

    logs = [
        api.call("GET", f"{prefix}/runs/{run_id}/nodes/{train['id']}/log")
        for prefix in ("/apis/v1alpha1", "/apis/v1beta1")
    ]

    assert [log.status for log in logs] == [200, 200]
    assert logs[0].body == logs[1].body
    assert api.get(f"{_V1}/runs/{run_id}/nodes/{train['id']}/artifacts/{artifact}:read")["data"]


def test_lists_take_token_sort_and_a_filter_encoded_twice_together(api: Api, finished: dict[str, Any]) -> None:
    label = f"paged {uuid.uuid4()}"
    for nth in range(3):
        api.post(f"{_V1}/experiments", {"name": f"{label} {nth}"})
    wanted = _filter({"op": "IS_SUBSTRING", "key": "name", "string_value": label.upper()})
    names: list[str] = []
    token = ""
    while True:
        page = api.call(
            "GET",
            f"{_V1}/experiments?page_token={quote(token)}&page_size=2&sort_by=created_at%20desc&filter={wanted}"
            "&resource_reference_key.type=NAMESPACE&resource_reference_key.id=",
        ).json
        assert page["total_size"] == 3
        names.extend(each["name"] for each in page["experiments"])
        if "next_page_token" not in page:
            break
        token = page["next_page_token"]

    assert sorted(names) == [f"{label} {nth}" for nth in range(3)]


@pytest.mark.parametrize("plural", ["runs", "experiments"])
def test_live_and_archived_things_are_told_apart_by_predicates(api: Api, plural: str) -> None:
    label = f"storage {uuid.uuid4()}"
    ids = [_make(api, plural, f"{label} {nth}") for nth in range(2)]
    api.post(f"{_V1}/{plural}/{ids[0]}:archive")

    def found(op: str) -> list[str]:
        wanted = _filter(
            {"op": op, "key": "storage_state", "string_value": "STORAGESTATE_ARCHIVED"},
            {"op": "IS_SUBSTRING", "key": "name", "string_value": label},
        )
        return [each["id"] for each in api.call("GET", f"{_V1}/{plural}?filter={wanted}").json.get(plural, [])]

    assert found("EQUALS") == [ids[0]]
    assert found("NOT_EQUALS") == [ids[1]]


def test_a_clone_sends_the_manifest_back_and_runs(api: Api, finished: dict[str, Any]) -> None:
    original = finished["detail"]["run"]
    clone = api.post(
        f"{_V1}/runs",
        {
            "name": f"Clone of {original['name']}",
            "service_account": "",
            "pipeline_spec": {
                "workflow_manifest": finished["detail"]["pipeline_runtime"]["workflow_manifest"],
                "parameters": original["pipeline_spec"]["parameters"],
            },
            "resource_references": _references(finished["experiment"]),
        },
    )["run"]["id"]

    detail = api.run_when(clone, within_seconds=_WITHIN_SECONDS)

    assert detail["run"]["status"] == "Succeeded"
    assert workflow_of(detail)["metadata"]["name"] != workflow_of(finished["detail"])["metadata"]["name"]


def test_the_page_of_an_experiment_lists_its_runs_and_no_others(api: Api, finished: dict[str, Any]) -> None:
    live = _filter({"op": "NOT_EQUALS", "key": "storage_state", "string_value": "STORAGESTATE_ARCHIVED"})
    page = api.call(
        "GET",
        f"{_V1}/runs?page_token=&page_size=10&sort_by=created_at%20desc&resource_reference_key.type=EXPERIMENT"
        f"&resource_reference_key.id={finished['experiment']}&filter={live}",
    ).json

    assert finished["detail"]["run"]["id"] in {each["id"] for each in page["runs"]}
    references = [reference for run in page["runs"] for reference in run["resource_references"]]
    owners = {each["key"]["id"] for each in references if each["key"]["type"] == "EXPERIMENT"}
    assert owners == {finished["experiment"]}


def test_the_page_of_a_pipeline_reads_versions_and_template(api: Api, finished: dict[str, Any]) -> None:
    pipeline = finished["pipeline"]
    listed = api.call(
        "GET",
        f"{_V1}/pipeline_versions?resource_key.type=PIPELINE&resource_key.id={pipeline}"
        "&page_size=50&sort_by=created_at%20desc",
    ).json

    assert [each["name"] for each in listed["versions"]] == [finished["label"]]
    template = api.get(f"{_V1}/pipeline_versions/{listed['versions'][0]['id']}/templates")["template"]
    assert template == _PACKAGE.read_text()


def test_the_getting_started_page_looks_samples_up_by_exact_name(api: Api, finished: dict[str, Any]) -> None:
    name = "[Tutorial] Data passing in python components"
    wanted = _filter({"op": "EQUALS", "key": "name", "string_value": name})

    assert api.call("GET", f"{_V1}/pipelines?filter={wanted}").status == 200


def test_the_server_of_the_interface_asks_for_health_access_and_pictures(api: Api) -> None:
    assert api.get(f"{_V1}/healthz")["multi_user"] is False
    assert api.get(f"{_V1}/auth", namespace="kubeflow", resources="VIEWERS", verb="GET") == {}
    for path in ("visualizations/", "visualizations"):  # with a namespace since 0.5, which is empty here
        picture = api.call("POST", f"{_V1}/{path}", body=json.dumps({"type": "TABLE", "source": "x"}))
        assert (picture.status, picture.json["code"]) == (501, 12)


def _make(api: Api, plural: str, name: str) -> str:
    if plural == "experiments":
        return str(api.post(f"{_V1}/experiments", {"name": name})["id"])
    step = {"name": "step", "container": {"image": "busybox", "command": ["true"]}}
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "ui-"},
        "spec": {"entrypoint": "step", "templates": [step]},
    }
    spec = {"workflow_manifest": json.dumps(workflow)}
    return str(api.post(f"{_V1}/runs", {"name": name, "pipeline_spec": spec})["run"]["id"])


def _filter(*predicates: dict[str, str]) -> str:
    """Encoded twice, as the interface does it."""
    return quote(quote(json.dumps({"predicates": predicates}), safe=""), safe="")


def _references(experiment: str, version: str | None = None) -> list[dict[str, Any]]:
    owner = {"key": {"type": "EXPERIMENT", "id": experiment}, "relationship": "OWNER"}
    if version is None:
        return [owner]
    return [owner, {"key": {"type": "PIPELINE_VERSION", "id": version}, "relationship": "CREATOR"}]
