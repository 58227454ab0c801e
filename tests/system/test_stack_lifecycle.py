"""The life of a real stack: it comes up, answers, survives deaths, ends without a trace, and continues."""

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import urllib3.exceptions

from tests.support.api import Api
from tests.support.running_stack import REAL, Started, started

WITHIN_SECONDS = 60

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Open to other users, as a stack started by root needs it."""
    with tempfile.TemporaryDirectory(prefix="headrace-") as name:
        os.chmod(name, 0o711)
        yield Path(name)


async def test_what_was_accepted_is_there_after_a_stop_and_a_start(folder: Path) -> None:
    async with started(folder / "data", command=REAL) as stack:
        await stack.ready()
        created = await asyncio.to_thread(_api(stack).post, "/apis/v1beta1/experiments", {"name": "mill"})
        assert await stack.stop(signal.SIGINT) == 0
        assert stack.living() == []
        assert await stack.complaints() == ""
    async with started(folder / "data", command=REAL) as stack:
        await stack.ready()
        found = await asyncio.to_thread(_api(stack).get, f"/apis/v1beta1/experiments/{created['id']}")
        assert found["name"] == "mill"
        assert await stack.stop() == 0
        assert stack.living() == []


@pytest.mark.parametrize("name", ["experiment", "gateway", "run-controller", "step-runner"])
async def test_a_killed_process_comes_back_and_the_stack_answers(folder: Path, name: str) -> None:
    async with started(folder / "data", command=REAL) as stack:
        await stack.ready()
        killed = await _pid_of(stack, name, other_than=None)
        os.kill(killed, signal.SIGKILL)
        complaint = f"headrace: {name} was ended by SIGKILL; starting it again in "
        assert complaint in await stack.next_complaint()
        await _pid_of(stack, name, other_than=killed)
        await _eventually_answers(stack, "/apis/v1beta1/experiments")
        assert await stack.stop() == 0
        assert stack.living() == []


async def test_after_everything_was_killed_the_next_start_continues(folder: Path) -> None:
    async with started(folder / "data", command=REAL) as stack:
        await stack.ready()
        created = await asyncio.to_thread(_api(stack).post, "/apis/v1beta1/experiments", {"name": "mill"})
        stack.process.kill()
        async with started(folder / "data", command=REAL) as successor:
            await successor.ready()
            assert stack.living() == []
            found = await asyncio.to_thread(_api(successor).get, f"/apis/v1beta1/experiments/{created['id']}")
            assert found["name"] == "mill"
            assert await successor.stop() == 0


async def test_ctrl_c_waits_for_running_steps_and_a_second_one_interrupts_them(folder: Path) -> None:
    waits = "headrace: waiting up to 30 s for 1 running step; Ctrl-C again interrupts\n"
    async with started(folder / "data", command=REAL) as stack:
        await stack.ready()
        patient = await _begin_step(stack, folder, "patient")
        stack.process.send_signal(signal.SIGINT)
        assert await stack.next_complaint() == waits
        # The step might be a client of ours.
        await asyncio.to_thread(_api(stack).get, f"/apis/v1beta1/runs/{patient}")
        (_claim(folder, "patient") / "go").touch()
        assert await stack.ended() == 0
        assert stack.living() == []

    async with started(folder / "data", command=REAL) as stack:
        await stack.ready()
        assert (await _ended(stack, patient))["status"] == "Succeeded"
        assert (_claim(folder, "patient") / "begun").read_text() == "x\n"
        hurried = await _begin_step(stack, folder, "hurried")
        stack.process.send_signal(signal.SIGINT)
        assert await stack.next_complaint() == waits
        stack.process.send_signal(signal.SIGINT)
        assert (await stack.next_complaint()).startswith("headrace: interrupting 1 running step; ")
        assert await stack.ended() == 0
        assert stack.living() == []

    async with started(folder / "data", command=REAL, variables={"HEADRACE_STOP_STEPS": "interrupt"}) as stack:
        await stack.ready()
        assert (await _ended(stack, hurried))["status"] == "Error"
        assert (_claim(folder, "hurried") / "begun").read_text() == "x\n"
        await _begin_step(stack, folder, "abandoned")
        assert await stack.stop(signal.SIGINT) == 0
        assert stack.living() == []
        assert (await stack.complaints()).startswith("headrace: interrupting 1 running step; ")


async def _begin_step(stack: Started, folder: Path, claim: str) -> str:
    """A run of one step that notes in the claim that it runs, and waits there to be let go. Returns when it does."""
    script = "echo x >> /v/begun; until [ -e /v/go ]; do sleep 0.02; done"
    container = {
        "image": "any",
        "command": ["sh", "-c", script],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
    }
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]
    manifest = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": f"{claim}-"},
        "spec": {
            "entrypoint": "main",
            "templates": [{"name": "main", "container": container, "volumes": volumes}],
        },
    }
    asked = {"name": claim, "pipeline_spec": {"workflow_manifest": json.dumps(manifest)}}
    created: Any = await asyncio.to_thread(_api(stack).post, "/apis/v1beta1/runs", asked)
    async with asyncio.timeout(WITHIN_SECONDS):
        while not (_claim(folder, claim) / "begun").exists():  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.02)
    return str(created["run"]["id"])


def _claim(folder: Path, name: str) -> Path:
    return folder / "data/engine/volumes/kubeflow/PersistentVolumeClaim" / name


async def _ended(stack: Started, run_id: str) -> dict[str, str]:
    async with asyncio.timeout(WITHIN_SECONDS):
        while True:
            detail: Any = await asyncio.to_thread(_api(stack).get, f"/apis/v1beta1/runs/{run_id}")
            run: dict[str, str] = detail["run"]
            if run.get("finished_at", "1970").startswith("1970"):
                await asyncio.sleep(0.05)
            else:
                return run


async def _pid_of(stack: Started, name: str, *, other_than: int | None) -> int:
    words = "services.run.engine.embedded.runner" if name == "step-runner" else f"serve {name}"
    async with asyncio.timeout(WITHIN_SECONDS):
        while True:
            pid = stack.running(words)
            if pid not in (None, other_than):
                assert pid is not None
                return pid
            await asyncio.sleep(0.02)


async def _eventually_answers(stack: Started, path: str) -> None:
    async with asyncio.timeout(WITHIN_SECONDS):
        while True:
            with suppress(urllib3.exceptions.HTTPError):
                if (await asyncio.to_thread(_api(stack).call, "GET", path)).status == 200:
                    return
            await asyncio.sleep(0.05)


def _api(stack: Started) -> Api:
    return Api(f"http://127.0.0.1:{stack.port}")
