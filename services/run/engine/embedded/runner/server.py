"""The step runner: parent of every step, as a container shim is. No database, no client on the network, no business
rule.

It exists so that the controller can die, be upgraded and come back while steps run. It knows attempts by their key,
starts each once, enforces its deadline, and reports its end after that is on the disk. If it dies itself its steps
die with it, and its successor reports them lost: a step is never run twice behind anybody's back. It refuses to know
what a step is for, whether it will be retried, and what becomes of its outputs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import assert_never

import msgspec

from services.run.engine.embedded.runner.door import Page, serving, verdict
from services.run.engine.embedded.runner.figures import CONTENT_TYPE, Figures
from services.run.engine.embedded.runner.journal import Journal
from services.run.engine.embedded.runner.protocol import (
    MAX_LINE_BYTES,
    Done,
    End,
    Event,
    Forget,
    Info,
    Kill,
    List,
    Log,
    LogChunk,
    Refused,
    Reply,
    Request,
    RunnerInfo,
    Start,
    StepExit,
    StepExited,
    StepLost,
    StepStart,
    StepStarted,
    Watch,
)
from services.run.engine.embedded.runner.settings import RunnerSettings
from services.run.engine.embedded.runtime import (
    CONTAINER_ENGINES,
    MAIN,
    CannotStart,
    Ended,
    Process,
    Running,
    Runtime,
    StepSpec,
    processes_of,
)
from services.run.engine.embedded.runtime.choice import Choice, choose
from services.run.engine.embedded.runtime.process import send, writers_to
from services.run.engine.embedded.runtime.tree import Tree

_log = logging.getLogger(__name__)

_requests = msgspec.json.Decoder(Request)

_LOST = "pod deleted"
"""What a step whose parent died looks like from outside; the words are those of a cluster."""

_LOG_CHUNK_BYTES = 256 * 1024
_LOG_POLL_SECONDS = 0.1
_RETRY_WRITE_SECONDS = 1.0
_TRASH_SECONDS = 2.0
_HARMLESS_FOR_SIDECARS = (0, 137, 143)


class SocketInUse(Exception):
    """Another runner answers at our socket's path, or no socket can be there."""


async def serve(settings: RunnerSettings, stop: asyncio.Event, hurry: asyncio.Event) -> None:
    """Serve until `stop` is set, then see every step to its end and return; `hurry` cuts that short.

    Raises StepsDirectoryInUse, SocketInUse, OSError.
    """
    os.umask(0o022)  # the private trees' directories are a step's, with the modes it expects
    journal = Journal(settings.steps_dir)
    try:
        await _refuse_a_second_runner(settings.step_runner_socket)
        choice = await _choose(settings, journal)
        runtime = choice.runtime.name if choice.runtime else "nothing"
        _log.info("steps run in: %s; their limits are kept by: %s", runtime, choice.limits)
        if choice.weaker:
            _log.warning("weaker: %s", choice.weaker)
        runner = StepRunner(journal, choice, settings)
        runner.remember()
        sweeper = asyncio.create_task(runner.empty_trash(), name="empty the trash")
        async with _listening(settings.step_runner_socket, runner.answer), _watchable(settings, runner):
            await stop.wait()
            await runner.stop(hurry)
        sweeper.cancel()
        if choice.runtime is not None:
            choice.runtime.close()
    finally:
        journal.close()


class Attempt:
    """One step while this process knows it."""

    def __init__(self, spec: StepSpec | None, state: Event | None) -> None:
        self.spec = spec
        self.state = state
        self.begun = asyncio.Event()
        """Its state may be told: it is durable."""
        self.over = asyncio.Event()
        self.refusal: str | None = None
        self.running: dict[str, Running] = {}
        self.ending: tuple[End, str] | None = None
        """Why it is being ended before its time."""
        self.task: asyncio.Task[None] | None = None
        if state is not None:
            self.begun.set()


class StepRunner:
    """The attempts, and what may be asked about them."""

    def __init__(self, journal: Journal, choice: Choice, settings: RunnerSettings) -> None:
        self._journal = journal
        self._choice = choice
        self._settings = settings
        self._attempts: dict[str, Attempt] = {}
        self._watchers: set[asyncio.Queue[Event]] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._has_trash = asyncio.Event()
        self._has_trash.set()  # a former runner's
        self._is_stopping = False
        self._figures = Figures()
        self._leftovers: dict[str, asyncio.Task[None]] = {}
        """By container engine: the removal of what a former runner has left there."""

    @property
    def pages(self) -> dict[str, Callable[[], Page]]:
        """What those who watch it may ask for."""
        return {
            "/livez": lambda: verdict(None),
            "/readyz": lambda: verdict(self._why_not_ready()),
            "/metrics": lambda: Page(
                text=self._figures.exposition(running=len(self._running()), is_watched=bool(self._watchers)),
                content_type=CONTENT_TYPE,
            ),
        }

    def _why_not_ready(self) -> str | None:
        """Steps that run in less than the full sandbox run; steps without one do not."""
        if self._is_stopping:
            return "draining"
        return None if self._choice.runtime is not None else self._choice.weaker or "no sandbox"

    async def empty_trash(self) -> None:
        """Until cancelled. In batches: each costs a process."""
        while True:
            await self._has_trash.wait()
            self._has_trash.clear()
            try:
                await self._journal.empty_trash()
            except OSError as error:
                _log.warning("what was forgotten cannot be removed: %s", error)
            await asyncio.sleep(_TRASH_SECONDS)

    def remember(self) -> None:
        """Take over what a former runner left: its steps are over, or are about to be."""
        remembered = self._journal.remembered()
        engines = {known.runtime for known in remembered.values() if isinstance(known, StepStart)}
        engines |= {self._choice.runtime.name} if self._choice.runtime else set()
        for engine in engines.intersection(CONTAINER_ENGINES):
            removing = _remove_leftovers(engine, _name(self._journal))
            self._leftovers[engine] = asyncio.create_task(removing, name=f"remove what {engine} still holds")
        for key, known in remembered.items():
            if isinstance(known, StepExit):
                attempt = self._attempts[key] = Attempt(None, StepExited(key=key, exit=known))
                attempt.over.set()
            elif known.runtime not in self._leftovers and not self._journal.is_alive(key):
                attempt = self._attempts[key] = Attempt(None, StepLost(key=key, reason=_LOST))
                attempt.over.set()
            else:
                attempt = self._attempts[key] = Attempt(None, StepStarted(key=key, started_at=known.started_at))
                attempt.task = asyncio.create_task(self._see_off(key, attempt, known.runtime), name=f"see off {key}")

    def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """In a task of ours: of one that the stream made itself, it would report the cancelling as a failure."""
        connection = asyncio.create_task(self._answer(reader, writer), name="answer")
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: a request, its replies, the end."""
        try:
            line = await reader.readline()
            if not line:
                return
            async for reply in self._replies(_requests.decode(line), reader):
                writer.write(msgspec.json.encode(reply) + b"\n")
                await writer.drain()
        except (msgspec.DecodeError, ValueError) as error:
            writer.write(msgspec.json.encode(Refused(reason=f"not a request: {error}")) + b"\n")
        except ConnectionError:
            pass  # the client went away; nothing here depends on it
        finally:
            writer.close()

    async def stop(self, hurry: asyncio.Event) -> None:
        """Start no step any more; let those that run end where the settings say so, for as long as they say and
        `hurry` is not set. The others end durably noted as interrupted, and at last every connection does."""
        self._is_stopping = True
        if self._settings.stop_steps == "wait":
            await self._let_end(hurry)
        running = self._running()
        if running:
            _log.warning("interrupting %s", _counted(running))
        for attempt in running:
            self._end(attempt, End.INTERRUPTED, "the step runner was stopped")
        await _ends_of(running)
        while self._connections:
            for connection in self._connections:
                connection.cancel()
            await asyncio.wait(self._connections)

    async def _let_end(self, hurry: asyncio.Event) -> None:
        running = self._running()
        if not running:
            return
        wait_seconds = self._settings.stop_wait_seconds
        _log.info("waiting up to %g s for %s; another signal interrupts", wait_seconds, _counted(running))
        either = [asyncio.ensure_future(_ends_of(running)), asyncio.ensure_future(hurry.wait())]
        await asyncio.wait(either, timeout=wait_seconds, return_when=asyncio.FIRST_COMPLETED)
        for waiting in either:
            waiting.cancel()

    def _running(self) -> list[Attempt]:
        """A former runner's steps do not run: they are being seen off."""
        ours = (each for each in self._attempts.values() if each.spec is not None)
        return [each for each in ours if each.task is not None and not each.task.done()]

    async def _replies(self, request: Request, reader: asyncio.StreamReader) -> AsyncIterator[Reply]:
        match request:
            case Start():
                yield await self._start(request.spec)
            case Kill():
                if request.key in self._attempts:
                    self._end(self._attempts[request.key], End.KILLED, request.reason)
                yield Done()
            case Forget():
                yield self._forget(request.keys)
            case List():
                for state in self._states():
                    yield state
                yield Done()
            case Watch():
                async for event in self._changes(reader):
                    yield event
            case Log():
                async for chunk in self._log_of(request):
                    yield chunk
            case Info():
                yield RunnerInfo(
                    runtime=self._choice.runtime.name if self._choice.runtime else "none",
                    weaker=self._choice.weaker,
                    steps_dir=str(self._journal.steps_dir),
                    python=self._settings.step_python,
                    limits=self._choice.limits,
                    running=len(self._running()),
                    is_watched=bool(self._watchers),
                )
            case _:
                assert_never(request)

    async def _start(self, spec: StepSpec) -> Reply:
        attempt = self._attempts.get(spec.key)
        if attempt is None:
            if self._is_stopping:
                # No refusal, which would be the step's end: the next runner is to be asked.
                raise ConnectionAbortedError("the step runner is being stopped")
            attempt = self._attempts[spec.key] = Attempt(spec, None)
            attempt.task = asyncio.create_task(self._carry(spec, attempt), name=f"step {spec.key}")
        await attempt.begun.wait()
        if attempt.state is None:
            return Refused(reason=attempt.refusal or "the step could not be noted")
        return attempt.state

    def _forget(self, keys: tuple[str, ...]) -> Reply:
        known = {key: self._attempts[key] for key in keys if key in self._attempts}
        refused = [f"{key} still runs" for key, attempt in known.items() if not attempt.over.is_set()]
        for key, attempt in known.items():
            if attempt.over.is_set():
                try:
                    self._journal.forget(key)
                    del self._attempts[key]
                except OSError as error:
                    refused.append(f"{key} cannot be removed: {error}")
        self._has_trash.set()
        return Refused(reason="; ".join(refused)) if refused else Done()

    async def _changes(self, reader: asyncio.StreamReader) -> AsyncIterator[Event]:
        queue: asyncio.Queue[Event] = asyncio.Queue()
        for state in self._states():
            queue.put_nowait(state)
        self._watchers.add(queue)
        hung_up = asyncio.ensure_future(reader.read(1))
        try:
            while True:
                change = asyncio.ensure_future(queue.get())
                await asyncio.wait((change, hung_up), return_when=asyncio.FIRST_COMPLETED)
                if not change.done():
                    change.cancel()
                    return
                yield change.result()
        finally:
            self._watchers.discard(queue)
            hung_up.cancel()

    async def _log_of(self, request: Log) -> AsyncIterator[Reply]:
        attempt = self._attempts.get(request.key)
        if attempt is None:
            yield Refused(reason=f"{request.key} is not known")
            return
        offset = request.offset
        while True:
            was_over = attempt.over.is_set()
            chunk = await asyncio.to_thread(_read_at, self._journal.log_of(request.key), offset)
            if chunk:
                offset += len(chunk)
                yield LogChunk(data=chunk)
            elif was_over or not request.follow:
                yield Done()
                return
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOG_POLL_SECONDS):
                        await attempt.over.wait()

    def _states(self) -> list[Event]:
        return [attempt.state for attempt in self._attempts.values() if attempt.state is not None]

    def _tell(self, attempt: Attempt, state: Event) -> None:
        """A state becomes known; what it says is on the disk by now."""
        attempt.state = state
        attempt.begun.set()
        if not isinstance(state, StepStarted):
            attempt.over.set()
        for queue in self._watchers:
            queue.put_nowait(state)

    def _end(self, attempt: Attempt, end: End, reason: str) -> None:
        """TERM to everything the step runs, KILL after the grace; the first who asks names the reason."""
        if attempt.over.is_set() or attempt.ending is not None:
            return
        attempt.ending = (end, reason)
        self._stop_processes(list(attempt.running.values()))

    def _stop_processes(self, running: list[Running]) -> None:
        for one in running:
            one.terminate()

        def kill() -> None:
            for one in running:
                one.kill()

        if running:
            asyncio.get_running_loop().call_later(self._settings.step_grace_seconds, kill)

    async def _see_off(self, key: str, attempt: Attempt, runtime: str) -> None:
        """A former runner's processes die with it; until the last has, the step is not lost yet.

        Containers do not, and are removed. One that was being made in that very moment may not have noticed: who writes
        to this step's log is this step.
        """
        if runtime in self._leftovers:
            await asyncio.wait((self._leftovers[runtime],))
        while self._journal.is_alive(key):
            for pid in await asyncio.to_thread(writers_to, self._journal.log_of(key)):
                send(pid, signal.SIGKILL)
            await asyncio.sleep(_LOG_POLL_SECONDS)
        self._tell(attempt, StepLost(key=key, reason=_LOST))

    async def _carry(self, spec: StepSpec, attempt: Attempt) -> None:
        """The whole life of an attempt."""
        runtime, home = self._choice.runtime, self._journal.directory_of(spec.key)
        tree, problem = None, None if runtime else self._choice.weaker or "no sandbox"
        if runtime is not None:
            try:
                tree = runtime.lay_out(spec, MAIN, home)
            except CannotStart as error:
                problem = str(error)
        started = StepStart(
            key=spec.key, started_at=datetime.now(UTC), runtime=runtime.name if runtime else "none", tree=tree
        )
        prepared: asyncio.Future[None] | None = None
        try:
            self._journal.make_room(spec.key)
            if runtime is not None and tree is not None:
                # While the disk confirms the start: the tree of what never began is removed with its room.
                prepared = asyncio.ensure_future(asyncio.to_thread(runtime.prepare, spec, MAIN, home, tree))
            await asyncio.to_thread(self._journal.begin, started)
        except OSError as error:
            if prepared is not None:
                await asyncio.wait((prepared,))
            attempt.refusal = f"the step cannot be noted in {self._journal.steps_dir}: {error.strerror}"
            del self._attempts[spec.key]
            with contextlib.suppress(OSError):
                self._journal.forget(spec.key)
            attempt.begun.set()
            return
        self._tell(attempt, StepStarted(key=spec.key, started_at=started.started_at))
        self._figures.step_started()
        if runtime is None or tree is None or prepared is None:
            outcome = _Outcome(end=End.COULD_NOT_START, reason=problem or "")
        else:
            outcome = await self._run(spec, attempt, runtime, tree, prepared)
        exit = _exit_of(spec.key, outcome, started.started_at)
        await self._note(exit)
        self._figures.step_ended(exit)
        self._tell(attempt, StepExited(key=spec.key, exit=exit))

    async def _note(self, exit: StepExit) -> None:
        """An end is told only when it is durable; a full disk is waited for."""
        while True:
            try:
                return await asyncio.to_thread(self._journal.finish, exit)
            except OSError as error:
                _log.error("the end of %s cannot be noted, trying again: %s", exit.key, error)
                await asyncio.sleep(_RETRY_WRITE_SECONDS)

    async def _run(
        self, spec: StepSpec, attempt: Attempt, runtime: Runtime, tree: Tree, prepared: asyncio.Future[None]
    ) -> _Outcome:
        """Init processes in order, then main with its sidecars, within the deadline."""
        home = self._journal.directory_of(spec.key)
        deadline = None
        if spec.deadline_seconds is not None:
            deadline = asyncio.get_running_loop().call_later(
                spec.deadline_seconds, self._end, attempt, End.DEADLINE, "the step exceeded its deadline"
            )
        codes: dict[str, int] = {}
        out_of_memory: set[str] = set()
        log = -1
        stdout: int | None = None
        try:
            await prepared
            log = self._journal.open_log(spec.key)
            if first_line := runtime.first_line(spec):
                os.write(log, first_line.encode() + b"\n")

            async def start(name: str, process: Process) -> Running:
                own_home, own_tree = home, tree
                if name != MAIN:
                    own_home = home / name
                    own_tree = runtime.lay_out(spec, name, own_home)
                    await asyncio.to_thread(runtime.prepare, spec, name, own_home, own_tree)
                if attempt.ending is not None:
                    raise _EndedEarly
                running = attempt.running[name] = runtime.start(
                    process,
                    own_home,
                    own_tree,
                    log,
                    stdout=stdout if name == MAIN else None,
                    outputs=spec.outputs if name == MAIN else (),
                )
                return running

            async def finish(name: str, running: Running) -> Ended:
                ended = await running.wait()
                codes[name] = ended.exit_code
                if ended.out_of_memory:
                    out_of_memory.add(name)
                del attempt.running[name]
                return ended

            for name, process in processes_of(spec).items():
                if not name.startswith("init-"):
                    continue
                ended = await finish(name, await start(name, process))
                if ended.exit_code != 0 or attempt.ending is not None:
                    return _outcome(attempt, codes, out_of_memory, ended)
            async with _stopped_at_the_end(self._stop_processes) as beside:
                for name, process in processes_of(spec).items():
                    if name.startswith("sidecar-"):
                        sidecar = await start(name, process)
                        beside.append((sidecar, asyncio.ensure_future(finish(name, sidecar))))
                async with contextlib.AsyncExitStack() as beside_log:
                    if spec.keep_stdout:
                        own = self._journal.open_stdout(spec.key)
                        stdout = await beside_log.enter_async_context(_copied_to(log, own))
                    ended = await finish(MAIN, await start(MAIN, spec.main))
                early = attempt.ending
            attempt.ending = early  # what was asked after main's end came too late to change it
            return _outcome(attempt, codes, out_of_memory, ended)
        except _EndedEarly:
            return _outcome(attempt, codes, out_of_memory, None)
        except CannotStart as error:
            return _Outcome(end=End.COULD_NOT_START, reason=str(error), codes=codes)
        except OSError as error:
            return _Outcome(
                end=End.COULD_NOT_START, reason=f"{error.filename or 'step'}: {error.strerror}", codes=codes
            )
        finally:
            if deadline is not None:
                deadline.cancel()
            if log >= 0:
                os.close(log)


async def _ends_of(attempts: Sequence[Attempt]) -> None:
    tasks = [attempt.task for attempt in attempts if attempt.task is not None]
    if tasks:
        await asyncio.wait(tasks)


def _counted(attempts: Sequence[Attempt]) -> str:
    return "1 running step" if len(attempts) == 1 else f"{len(attempts)} running steps"


class _EndedEarly(Exception):
    """The end was asked for before the process began."""


class _Outcome(msgspec.Struct, frozen=True, kw_only=True):
    end: End
    reason: str = ""
    codes: dict[str, int] = {}
    out_of_memory: frozenset[str] = frozenset()
    """Those that were killed for the memory they wanted."""


@contextlib.asynccontextmanager
async def _stopped_at_the_end(
    stop: Callable[[list[Running]], None],
) -> AsyncIterator[list[tuple[Running, asyncio.Future[Ended]]]]:
    """Sidecars live until the block is left, in whatever way; it is left when they are gone."""
    beside: list[tuple[Running, asyncio.Future[Ended]]] = []
    try:
        yield beside
    finally:
        stop([running for running, end in beside if not end.done()])
        await asyncio.gather(*(end for _, end in beside))


@contextlib.asynccontextmanager
async def _copied_to(log: int, own: int) -> AsyncIterator[int]:
    """A descriptor to write to; all of it has arrived in both when the block is left, and `own` is closed."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[None] = loop.create_future()
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read_end, False)

    def copy() -> None:
        with contextlib.suppress(BlockingIOError):
            if chunk := os.read(read_end, _LOG_CHUNK_BYTES):
                with contextlib.suppress(OSError):  # a full disk cuts the text short, as it cuts a log
                    os.write(log, chunk)
                    os.write(own, chunk)
            elif not arrived.done():
                loop.remove_reader(read_end)
                arrived.set_result(None)

    loop.add_reader(read_end, copy)
    try:
        yield write_end
    finally:
        os.close(write_end)
        await arrived
        os.close(read_end)
        os.close(own)


def _outcome(attempt: Attempt, codes: dict[str, int], out_of_memory: set[str], ended: Ended | None) -> _Outcome:
    if attempt.ending is not None:
        end, reason = attempt.ending
        return _Outcome(end=end, reason=reason, codes=codes)
    if ended is not None and ended.could_not_start is not None:
        return _Outcome(end=End.COULD_NOT_START, reason=ended.could_not_start, codes=codes)
    return _Outcome(end=End.EXITED, codes=codes, out_of_memory=frozenset(out_of_memory))


def _exit_of(key: str, outcome: _Outcome, started_at: datetime) -> StepExit:
    blamed = next((name for name in _in_order_of_blame(outcome.codes) if _is_failure(name, outcome.codes[name])), None)
    exit_code = 0 if blamed is None else outcome.codes[blamed]
    return StepExit(
        key=key,
        end=outcome.end,
        exit_code=exit_code,
        signal=exit_code - 128 if 128 < exit_code <= 128 + 64 else None,
        blamed=blamed,
        out_of_memory=blamed in outcome.out_of_memory,
        reason=outcome.reason,
        processes=outcome.codes,
        started_at=started_at,
        finished_at=datetime.now(UTC),
    )


def _in_order_of_blame(names: dict[str, int]) -> list[str]:
    """Init, then main, then sidecars (workflow specification, section 9)."""
    kinds = ("init", MAIN, "sidecar")
    return sorted(names, key=lambda name: kinds.index(name.partition("-")[0]))


def _is_failure(name: str, code: int) -> bool:
    return code not in (_HARMLESS_FOR_SIDECARS if name.startswith("sidecar-") else (0,))


def _read_at(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(_LOG_CHUNK_BYTES)
    except FileNotFoundError:
        return b""


async def _choose(settings: RunnerSettings, journal: Journal) -> Choice:
    scratch = journal.steps_dir / ".runtime"
    scratch.mkdir(mode=0o700, exist_ok=True)
    masked = (str(journal.steps_dir), *_real(settings.step_masked_paths))
    return await choose(
        settings.runtime,
        scratch=scratch,
        python=settings.step_python,
        masked=tuple(dict.fromkeys(masked)),
        host_directories=settings.step_host_directories,
        environment=settings.step_variables,
        name=_name(journal),
        keeps_limits=settings.step_limits,
        bubblewrap=settings.step_bubblewrap,
    )


async def _remove_leftovers(engine: str, name: str) -> None:
    from services.run.engine.embedded.runtime.container import find_command_line

    command_line = find_command_line(engine, name)
    if command_line is None:
        _log.warning("there is no command %s any more: what a former step runner started by it is left alone", engine)
    else:
        await command_line.remove_leftovers()


def _name(journal: Journal) -> str:
    """Of this directory and no other, the same for the next runner."""
    seen = os.stat(journal.steps_dir)
    return f"headrace-steps-{seen.st_dev:x}-{seen.st_ino:x}"


def _real(paths: tuple[str, ...]) -> list[str]:
    return [os.path.realpath(path) for path in paths]


async def _refuse_a_second_runner(path: str) -> None:
    """A socket that answers belongs to somebody; one that does not was left behind."""
    if len(os.fsencode(path)) > 107:
        raise SocketInUse(f"{path} is too long for a unix socket (107 bytes)")
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
        return
    writer.close()
    raise SocketInUse(f"{path} is in use by another step runner")


@contextlib.asynccontextmanager
async def _watchable(settings: RunnerSettings, runner: StepRunner) -> AsyncIterator[None]:
    if settings.listen_port is None:
        yield
        return
    async with serving(runner.pages, host=settings.listen_host, port=settings.listen_port):
        yield


@contextlib.asynccontextmanager
async def _listening(
    path: str, answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]
) -> AsyncIterator[None]:
    """A socket that only our own user can connect to, from its first moment."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        bound.bind(path)
    finally:
        os.umask(mask)
    server = await asyncio.start_unix_server(answer, sock=bound, limit=MAX_LINE_BYTES)
    try:
        yield
    finally:
        server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
