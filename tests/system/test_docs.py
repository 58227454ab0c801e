"""The published description, held against a whole running stack: its examples are pasted, its page is looked at."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from infra.embedded.ports import free_ports
from services.experiment.openapi import OPERATIONS as OF_EXPERIMENTS
from services.job_scheduler.openapi import OPERATIONS as OF_JOBS
from services.metrics.openapi import OPERATIONS as OF_METRICS
from services.notifier.openapi import OPERATIONS as OF_EVENTS
from services.pipeline_registry.openapi import OPERATIONS as OF_PIPELINES
from services.run.openapi import OPERATIONS as OF_RUNS
from tests.coverage.plugin import Collector
from tests.support.api import Api
from tests.support.asyncapi import Described
from tests.support.recorder import recording
from tests.support.stack import Stack
from tests.support.swagger import NEWEST, published

METHODS = ("get", "post", "put", "patch", "delete")
UNTRIED = {
    "CreateVisualization": "never succeeds",
    "CreateVisualizationV1": "never succeeds",
    "ReportScheduledWorkflow": "for agents of an external engine",
    "ReportWorkflow": "for agents of an external engine",
    "ReadRunLogV1alpha1": "ReadRunLog, under another path",
    "GetDelivery": "there is none before something happens",
    "Redeliver": "likewise",
    "GetDeadLetter": "there is none on a healthy stack",
    "RetryDeadLetter": "likewise",
    "DeleteDeadLetter": "likewise",
}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def api(stack: Stack) -> Api:
    return Api(stack.url)


@pytest.fixture(scope="module")
def document(api: Api) -> Any:
    return api.get("/apis/headrace/v1/openapi.json")


def operations_of(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method in methods:
                yield method, path, methods[method]


def test_the_document_is_valid_and_the_same_at_both_places(api: Api, document: Any) -> None:
    validate(document)

    assert api.get("/openapi.json") == document


def test_the_description_of_events_is_the_same_at_both_places(api: Api) -> None:
    document = api.get("/asyncapi.json")
    Described(document)

    assert api.get("/apis/headrace/v1/asyncapi.json") == document


def test_what_the_services_and_the_gateway_describe_is_all_there(document: Any) -> None:
    """That this is everything they answer to, is for `tests/unit/gateway/test_completeness.py` to show."""
    of_services = (*OF_EXPERIMENTS, *OF_PIPELINES, *OF_RUNS, *OF_JOBS, *OF_METRICS, *OF_EVENTS)
    own = {("GET", path) for path in ("/apis/v1beta1/healthz", "/livez", "/readyz", "/startupz", "/metrics")}

    described = {(method.upper(), path) for method, path, _ in operations_of(document)}
    assert described == own | {(each.method, each.path) for each in of_services}


def test_operations_have_the_ids_of_the_published_reference(document: Any) -> None:
    ids = [operation["operationId"] for _, _, operation in operations_of(document)]

    assert len(ids) == len(set(ids))
    assert {operation.id for _, _, operation in published(NEWEST)} <= set(ids)


def test_schemas_hold_every_field_of_the_published_reference(document: Any) -> None:
    reference = json.loads((Path(__file__).parents[1] / "swagger" / f"{NEWEST}.json").read_text())["definitions"]
    schemas = document["components"]["schemas"]
    missing = {
        name: lacking
        for name, definition in reference.items()
        if name != "protobufAny"  # a means of the reference, not a message
        if (lacking := set(definition.get("properties", {})) - set(schemas.get(name, {}).get("properties", {})))
    }
    del missing["apiReportRunMetricsRequest"]  # `run_id`: the path says it, the body's is not read
    enums = {name: set(each["enum"]) for name, each in reference.items() if "enum" in each}

    assert missing == {}
    assert {name: set(schemas[name]["enum"]) for name in enums} == enums


def test_every_example_works_when_pasted(stack: Stack, document: Any, tmp_path: Path, evidence: Collector) -> None:
    tried = set()
    with recording(stack.url) as recorder:
        for _, _, operation in operations_of(document):
            example = re.search(r"```sh\n(.*?)\n```", operation.get("description", ""), re.DOTALL)
            if example is None:
                continue
            tried.add(operation["operationId"])
            assert stack.url in example[1]
            pasted = example[1].replace(stack.url, recorder.url).replace("curl -sS", "curl -sS --fail-with-body")
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", pasted], capture_output=True, text=True, timeout=60, cwd=tmp_path
            )
            assert done.returncode == 0, f"{operation['operationId']}:\n{example[1]}\n{done.stdout}\n{done.stderr}"
            if "application/json" in operation["responses"]["200"]["content"]:
                json.loads(done.stdout.splitlines()[-1].replace("}{", "}\n{").splitlines()[-1])

    for asked in recorder.succeeded():
        evidence.driven_by("curl", asked)
    ids = {operation["operationId"] for _, _, operation in operations_of(document)}
    assert ids - tried == set(UNTRIED)
    assert list(tmp_path.iterdir()) == []


def test_the_commands_of_the_page_of_extensions_work_when_pasted(stack: Stack, tmp_path: Path) -> None:
    with recording(stack.url) as recorder:
        page = Api(recorder.url).call("GET", "/docs/extensions.md").body.decode()
        blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
        pasted = "".join(blocks).replace(stack.url, recorder.url).replace("curl -sS", "curl -sS --fail-with-body")
        pasted = pasted.replace("9099", f"{free_ports(1)[0]}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"trap 'kill $(jobs -p) || true' EXIT\n{pasted}"],
            capture_output=True,
            text=True,
            timeout=90,
            cwd=tmp_path,
            env={
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HEADRACE_AUTH_TOKENS_FILE": str(tmp_path / "tokens.json"),
            },
        )

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert len(blocks) == 21
    _, end = json.JSONDecoder().raw_decode(done.stdout)
    assert done.stdout[end : 2 * end] == done.stdout[:end], "the second creation is not answered as the first"
    assert {"E1", "P6", "R1", "R2", "R3", "X7", "artifact", "engine"} <= {each.operation for each in recorder.exchanges}
    assert {each.status for each in recorder.exchanges} <= {200, 206}
    received = (tmp_path / "received.txt").read_text()
    assert re.search("^kfp.run.succeeded.v1 ", received, re.MULTILINE), received


def test_every_example_of_a_body_is_accepted(api: Api, document: Any) -> None:
    pipeline = api.upload(
        "/apis/v1beta1/pipelines/upload?name=of-the-docs", "p.yaml", api.call("GET", "/docs/hello-world.yaml").body
    )
    run = api.post(
        "/apis/v1beta1/runs",
        document["paths"]["/apis/v1beta1/runs"]["post"]["requestBody"]["content"]["application/json"]["example"],
    )
    job = api.post(
        "/apis/v1beta1/jobs",
        document["paths"]["/apis/v1beta1/jobs"]["post"]["requestBody"]["content"]["application/json"]["example"],
    )
    webhook = api.post("/apis/headrace/v1/webhooks", {"name": "of-the-docs", "url": "https://hooks.example/"})
    ids = {"the pipeline's id": pipeline["id"]}
    tried = 0
    for method, path, operation in operations_of(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is None or operation["operationId"] in UNTRIED:
            continue
        example = dict(content["example"])
        if "name" in example:
            # Whoever else pastes it on this stack has taken the name.
            example["name"] += f", {pipeline['id']}"
        body = json.dumps(example)
        for placeholder, identity in ids.items():
            body = body.replace(placeholder, identity)
        for variable, identity in (("run_id", run["run"]["id"]), ("id", job["id"]), ("webhook_id", webhook["id"])):
            path = path.replace(f"{{{variable}}}", identity)
        answer = api.call(method.upper(), path, body=body)
        assert answer.status == 200, (operation["operationId"], answer.body)
        tried += 1

    assert tried == 10


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_page_shows_every_operation_in_a_browser(stack: Stack, document: Any, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=15000",
            "--dump-dom",
            f"{stack.url}/docs",
        ],
        capture_output=True,
        text=True,
        timeout=90,
    )

    shown = set(re.findall(r'id="operations-[A-Za-z]+Service-([A-Za-z0-9]+)"', done.stdout))
    assert shown == {operation["operationId"] for _, _, operation in operations_of(document)}


def test_the_page_loads_from_its_own_origin_alone(api: Api) -> None:
    page = api.call("GET", "/docs")
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())

    assert len(addresses) == 4
    for address in addresses:
        if address != "data:,":
            assert "//" not in address
            assert api.call("GET", f"/{address}").status == 200
    assert "default-src 'none'; script-src 'self'" in page.headers["content-security-policy"]
