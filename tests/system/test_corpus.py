"""Every compiled pipeline of the corpus, through the gateway, ends as it should, node by node."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml

from tests.support.api import Api, workflow_of
from tests.support.expected import ALLOWED_TO_DIFFER, PIPELINES, differences, expected, refused, runnable
from tests.support.stack import Stack

_RUN_WITHIN_SECONDS = 60


@pytest.fixture(scope="module")
def api(stack: Stack) -> Api:
    return Api(stack.url)


@pytest.mark.parametrize("name", runnable())
def test_a_compiled_pipeline_ends_as_expected(api: Api, name: str) -> None:
    run_id = api.post("/apis/v1beta1/runs", _request(name))["run"]["id"]

    detail = api.run_when(run_id, within_seconds=_RUN_WITHIN_SECONDS)

    workflow = workflow_of(detail)
    if name in ALLOWED_TO_DIFFER:
        assert detail["run"]["status"] == "Succeeded", ALLOWED_TO_DIFFER[name]
        return
    assert differences(name, workflow["metadata"]["name"], workflow["status"], expected()[name]) == []


@pytest.mark.parametrize("name", refused())
def test_an_invalid_pipeline_is_refused_and_leaves_no_run(api: Api, name: str) -> None:
    before = api.get("/apis/v1beta1/runs").get("total_size", 0)

    answer = api.call("POST", "/apis/v1beta1/runs", body=json.dumps(_request(name)))

    assert answer.status == 400
    assert expected()[name]["why"] in answer.json["error"]
    assert api.get("/apis/v1beta1/runs").get("total_size", 0) == before


def test_the_corpus_is_walked_but_for_what_no_machine_without_network_can_run() -> None:
    """A count that has to be changed by hand when the corpus or the engine changes."""
    left_out = {name for name, each in expected().items() if not each.get("runnable")}

    assert len(runnable()) == 39
    assert left_out == {
        "kfp-tests/arguments-parameters.yaml",  # cowsay
        "kfp-tests/loops.yaml",  # cowsay
        "sdk-0.1.38/testdata-basic.yaml",  # gsutil and network
        "sdk-1.8.22/sample-use_run_id.yaml",  # pip install in the step
        "sdk-1.8.22-v2compat/own-function-components.yaml",  # pip install in the step
        "sdk-1.8.22-v2compat/v2_compatible_two_step_pipeline.yaml",  # pip install in the step
    }


def _request(name: str) -> dict[str, Any]:
    manifest = yaml.safe_load((PIPELINES / name).read_text())
    given = expected()[name].get("params", {})
    declared = (manifest["spec"].get("arguments") or {}).get("parameters", [])
    parameters = [
        {"name": each["name"], "value": given.get(each["name"], "x")}
        for each in declared
        if each["name"] in given or "value" not in each
    ]
    return {
        "name": PurePosixPath(name).stem,
        "pipeline_spec": {"workflow_manifest": json.dumps(manifest), "parameters": parameters},
    }
