"""Processes are killed; runs go on or end by the rules, and nothing is executed twice."""

from __future__ import annotations

import json
import signal
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from tests.support.api import Api, workflow_of
from tests.support.processes import kill, process_of, steps_of
from tests.support.stack import Stack, running

_WITHIN_SECONDS = 45


def test_a_step_outlives_its_controller_and_runs_once(stack: Stack) -> None:
    pipeline = _Pipeline(stack)
    run_id = pipeline.start()
    pipeline.until_begun("second")

    kill(stack, "run-controller")
    pipeline.let_go()

    detail = pipeline.api.run_when(run_id, within_seconds=_WITHIN_SECONDS)
    assert detail["run"]["status"] == "Succeeded"
    assert pipeline.times_begun("first") == 1
    assert pipeline.times_begun("second") == 1


def test_a_step_dies_with_its_runner_and_finished_ones_are_not_repeated(stack: Stack) -> None:
    pipeline = _Pipeline(stack)
    run_id = pipeline.start()
    pipeline.until_begun("second")

    kill(stack, "step-runner")

    detail = pipeline.api.run_when(run_id, within_seconds=_WITHIN_SECONDS)
    nodes = {node["displayName"]: node for node in workflow_of(detail)["status"]["nodes"].values()}
    assert detail["run"]["status"] == "Error"
    assert (nodes["first"]["phase"], nodes["second"]["phase"]) == ("Succeeded", "Error")
    assert nodes["second"]["message"] == "pod deleted"
    assert pipeline.times_begun("first") == 1
    assert steps_of(pipeline.marker) == []


def test_a_lost_attempt_is_retried_where_the_pipeline_says_so(stack: Stack) -> None:
    pipeline = _Pipeline(stack, retries=1)
    run_id = pipeline.start()
    pipeline.until_begun("second")

    kill(stack, "step-runner")
    pipeline.let_go()

    detail = pipeline.api.run_when(run_id, within_seconds=_WITHIN_SECONDS)
    assert detail["run"]["status"] == "Succeeded"
    assert pipeline.times_begun("first") == 1
    assert pipeline.times_begun("second") == 2


def test_services_are_killed_one_after_another_and_the_run_ends_well(stack: Stack) -> None:
    pipeline = _Pipeline(stack)
    run_id = pipeline.start()
    pipeline.until_begun("second")

    for name in ("run", "metrics", "experiment", "pipeline-registry", "job-scheduler"):
        kill(stack, name)
    pipeline.let_go()

    pipeline.until_gateway_answers()
    detail = pipeline.api.run_when(run_id, within_seconds=_WITHIN_SECONDS)
    assert detail["run"]["status"] == "Succeeded"
    assert pipeline.times_begun("second") == 1


def test_after_the_whole_tree_was_killed_a_second_start_goes_on() -> None:
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        data_dir = Path(folder) / "data"
        with running(data_dir) as first:
            pipeline = _Pipeline(first, retries=1)
            run_id = pipeline.start()
            pipeline.until_begun("second")
            tree = psutil.Process(first.process.pid).children(recursive=True)
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
            psutil.wait_procs(tree, timeout=20)
            assert steps_of(pipeline.marker) == []
        with running(data_dir) as second:
            pipeline.let_go()
            detail = Api(second.url).run_when(run_id, within_seconds=_WITHIN_SECONDS)
            assert detail["run"]["status"] == "Succeeded"
            assert pipeline.times_begun("first") == 1
            assert pipeline.times_begun("second") == 2


def test_an_orderly_stop_leaves_no_process() -> None:
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        with running(Path(folder) / "data") as stack:
            tree = psutil.Process(stack.process.pid).children(recursive=True)
            assert process_of(stack, "gateway").is_running()
        left = [process for process in tree if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert left == []
    assert stack.process.returncode == 0


class _Pipeline:
    """Two steps on one claim. The first is quick; the second waits until it is let go. Both count their beginnings."""

    def __init__(self, stack: Stack, *, retries: int | None = None) -> None:
        self.api = Api(stack.url)
        self.marker = f"marker-{uuid.uuid4().hex}"
        self._claim = f"claim-{uuid.uuid4().hex[:8]}"
        self._retries = retries
        self._folder = stack.data_dir / "engine" / "volumes" / "kubeflow" / "PersistentVolumeClaim" / self._claim

    def start(self) -> str:
        wait = "while [ ! -e /mnt/go ]; do sleep 0.05; done"
        manifest = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"generateName": "durable-"},
            "spec": {
                "entrypoint": "main",
                "templates": [
                    {"name": "main", "dag": {"tasks": [_task("first"), _task("second", after="first")]}},
                    self._template("first", "true"),
                    self._template("second", wait),
                ],
            },
        }
        request = {"name": "durable", "pipeline_spec": {"workflow_manifest": json.dumps(manifest)}}
        run_id: str = self.api.post("/apis/v1beta1/runs", request)["run"]["id"]
        return run_id

    def until_begun(self, step: str) -> None:
        self._until(lambda: self.times_begun(step) > 0)

    def until_gateway_answers(self) -> None:
        self._until(lambda: self.api.call("GET", "/apis/v1beta1/runs?page_size=1").status == 200)

    def let_go(self) -> None:
        (self._folder / "go").touch()

    def times_begun(self, step: str) -> int:
        file = self._folder / step
        return len(file.read_text().splitlines()) if file.exists() else 0

    def _until(self, look: Any) -> None:
        deadline = time.monotonic() + _WITHIN_SECONDS
        while not look():
            assert time.monotonic() < deadline, "it did not come to that"
            time.sleep(0.02)

    def _template(self, name: str, work: str) -> dict[str, Any]:
        template: dict[str, Any] = {
            "name": name,
            "container": {
                "image": "alpine",
                "command": ["sh", "-c", f": {self.marker}; echo begun >> /mnt/{name}; {work}"],
                "volumeMounts": [{"name": "claim", "mountPath": "/mnt"}],
            },
            "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": self._claim}}],
        }
        if self._retries is not None:
            template["retryStrategy"] = {"limit": self._retries, "retryPolicy": "Always"}
        return template


def _task(name: str, *, after: str | None = None) -> dict[str, Any]:
    return {"name": name, "template": name, "dependencies": [after] if after else []}
