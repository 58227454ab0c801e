"""Whatever is killed, whenever: every run ends, what finished did not run twice, and nothing is left over.

What is killed and how soon is drawn from a seed, which a failure shows. HEADRACE_CHAOS_SEED repeats it, and
HEADRACE_CHAOS_KILLS asks for more: how things lie at each kill is the machine's affair, so more kills see more.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import urllib3

from tests.support.api import FINAL, Api, workflow_of
from tests.support.processes import process_of, server_of, steps_of
from tests.support.stack import Stack, running

_KILLS = int(os.environ.get("HEADRACE_CHAOS_KILLS", "12"))
_SEED = int(os.environ.get("HEADRACE_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)

_PROCESSES = ("run-controller", "step-runner", "run", "metrics", "gateway")
_SERVERS = ("postgres", "nats-server", "weed")
_EVERYTHING = "everything"
_WITHIN_SECONDS = 90
_MOST_SECONDS_BETWEEN = 2.0
_MORE_RETRIES_THAN_KILLS = 1000


@pytest.mark.timeout(120 + 15 * _KILLS)
def test_whatever_is_killed_every_run_ends_and_nothing_finished_runs_twice() -> None:
    chance = random.Random(_SEED)
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder, _house(Path(folder) / "data") as house:
        runs = _Runs(house)
        killed: Counter[str] = Counter()
        for number in range(_KILLS):
            # Every fourth run has no retries: it must end as well, whatever became of its steps.
            runs.create(retried=number % 4 != 3)
            runs.until_more_has_begun(chance.randrange(4))
            victim = chance.choice((*_PROCESSES, *_SERVERS, _EVERYTHING))
            house.kill(victim)
            killed[victim] += 1
        found = runs.histories()
        left = house.what_is_left(runs)
    counts = f"seed {_SEED}: {sum(killed.values())} kills {dict(killed)}, {found.said()}, left over {left}"
    print(counts)
    assert found.problems == [], counts
    assert left == [], counts


class _Found(msgspec.Struct, kw_only=True):
    phases: Counter[str]
    steps: int
    """Pods on record."""
    problems: list[str]

    def said(self) -> str:
        return f"{self.phases.total()} runs {dict(self.phases)}, {self.steps} steps, problems {self.problems}"


class _House:
    """A stack on one data directory that may be killed as a whole and started again."""

    def __init__(self, data_dir: Path, port: int | None) -> None:
        self.data_dir = data_dir
        self._port = port
        self._held = ExitStack()
        self._stack: Stack | None = None

    @property
    def stack(self) -> Stack:
        if self._stack is None:
            self._stack = self._held.enter_context(running(self.data_dir))
        return self._stack

    @property
    def api(self) -> Api:
        return Api(self.stack.url)

    def kill(self, victim: str) -> None:
        """Its successor is not waited for: the next blow may fall before it stands."""
        if victim == _EVERYTHING:
            self._kill_everything()
            return
        # One that is just being started again cannot be killed.
        with contextlib.suppress(AssertionError, psutil.NoSuchProcess):
            found = server_of(self.stack, victim) if victim in _SERVERS else process_of(self.stack, victim)
            found.kill()

    def _kill_everything(self) -> None:
        tree = psutil.Process(self.stack.process.pid).children(recursive=True)
        self.stack.process.kill()
        self.stack.process.wait()
        psutil.wait_procs(tree, timeout=20)
        self.close()

    def close(self) -> None:
        self._stack = None
        self._held.close()

    def what_is_left(self, runs: _Runs) -> list[str]:
        """Processes of steps, and directories of attempts that nobody clears away."""
        steps = self.data_dir / "steps"

        def left() -> list[str]:
            attempts = [entry.name for entry in steps.iterdir() if not entry.name.startswith(".")]
            return attempts + [f"process {process.pid}" for process in steps_of(runs.marker)]

        deadline = time.monotonic() + _WITHIN_SECONDS
        while (found := left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found


@contextmanager
def _house(data_dir: Path) -> Iterator[_House]:
    house = _House(data_dir, None)
    try:
        yield house
    finally:
        house.close()


class _Runs:
    """Runs whose steps note in a claim, under the name of their pod, that they begin and that they end."""

    def __init__(self, house: _House) -> None:
        self.marker = f"chaos-{uuid.uuid4().hex}"
        self._house = house
        self._claim = f"claim-{uuid.uuid4().hex[:8]}"
        self._notes = house.data_dir / "engine" / "volumes" / "kubeflow" / "PersistentVolumeClaim" / self._claim
        self._ids: list[str] = []

    def create(self, *, retried: bool) -> None:
        """However often it takes: under one key it is one run."""
        manifest = self._manifest(retried=retried)
        body = json.dumps({"name": "chaos", "pipeline_spec": {"workflow_manifest": json.dumps(manifest)}})
        key = {"Idempotency-Key": uuid.uuid4().hex}

        def create() -> str | None:
            answer = self._house.api.call("POST", "/apis/v1beta1/runs", body=body, headers=key)
            assert answer.status in (200, 503), answer.body
            return answer.json["run"]["id"] if answer.status == 200 else None

        self._ids.append(_patiently(create))

    def until_more_has_begun(self, steps: int) -> None:
        """Something may stand in the way of that, so not for long."""
        aim = self._begun() + steps
        deadline = time.monotonic() + _MOST_SECONDS_BETWEEN
        while self._begun() < aim and time.monotonic() < deadline:
            time.sleep(0.01)

    def histories(self) -> _Found:
        found = _Found(phases=Counter(), steps=0, problems=[])
        on_record: set[str] = set()
        for run_id in self._ids:
            detail = _patiently(lambda run_id=run_id: self._final(run_id))
            found.phases[detail["run"]["status"] if detail else "stuck"] += 1
            if detail is None:
                found.problems.append(f"run {run_id} does not end")
                continue
            nodes = workflow_of(detail)["status"].get("nodes", {}).values()
            pods = {node["id"]: node["phase"] for node in nodes if node["type"] == "Pod"}
            on_record |= pods.keys()
            found.steps += len(pods)
            found.problems += [problem for pod, phase in pods.items() if (problem := self._problem(pod, phase))]
        found.problems += [f"{pod} ran and is on no record" for pod in self._noted() - on_record]
        total = int(_patiently(lambda: self._house.api.get("/apis/v1beta1/runs?page_size=1"))["total_size"])
        if total != len(self._ids):
            found.problems.append(f"{len(self._ids)} runs were created, and {total} are there")
        return found

    def _final(self, run_id: str) -> Any:
        detail = self._house.api.get(f"/apis/v1beta1/runs/{run_id}")
        return detail if detail["run"].get("status") in FINAL else None

    def _problem(self, pod: str, phase: str) -> str:
        lines = (self._notes / pod).read_text().split() if pod in self._noted() else []
        if lines.count("begun") > 1:
            return f"{pod} ran {lines.count('begun')} times"
        if phase == "Succeeded" and lines != ["begun", "ended"]:
            return f"{pod} has succeeded and noted {lines}"
        return f"{pod} is {phase}" if phase in ("Pending", "Running") else ""

    def _noted(self) -> set[str]:
        return {file.name for file in self._notes.iterdir()} if self._notes.exists() else set()

    def _begun(self) -> int:
        return len(self._noted())

    def _manifest(self, *, retried: bool) -> dict[str, Any]:
        step: dict[str, Any] = {
            "name": "step",
            "container": {
                "image": "alpine",
                "command": ["sh", "-c", f": {self.marker}; echo begun >> $0; sleep 0.2; echo ended >> $0"],
                "args": ["/notes/{{pod.name}}"],
                "volumeMounts": [{"name": "notes", "mountPath": "/notes"}],
            },
            "volumes": [{"name": "notes", "persistentVolumeClaim": {"claimName": self._claim}}],
        }
        if retried:
            step["retryStrategy"] = {"limit": _MORE_RETRIES_THAN_KILLS, "retryPolicy": "Always"}
        tasks = [
            {"name": "first", "template": "step"},
            {"name": "each", "template": "step", "dependencies": ["first"], "withItems": [1, 2, 3]},
            {"name": "last", "template": "step", "dependencies": ["each"]},
        ]
        return {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"generateName": "chaos-"},
            "spec": {"entrypoint": "main", "templates": [{"name": "main", "dag": {"tasks": tasks}}, step]},
        }


def _patiently(ask: Any) -> Any:
    """What it answers as soon as it does; None when the time is up. Between kills nobody may be there to answer."""
    deadline = time.monotonic() + _WITHIN_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib3.exceptions.HTTPError, AssertionError):
            if (answer := ask()) is not None:
                return answer
        time.sleep(0.1)
    return None
