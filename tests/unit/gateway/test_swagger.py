"""The judge of answers is itself judged: what it must find wrong, and what it must let pass."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.swagger import FIELDS_BEYOND, FILES, FOLDER, NEWEST, NotAsPublished, check, operations, published

RUNS = "/apis/v1beta1/runs"
RUN = {
    "id": "1",
    "created_at": "2026-01-02T03:04:05Z",
    "finished_at": "1970-01-01T00:00:00Z",
    "metrics": [{"name": "a", "node_id": "n", "number_value": 0.5, "format": "RAW"}],
    "resource_references": [{"key": {"type": "EXPERIMENT", "id": "2"}, "name": "e", "relationship": "OWNER"}],
}
REFUSAL = {
    "error": "e",
    "message": "e",
    "code": 5,
    "details": [{"@type": "type.googleapis.com/api.Error", "error_message": "m", "error_details": "e"}],
}


def judge(
    method: str, target: str, document: Any, *, status: int = 200, content_type: str = "application/json"
) -> None:
    check(method, target, status, content_type, json.dumps(document).encode())


@pytest.mark.parametrize(
    ("method", "target", "document", "status"),
    [
        ("GET", RUNS, {}, 200),
        ("GET", f"{RUNS}?page_size=1", {"runs": [RUN], "total_size": 1, "next_page_token": "t"}, 200),
        ("GET", f"{RUNS}/1", {"run": RUN, "pipeline_runtime": {"workflow_manifest": "{}"}}, 200),
        ("POST", f"{RUNS}/1:archive", {}, 200),
        ("GET", f"{RUNS}/1", REFUSAL, 404),
        ("GET", "/apis/v1beta1/jobs/1", {"id": "1", "max_concurrency": "10", "trigger": {}}, 200),
        ("POST", "/apis/v1beta1/pipelines/upload", {"error_message": "m", "error_details": "m"}, 400),
        ("POST", "/apis/v1beta1/workflows", {}, 200),
        ("POST", "/apis/v1beta1/workflows", REFUSAL, 403),
        ("POST", "/apis/v1beta1/visualizations/kubeflow", REFUSAL, 501),
    ],
)
def test_answers_as_published_pass(method: str, target: str, document: Any, status: int) -> None:
    judge(method, target, document, status=status)


@pytest.mark.parametrize(
    ("found", "method", "target", "document", "status"),
    [
        ("total_size", "GET", RUNS, {"total_size": "1"}, 200),
        ("next_page_token", "GET", RUNS, {"next_page_token": None}, 200),
        ("created_at", "GET", RUNS, {"runs": [{**RUN, "created_at": "2026-01-02T03:04:05.123Z"}]}, 200),
        ("created_at", "GET", RUNS, {"runs": [{**RUN, "created_at": 5}]}, 200),
        ("storage_state", "GET", RUNS, {"runs": [{**RUN, "storage_state": 1}]}, 200),
        ("storage_state", "GET", RUNS, {"runs": [{**RUN, "storage_state": "ARCHIVED"}]}, 200),
        ("owner", "GET", RUNS, {"runs": [{**RUN, "owner": "me"}]}, 200),
        ("max_concurrency", "GET", "/apis/v1beta1/jobs/1", {"max_concurrency": 10}, 200),
        ("max_concurrency", "GET", "/apis/v1beta1/jobs/1", {"max_concurrency": "ten"}, 200),
        ("data", "GET", f"{RUNS}/1/nodes/n/artifacts/a:read", {"data": "not base64!"}, 200),
        ("code", "GET", f"{RUNS}/1", {**REFUSAL, "code": "5"}, 404),
        ("error_message", "GET", f"{RUNS}/1", {"error_message": "m", "error_details": "m"}, 400),
        ("error_details", "POST", "/apis/v1beta1/pipelines/upload", {"error_message": "m"}, 400),
        ("id", "DELETE", f"{RUNS}/1", {"id": "1"}, 200),
    ],
)
def test_answers_that_a_client_could_not_read_are_found(
    found: str, method: str, target: str, document: Any, status: int
) -> None:
    with pytest.raises(NotAsPublished, match=found):
        judge(method, target, document, status=status)


def test_json_must_be_announced_as_json() -> None:
    with pytest.raises(NotAsPublished, match="text/plain"):
        judge("GET", RUNS, {}, content_type="text/plain")
    judge("GET", "/apis/v1beta1/healthz", {"multi_user": False}, content_type="text/plain; charset=utf-8")


def test_the_routers_own_answers_are_text() -> None:
    check("GET", RUNS, 405, "text/plain; charset=utf-8", b"Method Not Allowed\n")
    with pytest.raises(NotAsPublished, match="not JSON"):
        check("GET", RUNS, 500, "application/json", b"oops")


def test_a_request_is_judged_by_its_own_operation_in_every_version_that_has_it() -> None:
    def asked(method: str, path: str) -> list[tuple[str, str]]:
        return [(operation.version, operation.id) for operation in operations(method, path)]

    assert asked("POST", "/apis/v1beta1/pipelines/upload") == [("0.1.38", "UploadPipeline"), (NEWEST, "UploadPipeline")]
    assert asked("POST", f"{RUNS}/1:archive") == [("0.1.38", "ArchiveRun"), (NEWEST, "ArchiveRun")]
    assert asked("GET", "/apis/v1beta1/auth") == [(NEWEST, "Authorize")]
    assert asked("POST", "/apis/v1beta1/visualizations") == [("0.1.38", "CreateVisualization")]
    assert asked("GET", f"{RUNS}/") == [("0.1.38", "GetRun"), (NEWEST, "GetRun")]
    assert asked("POST", "/apis/v1beta1/visualizations/") == [(NEWEST, "CreateVisualization")]
    assert asked("POST", "/apis/v1beta1/visualizations/kubeflow") == [(NEWEST, "CreateVisualization")]
    assert asked("GET", "/apis/v1beta1/runs/1/nodes/n/log") == []


def test_every_published_operation_can_be_judged() -> None:
    counts = {version: len({operation.id for _, _, operation in published(version)}) for version in FILES}

    assert counts == {"0.1.38": 34, NEWEST: 40}


@pytest.mark.parametrize(("definition", "field"), FIELDS_BEYOND)
def test_every_field_listed_as_beyond_the_reference_is_beyond_it(definition: str, field: str) -> None:
    reference = json.loads((FOLDER / "1.8.22.json").read_text())

    assert field not in reference["definitions"][definition].get("properties", {})


HTTP_CLIENT = re.compile(
    r"\b(aiohttp\.(ClientSession|request)|httpx\.(AsyncClient|Client|get|post)|urllib3\.(request|PoolManager)"
    r"|requests\.(Session|get|post)|urlopen|HTTPS?Connection)\("
)
JUDGES = {
    "support/api.py": "judges in `call`",
    "support/hooks.py": "the hooks",
    "support/recorder.py": "judges what passes through it",
    "system/test_schemathesis.py": "judges each of its requests",
}
UNJUDGED = {
    "contract/kubernetes/conftest.py": "speaks with a cluster",
    "integration/embedded/test_stack.py": "what answers there is played by the test",
    "integration/gateway/test_processes.py": "what answers there is played by the test",
    "integration/shared/test_server.py": "no route there is one of the API",
    "support/kubernetes/client.py": "speaks with a cluster",
    "system/test_logs.py": "a log that is followed: text, of an operation that the reference does not have",
    "system/test_replicas.py": "events that are followed: a stream, of an operation that the reference does not have",
    "unit/shared/test_web.py": "the answers are the test's own",
}


def test_every_client_of_the_tests_has_its_answers_judged() -> None:
    """Benchmarks have clients of their own, which must cost nothing; programs are sent through a recorder."""
    folder = Path(__file__).parents[2]
    found = {
        str(file.relative_to(folder))
        for file in folder.rglob("*.py")
        if HTTP_CLIENT.search(file.read_text()) and file.parent != folder / "bench" and file != Path(__file__)
    }

    assert found == JUDGES.keys() | UNJUDGED.keys()
