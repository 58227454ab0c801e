"""The embedded engine: the pure core at work on one machine.

One task per workflow takes in what happened, asks `reconcile` what follows, has the changed nodes recorded, and only
then acts: nothing is started on the strength of a node that a crash could forget. The engine keeps no records of its
own. After a restart the controller submits each open run again with its nodes, and the steps are found where they
live: with the step runner.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential_jitter

from services.run.engine import NameTaken, NodeId, Observation, Submission, WorkflowName
from services.run.engine.embedded import runtime
from services.run.engine.embedded.collection import Artifacts
from services.run.engine.embedded.manifest import ManifestError, parse
from services.run.engine.embedded.nodes import Node, NodeType, Phase
from services.run.engine.embedded.objects import ObjectError, Objects, output_of
from services.run.engine.embedded.orders import StepKind, StepOrder
from services.run.engine.embedded.reconcile import (
    Collected,
    Event,
    Kill,
    KillReason,
    State,
    StepFinished,
    StepLost,
    StepStarted,
    Terminated,
    Turn,
    advance,
)
from services.run.engine.embedded.runner import protocol
from services.run.engine.embedded.runner.client import RunnerClient, RunnerRefused
from services.run.engine.embedded.runner.journal import tree_of
from services.run.engine.embedded.specs import CannotPrepare, Place, build
from services.run.engine.embedded.variables import Identity
from shared.blobs import Blobs
from shared.clock import Clock, SystemClock
from shared.errors import Unavailable
from shared.telemetry import continue_trace

T = TypeVar("T")

_log = logging.getLogger(__name__)

_KEY = re.compile(r"(?P<run_id>[^.]+)\.(?P<attempt>\d+)\.(?P<node_id>.+)")


class EmbeddedEngine:
    """Runs workflows as processes of this machine. `run` must be running for anything to happen."""

    def __init__(
        self,
        runner: RunnerClient,
        blobs: Blobs,
        *,
        steps_dir: Path,
        data_dir: Path,
        most_steps: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`data_dir` holds claims, secrets and what is being brought to and from steps.

        `most_steps`: how many steps run at once; others wait as Pending. By default as many as there are
        processors, and at least four, because steps often only wait.
        """
        self._runner = runner
        self._blobs = blobs
        self._steps_dir = steps_dir
        self._scratch_dir = data_dir / "scratch"
        self._objects = Objects(data_dir)
        self._clock = clock or SystemClock()
        self._slots = asyncio.Semaphore(most_steps or max(4, os.cpu_count() or 1))
        self._workflows: dict[WorkflowName, _Workflow] = {}
        self._seen: asyncio.Queue[Observation] = asyncio.Queue()
        self._unrecorded: dict[WorkflowName, asyncio.Future[None]] = {}
        self._ends: dict[str, asyncio.Future[protocol.Event]] = {}
        self._chores: set[asyncio.Task[None]] = set()

    # The port

    async def submit(self, submission: Submission) -> None:
        known = self._workflows.get(submission.workflow_name)
        if known is not None:
            if known.run_id != submission.run_id:
                raise NameTaken(submission.workflow_name)
            if known.attempt >= submission.attempt:
                return
            await known.stop()
        workflow = _Workflow(submission)
        self._workflows[submission.workflow_name] = workflow
        workflow.task = asyncio.create_task(self._guarded(workflow, submission), name=f"workflow {workflow.name}")

    async def terminate(self, workflow_name: WorkflowName) -> None:
        workflow = self._workflows.get(workflow_name)
        if workflow is not None:
            workflow.tell(Terminated(at=self._clock.now()))

    async def erase(self, run_id: str) -> None:
        workflow = next((each for each in self._workflows.values() if each.run_id == run_id), None)
        if workflow is not None:
            await workflow.stop()
            self._workflows.pop(workflow.name, None)
            self._settle(workflow.name)
        for key in await self._keys():
            if _parts(key)[0] == run_id:
                await self._end_and_forget(key)

    async def observe(self) -> AsyncIterator[Observation]:
        while True:
            yield await self._seen.get()

    async def recorded(self, observation: Observation) -> None:
        self._settle(observation.workflow_name)

    async def logs(self, workflow_name: WorkflowName, node_id: NodeId, *, follow: bool) -> AsyncIterator[bytes]:
        for key in await self._keys():
            if _parts(key)[1] == node_id:
                async for chunk in self._runner.read_log(key, follow=follow):
                    yield chunk

    async def known(self) -> set[str]:
        return {workflow.run_id for workflow in self._workflows.values()}

    async def leftovers(self) -> set[str]:
        return {_parts(key)[0] for key in await self._keys()} - await self.known()

    async def check(self) -> None:
        await self._info()

    # At work

    async def run(self) -> None:
        """Listen to the step runner until cancelled; then leave the steps to it."""
        info = await self._info()
        if info.weaker:
            _log.warning("steps run with a weaker runtime (%s): %s", info.runtime, info.weaker)
        else:
            _log.info("steps run in the runtime %s", info.runtime)
        try:
            async for event in self._runner.events():
                self._note(event)
        finally:
            for workflow in list(self._workflows.values()):
                await workflow.stop()

    async def _guarded(self, workflow: _Workflow, submission: Submission) -> None:
        """A bug here must not leave a run that nobody drives: what is not known any more is submitted again."""
        try:
            await self._live(workflow, submission)
        except Exception:  # noqa: BLE001 - logged, and mended by the next submission
            _log.exception("workflow %s is put down", workflow.name)
        self._workflows.pop(workflow.name, None)

    async def _live(self, workflow: _Workflow, submission: Submission) -> None:
        """The life of one workflow, from here to its end."""
        with continue_trace(submission.traceparent or None):
            try:
                state = _open_state(submission)
            except ManifestError as error:
                await self._report(workflow, _refusal(workflow, error, self._clock.now()))
                return
            artifacts = Artifacts(self._blobs, workflow.name, state.identity.created_at)
            place = partial(self._place, workflow, state.identity)
            events: Sequence[Event] = ()
            while True:
                turn = advance(state, events, self._clock.now())
                await self._record(workflow, state, turn)
                self._act(workflow, turn, artifacts, place)
                if turn.finished:
                    break
                events = await workflow.next_events(turn.wake_at, self._clock.now())

    async def _record(self, workflow: _Workflow, state: State, turn: Turn) -> None:
        said = (turn.phase, turn.message, turn.finished)
        if not turn.changed and said == workflow.said:
            return
        workflow.said = said
        await self._report(
            workflow,
            Observation(
                workflow_name=workflow.name,
                run_id=workflow.run_id,
                attempt=workflow.attempt,
                phase=turn.phase.value,
                message=turn.message,
                started_at=state.started_at,
                finished_at=state.finished_at,
                nodes=tuple(msgspec.to_builtins(node, builtin_types=()) for node in turn.changed),
            ),
        )

    async def _report(self, workflow: _Workflow, observation: Observation) -> None:
        """Give the observation away and wait until it is durable."""
        durable = asyncio.get_running_loop().create_future()
        self._unrecorded[workflow.name] = durable
        self._seen.put_nowait(observation)
        await durable

    def _settle(self, workflow_name: WorkflowName) -> None:
        durable = self._unrecorded.pop(workflow_name, None)
        if durable is not None and not durable.done():
            durable.set_result(None)

    def _act(self, workflow: _Workflow, turn: Turn, artifacts: Artifacts, place: Callable[[StepOrder], Place]) -> None:
        """What the turn asks for; every bit of it may be repeated after a crash."""
        for node in turn.changed:
            if node.type is NodeType.POD and node.phase.is_fulfilled:
                workflow.drop(NodeId(node.id))
                self._soon(self._clean_up(workflow, node))
        for order in turn.start:
            workflow.begin(order, self._step(workflow, order, place(order), artifacts, must_be_known=False))
        for order in turn.reattach:
            workflow.begin(order, self._step(workflow, order, place(order), artifacts, must_be_known=True))
        for kill in turn.kill:
            self._soon(self._kill(workflow, kill))

    # A step

    async def _step(
        self, workflow: _Workflow, order: StepOrder, place: Place, artifacts: Artifacts, *, must_be_known: bool
    ) -> None:
        """Carry out one order and tell the workflow how it went."""
        try:
            if order.kind is StepKind.RESOURCE:
                workflow.tell(await asyncio.to_thread(self._resource_step, order, place))
            else:
                await self._process_step(workflow, order, place, artifacts, must_be_known=must_be_known)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the run must hear of it, whatever it is
            _log.exception("step %s failed in the engine", order.node_id)
            workflow.tell(StepFinished(node_id=order.node_id, at=self._clock.now(), error=f"engine: {error!r}"))

    async def _process_step(
        self, workflow: _Workflow, order: StepOrder, place: Place, artifacts: Artifacts, *, must_be_known: bool
    ) -> None:
        async with self._slots:
            if must_be_known:
                if place.key not in await self._keys():
                    workflow.tell(StepLost(node_id=order.node_id, at=self._clock.now()))
                    return
            else:
                try:
                    event = await self._start(order, place, artifacts)
                except (CannotPrepare, RunnerRefused) as error:
                    workflow.tell(StepFinished(node_id=order.node_id, at=self._clock.now(), error=str(error)))
                    return
                if isinstance(event, protocol.StepStarted):
                    workflow.tell(StepStarted(node_id=order.node_id, at=event.started_at))
                else:
                    self._note(event)
            end = await asyncio.shield(self._end_of(place.key))
        if isinstance(end, protocol.StepExited):
            workflow.tell(await self._finished(order, place, artifacts, end.exit))
        else:
            _log.warning("step %s is lost: %s", order.node_id, getattr(end, "reason", ""))
            workflow.tell(StepLost(node_id=order.node_id, at=self._clock.now()))

    async def _start(self, order: StepOrder, place: Place, artifacts: Artifacts) -> protocol.Event:
        staged = await _patiently(lambda: artifacts.stage(order, place.scratch))
        spec = await asyncio.to_thread(build, order, place, self._objects, staged)
        return await _patiently(lambda: self._runner.start(spec))

    async def _finished(
        self, order: StepOrder, place: Place, artifacts: Artifacts, exit_: protocol.StepExit
    ) -> StepFinished:
        directory = self._steps_dir / place.key
        tree = await asyncio.to_thread(tree_of, directory)
        found = await _patiently(lambda: artifacts.collect(order, tree, directory / "log", place.scratch))
        exit_code, error, error_phase = _blame(exit_, found.problem)
        return StepFinished(
            node_id=order.node_id,
            at=exit_.finished_at,
            exit_code=exit_code,
            error=error,
            error_phase=error_phase,
            killed=_kill_reason(exit_),
            outputs=found.outputs,
        )

    def _resource_step(self, order: StepOrder, place: Place) -> StepFinished:
        """Blocks on the disk; the same node finds its own object again."""
        assert order.resource is not None
        try:
            document = self._objects.perform(order.resource, node_id=order.node_id, namespace=place.namespace)
            parameters = {
                wanted.name: output_of(document, wanted.value_from.json_path, wanted.value_from.jq_filter)
                for wanted in order.output_parameters
                if wanted.value_from is not None
            }
        except ObjectError as error:
            return StepFinished(node_id=order.node_id, at=self._clock.now(), error=str(error))
        outputs = Collected(parameters=parameters)
        return StepFinished(node_id=order.node_id, at=self._clock.now(), exit_code=0, outputs=outputs)

    async def _kill(self, workflow: _Workflow, kill: Kill) -> None:
        await _patiently(lambda: self._runner.kill(_key(workflow, kill.node_id), kill.reason.name))

    async def _clean_up(self, workflow: _Workflow, node: Node) -> None:
        """The node is durable: its attempt is history."""
        await self._end_and_forget(_key(workflow, node.id))

    async def _end_and_forget(self, key: str) -> None:
        async def forget() -> None:
            try:
                await self._runner.forget(key)
            except RunnerRefused as still_running:
                await self._runner.kill(key, KillReason.TERMINATED.name)
                raise Unavailable("The step is still ending.") from still_running

        await _patiently(forget)
        self._ends.pop(key, None)
        await asyncio.to_thread(shutil.rmtree, self._scratch_dir / key, ignore_errors=True)

    def _place(self, workflow: _Workflow, identity: Identity, order: StepOrder) -> Place:
        key = _key(workflow, order.node_id)
        scratch = self._scratch_dir / key
        scratch.mkdir(parents=True, exist_ok=True)
        return Place(key=key, run_id=workflow.run_id, namespace=identity.namespace, scratch=scratch)

    def _end_of(self, key: str) -> asyncio.Future[protocol.Event]:
        if key not in self._ends:
            self._ends[key] = asyncio.get_running_loop().create_future()
        return self._ends[key]

    def _note(self, event: protocol.Event) -> None:
        """The runner tells again what it told before, whenever it is asked anew."""
        if not isinstance(event, protocol.StepStarted) and not self._end_of(event.key).done():
            self._end_of(event.key).set_result(event)

    async def _keys(self) -> set[str]:
        return {event.key for event in await _patiently(self._runner.list_attempts)}

    async def _info(self) -> protocol.RunnerInfo:
        try:
            return await self._runner.info()
        except OSError as error:
            raise Unavailable("The step runner does not answer.", cause=repr(error)) from error

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


class _Workflow:
    """One workflow that lives here: its mailbox and its steps."""

    def __init__(self, submission: Submission) -> None:
        self.name = submission.workflow_name
        self.run_id = submission.run_id
        self.attempt = submission.attempt
        self.said: tuple[Any, ...] = ()
        self.steps: dict[NodeId, asyncio.Task[None]] = {}
        self.task: asyncio.Task[None] | None = None
        self._mail: asyncio.Queue[Event] = asyncio.Queue()

    def tell(self, event: Event) -> None:
        self._mail.put_nowait(event)

    async def next_events(self, wake_at: datetime | None, now: datetime) -> list[Event]:
        """Everything that happened, waiting for at least one thing or the time to wake."""
        within = None if wake_at is None else max(0.0, (wake_at - now).total_seconds())
        try:
            events = [await asyncio.wait_for(self._mail.get(), timeout=within)]
        except TimeoutError:
            return []
        while not self._mail.empty():
            events.append(self._mail.get_nowait())
        return events

    def begin(self, order: StepOrder, step: Coroutine[Any, Any, None]) -> None:
        self.steps[NodeId(order.node_id)] = asyncio.create_task(step, name=f"step {order.node_id}")

    def drop(self, node_id: NodeId) -> None:
        """The node is over; what still works for it (waiting for a slot) need not."""
        step = self.steps.pop(node_id, None)
        if step is not None:
            step.cancel()

    async def stop(self) -> None:
        """Stop thinking about it. Its processes go on."""
        tasks = [*self.steps.values(), *([self.task] if self.task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _open_state(submission: Submission) -> State:
    workflow = parse(submission.workflow)
    metadata = submission.workflow["metadata"]
    identity = Identity(
        name=submission.workflow_name,
        namespace=metadata.get("namespace", "default"),
        uid=submission.run_id,
        created_at=datetime.fromisoformat(metadata["creationTimestamp"]),
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        service_account=workflow.spec.service_account_name,
    )
    if not submission.nodes and submission.started_at is None and not submission.is_terminating:
        return State.new(workflow, identity)
    return State.resume(
        workflow,
        identity,
        [msgspec.convert(node, Node) for node in submission.nodes],
        started_at=submission.started_at,
        terminated=submission.is_terminating,
    )


def _refusal(workflow: _Workflow, error: ManifestError, now: datetime) -> Observation:
    return Observation(
        workflow_name=workflow.name,
        run_id=workflow.run_id,
        attempt=workflow.attempt,
        phase="Error",
        message=error.reason,
        started_at=now,
        finished_at=now,
    )


def _blame(exit_: protocol.StepExit, problem: str | None) -> tuple[int | None, str | None, Phase]:
    """Main's exit code, what went wrong beside it, and the phase that makes (§9, "order of blame")."""
    main = exit_.processes.get(runtime.MAIN)
    if exit_.end is protocol.End.COULD_NOT_START:
        return None, exit_.reason, Phase.ERROR
    blamed = exit_.blamed or ""
    if blamed.startswith("init-"):
        return None, f"Error (exit code {exit_.exit_code})", Phase.ERROR
    if problem is not None:
        return main, problem, Phase.ERROR
    if blamed.startswith("sidecar-"):
        return main, f"Error (exit code {exit_.exit_code})", Phase.FAILED
    return main, None, Phase.ERROR


def _kill_reason(exit_: protocol.StepExit) -> KillReason | None:
    if exit_.end is protocol.End.DEADLINE:
        return KillReason.STEP_DEADLINE
    if exit_.end is protocol.End.KILLED:
        return KillReason.__members__.get(exit_.reason, KillReason.TERMINATED)
    return None


def _key(workflow: _Workflow, node_id: str) -> str:
    return f"{workflow.run_id}.{workflow.attempt}.{node_id}"


def _parts(key: str) -> tuple[str, str]:
    """Run id and node id of an attempt's key."""
    match = _KEY.fullmatch(key)
    return (match["run_id"], match["node_id"]) if match else ("", "")


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Do it, and again for as long as what it needs is away."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type((Unavailable, OSError)), wait=wait_exponential_jitter(initial=0.05, max=5)
    ):
        with attempt:
            return await work()
    raise AssertionError("retries without end have no end")
