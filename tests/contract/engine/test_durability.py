"""Processes are killed at every bad moment, and each step still runs as often as the rules say.

The engine lives in a small controller process that records durably (`host_process`); steps note their runs in a claim.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.blobs import Blobs
from tests.contract.engine.engines import ROOT, RunnerProcess, open_blobs, runner_process
from tests.contract.engine.host_process import Records
from tests.contract.engine.manifests import c, dag, on_claim, task, workflow
from tests.contract.engine.marked import gone, marked, new_marker, processes_with
from tests.contract.engine.recorder import Run, new_run
from tests.support.eventually import eventually
from tests.support.servers import ObjectStoreAccess

KILLED = -9


class Host:
    """The controller process of one run over a runner, and what both leave on the disk."""

    def __init__(self, room: Path, runner: RunnerProcess, store: ObjectStoreAccess, run: Run) -> None:
        self.run = run
        self.runner = runner
        self.records = Records(room / "records.jsonl")
        self._submission = room / "submission.json"
        self._submission.write_bytes(msgspec.json.encode(run.submission()))
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOST_RECORDS": str(room / "records.jsonl"),
            "HOST_SUBMISSION": str(self._submission),
            "HOST_STORE": store.endpoint_url,
            "HOST_ACCESS_KEY": store.access_key,
            "HOST_SECRET_KEY": store.secret_key,
            "HOST_BUCKET": store.bucket,
            "HOST_RUNNER_SOCKET": str(runner.socket),
            "HOST_STEPS_DIR": str(runner.steps_dir),
            "HOST_DATA_DIR": str(runner.data_dir),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, die_at: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.contract.engine.host_process"],
            env={**self._environment, "HOST_DIE_AT": die_at},
            cwd=ROOT,
        )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def ended(self) -> int:
        async def code() -> tuple[int | None]:
            assert self._process is not None
            return (self._process.poll(),)

        async def has_ended() -> bool:
            return (await code())[0] is not None

        await eventually(has_ended, within_seconds=40)
        return int((await code())[0] or 0)

    async def finish(self) -> None:
        """Start once more and let it come to the end of the run."""
        self.start()
        assert await self.ended() == 0

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def claimed(self, name: str) -> list[str]:
        """The lines of a file in the run's claim."""
        file = self.runner.data_dir / "volumes/kubeflow/PersistentVolumeClaim" / self.run.name / name
        return file.read_text().split() if file.exists() else []

    def phases(self) -> dict[str, str]:
        return {node["name"].removeprefix(self.run.name): node["phase"] for node in self.records.nodes().values()}

    def message(self, name: str) -> str:
        found = {node["name"].removeprefix(self.run.name): node for node in self.records.nodes().values()}
        return str(found[name].get("message", ""))

    def log_keys(self) -> list[str]:
        """Where the records say that the logs of steps lie."""
        artifacts = [
            each for node in self.records.nodes().values() for each in node.get("outputs", {}).get("artifacts", ())
        ]
        return [each["s3"]["key"] for each in artifacts if each["name"] == "main-logs"]

    def end(self) -> dict[str, Any]:
        last = self.records.read()[-1]
        assert last["finished_at"]
        return last

    async def until_claimed(self, name: str, *lines: str) -> None:
        async def is_there() -> bool:
            return self.claimed(name) == list(lines)

        await eventually(is_there)

    async def until_phase(self, name: str, phase: str) -> None:
        async def is_so() -> bool:
            return self.phases().get(name) == phase

        await eventually(is_so)


HostMaker = Callable[[Mapping[str, Any]], Host]


@pytest.fixture
def marker() -> str:
    return new_marker()


@pytest.fixture
async def blobs(object_store_access: ObjectStoreAccess) -> Blobs:
    opened = await open_blobs(object_store_access)
    opened.close()
    return opened


@pytest.fixture
def host_of(tmp_path: Path, object_store_access: ObjectStoreAccess, blobs: Blobs, marker: str) -> Iterator[HostMaker]:
    with runner_process() as runner:
        made: list[Host] = []

        def make(manifest: Mapping[str, Any]) -> Host:
            room = tmp_path / str(len(made))
            room.mkdir()
            made.append(Host(room, runner, object_store_access, new_run(manifest)))
            return made[-1]

        yield make
        for host in made:
            host.close()
        left = [path.name for path in runner.steps_dir.iterdir() if not path.name.startswith(".")]
    assert left == []
    assert processes_with(marker) == []


def long_step(marker: str, **rest: Any) -> dict[str, Any]:
    """Notes that it runs, waits until the test lets it go, notes that it is done."""
    script = "echo x >> /v/begun; until [ -e /v/go ]; do sleep 0.02; done; echo x >> /v/done"
    return _marked_on_claim(script, marker, **rest)


def _marked_on_claim(script: str, marker: str, **rest: Any) -> dict[str, Any]:
    return marked(on_claim(script, **rest), marker)


def let_go(host: Host) -> None:
    (host.runner.data_dir / "volumes/kubeflow/PersistentVolumeClaim" / host.run.name / "go").touch()


def first_then_long(marker: str, **rest: Any) -> dict[str, Any]:
    return workflow(
        dag(task("first", "first"), task("long", "long", "first"), task("last", "last", "long")),
        templates={
            "first": _marked_on_claim("echo x >> /v/first", marker),
            "long": long_step(marker, **rest),
            "last": _marked_on_claim("echo x >> /v/last", marker),
        },
    )


async def test_a_step_outlives_its_controller_and_is_found_again(host_of: HostMaker, marker: str) -> None:
    host = host_of(first_then_long(marker))
    host.start()
    await host.until_claimed("begun", "x")
    await host.until_phase(".long", "Running")
    host.kill()
    assert processes_with(marker) != []

    host.start()
    let_go(host)
    assert await host.ended() == 0

    assert host.end()["phase"] == "Succeeded"
    assert [host.claimed(name) for name in ("first", "begun", "done", "last")] == [["x"]] * 4


async def test_a_step_that_ended_while_nobody_watched_is_taken_in(host_of: HostMaker, marker: str) -> None:
    host = host_of(first_then_long(marker))
    host.start()
    await host.until_claimed("begun", "x")
    await host.until_phase(".long", "Running")
    host.kill()
    let_go(host)
    await host.until_claimed("done", "x")
    await gone(marker)

    await host.finish()

    assert host.end()["phase"] == "Succeeded"
    assert [host.claimed(name) for name in ("first", "begun", "done", "last")] == [["x"]] * 4


async def test_a_step_recorded_as_pending_and_never_started_is_started_once(host_of: HostMaker, marker: str) -> None:
    host = host_of(workflow(_marked_on_claim("echo x >> /v/begun", marker)))
    host.start(die_at="pending recorded, not started")
    assert await host.ended() == KILLED
    assert host.phases() == {"": "Pending"}
    assert host.claimed("begun") == []

    await host.finish()

    assert host.end()["phase"] == "Succeeded"
    assert host.claimed("begun") == ["x"]


async def test_a_step_that_ended_and_was_not_recorded_is_not_run_again(host_of: HostMaker, marker: str) -> None:
    host = host_of(workflow(_marked_on_claim("echo x >> /v/begun; echo out > /tmp/o", marker, gives={"o": "/tmp/o"})))
    host.start(die_at="ended, not recorded")
    assert await host.ended() == KILLED
    assert host.phases()[""] in ("Pending", "Running")
    assert host.claimed("begun") == ["x"]

    await host.finish()

    assert host.end()["phase"] == "Succeeded"
    assert host.claimed("begun") == ["x"]
    (node,) = host.records.nodes().values()
    assert node["outputs"]["parameters"][0]["value"] == "out"


async def test_the_steps_of_a_killed_runner_are_lost_and_what_is_done_stays_done(
    host_of: HostMaker, marker: str
) -> None:
    host = host_of(first_then_long(marker))
    host.start()
    await host.until_claimed("begun", "x")
    await host.until_phase(".long", "Running")

    host.runner.kill()
    await gone(marker)
    host.runner.start()
    assert await host.ended() == 0

    assert host.end()["phase"] == "Error"
    assert host.phases() == {"": "Error", ".first": "Succeeded", ".long": "Error", ".last": "Omitted"}
    assert host.message(".long") == "pod deleted"
    assert [host.claimed(name) for name in ("first", "begun", "done", "last")] == [["x"], ["x"], [], []]


async def test_a_lost_step_is_retried_where_its_policy_says_so(host_of: HostMaker, marker: str) -> None:
    host = host_of(first_then_long(marker, retryStrategy={"limit": 2, "retryPolicy": "Always"}))
    host.start()
    await host.until_claimed("begun", "x")
    await host.until_phase(".long(0)", "Running")

    host.runner.kill()
    await gone(marker)
    host.runner.start()
    await host.until_claimed("begun", "x", "x")
    let_go(host)
    assert await host.ended() == 0

    assert host.end()["phase"] == "Succeeded"
    assert host.phases()[".long(0)"] == "Error"
    assert host.phases()[".long(1)"] == "Succeeded"
    assert [host.claimed(name) for name in ("first", "done", "last")] == [["x"]] * 3


async def test_with_both_killed_a_running_step_is_a_lost_attempt(host_of: HostMaker, marker: str) -> None:
    host = host_of(first_then_long(marker, retryStrategy={"limit": 2, "retryPolicy": "Always"}))
    host.start()
    await host.until_claimed("begun", "x")
    await host.until_phase(".long(0)", "Running")

    host.kill()
    host.runner.kill()
    await gone(marker)
    host.runner.start()
    host.start()
    await host.until_claimed("begun", "x", "x")
    let_go(host)
    assert await host.ended() == 0

    assert host.end()["phase"] == "Succeeded"
    assert host.phases()[".long(0)"] == "Error"
    assert [host.claimed(name) for name in ("first", "done", "last")] == [["x"]] * 3


@pytest.mark.parametrize("moment", ["before", "beyond"])
async def test_a_controller_killed_around_any_of_its_records_runs_each_step_once(
    host_of: HostMaker, marker: str, moment: str, object_store_access: ObjectStoreAccess
) -> None:
    store = await open_blobs(object_store_access)
    manifest = workflow(
        dag(task("a", "a"), task("b", "b", "a")),
        templates={name: _marked_on_claim(f"echo x >> /v/{name}", marker) for name in "ab"},
    )
    number, killed = 0, True
    while killed:
        number += 1
        host = host_of(manifest)
        host.start(die_at=f"{moment} {number}")
        killed = await host.ended() == KILLED
        if killed:
            await host.finish()
        assert host.end()["phase"] == "Succeeded", f"killed {moment} record {number}"
        assert [host.claimed(name) for name in "ab"] == [["x"]] * 2, f"killed {moment} record {number}"
        assert [await store.exists(key) for key in host.log_keys()] == [True] * 2, f"killed {moment} record {number}"
    store.close()
    assert number > 3, "that many records make it a test of many moments"


@pytest.mark.parametrize("times", [5])
async def test_a_controller_killed_again_and_again_runs_each_step_of_a_chain_once(
    host_of: HostMaker, marker: str, times: int
) -> None:
    names = [f"s{n}" for n in range(12)]
    chain = [task(name, "note", *names[max(0, n - 1) : n], given={"v": name}) for n, name in enumerate(names)]
    note = _marked_on_claim("echo {{inputs.parameters.v}} >> /v/order; sleep 0.05", marker, takes=["v"])
    host = host_of(workflow(dag(*chain), templates={"note": note, "unused": c("true")}))

    for seen in range(2, 2 * times + 1, 2):
        host.start()

        async def has_come_so_far(seen: int = seen) -> bool:
            return len(host.claimed("order")) >= seen

        await eventually(has_come_so_far)
        host.kill()
    await host.finish()

    assert host.end()["phase"] == "Succeeded"
    assert host.claimed("order") == names
