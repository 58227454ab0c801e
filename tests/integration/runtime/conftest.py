"""A real step runner as a process of its own, as our own user and as an ordinary one, and a way to run steps in it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.run.engine.embedded.runner.client import RunnerClient
from services.run.engine.embedded.runner.journal import tree_of
from services.run.engine.embedded.runner.protocol import StepExit, StepExited, StepLost
from services.run.engine.embedded.runtime import Process, StepSpec
from services.run.engine.embedded.runtime.tree import Tree
from tests.support.ordinary_user import AS_NOBODY, NOBODY, PYTHON, PYTHON_PATH, why_there_is_none

HOST_SECRET = "hunter2-of-the-server"

_numbers = itertools.count()


class Runner:
    """A runner process over a directory; it may be killed and started again."""

    def __init__(self, room: Path, *, is_ordinary_user: bool = False) -> None:
        self.room = room
        self.is_ordinary_user = is_ordinary_user
        self.steps_dir = room / "data" / "steps"
        self.client = RunnerClient(str(room / "runner.sock"))
        self.marker = f"headrace-test-{os.getpid()}-{next(_numbers)}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, **settings: str) -> None:
        python = PYTHON if self.is_ordinary_user else sys.executable
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": PYTHON_PATH,
            "HEADRACE_STEP_RUNNER_SOCKET": str(self.room / "runner.sock"),
            "HEADRACE_STEPS_DIR": str(self.steps_dir),
            "HEADRACE_STEP_MASKED_PATHS": str(self.room / "data"),
            "HEADRACE_STEP_GRACE_SECONDS": "1",
            "HEADRACE_STOP_STEPS": "interrupt",
            "HEADRACE_DATABASE_PASSWORD": HOST_SECRET,
            **({"HEADRACE_STEP_PYTHON": python} if self.is_ordinary_user else {}),
            **settings,
        }
        with (self.room / "runner.log").open("ab") as log:
            self._process = subprocess.Popen(
                [python, "-m", "services.run.engine.embedded.runner"],
                env=environment,
                cwd="/",
                stdout=log,
                stderr=log,
                **(AS_NOBODY if self.is_ordinary_user else {}),
            )

    def kill(self) -> None:
        """kill -9, and it is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        self.ask_to_stop()
        return self.ended()

    def ask_to_stop(self) -> None:
        assert self._process is not None
        self._process.terminate()

    def ended(self) -> int:
        assert self._process is not None
        return self._process.wait(timeout=30)

    def log(self) -> str:
        return (self.room / "runner.log").read_text()

    def spec(self, *argv: str, key: str | None = None, env: dict[str, str] | None = None, **rest: Any) -> StepSpec:
        of_main = {name: rest.pop(name) for name in ("cwd", "mounts", "image", "runs_entrypoint") if name in rest}
        main = Process(argv=argv, env={"MARKER": self.marker, **(env or {})}, **of_main)
        return StepSpec(key=key or f"step-{next(_numbers)}", main=main, **rest)

    async def run(self, spec: StepSpec) -> StepExit:
        await self.client.start(spec)
        ended = await self.end_of(spec.key)
        assert isinstance(ended, StepExited), ended
        return ended.exit

    async def shell(self, script: str, **rest: Any) -> tuple[StepExit, str]:
        """Run a script to its end; its exit and its log."""
        spec = self.spec("sh", "-c", script, **rest)
        return await self.run(spec), await self.log_of(spec.key)

    async def end_of(self, key: str) -> StepExited | StepLost:
        async with asyncio.timeout(30), contextlib.aclosing(self.client.events()) as events:
            async for event in events:
                if event.key == key and isinstance(event, StepExited | StepLost):
                    return event
        raise AssertionError("the events ended")

    async def log_of(self, key: str) -> str:
        return b"".join([chunk async for chunk in self.client.read_log(key)]).decode()

    async def wait_for_log(self, key: str, text: str) -> None:
        """Until the step has said `text`."""
        seen = b""
        async with asyncio.timeout(30), contextlib.aclosing(self.client.read_log(key, follow=True)) as chunks:
            async for chunk in chunks:
                seen += chunk
                if text.encode() in seen:
                    return
        raise AssertionError(f"{text!r} never came: {seen!r}")

    def tree(self, key: str) -> Tree:
        tree = tree_of(self.steps_dir / key)
        assert tree is not None
        return tree

    def processes(self) -> list[int]:
        """What lives on this machine of this runner's steps."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and self.marker.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    async def wait_until_said(self, text: str) -> None:
        """Until the runner's own log has it."""
        async with asyncio.timeout(30):
            while text not in self.log():  # noqa: ASYNC110 (another process writes it)
                await asyncio.sleep(0.02)

    async def wait_until_no_process_is_left(self) -> None:
        async with asyncio.timeout(10):
            while self.processes():  # noqa: ASYNC110 (they are nobody's children)
                await asyncio.sleep(0.02)

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()
        assert self.processes() == []


@contextlib.contextmanager
def runner_room(*, is_ordinary_user: bool, kind: type[Runner] = Runner) -> Iterator[Runner]:
    """Not pytest's tmp_path: that belongs to our own user alone."""
    room = Path(tempfile.mkdtemp(prefix="headrace-steps-"))
    (room / "data").mkdir()
    (room / "data" / "server-secret").write_text(HOST_SECRET)
    if is_ordinary_user and os.getuid() == 0:
        for path in (room, room / "data", room / "data" / "server-secret"):
            os.chown(path, NOBODY, NOBODY)
    runner = kind(room, is_ordinary_user=is_ordinary_user)
    try:
        yield runner
        runner.close()
    finally:
        if runner._process is not None and runner._process.poll() is None:
            runner.kill()
        shutil.rmtree(room, ignore_errors=True)


@pytest.fixture(scope="session", params=["own-user", "ordinary-user"])
def shared_runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """One runner for the tests that do not harm it."""
    is_ordinary_user = request.param == "ordinary-user"
    if is_ordinary_user and (reason := why_there_is_none()) is not None:
        pytest.skip(reason)
    if is_ordinary_user and os.getuid() != 0:
        pytest.skip("we are an ordinary user: own-user says it all")
    with runner_room(is_ordinary_user=is_ordinary_user) as runner:
        runner.start()
        yield runner


@pytest.fixture
async def runner(shared_runner: Runner) -> AsyncIterator[Runner]:
    yield shared_runner
    assert shared_runner.processes() == []


@pytest.fixture
def mortal_runner() -> Iterator[Runner]:
    """A runner that a test may kill."""
    with runner_room(is_ordinary_user=False) as runner:
        runner.start()
        yield runner


@pytest.fixture
def volume(shared_runner: Runner) -> Iterator[Path]:
    """A directory of the host that the runner's user owns."""
    made = Path(tempfile.mkdtemp(prefix="headrace-volume-"))
    if shared_runner.is_ordinary_user:
        os.chown(made, NOBODY, NOBODY)
    yield made
    shutil.rmtree(made)
