"""A stack that is told to keep what steps leave."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.support.api import Api, workflow_of
from tests.support.running_stack import REAL, started

pytestmark = pytest.mark.timeout(240)


async def test_the_second_run_of_a_pipeline_takes_over_what_the_first_one_left(tmp_path: Path) -> None:
    async with started(tmp_path / "data", command=REAL, variables={"HEADRACE_STEP_CACHE": "true"}) as stack:
        await stack.ready()
        await asyncio.to_thread(_run_twice, Api(f"http://127.0.0.1:{stack.port}"))
        assert await stack.stop() == 0


def _run_twice(api: Api) -> None:
    container = {"image": "any", "command": ["sh", "-c", "date +%s%N > /tmp/now"]}
    outputs = {"parameters": [{"name": "now", "valueFrom": {"path": "/tmp/now"}}]}
    manifest = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "clock-"},
        "spec": {"entrypoint": "main", "templates": [{"name": "main", "container": container, "outputs": outputs}]},
    }
    request = {"name": "clock", "pipeline_spec": {"workflow_manifest": json.dumps(manifest)}}

    def run() -> tuple[str, str, str]:
        """Its id, its node's, and what the clock said."""
        run_id = api.post("/apis/v1beta1/runs", request)["run"]["id"]
        detail = api.run_when(run_id, within_seconds=60)
        assert detail["run"]["status"] == "Succeeded"
        (node,) = workflow_of(detail)["status"]["nodes"].values()
        return run_id, node["id"], node["outputs"]["parameters"][0]["value"]

    first_id, _, first = run()
    second_id, node_id, second = run()
    assert second == first
    log = api.call("GET", f"/apis/v1alpha1/runs/{second_id}/nodes/{node_id}/log")
    assert log.body == b"This step output is taken from cache.\n"

    api.delete(f"/apis/v1beta1/runs/{first_id}")
    _, _, third = run()
    assert third != first
