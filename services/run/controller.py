"""The door between records and engine: tells the engine what the records want, records what the engine shows.

One controller is active at a time. It keeps nothing that its successor would need: what the engine has to hear stays
due until it was heard, and what an engine without records of its own is about to do waits until it is recorded.
Records and engine are compared both ways, so that no run stays open because a message was lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from typing import TypeVar

import msgspec
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from shared.bus import Bus
from shared.contracts.questions import DESCRIBE_ENGINE, READ_LOG, EngineAnswer, Nothing
from shared.errors import Unavailable
from shared.leases import Lease, LeaseLost
from shared.tasks import Loop, Tasks
from shared.telemetry import continue_trace

from . import step_logs
from .engine import Engine, NameTaken, Observation, WorkflowName
from .records import ActiveRun, Due, Records
from .step_metrics import StepMetrics, artifacts_of

T = TypeVar("T")

_log = logging.getLogger(__name__)

_BATCH = 100
_STUCK_SECONDS = 300.0
"""A loop that has made no step for so long, not even to say that it waits, makes none any more. An outage it waits out
looks otherwise: calls have bounds of their own."""
_AT_ONCE = 16
"""How many observations are being recorded at the same time, each of another workflow."""


class Controller:
    """Drives one engine for as long as it holds the lease."""

    def __init__(
        self,
        records: Records,
        engine: Engine,
        bus: Bus,
        metrics: StepMetrics,
        lease: Lease,
        *,
        poll_seconds: float,
        compare_seconds: float,
        metrics_wait_seconds: float,
        tasks: Tasks,
    ) -> None:
        """`tasks`: where its loops show that they go on."""
        self._records = records
        self._engine = engine
        self._bus = bus
        self._metrics = metrics
        self._lease = lease
        self._poll_seconds = poll_seconds
        self._compare_seconds = compare_seconds
        self._metrics_wait_seconds = metrics_wait_seconds
        self._tasks = tasks
        self._woken = asyncio.Event()
        self._caught_up = asyncio.Event()
        """The engine has heard of every run that was there when this controller became the active one."""
        self._reports: dict[str, dict[asyncio.Task[None], float]] = {}
        """Run → what brings its steps' metrics to their owner, and until when of the loop's clock it is awaited."""

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Control until cancelled. `work` is the engine's own, and runs while this replica is the active one."""
        await self._bus.on_ping("kfp.ping.run", self._woken.set)
        while True:
            try:
                async with self._lease.hold():
                    _log.info("this controller is the active one")
                    await self._control(work)
            except* LeaseLost:
                _log.warning("another controller has taken over")
            except* Unavailable as group:
                _log.warning("the controller waits: %s", group.exceptions[0])
                await asyncio.sleep(self._poll_seconds)

    async def _control(self, work: Callable[[], Awaitable[None]]) -> None:
        self._caught_up.clear()
        answering = self._bus.answering(READ_LOG, partial(step_logs.answer, self._engine))
        describing = self._bus.answering(DESCRIBE_ENGINE, self._describe)
        async with answering, describing, asyncio.TaskGroup() as group:
            group.create_task(_forever(work()), name="engine")
            group.create_task(self._tell(), name="tell the engine")
            group.create_task(self._observe(), name="observe the engine")
            group.create_task(self._compare(), name="compare records and engine")
            group.create_task(self._stay_active(), name="stay the active one")

    async def _stay_active(self) -> None:
        """A controller that slept through its lease must not act on what it remembers."""
        with self._loop("stay the active one") as loop:
            while True:
                await self._lease.confirm()
                loop.turn()
                await asyncio.sleep(self._poll_seconds)

    def _loop(self, name: str) -> AbstractContextManager[Loop]:
        return self._tasks.loop(name, stuck_after_seconds=_STUCK_SECONDS + self._compare_seconds)

    async def _describe(self, _: Nothing) -> EngineAnswer:
        return msgspec.convert(await self._engine.about(), EngineAnswer, from_attributes=True)

    # What the records want

    async def _tell(self) -> None:
        await self._caught_up.wait()
        with self._loop("tell the engine") as loop:
            while True:
                loop.turn()
                self._woken.clear()
                due = await self._records.due(_BATCH)
                await self._tell_due(due, loop)
                if not due.is_empty:
                    continue
                try:
                    async with asyncio.timeout(self._poll_seconds):
                        await self._woken.wait()
                except TimeoutError:
                    continue

    async def _tell_due(self, due: Due, loop: Loop) -> None:
        for run_id in due.submissions:
            await self._submit(run_id)
            loop.turn()
        for termination in due.terminations:
            await self._engine.terminate(WorkflowName(termination.workflow_name))
            await self._records.mark_terminated(termination.run_id, termination.attempt)
            loop.turn()
        for erasure in due.erasures:
            await self._engine.erase(erasure.run_id)
            await self._records.mark_erased(erasure.run_id)
            loop.turn()

    async def _submit(self, run_id: str) -> None:
        submission = await self._records.submission(run_id)
        if submission is None:
            return
        with continue_trace(submission.traceparent or None):
            try:
                await self._engine.submit(submission)
            except NameTaken:
                reason = f"a workflow named {submission.workflow_name} runs for somebody else"
                await self._records.fail(run_id, submission.attempt, reason)
                return
            await self._records.mark_submitted(run_id, submission.attempt)
            _log.info("run %s is submitted as %s", run_id, submission.workflow_name)

    # What the engine shows

    async def _observe(self) -> None:
        room = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            async for observation in self._engine.observe():
                await room.acquire()
                task = group.create_task(self._take_in(observation))
                task.add_done_callback(lambda _: room.release())

    async def _take_in(self, observation: Observation) -> None:
        self._report_metrics(observation)
        if observation.finished_at is not None:
            await self._until_reported(observation.run_id)
        if not await _patiently(lambda: self._records.record(observation)):
            await self._drop(observation)
            return
        await self._engine.recorded(observation)
        # A hint for whoever watches a run; facts about nodes it is not.
        await self._bus.ping(f"kfp.ping.run-nodes.{observation.run_id}")

    async def _drop(self, observation: Observation) -> None:
        """The record has moved on. A run that is over or gone is none the engine may still drive."""
        if await _patiently(lambda: self._records.submission(observation.run_id)) is None:
            await self._engine.erase(observation.run_id, up_to_attempt=observation.attempt)

    def _report_metrics(self, observation: Observation) -> None:
        for node_id, key in artifacts_of(observation.nodes):
            reports = self._reports.setdefault(observation.run_id, {})
            task = asyncio.create_task(
                self._metrics.report(observation.run_id, node_id, key), name=f"metrics {node_id}"
            )
            reports[task] = asyncio.get_running_loop().time() + self._metrics_wait_seconds
            task.add_done_callback(reports.pop)

    async def _until_reported(self, run_id: str) -> None:
        """Metrics are there before the run is final, unless their owner is away: then they follow."""
        reports = self._reports.pop(run_id, {})
        if reports:
            left_seconds = max(reports.values()) - asyncio.get_running_loop().time()
            _, late = await asyncio.wait(list(reports), timeout=max(0.0, left_seconds))
            if late:
                _log.warning("run %s ends before the metrics of %d steps are recorded", run_id, len(late))

    # Both ways

    async def _compare(self) -> None:
        """At once after a start: an engine without records of its own knows nothing yet."""
        with self._loop("compare records and engine") as loop:
            while True:
                loop.turn()
                active = await self._active()
                known = await self._engine.known()
                for run in sorted((run for run in active.values() if run.id not in known), key=_turn):
                    await self._submit(run.id)
                    loop.turn()
                self._caught_up.set()
                leftovers = await self._engine.leftovers()
                for run_id in leftovers.keys() - (await self._active()).keys():
                    _log.info("what is left of run %s is removed", run_id)
                    await self._engine.erase(run_id, up_to_attempt=leftovers[run_id])
                    loop.turn()
                await asyncio.sleep(self._compare_seconds)

    async def _active(self) -> dict[str, ActiveRun]:
        found: dict[str, ActiveRun] = {}
        after = ""
        while page := await self._records.active(after=after):
            found.update((run.id, run) for run in page)
            after = page[-1].id
        return found


def _turn(run: ActiveRun) -> tuple[bool, datetime, str]:
    """Runs that have started go on before others take their room; those that wait do so from their creation."""
    return not run.has_started, run.created_at, run.id


async def _forever(work: Awaitable[None]) -> None:
    """An engine that stops working by itself is an outage, not an end."""
    await work
    raise Unavailable("The engine has stopped.")


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(Unavailable), wait=wait_random_exponential(multiplier=0.05, max=5)
    ):
        with attempt:
            return await work()
    raise AssertionError("retries without end have no end")
