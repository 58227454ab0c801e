"""The door between records and engine: tells the engine what the records want, records what the engine shows.

Each run is one controller's: all of them are the only active one's, or those of the shards that it holds. It keeps
nothing that its successor would need: what the engine has to hear stays due until it was heard, and what an engine
without records of its own is about to do waits until it is recorded. Records and engine are compared both ways, so
that no run stays open because a message was lost.

What one controller does late, when another has the run already, does no harm. The engine is told nothing unless the
shard is held at that moment, and by the engine's own rules a workflow is submitted once, whoever says it how often;
what was seen is written in a transaction that proves the shard.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import TypeVar

import msgspec
from prometheus_client import Counter, Gauge, Histogram
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from shared import telemetry
from shared.bus import Bus
from shared.contracts.questions import DESCRIBE_ENGINE, READ_LOG, EngineAnswer, Nothing
from shared.errors import Unavailable
from shared.leases import LeaseLost
from shared.shards import Holding
from shared.tasks import Loop, Tasks
from shared.telemetry import continue_trace, for_run, note_span
from shared.trace import are_spans_recorded

from . import step_logs
from .engine import Engine, NameTaken, Observation, WorkflowName
from .engine.shards import shard_of
from .records import ActiveRun, Due, Records
from .step_figures import Step, StepFigures
from .step_metrics import StepMetrics, artifacts_of

T = TypeVar("T")

_log = logging.getLogger(__name__)
_queued = Gauge(
    "headrace_engine_queued_runs",
    "Runs of this controller that wait to be started.",
    registry=telemetry.metrics,
)
_submissions = Counter(
    "headrace_engine_submissions_total",
    "Workflows that the engine was given; `outcome` is submitted or refused.",
    ("outcome",),
    registry=telemetry.metrics,
)
_observations = Counter(
    "headrace_engine_observations_total",
    "What the engine showed; `outcome` is recorded, or dropped where the record had moved on.",
    ("outcome",),
    registry=telemetry.metrics,
)
_delays = Histogram(
    "headrace_engine_observation_delay_seconds",
    "From what the engine showed to its being on record, with the wait for the metrics of steps.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
    registry=telemetry.metrics,
)

SHARDS_PING = "kfp.ping.run-shards"
"""Controllers have come or gone, or have handed something on."""

_BATCH = 100
_STUCK_SECONDS = 300.0
"""A loop that has made no step for so long, not even to say that it waits, makes none any more. An outage it waits out
looks otherwise: calls have bounds of their own."""
_AT_ONCE = 16
"""How many observations are being recorded at the same time, each of another workflow."""


class Controller:
    """Drives one engine, as far as it holds the runs."""

    def __init__(
        self,
        records: Records,
        engine: Engine,
        bus: Bus,
        metrics: StepMetrics,
        holding: Holding,
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
        self._holding = holding
        self._poll_seconds = poll_seconds
        self._compare_seconds = compare_seconds
        self._metrics_wait_seconds = metrics_wait_seconds
        self._tasks = tasks
        self._driven: frozenset[int] = frozenset()
        """The shards that the engine has been told to drive."""
        self._woken = asyncio.Event()
        self._caught_up = asyncio.Event()
        """The engine has heard of every run that was there when this controller came to hold it."""
        self._moved = asyncio.Event()
        """Others are held than when records and engine were compared last."""
        self._steps = StepFigures()
        self._traceparents: dict[str, str] = {}
        """Of the runs that this controller has submitted and not seen end: what their steps' spans belong to."""
        self._reports: dict[str, dict[asyncio.Task[None], float]] = {}
        """Run → what brings its steps' metrics to their owner, and until when of the loop's clock it is awaited."""

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Control until cancelled. `work` is the engine's own, and runs while there may be something to control."""
        await self._bus.on_ping("kfp.ping.run", self._woken.set)
        await self._bus.on_ping(SHARDS_PING, self._holding.wake)
        while True:
            try:
                async with self._holding.hold():
                    _log.info("this controller is active")
                    await self._control(work)
            except* LeaseLost:
                _log.warning("another controller has taken over")
            except* Unavailable as group:
                _log.warning("the controller waits: %s", group.exceptions[0])
                await asyncio.sleep(self._poll_seconds)

    async def _control(self, work: Callable[[], Awaitable[None]]) -> None:
        await self._own(frozenset())
        answering = self._bus.answering(READ_LOG, partial(step_logs.answer, self._engine))
        describing = self._bus.answering(DESCRIBE_ENGINE, self._describe)
        async with answering, describing, asyncio.TaskGroup() as group:
            group.create_task(_forever(work()), name="engine")
            group.create_task(self._tell(), name="tell the engine")
            group.create_task(self._observe(), name="observe the engine")
            group.create_task(self._compare(), name="compare records and engine")
            group.create_task(self._hold(), name="hold the runs")

    async def _hold(self) -> None:
        with self._loop("hold the runs") as loop:
            await self._holding.keep(self._own, loop.turn)

    async def _own(self, shards: frozenset[int]) -> None:
        """From now on these are ours: the engine lets go of others, and hears of what it has to do for new ones."""
        _log.info("this controller drives %d shards", len(shards))
        await self._engine.own(shards)
        self._driven = shards
        self._steps.keep(lambda run_id: shard_of(run_id) in shards)
        self._traceparents = {
            run_id: parent for run_id, parent in self._traceparents.items() if shard_of(run_id) in shards
        }
        self._caught_up.clear()
        self._moved.set()

    def _holds(self, run_id: str) -> bool:
        return self._holding.holds(shard_of(run_id))

    def _loop(self, name: str) -> AbstractContextManager[Loop]:
        return self._tasks.loop(name, stuck_after_seconds=_STUCK_SECONDS + self._compare_seconds)

    async def _describe(self, _: Nothing) -> EngineAnswer:
        return msgspec.convert(await self._engine.about(), EngineAnswer, from_attributes=True)

    # What the records want

    async def _tell(self) -> None:
        with self._loop("tell the engine") as loop:
            while True:
                loop.turn()
                await _until(self._caught_up, within_seconds=self._poll_seconds)
                if not self._caught_up.is_set():
                    continue
                self._woken.clear()
                with self._outages_waited_out():
                    due = await self._records.due(_BATCH, self._driven)
                    await self._tell_due(due, loop)
                    if not due.is_empty:
                        continue
                await _until(self._woken, within_seconds=self._poll_seconds)

    async def _tell_due(self, due: Due, loop: Loop) -> None:
        for run_id in due.submissions:
            await self._submit(run_id)
            loop.turn()
        for termination in due.terminations:
            if self._holds(termination.run_id):
                await self._engine.terminate(WorkflowName(termination.workflow_name))
                await self._records.mark_terminated(termination.run_id, termination.attempt)
            loop.turn()
        for erasure in due.erasures:
            if self._holds(erasure.run_id):
                await self._engine.erase(erasure.run_id)
                await self._records.mark_erased(erasure.run_id)
            loop.turn()

    async def _submit(self, run_id: str) -> None:
        submission = await self._records.submission(run_id)
        # After the record was read: whoever was stopped meanwhile must not say what it was.
        if submission is None or not self._holds(run_id):
            return
        with for_run(run_id), continue_trace(submission.traceparent or None, "submit run", kind="consumer") as hop:
            if are_spans_recorded():
                # Before the engine knows: a quick step may be over when it returns.
                self._traceparents.setdefault(run_id, hop)
            try:
                await self._engine.submit(submission)
            except NameTaken:
                _submissions.labels("refused").inc()
                self._traceparents.pop(run_id, None)
                reason = f"a workflow named {submission.workflow_name} runs for somebody else"
                await self._records.fail(run_id, submission.attempt, reason)
                return
            await self._records.mark_submitted(run_id, submission.attempt, is_to_run=not submission.is_terminating)
            _submissions.labels("submitted").inc()
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
        try:
            with for_run(observation.run_id), _delays.time():
                is_recorded = await self._record(observation)
        except LeaseLost as lost:
            # Whoever has the run now sees the same.
            _log.info("what was seen of run %s is left to another controller: %s", observation.run_id, lost)
            return
        _observations.labels("recorded" if is_recorded else "dropped").inc()

    async def _record(self, observation: Observation) -> bool:
        shard = shard_of(observation.run_id)
        self._holding.proof(shard)
        self._report_metrics(observation)
        if observation.finished_at is not None:
            await self._until_reported(observation.run_id)
        if not await _patiently(lambda: self._records.record(observation, self._holding.proof(shard))):
            await self._drop(observation)
            self._steps.forget(observation.run_id)
            self._traceparents.pop(observation.run_id, None)
            return False
        await self._engine.recorded(observation)
        self._count_steps(observation)
        # A hint for whoever watches a run; facts about nodes it is not.
        await self._bus.ping(f"kfp.ping.run-nodes.{observation.run_id}")
        return True

    def _count_steps(self, observation: Observation) -> None:
        over = self._steps.count(observation)
        if parent := self._traceparents.get(observation.run_id):
            for step in over:
                _trace_step(parent, observation.run_id, step)
        if observation.finished_at is not None:
            self._traceparents.pop(observation.run_id, None)

    async def _drop(self, observation: Observation) -> None:
        """The record has moved on. A run that is over or gone is none the engine may still drive."""
        is_open = await _patiently(lambda: self._records.submission(observation.run_id)) is not None
        # Nobody else remembers it: the engine takes it for erased from the first try on.
        while not is_open and self._holds(observation.run_id):
            with self._outages_waited_out():
                await self._engine.erase(observation.run_id, up_to_attempt=observation.attempt)
                return
            await asyncio.sleep(self._poll_seconds)

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
        """At once after a start, and when runs were another's: the engine may know nothing of them yet."""
        with self._loop("compare records and engine") as loop:
            try:
                while True:
                    loop.turn()
                    self._moved.clear()
                    wait_seconds = self._poll_seconds
                    with self._outages_waited_out():
                        await self._compare_once(self._driven, loop)
                        wait_seconds = self._compare_seconds
                    await _until(self._moved, within_seconds=wait_seconds)
            finally:
                _queued.set(0)

    async def _compare_once(self, driven: frozenset[int], loop: Loop) -> None:
        active = await self._active(driven)
        _queued.set(sum(not run.has_started for run in active.values()))
        if not driven:
            return
        known = await self._known()
        for run in sorted((run for run in active.values() if run.id not in known), key=_turn):
            await self._submit(run.id)
            loop.turn()
        if not self._moved.is_set():
            self._caught_up.set()
        leftovers = await self._engine.leftovers()
        active = await self._active(driven)
        for run_id, attempt in leftovers.items():
            if shard_of(run_id) in driven and run_id not in active and self._holds(run_id):
                _log.info("what is left of run %s is removed", run_id)
                await self._engine.erase(run_id, up_to_attempt=attempt)
            loop.turn()

    async def _known(self) -> set[str]:
        """An engine that has to look first, and cannot for so long, is away."""
        try:
            async with asyncio.timeout(self._compare_seconds):
                return await self._engine.known()
        except TimeoutError as error:
            raise Unavailable("The engine does not say yet what it knows.") from error

    async def _active(self, driven: frozenset[int]) -> dict[str, ActiveRun]:
        found: dict[str, ActiveRun] = {}
        after = ""
        while page := await self._records.active(driven, after=after):
            found.update((run.id, run) for run in page)
            after = page[-1].id
        return found

    @contextmanager
    def _outages_waited_out(self) -> Iterator[None]:
        """What is away for every controller alike is no reason to stop: what was not done stays due."""
        try:
            yield
        except Unavailable as error:
            if self._holding.gives_up_in_outages:
                raise
            _log.warning("the controller waits: %s", error)


def _turn(run: ActiveRun) -> tuple[bool, datetime, str]:
    """Runs that have started go on before others take their room; those that wait do so from their creation."""
    return not run.has_started, run.created_at, run.id


async def _until(event: asyncio.Event, *, within_seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(within_seconds):
            await event.wait()


def _trace_step(parent: str, run_id: str, step: Step) -> None:
    """The id follows from step and end: whoever takes over may see the same end."""
    identity = f"{run_id} {step.node_id} {step.finished_at.isoformat()}"
    note_span(
        "step",
        parent=parent,
        started_ns=_nanoseconds(step.started_at),
        ended_ns=_nanoseconds(step.finished_at),
        span_id=sha256(identity.encode()).hexdigest()[:16],
        attributes={
            "headrace.run_id": run_id,
            "headrace.node_id": step.node_id,
            "headrace.template": step.template,
            "headrace.phase": step.phase,
        },
        error=(step.message or step.phase) if step.phase in ("Failed", "Error") else None,
    )


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000) * 1_000_000


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
