"""The background work of a process: named, supervised, and stopped in order.

A task that crashes is logged and started again with a growing delay; an outage of something it depends on is no reason
to end the process. A task that returns is done. What a task does is none of this module's business.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from enum import Enum

from prometheus_client import Counter
from tenacity import AsyncRetrying, RetryCallState, wait_exponential, wait_random
from tenacity.wait import wait_base

from shared import telemetry

_log = logging.getLogger(__name__)
_restarts = Counter(
    "headrace_task_restarts_total",
    "Background tasks that crashed and were started again.",
    ("task",),
    registry=telemetry.metrics,
)

_CANCEL_AGAIN_SECONDS = 2.0
"""Longer than what a task puts in order takes: that is not to be interrupted."""

Work = Callable[[], Awaitable[None]]


class TaskState(Enum):
    RUNNING = "running"
    WAITING = "waiting"
    """Crashed; it will be started again."""
    DONE = "done"
    LOST = "lost"
    """Nobody will start it again although nobody stopped it: the process is broken."""


class Loop:
    """What goes round and round for as long as its task lives."""

    def __init__(self, stuck_after_seconds: float) -> None:
        self._stuck_after_seconds = stuck_after_seconds
        self.turn()

    def turn(self) -> None:
        self._turned_at = time.monotonic()

    @property
    def is_stuck(self) -> bool:
        return time.monotonic() - self._turned_at > self._stuck_after_seconds


class Tasks:
    """The tasks of one process.

    `steady_after_seconds`: a task that ran this long before its crash starts again with the shortest delay.
    """

    def __init__(
        self,
        *,
        wait: wait_base | None = None,
        steady_after_seconds: float = 30.0,
    ) -> None:
        self._wait = wait or wait_exponential(multiplier=0.1, max=10) + wait_random(0, 0.5)
        self._steady_after_seconds = steady_after_seconds
        self._running: dict[str, asyncio.Task[None]] = {}
        self._waiting: set[str] = set()
        self._loops: dict[str, Loop] = {}
        self._stopping = False

    def spawn(self, name: str, work: Work) -> None:
        """Run `work()` under supervision; the name must be free and come from a small fixed set (it is a label)."""
        if self._stopping:
            raise RuntimeError(f"{name} cannot start: the tasks are being stopped")
        if name in self._running and not self._running[name].done():
            raise ValueError(f"a task named {name} is running already")
        self._running[name] = asyncio.create_task(self._supervise(name, work), name=name)

    @contextmanager
    def loop(self, name: str, *, stuck_after_seconds: float) -> Iterator[Loop]:
        """A loop inside a task, which shows at each turn that it goes on. While it does not, the process is not alive:
        something waits that was to come back, and nothing but a new start ends that.

        The name is this loop's alone while it runs.
        """
        loop = self._loops[name] = Loop(stuck_after_seconds)
        try:
            yield loop
        finally:
            if self._loops.get(name) is loop:
                del self._loops[name]

    def states(self) -> dict[str, TaskState]:
        return {name: self._state_of(name, task) for name, task in self._running.items()}

    def lost(self) -> list[str]:
        """The names that make `/livez` fail. A task waiting to be started again is not among them."""
        lost = [name for name, state in self.states().items() if state is TaskState.LOST]
        return lost + [name for name, loop in self._loops.items() if loop.is_stuck]

    async def stop(self, *, within_seconds: float = 10.0) -> None:
        """Cancel the tasks, last spawned first, each to its end; abandon what outlasts the bound."""
        self._stopping = True
        deadline = time.monotonic() + within_seconds
        for name, task in reversed(self._running.items()):
            while not task.done() and (seconds := deadline - time.monotonic()) > 0:
                # Again and again: `asyncio.wait_for` loses a cancellation that comes together with what is waited for.
                task.cancel()
                await asyncio.wait([task], timeout=min(_CANCEL_AGAIN_SECONDS, seconds))
            if not task.done():
                _log.warning("task %s did not stop within %g s", name, within_seconds)
            elif not task.cancelled() and (error := task.exception()):
                _log.error("task %s ended badly", name, exc_info=error)

    async def _supervise(self, name: str, work: Work) -> None:
        def announce(state: RetryCallState) -> None:
            outcome = state.outcome
            delay_seconds = state.next_action.sleep if state.next_action else 0.0
            error = outcome.exception() if outcome else None
            _log.error("task %s crashed; starting it again in %.1f s", name, delay_seconds, exc_info=error)
            _restarts.labels(name).inc()
            self._waiting.add(name)

        # No stop condition: it retries for ever. Cancellation is not an Exception and therefore ends it.
        async for attempt in AsyncRetrying(wait=self._wait, before_sleep=announce, sleep=asyncio.sleep):
            self._waiting.discard(name)
            with attempt:
                started = time.monotonic()
                try:
                    await work()
                except Exception:
                    if time.monotonic() - started >= self._steady_after_seconds:
                        attempt.retry_state.attempt_number = 1
                    raise

    def _state_of(self, name: str, task: asyncio.Task[None]) -> TaskState:
        if not task.done():
            return TaskState.WAITING if name in self._waiting else TaskState.RUNNING
        if self._stopping or (not task.cancelled() and task.exception() is None):
            return TaskState.DONE
        return TaskState.LOST
