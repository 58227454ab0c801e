"""Every operation refused and asked about nothing, by the table of `tests.coverage.operations`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.coverage.evidence import Aspect, Evidence
from tests.coverage.operations import OPERATIONS, UPLOAD, V1, Ask
from tests.support.api import Answer, Api
from tests.support.package_server import serving_packages
from tests.support.stack import Stack

_PACKAGE = Path(__file__).parents[2] / "infra" / "examples" / "ml-train-deploy.yaml"


@pytest.fixture(scope="module")
def names(stack: Stack) -> Iterator[dict[str, str]]:
    """What the table's targets name: a pipeline, and a run of it that has ended."""
    api = Api(stack.url)
    pipeline = api.upload(f"{V1}/pipelines/upload?name=operations", _PACKAGE.name, _PACKAGE.read_bytes())["id"]
    spec = {"pipeline_id": pipeline, "parameters": [{"name": "rows", "value": "100"}]}
    run = api.post(f"{V1}/runs", {"name": "operations", "pipeline_spec": spec})["run"]["id"]
    api.run_when(run, within_seconds=60, statuses=frozenset({"Succeeded"}))
    with serving_packages(_PACKAGE.parent) as folder:
        yield {"pipeline": pipeline, "run": run, "package_url": folder + _PACKAGE.name}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_refuses_what_it_must(
    stack: Stack, names: dict[str, str], operation: str, evidence: Evidence
) -> None:
    wanted = OPERATIONS[operation]
    for aspect, ask in ((Aspect.VALIDATION, wanted.refused), (Aspect.NOT_FOUND, wanted.unknown)):
        answer = _ask(Api(stack.url), ask, names)
        assert answer.status == ask.status, (ask.target, answer.status, answer.body[:500])
        evidence.shown(operation, aspect, str(answer.status))


def _ask(api: Api, ask: Ask, names: dict[str, str]) -> Answer:
    if ask.body is UPLOAD:
        form = {"uploadfile": (_PACKAGE.name, _PACKAGE.read_bytes())}
        return api.call(ask.method, ask.target, fields=form)
    target = ask.target
    body = ask.body if isinstance(ask.body, bytes) else json.dumps(ask.body)
    for name, value in names.items():
        target = target.replace(f"{{{name}}}", value)
        body = body.replace(f"{{{name}}}", value) if isinstance(body, str) else body
    if ask.method == "GET" or ask.body is None:
        return api.call(ask.method, target)
    return api.call(ask.method, target, body=body)
