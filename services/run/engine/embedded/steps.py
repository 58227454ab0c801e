"""Steps from order to outcome: their turn, the step runner, what is brought to a step and what is fetched from it.

One `carry_out` per order tells why the step waits, when it runs and how it ended, whatever happens on the way. Steps
live with the runner and are found there again by their key, so nothing here need survive. This module knows neither
workflows nor who records what it tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, assert_never

import msgspec
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_delay,
    stop_never,
    wait_exponential,
    wait_random,
)

from services.run.engine.embedded import launching, runtime
from services.run.engine.embedded.admission import Admission
from services.run.engine.embedded.cache import Cacheable, Kept, StepCache, cacheable
from services.run.engine.embedded.collection import Artifacts, Found, make_empty, unpacked
from services.run.engine.embedded.machine import Machine
from services.run.engine.embedded.nodes import Phase
from services.run.engine.embedded.objects import ObjectError, Objects, output_of
from services.run.engine.embedded.orders import PlacedArtifact, StepKind, StepOrder
from services.run.engine.embedded.reconcile import (
    Collected,
    Event,
    KillReason,
    StepFinished,
    StepLost,
    StepStarted,
    StepWaits,
    exit_message,
)
from services.run.engine.embedded.runner import protocol
from services.run.engine.embedded.runner.client import RunnerClient, RunnerRefused
from services.run.engine.embedded.runner.journal import tree_of
from services.run.engine.embedded.runtime.tree import find
from services.run.engine.embedded.specs import (
    DOWNLOADED,
    LONGEST_DOWNLOAD_SECONDS,
    CannotPrepare,
    Place,
    build,
    command_of,
    download,
)
from shared.clock import Clock
from shared.errors import Unavailable

T = TypeVar("T")

Tell = Callable[[Event], None]

_log = logging.getLogger(__name__)

_COMPARE_SECONDS = 15.0
_GIVE_UP_SECONDS = 2.0
"""How long the outputs of a terminated step are tried to be stored: with the time to KILL, well within ten seconds."""
_LOGS_AT_ONCE = 2
"""Steps share the processors with what stores them."""
_FORGET_SECONDS = 20.0
"""Longer than a step takes that ignores TERM."""


class Past(Enum):
    """What is on record of a step that is ordered."""

    NONE = "none"
    ORDERED = "ordered"
    """It may have been started: nobody had time to note it."""
    RAN = "ran"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One order and where it is carried out."""

    order: StepOrder
    place: Place
    artifacts: Artifacts
    past: Past
    group: str
    """Steps of different groups take turns where there is no room for all."""


class Steps:
    """The steps of this machine. `listen` must be running for ends to be heard."""

    def __init__(
        self,
        runner: RunnerClient,
        objects: Objects,
        machine: Machine,
        *,
        steps_dir: Path,
        scratch_dir: Path,
        most: int,
        cache: StepCache | None,
        clock: Clock,
    ) -> None:
        self._runner = runner
        self._objects = objects
        self._machine = machine
        self._steps_dir = steps_dir
        self._scratch_dir = scratch_dir
        self._cache = cache
        self._clock = clock
        self._admission = Admission(most)
        self._watched: dict[str, _Watched] = {}
        self._logs: dict[str, _Log] = {}
        """Those that are not in the object store yet, by the keys of their attempts."""
        self._log_room = asyncio.Semaphore(_LOGS_AT_ONCE)
        # Files of secrets lie there on their way into steps.
        scratch_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def waiting(self) -> int:
        """Steps for which there is no room yet."""
        return self._admission.waiting

    @property
    def running(self) -> int:
        return self._admission.admitted

    def scratch_of(self, key: str) -> Path:
        """A directory of this attempt alone; made when something is put there."""
        return self._scratch_dir / key

    async def listen(self) -> None:
        """Hear from the runner how steps end, and tell those that wait for their turn, until cancelled."""
        async with asyncio.TaskGroup() as together:
            together.create_task(self._hear())
            together.create_task(self._compare_now_and_then())
            together.create_task(self._admission.announce())

    async def info(self) -> protocol.RunnerInfo:
        with _runner_needed():
            return await self._runner.info()

    async def keys(self) -> set[str]:
        """Every attempt of which something is left. Raises Unavailable."""
        scratch = await asyncio.to_thread(lambda: {entry.name for entry in self._scratch_dir.iterdir()})
        return scratch | (await self._states()).keys()

    async def keys_patiently(self) -> set[str]:
        return await _patiently(self.keys)

    async def log(self, key: str, *, follow: bool, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """What the step wrote, from the byte `offset` on; nothing where it is unknown. Raises Unavailable."""
        with _runner_needed(), contextlib.suppress(RunnerRefused):
            async with contextlib.aclosing(self._runner.read_log(key, offset, follow)) as chunks:
                async for chunk in chunks:
                    yield chunk

    @property
    def unstored_logs(self) -> KeysView[str]:
        """The attempts that must not be forgotten before their logs are stored, if anybody wants these."""
        return self._logs.keys()

    def note_log(self, key: str, node_id: str, artifacts: Artifacts) -> None:
        """The attempt has one that is to be stored. No step waits for that: the next one needs the processors more."""
        self._logs.setdefault(key, _Log(node_id=node_id, artifacts=artifacts))

    def store_logs(self, keys: Iterable[str]) -> list[asyncio.Task[None]]:
        """Those of these attempts that are not stored yet, each by a task that waits for outages."""
        return [self._storing(key) for key in keys if key in self._logs]

    async def leave_logs(self, keys: Iterable[str]) -> None:
        """Nobody wants them any more, or the next life stores them."""
        left = [log.storing for key in keys if (log := self._logs.pop(key, None)) is not None]
        begun = [storing for storing in left if storing is not None]
        for storing in begun:
            storing.cancel()
        await asyncio.gather(*begun, return_exceptions=True)

    def _storing(self, key: str) -> asyncio.Task[None]:
        log = self._logs[key]
        if log.storing is None:
            log.storing = asyncio.create_task(self._store_log(key, log), name=f"log of {log.node_id}")
        return log.storing

    async def _store_log(self, key: str, log: _Log) -> None:
        async def store() -> None:
            async with self._log_room:
                await log.artifacts.store_log(log.node_id, self._steps_dir / key)

        try:
            await _patiently(store)
        finally:
            if self._logs.get(key) is log:
                del self._logs[key]

    async def kill(self, key: str, reason: KillReason) -> None:
        if reason is KillReason.TERMINATED and (watched := self._watched.get(key)) is not None:
            watched.terminated.set()
        await _patiently(lambda: self._runner.kill(key, reason.name))

    async def forget(self, *keys: str) -> None:
        """End them where they run, and remove everything of them. Raises Unavailable where that cannot be done now."""

        async def forget() -> None:
            try:
                await self._runner.forget(*keys)
            except RunnerRefused as refused:
                await asyncio.gather(*(self._runner.kill(key, KillReason.TERMINATED.name) for key in keys))
                raise Unavailable("A step is still ending.", cause=str(refused)) from refused

        await self.leave_logs(keys)
        with _runner_needed():
            await _patiently(forget, longest_wait_seconds=0.3, give_up_after_seconds=_FORGET_SECONDS)
        await asyncio.to_thread(_remove, [self.scratch_of(key) for key in keys])

    async def carry_out(self, step: Step, tell: Tell) -> None:
        """Tell how it went, whatever it is. Cancelling it leaves a started step to the runner."""
        node_id = step.order.node_id
        try:
            if step.order.kind is StepKind.RESOURCE:
                tell(await asyncio.to_thread(self._act_on_object, step))
            else:
                await self._run(step, tell)
        except (CannotPrepare, RunnerRefused) as error:
            tell(StepFinished(node_id=node_id, at=self._clock.now(), error=str(error)))
        except Exception as error:  # noqa: BLE001 - the run must hear of it, whatever it is
            _log.exception("step %s failed in the engine", node_id)
            tell(StepFinished(node_id=node_id, at=self._clock.now(), error=f"engine: {error!r}"))

    # A process

    async def _run(self, step: Step, tell: Tell) -> None:
        key, node_id = step.place.key, step.order.node_id
        same = None if self._cache is None else cacheable(step.order)
        with self._watching(key) as watched:
            state = None if step.past is Past.NONE else await self._state_of(key)
            if state is None and step.past is Past.RAN:
                state = protocol.StepLost(key=key, reason="the step runner does not know it")
            if launching.is_launched(step.order):
                step = await asyncio.to_thread(self._with_launcher, step)
            if state is None and same is not None and (earlier := await self._earlier(step, same)) is not None:
                tell(earlier)
                return
            with self._admission.ticket(step.group, is_urgent=state is not None) as ticket:
                async for position in ticket.positions():
                    tell(StepWaits(node_id=node_id, reason=self._why_wait(position)))
                if ticket.position is not None:
                    tell(StepWaits(node_id=node_id, reason=""))
                state = state or await self._start(step)
                if (started_at := _started_at(state)) is not None:
                    tell(StepStarted(node_id=node_id, at=started_at))
                watched.is_begun = True
                end = await watched.end if isinstance(state, protocol.StepStarted) else state
            if isinstance(end, protocol.StepExited):
                finished = await self._finished(step, end.exit, watched)
                if same is not None:
                    await self._keep(step, same, finished)
                tell(finished)
                return
        assert isinstance(end, protocol.StepLost)
        _log.warning("step %s is lost: %s", node_id, end.reason)
        tell(StepLost(node_id=node_id, at=self._clock.now()))

    def _why_wait(self, position: int) -> str:
        return self._admission.reason(position, "steps", "HEADRACE_MOST_STEPS")

    async def _start(self, step: Step) -> protocol.Event:
        order, place = step.order, step.place
        staged: dict[str, Path] = {}
        if order.input_artifacts:
            staged = await _patiently(lambda: step.artifacts.stage(order.input_artifacts, place.scratch))
        staged |= await self._downloaded(step)
        if launching.is_launched(order):
            order, staged = await self._with_data(step, staged)
        try:
            spec = await asyncio.to_thread(build, order, place, self._objects, self._machine, staged)
        except OSError as error:
            raise CannotPrepare(f"the step cannot be prepared: {error.strerror}") from error
        return await _patiently(lambda: self._runner.start(spec))

    async def _finished(self, step: Step, exit_: protocol.StepExit, watched: _Watched) -> StepFinished:
        found = await self._collected(step, watched)
        if found is not None and found.outputs.log is not None:
            self.note_log(step.place.key, step.order.node_id, step.artifacts)
        exit_code, error, error_phase = _blame(exit_, found.problem if found is not None else None)
        killed = _kill_reason(exit_)
        if found is None and exit_code == 0 and error is None:
            killed = KillReason.TERMINATED
        return StepFinished(
            node_id=step.order.node_id,
            at=exit_.finished_at,
            exit_code=exit_code,
            out_of_memory=exit_.out_of_memory and exit_.blamed == runtime.MAIN,
            error=error,
            error_phase=error_phase,
            killed=killed,
            outputs=found.outputs if found is not None else Collected(),
        )

    async def _collected(self, step: Step, watched: _Watched) -> Found | None:
        """None where it was given up: who terminates a run does not wait until the object store is back."""
        order, scratch, directory = step.order, step.place.scratch, self._steps_dir / step.place.key
        tree = await asyncio.to_thread(tree_of, directory) if _leaves_files(order) else None
        collecting = asyncio.create_task(_patiently(lambda: step.artifacts.collect(order, tree, directory, scratch)))
        try:
            await wait_unless([collecting], watched.terminated)
            if collecting.done():
                return collecting.result()
            _log.warning("the outputs and the log of step %s, which is terminated, are given up", order.node_id)
            return None
        finally:
            collecting.cancel()

    # What lies elsewhere

    async def _downloaded(self, step: Step) -> dict[str, Path]:
        """What URLs name, by the artifacts' names; each is fetched by a step of its own. Raises CannotPrepare."""
        return {
            artifact.name: await self._download(step, artifact, f"{step.place.key}.http-{number}")
            for number, artifact in enumerate(step.order.input_artifacts)
            if artifact.http is not None
        }

    async def _download(self, step: Step, artifact: PlacedArtifact, key: str) -> Path:
        spec = download(artifact, key, step.order.main.image)
        try:
            with self._watching(key) as watched:
                state = await _patiently(lambda: self._runner.start(spec))
                watched.is_begun = True
                end = await watched.end if isinstance(state, protocol.StepStarted) else state
            return await asyncio.to_thread(self._received, step, artifact, key, end)
        finally:
            with contextlib.suppress(Unavailable):
                await self.forget(key)

    def _received(self, step: Step, artifact: PlacedArtifact, key: str, end: protocol.Event) -> Path:
        """Blocks on the disk. Raises CannotPrepare."""
        attempt_dir, target = self._steps_dir / key, step.place.scratch / "http" / key
        tree = tree_of(attempt_dir)
        found = find(tree, DOWNLOADED) if tree is not None else None
        if not isinstance(end, protocol.StepExited) or end.exit.exit_code != 0 or found is None:
            raise CannotPrepare(f"artifact {artifact.name}: {_why_no_download(end, attempt_dir)}")
        try:
            make_empty(target)
            packed = Path(shutil.move(found, target / "object"))
        except OSError as error:
            raise CannotPrepare(f"artifact {artifact.name}: {error.strerror}") from error
        return unpacked(artifact, packed, target / "artifact")

    # One of a v2-compatible pipeline

    def _with_launcher(self, step: Step) -> Step:
        """Blocks on the disk. The same after a restart: what is fetched of a step goes by it, too."""
        command = command_of(step.order, step.place, self._objects, self._machine)
        order = launching.launched(step.order, command, self._store(step))
        return msgspec.structs.replace(step, order=order)

    async def _with_data(self, step: Step, staged: Mapping[str, Path]) -> tuple[StepOrder, dict[str, Path]]:
        """And what its input artifacts are records of."""

        def read() -> list[PlacedArtifact]:
            command = command_of(step.order, step.place, self._objects, self._machine)
            return launching.brought(step.order, command, staged, self._store(step))

        records = await asyncio.to_thread(read)
        scratch = step.place.scratch / "data"
        found = await _patiently(lambda: step.artifacts.stage(records, scratch, leave_out_lost=True))
        order = msgspec.structs.replace(step.order, input_artifacts=(*step.order.input_artifacts, *records))
        return order, {**staged, **found}

    def _store(self, step: Step) -> launching.Store:
        config = self._objects.config_map(step.place.namespace, "kfp-launcher") or {}
        root = config.get("defaultPipelineRoot", b"").decode(errors="replace").strip()
        bucket = step.artifacts.bucket
        store = launching.Store(bucket=bucket, default_root=f"minio://{bucket}/v2/artifacts")
        is_ours = store.key_of(root.rstrip("/") + "/") is not None
        return msgspec.structs.replace(store, default_root=root) if is_ours else store

    # What the same step left before

    async def _earlier(self, step: Step, same: Cacheable) -> StepFinished | None:
        """How the last one ended, if all that it left is still there."""
        assert self._cache is not None
        try:
            kept = await self._cache.find(same.key, max_age_seconds=same.max_age_seconds)
            if kept is None or (step.order.needs_result and kept.result is None):
                return None
            outputs = await step.artifacts.take_over(kept)
        except Unavailable as error:
            _log.warning("step %s runs without a look into the cache: %s", step.order.node_id, error)
            return None
        if outputs is None:
            return None
        return StepFinished(node_id=step.order.node_id, at=self._clock.now(), exit_code=0, outputs=outputs)

    async def _keep(self, step: Step, same: Cacheable, finished: StepFinished) -> None:
        """For the next one, before this one is told of as finished: then it may be dropped at any moment."""
        assert self._cache is not None
        if finished.exit_code != 0 or finished.error is not None or finished.killed is not None:
            return
        outputs = finished.outputs
        kept = Kept(
            parameters=outputs.parameters,
            artifacts={name: str(location["key"]) for name, location in outputs.artifacts.items()},
            result=outputs.result,
        )
        try:
            await self._cache.keep(same.key, kept, run_id=step.place.run_id)
        except Unavailable as error:
            _log.warning("what step %s left is not kept in the cache: %s", step.order.node_id, error)

    # An object

    def _act_on_object(self, step: Step) -> StepFinished:
        """Blocks on the disk; the same node finds its own object again."""
        order = step.order
        assert order.resource is not None
        try:
            document = self._objects.perform(order.resource, node_id=order.node_id, namespace=step.place.namespace)
            parameters = {
                wanted.name: output_of(document, wanted.value_from.json_path, wanted.value_from.jq_filter)
                for wanted in order.output_parameters
                if wanted.value_from is not None
            }
        except ObjectError as error:
            return StepFinished(node_id=order.node_id, at=self._clock.now(), error=str(error))
        except OSError as error:
            reason = f"the object cannot be kept: {error.strerror}"
            return StepFinished(node_id=order.node_id, at=self._clock.now(), error=reason)
        outputs = Collected(parameters=parameters)
        return StepFinished(node_id=order.node_id, at=self._clock.now(), exit_code=0, outputs=outputs)

    async def make_claims(self, claims: Sequence[Mapping[str, Any]], *, run_id: str, namespace: str) -> None:
        """The run's own, before its first step. Raises ObjectError; a full disk is waited for."""

        def make() -> None:
            for each in claims:
                self._objects.make_claim(each, run_id=run_id, namespace=namespace)

        if claims:
            await _patiently(lambda: asyncio.to_thread(make))

    async def remove_claims(self, run_id: str) -> None:
        await asyncio.to_thread(self._objects.remove_claims_of, run_id)

    # What the runner says

    @contextlib.contextmanager
    def _watching(self, key: str) -> Iterator[_Watched]:
        """Ends are kept for those who wait for them alone: the runner tells them again after each reconnect."""
        watched = self._watched[key] = _Watched()
        try:
            yield watched
        finally:
            if self._watched.get(key) is watched:
                del self._watched[key]

    async def _hear(self) -> None:
        async with contextlib.aclosing(self._runner.events()) as events:
            async for event in events:
                self._note(event)

    def _note(self, event: protocol.Event) -> None:
        watched = self._watched.get(event.key)
        if watched is not None and not isinstance(event, protocol.StepStarted) and not watched.end.done():
            watched.end.set_result(event)

    async def _compare_now_and_then(self) -> None:
        """A step that ran and that the runner does not know (its directory was wiped) has no end to be heard of."""
        while True:
            await asyncio.sleep(_COMPARE_SECONDS)
            with contextlib.suppress(Unavailable):
                await self.compare()

    async def compare(self) -> None:
        begun = {key: watched for key, watched in self._watched.items() if watched.is_begun}
        if not begun:
            return
        states = await self._states()
        for key, watched in begun.items():
            if self._watched.get(key) is watched:
                self._note(states.get(key) or protocol.StepLost(key=key, reason="the step runner lost its directory"))

    async def _state_of(self, key: str) -> protocol.Event | None:
        return (await _patiently(self._states)).get(key)

    async def _states(self) -> dict[str, protocol.Event]:
        with _runner_needed():
            return {event.key: event for event in await self._runner.list_attempts()}


@dataclass(kw_only=True, slots=True)
class _Log:
    node_id: str
    artifacts: Artifacts
    storing: asyncio.Task[None] | None = None


@dataclass(kw_only=True, slots=True)
class _Watched:
    is_begun: bool = False
    """The runner is known to know it."""
    end: asyncio.Future[protocol.Event] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    terminated: asyncio.Event = field(default_factory=asyncio.Event)
    """A user wants its end, and not to wait for it."""


async def wait_unless(work: Collection[asyncio.Task[Any]], terminated: asyncio.Event) -> None:
    """Until all of it is done; for a moment only, where a user wants the end."""
    hurry: asyncio.Future[Any] = asyncio.create_task(terminated.wait())
    done: asyncio.Future[Any] = asyncio.gather(*work, return_exceptions=True)
    try:
        await asyncio.wait([done, hurry], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(work, timeout=_GIVE_UP_SECONDS)
    finally:
        hurry.cancel()


def _leaves_files(order: StepOrder) -> bool:
    return bool(order.output_artifacts or order.output_parameters)


def _why_no_download(end: protocol.Event, attempt_dir: Path) -> str:
    if isinstance(end, protocol.StepExited) and end.exit.end is protocol.End.DEADLINE:
        return f"its download takes longer than {LONGEST_DOWNLOAD_SECONDS} s"
    if not isinstance(end, protocol.StepExited):
        return "its download was interrupted"
    with contextlib.suppress(OSError):
        if lines := (attempt_dir / "log").read_text(errors="replace").strip().splitlines():
            return f"it cannot be downloaded: {lines[-1][:500]}"
    return f"it cannot be downloaded: {end.exit.reason}"


def _started_at(state: protocol.Event) -> datetime | None:
    match state:
        case protocol.StepStarted():
            return state.started_at
        case protocol.StepExited():
            return state.exit.started_at
        case protocol.StepLost():
            return None
        case _:
            assert_never(state)


def _blame(exit_: protocol.StepExit, problem: str | None) -> tuple[int | None, str | None, Phase]:
    """Main's exit code, what went wrong beside it, and the phase that makes (§9, "order of blame")."""
    main = exit_.processes.get(runtime.MAIN)
    if exit_.end is protocol.End.COULD_NOT_START:
        return None, exit_.reason, Phase.ERROR
    blamed = exit_.blamed or ""
    if blamed.startswith("init-"):
        return None, exit_message(exit_.exit_code, out_of_memory=exit_.out_of_memory), Phase.ERROR
    if problem is not None:
        return main, problem, Phase.ERROR
    if blamed.startswith("sidecar-"):
        return main, exit_message(exit_.exit_code, out_of_memory=exit_.out_of_memory), Phase.FAILED
    return main, None, Phase.ERROR


def _kill_reason(exit_: protocol.StepExit) -> KillReason | None:
    if exit_.end is protocol.End.DEADLINE:
        return KillReason.STEP_DEADLINE
    if exit_.end is protocol.End.KILLED:
        return KillReason.__members__.get(exit_.reason, KillReason.TERMINATED)
    return None


@contextlib.contextmanager
def _runner_needed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable("The step runner does not answer.", cause=repr(error)) from error


async def _patiently(
    work: Callable[[], Awaitable[T]], *, longest_wait_seconds: float = 5.0, give_up_after_seconds: float | None = None
) -> T:
    """Do it, and again for as long as what it needs is away."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type((Unavailable, OSError)),
        wait=wait_exponential(multiplier=0.01, max=longest_wait_seconds) + wait_random(0, 0.02),
        stop=stop_never if give_up_after_seconds is None else stop_after_delay(give_up_after_seconds),
        before_sleep=_complain,
        reraise=True,
    ):
        with attempt:
            return await work()
    raise AssertionError("retries end with an answer or an error")


def _complain(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if state.attempt_number % 15 == 0:
        cause = getattr(error, "cause", None) or error
        _log.warning("tried %d times in %.0f s: %s", state.attempt_number, state.seconds_since_start or 0, cause)


def _remove(directories: Iterable[Path]) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
