"""A stack to measure: `headrace up` on a folder of its own that vanishes afterwards, and its keys.

A benchmark compares what passes through the services with the bare servers behind them, so it needs what no client
has: the passwords that the stack keeps in its folder. They are read, never written.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from infra.embedded.ports import LOOPBACK
from infra.embedded.postgres import SUPERUSER
from infra.postgres.roles import DATABASE
from tests.bench import processes
from tests.support.stack import Stack, running

_CONTROLLER = "run-controller"
_SERVICES_END_WITHIN_SECONDS = 30


class House:
    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.url = stack.url
        self.data_dir = stack.data_dir
        self._process = stack.process

    @property
    def pid(self) -> int:
        return self._process.pid

    def database_url(self, role: str = SUPERUSER) -> str:
        secret = self._kept("secrets.json")[f"postgres.{role}"]
        return f"postgresql://{role}:{secret}@{LOOPBACK}:{self._kept('ports.json')['postgres']}/{DATABASE}"

    def nats_url(self, user: str) -> str:
        secret = self._kept("secrets.json")[f"nats.{user}"]
        return f"nats://{user}:{secret}@{LOOPBACK}:{self._kept('ports.json')['nats']}"

    @contextmanager
    def engine_paused(self) -> Iterator[None]:
        """Nothing of what is recorded meanwhile is ever started: the stack ends with the block."""
        (controller,) = (each for each in processes.family(self.pid) if each.name == _CONTROLLER)
        os.kill(controller.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            self._stop_without(controller)

    def _stop_without(self, controller: processes.Process) -> None:
        """The services end before the controller does; in between it is killed, asleep as it is."""
        self._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _SERVICES_END_WITHIN_SECONDS
        while time.monotonic() < deadline and any(each.name == "run" for each in processes.family(self.pid)):
            time.sleep(0.05)
        if any(each.pid == controller.pid for each in processes.family(self.pid)):
            os.kill(controller.pid, signal.SIGKILL)
        self._process.wait(timeout=_SERVICES_END_WITHIN_SECONDS)

    def _kept(self, file: str) -> dict[str, Any]:
        return msgspec.json.decode((self.data_dir / file).read_bytes(), type=dict[str, Any])


@contextmanager
def empty_folder() -> Iterator[Path]:
    """A folder that the database's user can pass through, on the disk that holds temporary files."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o711)
        yield Path(folder)


@contextmanager
def standing(*, replicas: str = "") -> Iterator[House]:
    """`replicas`: as `headrace up` is told. Raises RuntimeError, with what it said, where the stack does not start."""
    with empty_folder() as folder, ExitStack() as held:
        try:
            stack = held.enter_context(running(folder / "data", replicas=replicas))
        except pytest.fail.Exception as failure:  # A test's verdict is no Exception, and nobody here would catch it.
            raise RuntimeError(str(failure)) from None
        yield House(stack)


async def rest(seconds: float) -> None:
    """Let the last measurement's work die away."""
    await asyncio.sleep(seconds)
