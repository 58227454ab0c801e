"""The embedded engine: the pure core at work on one machine.

One task per workflow takes in what happened, asks `reconcile` what follows, has the changed nodes recorded, and only
then acts: nothing is started on the strength of a node that a crash could forget. The engine keeps no records of its
own. After a restart the controller submits each open run again with its nodes, and the steps are found where they
live: with the step runner.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

import msgspec
from prometheus_client import Gauge

from services.run.engine import About, NameTaken, NodeDocument, NodeId, Observation, Submission, WorkflowName
from services.run.engine.embedded.admission import Admission, Ticket
from services.run.engine.embedded.cache import StepCache
from services.run.engine.embedded.collection import Artifacts
from services.run.engine.embedded.machine import Machine
from services.run.engine.embedded.manifest import ManifestError, parse
from services.run.engine.embedded.nodes import Node, NodeType, Phase, timestamp, whole_seconds
from services.run.engine.embedded.objects import ObjectError, Objects
from services.run.engine.embedded.orders import StepOrder
from services.run.engine.embedded.reconcile import (
    Event,
    Kill,
    Limits,
    State,
    StepStarted,
    StepWaits,
    Terminated,
    Turn,
    advance,
)
from services.run.engine.embedded.runner.client import RunnerClient
from services.run.engine.embedded.specs import Place
from services.run.engine.embedded.steps import Past, Step, Steps, wait_unless
from services.run.engine.embedded.variables import Identity
from shared import telemetry
from shared.blobs import Blobs
from shared.clock import Clock, SystemClock
from shared.errors import Unavailable
from shared.telemetry import continue_trace, for_run

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)
_engines: WeakSet[EmbeddedEngine] = WeakSet()
_step_room = Gauge(
    "headrace_engine_steps",
    "Steps of the embedded engine, by state: queued (there is no room for them yet) or running.",
    ("state",),
    registry=telemetry.metrics,
)
_step_room.labels("queued").set_function(lambda: sum(engine.steps_queued for engine in list(_engines)))
_step_room.labels("running").set_function(lambda: sum(engine.steps_running for engine in list(_engines)))

_KEY = re.compile(r"(?P<run_id>[^.]+)\.(?P<attempt>\d+)\.(?P<node_id>.+)")

_STARTED_SECONDS = 0.05
"""How long a step's start may go unrecorded, which is longer than a quick step takes."""
_MANY_TEMPLATES = 300
"""It takes a tenth of a second to make a start on so many."""
_MOST_CRASHES = 3
_CHORES_SECONDS = 2.0
_CLEARING_SECONDS = 0.3
_SWEEP_SECONDS = 10.0
"""Longer than a step of an earlier attempt takes to end."""


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
        most_runs: int | None = None,
        objects: Objects | None = None,
        cache: StepCache | None = None,
        machine: Machine | None = None,
        limits: Limits | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`data_dir` holds claims, secrets and what is being brought to and from steps.

        `objects`: what pipelines mount and name; by default what their own steps have made in `data_dir`.
        `machine`: what this one has for steps beyond what they bring; by default nothing.
        `most_steps`: how many steps run at once; others wait as Pending. By default as many as there are
        processors, and at least four, because steps often only wait.
        `most_runs`: how many runs go on at once; others wait as Pending. By default eight for each step that may run:
        more would only wait for each other's steps, and be at hand in memory meanwhile.
        `cache`: who remembers what steps left, so that the same ones do not run again. By default they do.
        `limits`: where a workflow that calls itself without end is stopped.
        """
        self._limits = limits
        most_steps = most_steps or max(4, len(os.sched_getaffinity(0)))
        self._blobs = blobs
        self._clock = clock or SystemClock()
        self._admission = Admission(most_runs or 8 * most_steps)
        _engines.add(self)
        self._steps = Steps(
            runner,
            objects or Objects(data_dir),
            machine or Machine(),
            steps_dir=steps_dir,
            scratch_dir=data_dir / "scratch",
            most=most_steps,
            cache=cache,
            clock=self._clock,
        )
        self._workflows: dict[WorkflowName, _Workflow] = {}
        self._observations: asyncio.Queue[Observation] = asyncio.Queue()
        self._unrecorded: dict[WorkflowName, _Unrecorded] = {}
        self._crashes: Counter[WorkflowName] = Counter()
        self._chores: set[asyncio.Task[None]] = set()
        self._clearing: set[str] = set()
        """Attempts that are over and about to be forgotten, whether the runner has heard of them yet or not."""
        self._next_cleared: dict[str, asyncio.Task[None]] = {}
        """Those that are forgotten together next, each with what must have stopped before."""

    @property
    def steps_queued(self) -> int:
        return self._steps.waiting

    @property
    def steps_running(self) -> int:
        return self._steps.running

    # The port

    async def submit(self, submission: Submission) -> None:
        while (known := self._workflows.get(submission.workflow_name)) is not None:
            if known.submission.run_id != submission.run_id:
                raise NameTaken(submission.workflow_name)
            if known.submission.attempt >= submission.attempt:
                return
            await self._put_down(known)
        workflow = self._workflows[submission.workflow_name] = _Workflow(submission)
        workflow.task = asyncio.create_task(self._guarded(workflow), name=f"workflow {workflow.name}")

    async def terminate(self, workflow_name: WorkflowName) -> None:
        workflow = self._workflows.get(workflow_name)
        if workflow is not None:
            workflow.tell(Terminated(at=self._clock.now()))
            workflow.terminated.set()
            if workflow.ticket is not None:
                self._admission.urge(workflow.ticket)

    async def erase(self, run_id: str, *, up_to_attempt: int | None = None) -> None:
        def is_meant(its_run_id: str, attempt: int) -> bool:
            return its_run_id == run_id and (up_to_attempt is None or attempt <= up_to_attempt)

        driven = [(each, each.submission) for each in self._workflows.values()]
        for workflow in [each for each, submission in driven if is_meant(submission.run_id, submission.attempt)]:
            await self._put_down(workflow)
            self._crashes.pop(workflow.name, None)
        if up_to_attempt is None:
            await self._steps.remove_claims(run_id)
        keys = await self._steps.keys()
        await self._forget_all(key for key in keys if is_meant(_parts(key).run_id, _parts(key).attempt))

    async def observe(self) -> AsyncIterator[Observation]:
        queue = self._observations = asyncio.Queue()
        for unrecorded in self._unrecorded.values():
            queue.put_nowait(unrecorded.observation)
        while True:
            observation = await queue.get()
            waiting = self._unrecorded.get(observation.workflow_name)
            if waiting is not None and waiting.observation is observation:
                yield observation

    async def recorded(self, observation: Observation) -> None:
        waiting = self._unrecorded.get(observation.workflow_name)
        # One of an earlier attempt, recorded late, says nothing about the present one's.
        if waiting is not None and waiting.observation == observation and not waiting.durable.done():
            waiting.durable.set_result(None)

    async def logs(
        self, workflow_name: WorkflowName, node_id: NodeId, *, follow: bool, offset: int = 0
    ) -> AsyncGenerator[bytes, None]:
        of_node = [key for key in await self._steps.keys() if _parts(key).node_id == node_id]
        if of_node:
            latest = max(of_node, key=lambda key: _parts(key).attempt)
            async with contextlib.aclosing(self._steps.log(latest, follow=follow, offset=offset)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def own(self, shards: frozenset[int]) -> None:
        """One controller has all of them, or none and this does nothing: nobody else could reach its steps."""

    async def known(self) -> set[str]:
        return {workflow.submission.run_id for workflow in self._workflows.values()}

    async def leftovers(self) -> dict[str, int]:
        known = await self.known() | {""}
        latest: dict[str, int] = {}
        kept = await self._steps.keys() | self._clearing
        for parts in map(_parts, kept - self._steps.unstored_logs):
            if parts.run_id not in known:
                latest[parts.run_id] = max(parts.attempt, latest.get(parts.run_id, 0))
        return latest

    async def about(self) -> About:
        info = await self._steps.info()
        return About(name="embedded", runtime=info.runtime, weaker=info.weaker)

    async def check(self) -> None:
        await self._steps.info()

    # At work

    async def run(self) -> None:
        """Listen to the step runner until cancelled or crashed; then know no workflow, and leave the steps to it."""
        info = await self._steps.info()
        if info.weaker:
            _log.warning("steps run with a weaker runtime (%s): %s", info.runtime, info.weaker)
        else:
            _log.info("steps run in the runtime %s", info.runtime)
        try:
            async with asyncio.TaskGroup() as together:
                together.create_task(self._steps.listen())
                together.create_task(self._admission.announce())
        finally:
            await asyncio.gather(*map(self._put_down, list(self._workflows.values())))
            await self._end_chores()
            await self._steps.leave_logs(list(self._steps.unstored_logs))

    async def compare(self) -> None:
        """Find steps that the runner has lost without a word; `run` does it now and then. Raises Unavailable."""
        await self._steps.compare()

    async def _end_chores(self) -> None:
        """What is being cleared away had better be; what is not by then is a leftover for the next life."""
        if self._chores:
            _, late = await asyncio.wait(self._chores, timeout=_CHORES_SECONDS)
            for chore in late:
                chore.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _guarded(self, workflow: _Workflow) -> None:
        """A bug must not leave a run that nobody drives: it is submitted again, and given up in the end."""
        # What has started goes on at once, however many do: its steps may be running, and its record shows it running.
        group, is_urgent = workflow.submission.experiment_id, workflow.is_resumed or workflow.has_mail
        try:
            with self._admission.ticket(group, is_urgent=is_urgent) as workflow.ticket:
                await self._until_admitted(workflow, workflow.ticket)
                await self._live(workflow)
            self._crashes.pop(workflow.name, None)
        except Exception as error:  # noqa: BLE001 - logged, and mended by the next submission
            _log.exception("workflow %s is put down", workflow.name)
            await workflow.stop_steps()
            self._crashes[workflow.name] += 1
            if self._crashes[workflow.name] >= _MOST_CRASHES:
                await self._give_up(workflow, error)
        self._lose(workflow)

    async def _until_admitted(self, workflow: _Workflow, ticket: Ticket) -> None:
        """A run that waits for its turn has no life yet: it is Pending, and says why."""
        async for position in ticket.positions():
            await self._report(
                workflow,
                Observation(
                    workflow_name=workflow.name,
                    run_id=workflow.submission.run_id,
                    attempt=workflow.submission.attempt,
                    phase=Phase.PENDING.value,
                    message=self._admission.reason(position, "runs", "HEADRACE_MOST_RUNS"),
                ),
            )

    async def _live(self, workflow: _Workflow) -> None:
        """The life of one workflow, from here to its end."""
        with for_run(workflow.submission.run_id), continue_trace(workflow.submission.traceparent or None):
            # The first look at a large workflow takes seconds, and the others live on meanwhile.
            once = asyncio.to_thread if _is_large(workflow.submission) else _at_once
            try:
                state = workflow.state = await once(_open_state, workflow.submission, self._limits)
                await self._make_claims(workflow, state)
            except (ManifestError, ObjectError) as error:
                await self._report(workflow, _ended_in_error(workflow, str(error), self._clock.now()))
                return
            artifacts = Artifacts(self._blobs, workflow.name, state.identity.created_at)
            if workflow.is_resumed:
                await self._sweep(workflow, artifacts)
            turn = await once(advance, state, workflow.mail(), self._clock.now())
            while True:
                if turn.finished:
                    await self._until_logs_are_stored(workflow)
                await self._record(workflow, state, turn)
                self._act(workflow, turn, artifacts, state.identity.namespace)
                if turn.finished:
                    break
                events = await workflow.next_events(turn.wake_at, self._clock.now())
                turn = advance(state, events, self._clock.now())
            if state.plan.claims and (turn.phase is Phase.SUCCEEDED or state.plan.removes_claims_of_failures):
                self._soon(self._steps.remove_claims(workflow.submission.run_id))

    async def _make_claims(self, workflow: _Workflow, state: State) -> None:
        await self._steps.make_claims(
            state.plan.claims, run_id=workflow.submission.run_id, namespace=state.identity.namespace
        )

    async def _until_logs_are_stored(self, workflow: _Workflow) -> None:
        """A run is over when what its steps wrote lies where their records say, or a user does not wait for that."""
        own = _key(workflow, "")
        logs = self._steps.store_logs([key for key in self._steps.unstored_logs if key.startswith(own)])
        if not logs:
            return
        await wait_unless(logs, workflow.terminated)
        if late := [log for log in logs if not log.done()]:
            _log.warning(
                "run %s, which is terminated, does not wait for the logs of %d steps", workflow.name, len(late)
            )

    async def _sweep(self, workflow: _Workflow, artifacts: Artifacts) -> None:
        """Remove what a crash kept from being removed, and store the logs that it kept from being stored.

        Steps of an earlier attempt end before those of this begin.
        """
        over = {node["id"]: node for node in workflow.submission.nodes if Phase(node["phase"]).is_fulfilled}
        own = [key for key in await self._steps.keys_patiently() if _parts(key).run_id == workflow.submission.run_id]
        earlier = [key for key in own if _parts(key).attempt < workflow.submission.attempt]
        done = [key for key in own if key not in earlier and _parts(key).node_id in over]
        for key in done:
            if artifacts.has_log(over[_parts(key).node_id]):
                self._steps.note_log(key, _parts(key).node_id, artifacts)
        self._soon(self._forget_stored(done))
        if earlier:
            await asyncio.wait([self._soon(self._forget_all(earlier))], timeout=_SWEEP_SECONDS)

    async def _record(self, workflow: _Workflow, state: State, turn: Turn) -> None:
        said = (turn.phase, turn.message, turn.finished)
        if not turn.changed and said == workflow.said:
            return
        workflow.said = said
        await self._report(
            workflow,
            Observation(
                workflow_name=workflow.name,
                run_id=workflow.submission.run_id,
                attempt=workflow.submission.attempt,
                phase=turn.phase.value,
                message=turn.message,
                started_at=state.started_at,
                finished_at=state.finished_at,
                nodes=tuple(map(_document, turn.changed)),
            ),
        )

    async def _report(self, workflow: _Workflow, observation: Observation) -> None:
        """Give the observation away and wait until it is durable."""
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._unrecorded[workflow.name] = _Unrecorded(observation=observation, durable=durable)
        self._observations.put_nowait(observation)
        try:
            await durable
        finally:
            if self._unrecorded.get(workflow.name) is waiting:
                del self._unrecorded[workflow.name]

    def _act(self, workflow: _Workflow, turn: Turn, artifacts: Artifacts, namespace: str) -> None:
        """What the turn asks for; every bit of it may be repeated after a crash."""

        def begin(order: StepOrder, past: Past) -> None:
            key = _key(workflow, order.node_id)
            place = Place(
                key=key,
                run_id=workflow.submission.run_id,
                namespace=namespace,
                scratch=self._steps.scratch_of(key),
            )
            group = workflow.submission.experiment_id
            step = Step(order=order, place=place, artifacts=artifacts, past=past, group=group)
            workflow.begin(order, self._steps.carry_out(step, workflow.tell))

        for node in turn.changed:
            if node.type is NodeType.POD and node.phase.is_fulfilled:
                self._clean_up(workflow, node)
        for order in turn.start:
            begin(order, Past.ORDERED if workflow.is_resumed else Past.NONE)
        for order in turn.reattach:
            begin(order, Past.RAN)
        for kill in turn.kill:
            self._soon(self._kill(workflow, kill))

    async def _kill(self, workflow: _Workflow, kill: Kill) -> None:
        await self._steps.kill(_key(workflow, kill.node_id), kill.reason)

    def _clean_up(self, workflow: _Workflow, node: Node) -> None:
        """The node is durable: its attempt is history, and what still works for it need not."""
        key = _key(workflow, node.id)
        if not self._next_cleared:
            self._soon(self._clear_away())
        self._clearing.add(key)
        self._next_cleared[key] = self._soon(workflow.drop(NodeId(node.id)))

    async def _clear_away(self) -> None:
        """Nobody waits for it, so it is done for many attempts at once."""
        await asyncio.sleep(_CLEARING_SECONDS)
        dropped, self._next_cleared = self._next_cleared, {}
        try:
            await asyncio.gather(*dropped.values())
            await self._forget_stored(dropped)
        finally:
            self._clearing.difference_update(dropped)

    async def _forget_stored(self, keys: Collection[str]) -> None:
        if logs := self._steps.store_logs(keys):
            await asyncio.wait(logs)
        await self._forget_all(keys)

    async def _forget_all(self, keys: Iterable[str]) -> None:
        if together := tuple(keys):
            await self._steps.forget(*together)

    async def _put_down(self, workflow: _Workflow) -> None:
        """Stop thinking about it. Its processes go on."""
        await workflow.stop()
        self._lose(workflow)

    def _lose(self, workflow: _Workflow) -> None:
        if self._workflows.get(workflow.name) is workflow:
            del self._workflows[workflow.name]

    async def _give_up(self, workflow: _Workflow, error: Exception) -> None:
        """What crashes again and again would never end: this is its end."""
        await self._until_logs_are_stored(workflow)
        own = {key for key in await self._steps.keys_patiently() if _parts(key).run_id == workflow.submission.run_id}
        self._soon(self._forget_all(own))
        await self._report(workflow, _ended_in_error(workflow, f"engine: {error!r}"[:1000], self._clock.now()))
        self._crashes.pop(workflow.name, None)

    def _soon(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do it beside; what fails here is a leftover, and erased as one."""
        task = asyncio.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chore_ended)
        return task

    def _chore_ended(self, chore: asyncio.Task[None]) -> None:
        self._chores.discard(chore)
        if not chore.cancelled() and (error := chore.exception()) is not None:
            _log.warning("left behind: %s", error, exc_info=None if isinstance(error, Unavailable) else error)


class _Unrecorded(msgspec.Struct, frozen=True, kw_only=True):
    observation: Observation
    durable: asyncio.Future[None]


class _Workflow:
    """One workflow that lives here: its mailbox and its steps."""

    def __init__(self, submission: Submission) -> None:
        self.name = submission.workflow_name
        self.submission = submission
        self.state: State | None = None
        self.said: tuple[Any, ...] = ()
        self.task: asyncio.Task[None] | None = None
        self.ticket: Ticket | None = None
        self.terminated = asyncio.Event()
        """A user wants the end, and not to wait for it."""
        if submission.is_terminating:
            self.terminated.set()
        self._steps: dict[NodeId, asyncio.Task[None]] = {}
        self._mail: asyncio.Queue[Event] = asyncio.Queue()

    @property
    def is_resumed(self) -> bool:
        """Whether anything may have happened to it before this life."""
        given = self.submission
        return bool(given.nodes) or given.started_at is not None or given.is_terminating or given.attempt > 1

    def tell(self, event: Event) -> None:
        self._mail.put_nowait(event)

    @property
    def has_mail(self) -> bool:
        return not self._mail.empty()

    def mail(self) -> list[Event]:
        """Everything that happened, which may be nothing."""
        events: list[Event] = []
        while self.has_mail:
            events.append(self._mail.get_nowait())
        return events

    async def next_events(self, wake_at: datetime | None, now: datetime) -> list[Event]:
        """Everything that happened, waiting for at least one thing or the time to wake.

        Nobody waits for the news that a step waits or has started: it may come together with what happens next, and
        the node of a quick step is written once.
        """
        events: list[Event] = []
        within = None if wake_at is None else max(0.0, (wake_at - now).total_seconds())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within) as limit:
                while all(isinstance(event, StepWaits | StepStarted) for event in events):
                    events.append(await self._mail.get())
                    if len(events) == 1:
                        _bring_forward(limit, _STARTED_SECONDS)
        return events + self.mail()

    def begin(self, order: StepOrder, step: Coroutine[Any, Any, None]) -> None:
        node_id = NodeId(order.node_id)
        self._steps[node_id] = asyncio.create_task(step, name=f"step {node_id}")

    async def drop(self, node_id: NodeId) -> None:
        """The node is over; what still works for it (waiting for a slot) stops."""
        step = self._steps.pop(node_id, None)
        if step is not None:
            step.cancel()
            await asyncio.wait([step])

    async def stop_steps(self) -> None:
        await asyncio.gather(*map(self.drop, list(self._steps)))

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
        await self.stop_steps()


async def _at_once(work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    return work(*given, **named)


def _is_large(submission: Submission) -> bool:
    return len(submission.workflow["spec"].get("templates") or ()) >= _MANY_TEMPLATES


def _bring_forward(limit: asyncio.Timeout, seconds: float) -> None:
    by = asyncio.get_running_loop().time() + seconds
    due = limit.when()
    limit.reschedule(by if due is None else min(by, due))


def _open_state(submission: Submission, limits: Limits | None) -> State:
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
        return State.new(workflow, identity, limits=limits)
    return State.resume(
        workflow,
        identity,
        [msgspec.convert(node, Node) for node in submission.nodes],
        started_at=submission.started_at,
        deadline_from=submission.retried_at,
        terminated=submission.is_terminating,
        limits=limits,
    )


def _ended_in_error(workflow: _Workflow, reason: str, now: datetime) -> Observation:
    """The run and everything open in it, as Error."""
    on_record = {node["id"]: node for node in workflow.submission.nodes}
    known = on_record if workflow.state is None else {id_: _document(n) for id_, n in workflow.state.nodes.items()}
    ended = {"phase": Phase.ERROR.value, "message": reason, "finishedAt": timestamp(now)}
    open_nodes = [node for node in known.values() if not Phase(node["phase"]).is_fulfilled]
    return Observation(
        workflow_name=workflow.name,
        run_id=workflow.submission.run_id,
        attempt=workflow.submission.attempt,
        phase=Phase.ERROR.value,
        message=reason,
        started_at=workflow.submission.started_at or whole_seconds(now),
        finished_at=whole_seconds(now),
        nodes=tuple({**node, **ended} for node in open_nodes),
    )


def _document(node: Node) -> NodeDocument:
    document: Mapping[str, Any] = msgspec.to_builtins(node, builtin_types=())
    return document


class _Parts(msgspec.Struct, frozen=True, kw_only=True):
    run_id: str = ""
    attempt: int = 0
    node_id: str = ""


def _key(workflow: _Workflow, node_id: str) -> str:
    return f"{workflow.submission.run_id}.{workflow.submission.attempt}.{node_id}"


def _parts(key: str) -> _Parts:
    match = _KEY.fullmatch(key)
    if match is None:
        return _Parts()
    return _Parts(run_id=match["run_id"], attempt=int(match["attempt"]), node_id=match["node_id"])
