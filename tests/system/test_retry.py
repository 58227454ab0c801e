"""A failed run is retried: what was done stays done, and the graph is as complete as after one run without failure."""

from __future__ import annotations

import json
import uuid
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


def test_the_deadline_of_a_run_counts_from_its_retry(stack: Stack) -> None:
    api = Api(stack.url)
    # The first attempt outstays its time; the second needs little of it.
    work = "if [ -e /mnt/again ]; then exit 0; fi; touch /mnt/again; exec sleep 60"
    manifest = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "deadline-"},
        "spec": {
            "entrypoint": "main",
            "activeDeadlineSeconds": 4,
            "templates": [
                {
                    "name": "main",
                    "container": {
                        "image": "alpine",
                        "command": ["sh", "-c", work],
                        "volumeMounts": [{"name": "claim", "mountPath": "/mnt"}],
                    },
                    "volumes": [
                        {"name": "claim", "persistentVolumeClaim": {"claimName": f"claim-{uuid.uuid4().hex[:8]}"}}
                    ],
                }
            ],
        },
    }
    request = {"name": "deadline", "pipeline_spec": {"workflow_manifest": json.dumps(manifest)}}
    run_id = api.post("/apis/v1beta1/runs", request)["run"]["id"]
    assert api.run_when(run_id, within_seconds=_WITHIN_SECONDS)["run"]["status"] == "Failed"

    api.post(f"/apis/v1beta1/runs/{run_id}/retry")

    assert api.run_when(run_id, within_seconds=_WITHIN_SECONDS)["run"]["status"] == "Succeeded"


def _differences(detail: Any, expectation: Any) -> list[str]:
    workflow = workflow_of(detail)
    return differences(_MANIFEST, workflow["metadata"]["name"], workflow["status"], expectation)


def _steps(detail: Any) -> dict[str, Any]:
    workflow = workflow_of(detail)
    name = workflow["metadata"]["name"]
    return {node["name"].replace(name, "<wf>", 1): node for node in workflow["status"]["nodes"].values()}
