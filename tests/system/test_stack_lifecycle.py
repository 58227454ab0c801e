"""The life of a real stack: it comes up, answers, survives deaths, ends without a trace, and continues."""

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

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
        created = await _call(stack, "POST", "/apis/v1beta1/experiments", {"name": "mill"})
        assert await stack.stop(signal.SIGINT) == 0
        assert stack.living() == []
        assert await stack.complaints() == ""
    async with started(folder / "data", command=REAL) as stack:
        await stack.ready()
        found = await _call(stack, "GET", f"/apis/v1beta1/experiments/{created['id']}")
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
        created = await _call(stack, "POST", "/apis/v1beta1/experiments", {"name": "mill"})
        stack.process.kill()
        async with started(folder / "data", command=REAL) as successor:
            await successor.ready()
            assert stack.living() == []
            found = await _call(successor, "GET", f"/apis/v1beta1/experiments/{created['id']}")
            assert found["name"] == "mill"
            assert await successor.stop() == 0


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
            try:
                await _call(stack, "GET", path)
            except (OSError, HTTPError):
                await asyncio.sleep(0.05)
            else:
                return


async def _call(stack: Started, method: str, path: str, body: object = None) -> dict[str, str]:
    def call() -> dict[str, str]:
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"http://127.0.0.1:{stack.port}{path}", data, method=method)
        with urlopen(request, timeout=10) as answer:
            document: dict[str, str] = json.load(answer)
            return document

    return await asyncio.to_thread(call)
