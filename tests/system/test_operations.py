"""Every operation refused and asked about nothing, by the table of `tests.coverage.operations`, and what is no JSON."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from infra.cli import main
from infra.embedded.replicas import SERVICES
from services.run.wire import WireEngine
from tests.coverage.evidence import Aspect
from tests.coverage.operations import NOBODY, OPERATIONS, UPLOAD, V1, Ask, takes_ids_alone
from tests.coverage.plugin import Collector
from tests.support.api import Answer, Api, workflow_of
from tests.support.package_server import serving_packages
from tests.support.stack import AGENT_TOKEN, Stack

_PACKAGE = Path(__file__).parents[2] / "infra" / "examples" / "ml-train-deploy.yaml"
_ASKED = {name: operation.asks() for name, operation in OPERATIONS.items() if operation.asks()}
_NO_ID = "%00%27%22%20%FF"


@pytest.fixture(scope="module")
def names(stack: Stack) -> Iterator[dict[str, str]]:
    """What the table's targets name: two pipelines, a run of the first that has ended, a step of it, and a webhook."""
    api = Api(stack.url)
    content = _PACKAGE.read_bytes()
    pipeline, foreign = [
        api.upload(f"{V1}/pipelines/upload?name={name}", _PACKAGE.name, content) for name in ("operations", "foreign")
    ]
    spec = {"pipeline_id": pipeline["id"], "parameters": [{"name": "rows", "value": "100"}]}
    run = api.post(f"{V1}/runs", {"name": "operations", "pipeline_spec": spec})["run"]["id"]
    detail = api.run_when(run, within_seconds=60, statuses=frozenset({"Succeeded"}))
    nodes = workflow_of(detail)["status"]["nodes"].values()
    hook = {"name": "operations", "url": "https://hooks.example/", "facts": ["lost"]}
    with serving_packages(_PACKAGE.parent) as folder:
        yield {
            "pipeline": pipeline["id"],
            "foreign_version": foreign["default_version"]["id"],
            "run": run,
            "node": next(each["id"] for each in nodes if each["displayName"] == "train"),
            "webhook": api.post("/apis/headrace/v1/webhooks", hook)["id"],
            "package_url": folder + _PACKAGE.name,
        }


@pytest.mark.parametrize("operation", _ASKED)
def test_an_operation_refuses_what_it_must(
    stack: Stack, names: dict[str, str], operation: str, evidence: Collector
) -> None:
    for aspect, ask in _ASKED[operation].items():
        answer = _ask(Api(stack.url), ask, names)
        assert answer.status == ask.status, (ask.target, answer.status, answer.body[:500])
        if ask.status == 200:
            assert answer.json == {}, "what nobody has is not found"
        evidence.shown(operation, aspect, "nothing found" if ask.status == 200 else str(ask.status))


@pytest.mark.parametrize("operation", [name for name, each in OPERATIONS.items() if takes_ids_alone(each)])
def test_what_can_be_no_id_is_as_unknown_as_what_nobody_has(
    stack: Stack, names: dict[str, str], operation: str
) -> None:
    ask = _ASKED[operation][Aspect.NOT_FOUND]
    answer = _ask(Api(stack.url), msgspec.structs.replace(ask, target=ask.target.replace(NOBODY, _NO_ID)), names)

    assert answer.status == 404


def test_a_log_is_the_text_that_is_kept_under_either_path_and_as_an_artifact(
    stack: Stack, names: dict[str, str], evidence: Collector
) -> None:
    api = Api(stack.url)
    step = f"runs/{names['run']}/nodes/{names['node']}"
    logs = {
        "X7": api.call("GET", f"{V1}/{step}/log"),
        "X7 v1alpha1": api.call("GET", f"/apis/v1alpha1/{step}/log"),
    }
    artifact = api.call("GET", f"/apis/headrace/v1/{step}/artifacts/main-logs")
    read = api.get(f"{V1}/{step}/artifacts/main-logs:read")["data"]

    assert base64.b64decode(read) == artifact.body != b""
    assert artifact.headers["content-type"] == "application/octet-stream"
    evidence.shown("artifact", Aspect.ENCODING, "the bytes as stored")
    for operation, log in logs.items():
        assert (log.status, log.body) == (200, artifact.body)
        assert log.headers["content-type"] == "text/plain; charset=utf-8"
        evidence.shown(operation, Aspect.ENCODING, "the text as written")


def test_figures_are_as_prometheus_reads_them(stack: Stack, evidence: Collector) -> None:
    api = Api(stack.url)
    api.get(f"{V1}/runs")
    answer = api.call("GET", "/metrics")

    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    assert families["headrace_gateway_requests"].type == "counter"
    assert [sample.value for sample in families["headrace_gateway_requests"].samples if sample.value > 0]
    evidence.shown("X8", Aspect.ENCODING, "Prometheus text")


def test_the_engine_says_no_more_than_is_described(stack: Stack, evidence: Collector) -> None:
    answer = Api(stack.url).call("GET", "/apis/headrace/v1/engine")

    assert set(msgspec.json.decode(answer.body)) <= set(WireEngine.__struct_fields__)
    assert msgspec.json.decode(answer.body, type=WireEngine).runtime
    evidence.shown("engine", Aspect.ENCODING, "JSON as described")


def _ask(api: Api, ask: Ask, names: dict[str, str]) -> Answer:
    headers = dict(ask.headers)
    if ask.by_agent:
        headers["Authorization"] = f"Bearer {AGENT_TOKEN}"
    if ask.body is UPLOAD:
        form = {"uploadfile": (_PACKAGE.name, _PACKAGE.read_bytes())}
        return api.call(ask.method, ask.target, fields=form, headers=headers)
    target = ask.target
    body = ask.body if isinstance(ask.body, bytes) else json.dumps(ask.body)
    for name, value in names.items():
        target = target.replace(f"{{{name}}}", value)
        body = body.replace(f"{{{name}}}", value) if isinstance(body, str) else body
    if ask.method == "GET" or ask.body is None:
        return api.call(ask.method, target, headers=headers)
    return api.call(ask.method, target, body=body, headers=headers)


def test_the_status_of_a_stack_tells_of_every_process_and_of_nothing_that_waits_for_long(stack: Stack) -> None:
    port = stack.url.rpartition(":")[2]
    told = {"HEADRACE_PORT": port, "HEADRACE_DATA_DIR": str(stack.data_dir)}

    def look() -> dict[str, Any]:
        done = CliRunner().invoke(main, ["status", "--json"], env=told)
        return dict(json.loads(done.stdout))

    seen = look()
    names = {process["name"].rstrip("-0123456789") for process in seen["processes"]}
    assert names == {*SERVICES, "gateway", "run-controller", "step-runner"}
    assert all(process["is_ready"] for process in seen["processes"]), seen["complaints"]
    assert all(process["memory_bytes"] > 2**20 for process in seen["processes"])
    assert seen["engine"]["name"] == "embedded"
    # Somebody begins to look within a moment after the start, and within half a minute after another has died.
    deadline = time.monotonic() + 60
    while not ({each["owner"] for each in seen["outboxes"]} >= {"run", "node"} and seen["open_runs"]):
        assert time.monotonic() < deadline, seen
        seen = look()
