"""What steps write, read through the gateway and by the command, while they run and afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.coverage.plugin import Collector
from tests.support.api import Api, workflow_of
from tests.support.processes import kill
from tests.support.recorder import Recorder, recording
from tests.support.stack import Stack

_WITHIN_SECONDS = 45


@pytest.fixture
def recorder(stack: Stack, evidence: Collector) -> Iterator[Recorder]:
    with recording(stack.url) as recorder:
        yield recorder
    for operation in recorder.succeeded():
        evidence.driven_by("headrace logs", operation)


@pytest.mark.parametrize("prefix", ["/apis/v1beta1", "/apis/v1alpha1"])
def test_a_running_step_is_followed_to_its_end(stack: Stack, prefix: str) -> None:
    pipeline = _Talker(stack)
    run_id = pipeline.start()
    node_id = pipeline.node("talker")
    path = f"{prefix}/runs/{run_id}/nodes/{node_id}/log"

    reply = urllib3.request("GET", f"{stack.url}{path}?follow=true", preload_content=False, timeout=_WITHIN_SECONDS)
    assert (reply.status, reply.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    chunks = reply.stream(1024)
    told = b""
    while b"before" not in told:
        told += next(chunks)
    assert b"before" in pipeline.api.call("GET", path).body
    assert b"after" not in told
    pipeline.let_go()
    told += b"".join(chunks)

    assert _own(told) == b"before\nafter\n"
    pipeline.api.run_when(run_id, within_seconds=_WITHIN_SECONDS)
    assert pipeline.api.call("GET", path).body == told


def test_who_follows_hears_on_when_the_controller_was_replaced(stack: Stack) -> None:
    pipeline = _Talker(stack)
    run_id = pipeline.start()
    path = f"/apis/v1beta1/runs/{run_id}/nodes/{pipeline.node('talker')}/log?follow=true"
    reply = urllib3.request("GET", stack.url + path, preload_content=False, timeout=_WITHIN_SECONDS)
    chunks = reply.stream(1024)
    told = b""
    while b"before" not in told:
        told += next(chunks)

    kill(stack, "run-controller")
    pipeline.let_go()

    assert _own(told + b"".join(chunks)) == b"before\nafter\n"


def test_reading_around_the_end_of_a_step_is_never_refused(stack: Stack) -> None:
    pipeline = _Talker(stack)
    run_id = pipeline.start()
    path = f"/apis/v1beta1/runs/{run_id}/nodes/{pipeline.node('talker')}/log"
    pipeline.let_go()

    answers = []
    deadline = time.monotonic() + _WITHIN_SECONDS
    while pipeline.api.get(f"/apis/v1beta1/runs/{run_id}")["run"].get("status") != "Succeeded":
        assert time.monotonic() < deadline
        answers.append(pipeline.api.call("GET", path))
    answers.append(pipeline.api.call("GET", path))

    assert {answer.status for answer in answers} == {200}
    # What was shown once is shown from then on.
    sizes = [len(answer.body) for answer in answers]
    assert sizes == sorted(sizes)
    assert _own(answers[-1].body) == b"before\nafter\n"


def test_the_command_shows_one_step_or_all_of_them(stack: Stack, recorder: Recorder) -> None:
    pipeline = _Talker(stack)
    run_id = pipeline.start()
    following = [_command(recorder, run_id, "talker", "-f"), _command(recorder, run_id, "--follow")]
    pipeline.node("talker")
    pipeline.let_go()

    one, all_ = (_own(each.communicate(timeout=_WITHIN_SECONDS)[0].encode()).decode() for each in following)
    assert [each.returncode for each in following] == [0, 0]
    assert one == "before\nafter\n"
    assert sorted(all_.splitlines()) == ["last | the end", "talker | after", "talker | before"]
    pipeline.api.run_when(run_id, within_seconds=_WITHIN_SECONDS)
    shown = _own(_command(recorder, run_id).communicate(timeout=_WITHIN_SECONDS)[0].encode()).decode()
    assert shown.splitlines() == ["talker | before", "talker | after", "last | the end"]
    unknown = _command(recorder, run_id, "nobody")
    assert unknown.communicate(timeout=_WITHIN_SECONDS)[1] == (
        f"headrace logs: run {run_id} has no step nobody (steps: last, talker)\n"
    )
    assert unknown.returncode == 1
    assert _command(recorder, "nope").communicate(timeout=_WITHIN_SECONDS)[1] == "headrace logs: Run nope not found.\n"


def _own(text: bytes) -> bytes:
    """Without what the runtime says ahead of the step."""
    return b"".join(line for line in text.splitlines(keepends=True) if b"headrace: " not in line)


def _command(recorder: Recorder, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "infra.cli", "logs", "--url", recorder.url, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class _Talker:
    """A step that says a word, waits until it is let go, and says another; then a second step."""

    def __init__(self, stack: Stack) -> None:
        self.api = Api(stack.url)
        self._claim = f"claim-{uuid.uuid4().hex[:8]}"
        self._folder: Path = stack.data_dir / "engine" / "volumes" / "kubeflow" / "PersistentVolumeClaim" / self._claim
        self._run_id = ""

    def start(self) -> str:
        say = "echo before; touch /mnt/begun; while [ ! -e /mnt/go ]; do sleep 0.05; done; echo after"
        manifest = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"generateName": "talker-"},
            "spec": {
                "entrypoint": "main",
                "templates": [
                    {
                        "name": "main",
                        "dag": {
                            "tasks": [
                                {"name": "talker", "template": "talker"},
                                {"name": "last", "template": "last", "dependencies": ["talker"]},
                            ]
                        },
                    },
                    {
                        "name": "talker",
                        "container": {
                            "image": "alpine",
                            "command": ["sh", "-c", say],
                            "volumeMounts": [{"name": "claim", "mountPath": "/mnt"}],
                        },
                        "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": self._claim}}],
                    },
                    {"name": "last", "container": {"image": "alpine", "command": ["echo", "the end"]}},
                ],
            },
        }
        request = {"name": "talker", "pipeline_spec": {"workflow_manifest": json.dumps(manifest)}}
        self._run_id = self.api.post("/apis/v1beta1/runs", request)["run"]["id"]
        self._until(lambda: (self._folder / "begun").exists())
        return self._run_id

    def node(self, name: str) -> str:
        """The id of the step, as soon as it is on record."""
        found: list[str] = []

        def look() -> bool:
            workflow = workflow_of(self.api.get(f"/apis/v1beta1/runs/{self._run_id}"))
            nodes = (workflow["status"].get("nodes") or {}).values()
            found.extend(node["id"] for node in nodes if node["displayName"] == name)
            return bool(found)

        self._until(look)
        return found[0]

    def let_go(self) -> None:
        (self._folder / "go").touch()

    def _until(self, look: Any) -> None:
        deadline = time.monotonic() + _WITHIN_SECONDS
        while not look():
            assert time.monotonic() < deadline, "it did not come to that"
            time.sleep(0.02)
