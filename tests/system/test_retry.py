"""A failed run is retried: what was done stays done, and the graph is as complete as after one run without failure."""

from __future__ import annotations

import json
from typing import Any

import yaml

from tests.support.api import Api, workflow_of
from tests.support.expected import PIPELINES, differences, expected
from tests.support.stack import Stack

_MANIFEST = "sdk-1.8.22/own-resume-after-failure.yaml"
_WITHIN_SECONDS = 60


def test_a_retried_run_ends_as_expected_and_repeats_no_finished_step(stack: Stack) -> None:
    api = Api(stack.url)
    manifest = json.dumps(yaml.safe_load((PIPELINES / _MANIFEST).read_text()))
    request = {"name": "resume", "pipeline_spec": {"workflow_manifest": manifest}}
    run_id = api.post("/apis/v1beta1/runs", request)["run"]["id"]
    failed = api.run_when(run_id, within_seconds=_WITHIN_SECONDS)
    assert _differences(failed, expected()[_MANIFEST]) == []

    assert api.post(f"/apis/v1beta1/runs/{run_id}/retry") == {}

    retried = api.run_when(run_id, within_seconds=_WITHIN_SECONDS)
    expectation = expected()[_MANIFEST]["afterRunRetry"]
    assert _differences(retried, expectation) == []
    assert _steps(retried).keys() >= set(expectation["reusedSteps"])
    for name in expectation["reusedSteps"]:
        before, after = _steps(failed)[name], _steps(retried)[name]
        assert (after["id"], after["startedAt"], after["finishedAt"], after["outputs"]) == (
            before["id"],
            before["startedAt"],
            before["finishedAt"],
            before["outputs"],
        ), name

    again = api.call("POST", f"/apis/v1beta1/runs/{run_id}/retry")
    assert (again.status, again.json["code"]) == (409, 10)


def _differences(detail: Any, expectation: Any) -> list[str]:
    workflow = workflow_of(detail)
    return differences(_MANIFEST, workflow["metadata"]["name"], workflow["status"], expectation)


def _steps(detail: Any) -> dict[str, Any]:
    workflow = workflow_of(detail)
    name = workflow["metadata"]["name"]
    return {node["name"].replace(name, "<wf>", 1): node for node in workflow["status"]["nodes"].values()}
