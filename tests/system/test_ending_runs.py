"""Runs that are ended from outside while their steps run."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from tests.support.api import Api, workflow_of
from tests.support.processes import steps_of
from tests.support.stack import Stack

_WITHIN_SECONDS = 45


def test_a_terminated_run_shows_it_at_once_and_ends_with_its_exit_handler(stack: Stack) -> None:
    api, marker = Api(stack.url), uuid.uuid4().hex
    run_id = _begin(api, marker, onExit="bye")

    assert api.post(f"/apis/v1beta1/runs/{run_id}/terminate") == {}
    assert api.get(f"/apis/v1beta1/runs/{run_id}")["run"]["status"] in ("Terminating", "Failed")
    detail = api.run_when(run_id, within_seconds=_WITHIN_SECONDS)

    status = workflow_of(detail)["status"]
    name = workflow_of(detail)["metadata"]["name"]
    ends = {node["name"].removeprefix(name): (node["phase"], node.get("message")) for node in status["nodes"].values()}
    assert (detail["run"]["status"], status["message"]) == ("Failed", "terminated")
    assert ends[".long"] == ("Failed", "terminated")
    assert ends[".onExit"][0] == "Succeeded"
    assert steps_of(marker) == []


def test_a_deleted_run_is_gone_with_the_process_of_its_step_and_all_that_was_kept_of_it(stack: Stack) -> None:
    api, marker = Api(stack.url), uuid.uuid4().hex
    run_id = _begin(api, marker)
    kept = [stack.data_dir / "steps", stack.data_dir / "engine" / "scratch"]
    attempts = [entry for folder in kept for entry in folder.iterdir() if entry.name.startswith(run_id)]
    assert attempts

    assert api.delete(f"/apis/v1beta1/runs/{run_id}") == {}

    assert api.call("GET", f"/apis/v1beta1/runs/{run_id}").status == 404
    assert api.call("DELETE", f"/apis/v1beta1/runs/{run_id}").status == 404
    _until(lambda: not steps_of(marker))
    _until(lambda: not any(entry.exists() for entry in attempts))
    log = f"/apis/v1beta1/runs/{run_id}/nodes/nobody/log"
    assert api.call("GET", log).status == 404


def _begin(api: Api, marker: str, **spec: Any) -> str:
    """A run with a step that runs, and would do so for five minutes."""

    def says(script: str) -> dict[str, Any]:
        return {"image": "any", "command": ["sh", "-c", script]}

    manifest = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "ended-"},
        "spec": {
            "entrypoint": "main",
            "templates": [
                {"name": "main", "dag": {"tasks": [{"name": "long", "template": "long"}]}},
                {"name": "long", "container": says(f": {marker}; (sleep 300; :) & sleep 300; :")},
                {"name": "bye", "container": says("true")},
            ],
            **spec,
        },
    }
    asked = {"name": "ended", "pipeline_spec": {"workflow_manifest": json.dumps(manifest)}}
    run_id: str = api.post("/apis/v1beta1/runs", asked)["run"]["id"]
    _until(lambda: bool(steps_of(marker)))
    return run_id


def _until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WITHIN_SECONDS
    while not look():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)
