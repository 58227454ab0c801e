"""What there is beyond the API of the original, through the gateway."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.support.api import Answer, Api, workflow_of
from tests.support.eventually import eventually
from tests.support.stack import Stack

_WITHIN_SECONDS = 45


def test_creations_repeated_through_the_gateway_make_one_run(stack: Stack) -> None:
    api = Api(stack.url)
    name, key = f"once-{uuid.uuid4().hex}", uuid.uuid4().hex

    def create(_: int) -> Answer:
        return api.call("POST", "/apis/v1beta1/runs", body=_request(name), headers={"Idempotency-Key": key})

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(create, range(16)))

    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert _count(api, {"op": "EQUALS", "key": "name", "string_value": name}) == 1
    other = api.call("POST", "/apis/v1beta1/runs", body=_request("another"), headers={"Idempotency-Key": key})
    assert (other.status, other.json["code"]) == (409, 6)
    api.delete(f"/apis/v1beta1/runs/{answers[0].json['run']['id']}")
    assert create(0).body == answers[0].body
    assert _count(api, {"op": "EQUALS", "key": "name", "string_value": name}) == 0


def test_an_artifact_is_downloaded_in_parts(stack: Stack) -> None:
    api = Api(stack.url)
    run_id = api.post("/apis/v1beta1/runs", json.loads(_request("said")))["run"]["id"]
    workflow = workflow_of(api.run_when(run_id, within_seconds=_WITHIN_SECONDS))
    (node_id,) = workflow["status"]["nodes"]
    path = f"/apis/headrace/v1/runs/{run_id}/nodes/{node_id}/artifacts/main-logs"

    whole = api.call("GET", path)
    assert whole.status == 200
    assert whole.body.endswith(b"0123456789\n")
    head = api.call("HEAD", path)
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(whole.body)), b"")
    end = api.call("GET", path, headers={"Range": "bytes=-6", "If-Range": whole.headers["etag"]})
    assert (end.status, end.body) == (206, b"56789\n")
    size = len(whole.body)
    assert end.headers["content-range"] == f"bytes {size - 6}-{size - 1}/{size}"
    beyond = api.call("GET", path, headers={"Range": f"bytes={size}-"})
    assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{size}")


def test_the_engine_says_what_steps_run_in(stack: Stack) -> None:
    assert Api(stack.url).get("/apis/headrace/v1/engine") == {"name": "embedded", "runtime": "bubblewrap"}


def test_runs_are_counted_by_status_and_end(stack: Stack) -> None:
    api = Api(stack.url)
    name = f"ended-{uuid.uuid4().hex}"
    detail = api.run_when(
        api.post("/apis/v1beta1/runs", json.loads(_request(name)))["run"]["id"], within_seconds=_WITHIN_SECONDS
    )
    mine = {"op": "EQUALS", "key": "name", "string_value": name}
    ended = {"op": "EQUALS", "key": "finished_at", "timestamp_value": detail["run"]["finished_at"]}

    assert _count(api, mine, ended, {"op": "EQUALS", "key": "status", "string_value": "Succeeded"}) == 1
    assert _count(api, mine, ended, {"op": "EQUALS", "key": "status", "string_value": "Failed"}) == 0


async def test_a_run_that_succeeds_triggers_another_one_and_hands_over_what_it_has_found(stack: Stack) -> None:
    api = Api(stack.url)
    experiment = api.post("/apis/v1beta1/experiments", {"name": f"cause-{uuid.uuid4().hex}"})
    values = "{{run.outputs.parameters.train.path}} {{run.metrics.accuracy}} {{run.name}}"
    deploy = _manifest([{"name": "main", "container": {"image": "alpine", "command": ["echo", "deployed"]}}], "what")
    job = api.post(
        "/apis/v1beta1/jobs",
        {
            "name": "deploy",
            "enabled": True,
            "max_concurrency": "1",
            "on": {"facts": ["succeeded"], "experiment_id": experiment["id"]},
            "pipeline_spec": {"workflow_manifest": deploy, "parameters": [{"name": "what", "value": values}]},
        },
    )
    metrics = json.dumps({"metrics": [{"name": "accuracy", "numberValue": 0.25}]})
    train = _manifest(
        [
            {"name": "main", "dag": {"tasks": [{"name": "train", "template": "train"}]}},
            {
                "name": "train",
                "container": {
                    "image": "alpine",
                    "command": ["sh", "-c", f"printf s3://model >/tmp/path; echo '{metrics}' >/tmp/metrics.json"],
                },
                "outputs": {
                    "parameters": [{"name": "path", "valueFrom": {"path": "/tmp/path"}}],
                    "artifacts": [{"name": "mlpipeline-metrics", "path": "/tmp/metrics.json"}],
                },
            },
        ]
    )
    owner = {"key": {"type": "EXPERIMENT", "id": experiment["id"]}, "relationship": "OWNER"}
    api.post(
        "/apis/v1beta1/runs",
        {"name": "training", "pipeline_spec": {"workflow_manifest": train}, "resource_references": [owner]},
    )

    async def runs() -> Any:
        of_job = {"resource_reference_key.type": "JOB", "resource_reference_key.id": job["id"]}
        return api.get("/apis/v1beta1/runs", **of_job).get("runs")

    (run,) = await eventually(runs, within_seconds=_WITHIN_SECONDS)
    detail = api.run_when(run["id"], within_seconds=_WITHIN_SECONDS)
    assert detail["run"]["status"] == "Succeeded"
    given = [{"name": "what", "value": "s3://model 0.25 training"}]
    assert workflow_of(detail)["spec"]["arguments"]["parameters"] == given


def _count(api: Api, *predicates: dict[str, Any]) -> int:
    listed = api.get("/apis/v1beta1/runs", filter=json.dumps({"predicates": predicates}))
    return int(listed.get("total_size", 0))


def _request(name: str) -> str:
    manifest = _manifest([{"name": "main", "container": {"image": "alpine", "command": ["echo", "0123456789"]}}])
    return json.dumps({"name": name, "pipeline_spec": {"workflow_manifest": manifest}})


def _manifest(templates: list[dict[str, Any]], *parameters: str) -> str:
    return json.dumps(
        {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"generateName": "extension-"},
            "spec": {
                "entrypoint": "main",
                "arguments": {"parameters": [{"name": name} for name in parameters]},
                "templates": templates,
            },
        }
    )
