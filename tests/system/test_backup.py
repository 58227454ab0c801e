"""A stack is backed up while it works, goes on, and is lost; another one goes on from the backup."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from infra.embedded.binaries import find_programs
from infra.postgres.roles import DATABASE, run_psql
from tests.support.api import Api
from tests.support.stack import Stack, running

OPERATIONS = Path(__file__).parents[2] / "gateway" / "docs" / "operations.md"

_WITHIN_SECONDS = 60
_INTERVAL_SECONDS = 3
_LEAP = 1_000_000_000

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Open to other users, as a stack started by root needs it, and short, for its socket."""
    with tempfile.TemporaryDirectory(prefix="headrace-") as name:
        os.chmod(name, 0o711)
        yield Path(name)


def test_what_was_there_at_the_moment_of_the_backup_is_there_again_and_goes_on(folder: Path) -> None:
    with running(folder / "data") as stack:
        house = _House(stack)
        house.furnish()
        house.until_the_job_has_fired()
        kept, slots_then = house.answers(), house.slots()
        said = _headrace("backup", folder / "backup", data_dir=folder / "data")
        assert said.startswith(f"backed up {folder / 'data'} to {folder / 'backup'}: the database and ")
        house.change()
        read = house.events()

    # At rest it can be backed up as well; what was done since is in that one.
    _headrace("backup", folder / "later", data_dir=folder / "data")
    made = [json.loads((folder / name / "backup.json").read_text())["objects"] for name in ("backup", "later")]
    assert 0 < made[0] < made[1]
    said = _headrace("restore", folder / "backup", data_dir=folder / "again")
    assert said.startswith(f"restored {folder / 'again'} as of ")
    with running(folder / "again") as stack:
        again = _House(stack, like=house)
        again.until_objects_are_found()
        assert again.answers() == kept
        assert not again.has_experiment("after the backup")
        again.let_the_open_run_go()
        assert again.ended(again.open_run)["status"] == "Succeeded"
        assert again.times_begun() == 2  # The attempt that ran is lost; the second one belongs to its retry.
        again.fires_each_slot_once(since=slots_then)
        again.is_at_work()
        again.tells_subscribers_of_what_is_gone(read)
        _ask_what_the_page_of_operations_asks(stack)


class _House:
    """A stack with something of everything in it."""

    def __init__(self, stack: Stack, *, like: _House | None = None) -> None:
        self._api = Api(stack.url)
        self._claim = stack.data_dir / "engine" / "volumes" / "kubeflow" / "PersistentVolumeClaim" / "shared"
        self._ids: dict[str, str] = {} if like is None else like._ids

    @property
    def open_run(self) -> str:
        return self._ids["open"]

    def furnish(self) -> None:
        api = self._api
        self._ids["experiment"] = api.post("/apis/v1beta1/experiments", {"name": "mill"})["id"]
        # Once more, for a run of the job that is at work at the moment of the backup.
        package = json.dumps(_workflow("echo flour > /tmp/sack", retries=1)).encode()
        self._ids["pipeline"] = api.upload("/apis/v1beta1/pipelines/upload?name=grind", "p.yaml", package)["id"]
        self._ids["job"] = api.post(
            "/apis/v1beta1/jobs",
            {
                "name": "nightly",
                "enabled": True,
                "max_concurrency": "10",
                "trigger": {"periodic_schedule": {"interval_second": str(_INTERVAL_SECONDS)}},
                "pipeline_spec": {"pipeline_id": self._ids["pipeline"]},
                "resource_references": self._in_experiment(),
            },
        )["id"]
        self._ids["finished"] = self._run("finished", {"pipeline_id": self._ids["pipeline"]})
        assert self.ended(self._ids["finished"])["status"] == "Succeeded"
        self._report(self._ids["finished"])
        waits = "echo begun >> /shared/begun; until [ -e /shared/go ]; do sleep 0.05; done; echo > /tmp/sack"
        self._ids["open"] = self._run("open", {"workflow_manifest": json.dumps(_workflow(waits, retries=1))})
        _until(lambda: self.times_begun() == 1)
        self._ids["webhook"] = api.post(
            "/apis/headrace/v1/webhooks",
            {"name": "pager", "url": "http://127.0.0.1:9/hook", "resources": ["run"], "facts": ["failed"]},
        )["id"]

    def answers(self) -> dict[str, Any]:
        """Of what nobody changes any more."""
        ids = self._ids
        paths = {
            "experiment": f"/apis/v1beta1/experiments/{ids['experiment']}",
            "pipeline": f"/apis/v1beta1/pipelines/{ids['pipeline']}",
            "template": f"/apis/v1beta1/pipelines/{ids['pipeline']}/templates",
            "run": f"/apis/v1beta1/runs/{ids['finished']}",
            "webhook": f"/apis/headrace/v1/webhooks/{ids['webhook']}",
        }
        found = {name: self._api.get(path) for name, path in paths.items()}
        nodes = json.loads(found["run"]["pipeline_runtime"]["workflow_manifest"])["status"]["nodes"]
        (node,) = (each["id"] for each in nodes.values() if each["type"] == "Pod")
        artifact = f"/apis/v1beta1/runs/{ids['finished']}/nodes/{node}/artifacts/sack:read"
        return found | {"artifact": self._api.get(artifact)}

    def until_objects_are_found(self) -> None:
        """On a busy machine the object store answers before it knows where all lies that it found on the disk."""
        template = f"/apis/v1beta1/pipelines/{self._ids['pipeline']}/templates"
        _until(lambda: self._api.call("GET", template).status != 503)

    def change(self) -> None:
        """What the backup does not know, of every owner of facts that have a say here."""
        api = self._api
        api.post("/apis/v1beta1/experiments", {"name": "after the backup"})
        api.delete(f"/apis/v1beta1/pipelines/{self._ids['pipeline']}")
        lost = self._run("lost", {"workflow_manifest": json.dumps(_workflow("echo > /tmp/sack"))})
        assert self.ended(lost)["status"] == "Succeeded"

    def has_experiment(self, name: str) -> bool:
        listed = self._api.get("/apis/v1beta1/experiments", page_size="100")["experiments"]
        return name in {experiment["name"] for experiment in listed}

    def let_the_open_run_go(self) -> None:
        _until(lambda: self.times_begun() == 2)
        (self._claim / "go").touch()

    def ended(self, run_id: str) -> Any:
        return self._api.run_when(run_id, within_seconds=_WITHIN_SECONDS)["run"]

    def times_begun(self) -> int:
        file = self._claim / "begun"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def slots(self) -> list[tuple[datetime, str]]:
        """When the job's runs were due, and their ids."""
        runs = self._api.get("/apis/v1beta1/runs", page_size="200")["runs"]
        of_job = [run for run in runs if self._ids["job"] in {each["key"]["id"] for each in run["resource_references"]}]
        return sorted((datetime.fromisoformat(run["scheduled_at"]), run["id"]) for run in of_job)

    def until_the_job_has_fired(self) -> None:
        _until(lambda: len(self.slots()) >= 2)

    def fires_each_slot_once(self, since: list[tuple[datetime, str]]) -> None:
        """Also those between the backup and now, which count as missed, and are caught up with."""
        _until(lambda: len(self.slots()) >= len(since) + 3)
        self._api.post(f"/apis/v1beta1/jobs/{self._ids['job']}/disable")
        slots = self.slots()
        assert slots[: len(since)] == since
        times = [at for at, _ in slots]
        assert {(b - a).total_seconds() for a, b in pairwise(times)} == {_INTERVAL_SECONDS}
        for _, run_id in slots:
            assert self.ended(run_id)["status"] == "Succeeded"

    def is_at_work(self) -> None:
        """Services go on hearing of one another."""
        created = self._api.post("/apis/v1beta1/experiments", {"name": "restored"})["id"]
        references = [{"key": {"type": "EXPERIMENT", "id": created}, "relationship": "OWNER"}]
        run_id = self._run("new", {"pipeline_id": self._ids["pipeline"]}, references)
        assert self.ended(run_id)["status"] == "Succeeded"
        self._report(run_id)

    def events(self, *, behind: str = "") -> list[dict[str, str]]:
        """What is told to a client of HTTP, up to now: fields of server-sent events."""
        query = "?until=now" if behind else "?until=now&since=2020-01-01T00:00:00Z"
        headers = {"Last-Event-ID": behind} if behind else {}
        body = self._api.call("GET", f"/apis/headrace/v1/events{query}", headers=headers).body.decode()
        pieces = [dict(line.split(": ", 1) for line in piece.splitlines()) for piece in body.strip().split("\n\n")]
        return [piece for piece in pieces if "data" in piece or "event" in piece]

    def tells_subscribers_of_what_is_gone(self, read: list[dict[str, str]]) -> None:
        last_id = [each["id"] for each in read if "id" in each][-1]
        told = self.events(behind=last_id)
        gaps = [json.loads(each["data"]) for each in told if each.get("event") == "gap"]
        assert {gap["owner"] for gap in gaps} >= {"experiment", "run", "job-scheduler", "metrics"}
        assert all(int(gap["next"]) > _LEAP for gap in gaps)
        # What is told again, such as the slots of the job, has its old id and a new position.
        positions = [json.loads(each["data"])["position"] for each in told if "id" in each]
        assert positions
        assert min(positions) > _LEAP

    def _run(self, name: str, spec: dict[str, Any], references: list[dict[str, Any]] | None = None) -> str:
        request = {
            "name": name,
            "pipeline_spec": spec,
            "resource_references": references or self._in_experiment(),
        }
        return str(self._api.post("/apis/v1beta1/runs", request)["run"]["id"])

    def _report(self, run_id: str) -> None:
        metrics = [{"name": "fineness", "node_id": "main", "number_value": 0.5}]
        self._api.post(f"/apis/v1beta1/runs/{run_id}:reportMetrics", {"metrics": metrics})
        _until(lambda: "metrics" in self._api.get(f"/apis/v1beta1/runs/{run_id}")["run"])

    def _in_experiment(self) -> list[dict[str, Any]]:
        return [{"key": {"type": "EXPERIMENT", "id": self._ids["experiment"]}, "relationship": "OWNER"}]


def _workflow(script: str, *, retries: int = 0) -> dict[str, Any]:
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "kept-"},
        "spec": {
            "entrypoint": "main",
            "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}],
            "templates": [
                {
                    "name": "main",
                    **({"retryStrategy": {"limit": retries, "retryPolicy": "Always"}} if retries else {}),
                    "container": {
                        "image": "any",
                        "command": ["sh", "-c", script],
                        "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
                    },
                    "outputs": {"artifacts": [{"name": "sack", "path": "/tmp/sack"}]},
                }
            ],
        },
    }


def _headrace(command: str, place: Path, *, data_dir: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", command, str(place), "--data-dir", str(data_dir)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _ask_what_the_page_of_operations_asks(stack: Stack) -> None:
    """Its statements, as the superuser."""
    (statements,) = re.findall(r"```sql\n(.*?)```", OPERATIONS.read_text(), re.DOTALL)
    told = {name: json.loads((stack.data_dir / f"{name}.json").read_text()) for name in ("ports", "secrets")}
    rows = run_psql(
        f"\\connect {DATABASE}\n{statements}",
        psql=find_programs().postgres_bin / "psql",
        host="127.0.0.1",
        port=told["ports"]["postgres"],
        superuser="postgres",
        password=told["secrets"]["postgres.postgres"],
    )
    assert re.search(r"^run\|\d+\|\d+\|", rows, re.MULTILINE), rows
    assert re.search(r"^run\|experiment\|\d+$", rows, re.MULTILINE), rows
    assert re.search(r"^relay:run\|", rows, re.MULTILINE), rows


def _until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WITHIN_SECONDS
    while not look():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)
