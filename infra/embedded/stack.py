"""Which processes Headrace consists of on one machine, what each is told, and in which order they end.

The one place that composes the embedded stack. Every process is handed the credentials of its own role and no others.
It knows names and variables; what a process does with them is the process's own affair.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.embedded.backing import ADMIN, PORT_NAMES, Backing
from infra.embedded.binaries import Programs, find_programs
from infra.embedded.console import Console
from infra.embedded.data_dir import DataDir
from infra.embedded.failure import StartFailure
from infra.embedded.forked import Forked, Zygote
from infra.embedded.ports import LOOPBACK
from infra.embedded.preflight import (
    refuse_absent_directories,
    refuse_taken_port,
    refuse_unknown_settings,
    refuse_unsupported_platform,
    variables_of,
)
from infra.embedded.process import Command
from infra.embedded.readiness import runner_info, until_runner_is_watched, until_runner_tells, until_status
from infra.embedded.replicas import SERVICES, connections_each, names
from infra.embedded.settings import Settings
from infra.embedded.supervisor import Program, Row, Supervisor
from services.run.engine.embedded.runner.protocol import RunnerInfo
from services.run.engine.embedded.runner.settings import RunnerSettings
from services.run.settings import overlap
from shared.settings import load

CONTROLLER = "run-controller"
RUNNER = "step-runner"
GATEWAY = "gateway"
ZYGOTE = "zygote"

READY_WITHIN_SECONDS = 60
_AND_FOR_EACH_REPLICA_SECONDS = 5

_SHARED_MODULES = ("infra.cli.serve", "shared.plumbing", "shared.listing", "minio", "uvloop", "httptools", "uvicorn")
"""What most of the processes import anyway; never a service's own modules."""

_PROJECT = Path(__file__).parents[2]
_STOP_WITHIN_SECONDS = 15

_OBJECTS = ("HEADRACE_SECRETS_DIR", "HEADRACE_CONFIG_MAPS_DIR")
_KEPT_FROM_STEPS = (*_OBJECTS, "HEADRACE_AUTH_TOKENS_FILE")

_SETTINGS = (
    "infra.embedded.settings:Settings",
    "shared.logs:LogSettings",
    "gateway.settings:Settings",
    "services.run.settings:ControllerSettings",
    "services.run.engine.embedded.runner.settings:RunnerSettings",
    *(f"services.{name.replace('-', '_')}.settings:Settings" for name in SERVICES),
)


async def run(
    settings: Settings,
    *,
    ready: Callable[[str], None],
    say: Callable[[str], None],
    serve: Sequence[str] = ("-m", "infra.cli", "serve"),
) -> None:
    """Run the stack until SIGINT, SIGTERM or SIGHUP, then end it in order.

    Another SIGINT or SIGTERM hurries the steps that still run; another SIGHUP does not, because a terminal that closes
    may say it twice. Who starts us with SIGHUP ignored, as nohup does, wants us to go on.

    Raises StartFailure when it does not come up, SettingsError when the environment says what no process understands.
    `ready` receives the gateway's URL once everything answers; `say` a line for a person when something goes wrong.
    `serve` are Python's arguments that, followed by a process's name, run that process.
    Nothing is left behind on any way out but the data directory, and not that either when it could not be used.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()

    def heed() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, heed)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, stop.set)
    refuse_unsupported_platform()
    refuse_unknown_settings(os.environ, variables_of(*_SETTINGS))
    refuse_absent_directories(os.environ, *_OBJECTS)
    refuse_taken_port(settings.port)
    # Where it works is for us to say, and said later; the rest is the person's.
    runner = load(RunnerSettings, {**os.environ, "HEADRACE_STEP_RUNNER_SOCKET": "-", "HEADRACE_STEPS_DIR": "-"})
    programs = find_programs()
    data_dir = DataDir(Path(settings.data_dir))
    if not await _done_before(stop, data_dir.open()):
        return
    try:
        stack = _Stack(
            data_dir,
            programs,
            runner,
            replicas=settings.replica_counts,
            gateway_port=settings.port,
            say=say,
            serve=serve,
        )
        await stack.run(stop, hurry, ready)
    except OSError as error:  # The disk, most likely: full, or gone.
        raise StartFailure(f"{error.strerror}: {error.filename or data_dir.path}") from error
    finally:
        data_dir.close()


async def _done_before(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether the work was done; it is called off, and has tidied up, where the stop came first."""
    working = asyncio.create_task(work)
    told_to_stop = asyncio.create_task(stop.wait())
    await asyncio.wait([working, told_to_stop], return_when=asyncio.FIRST_COMPLETED)
    told_to_stop.cancel()
    working.cancel()
    try:
        await working
    except asyncio.CancelledError:
        return False
    return True


class _Stack:
    def __init__(
        self,
        data_dir: DataDir,
        programs: Programs,
        told_runner: RunnerSettings,
        *,
        replicas: Mapping[str, int],
        gateway_port: int,
        say: Callable[[str], None],
        serve: Sequence[str],
    ) -> None:
        self._data_dir = data_dir
        self._serve = serve
        self._replicas = {service: names(service, replicas[service]) for service in SERVICES}
        self._connections = connections_each(replicas)
        told = {GATEWAY: gateway_port}
        ours = data_dir.ports([*PORT_NAMES, *self._every_replica(), CONTROLLER, RUNNER], told=told)
        self._ports = ours | told
        self._backing = Backing(data_dir, self._ports, programs)
        self._socket = data_dir.socket("steps.sock")
        self._told_runner = told_runner
        self._runner = self._runner_program()
        self._zygote = Zygote(self._command(ZYGOTE, [], {}), modules=_SHARED_MODULES)
        self._say = say
        self._supervisor = Supervisor(say=say)

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event, ready: Callable[[str], None]) -> None:
        told_to_stop = asyncio.create_task(stop.wait(), name="wait for a signal")
        background: list[asyncio.Task[Any]] = [told_to_stop]
        try:
            coming_up = asyncio.create_task(self._come_up(), name="come up")
            hopeless = asyncio.create_task(self._supervisor.hopeless(), name="give up")
            background += [coming_up, hopeless]
            await asyncio.wait([told_to_stop, coming_up, hopeless], return_when=asyncio.FIRST_COMPLETED)
            for task in (coming_up, hopeless):
                if task.done():
                    task.result()
            if not told_to_stop.done():
                self._supervisor.settle()
                ready(f"http://{LOOPBACK}:{self._ports[GATEWAY]}")
                background.append(asyncio.create_task(self._console().follow(), name="follow the logs"))
                await told_to_stop
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self._end_steps(hurry)
            await self._supervisor.stop()

    async def _come_up(self) -> None:
        # Beside the servers, which wait for the disk while it imports.
        await self._supervisor.start([*self._backing.rows(), Row(name=ZYGOTE, startable=self._zygote)])
        await self._backing.create_roles()
        # The order of these stages is the order of the end, but for the step runner, which ends before the others. The
        # processes wait for one another as they need to.
        await self._supervisor.start([Row(name=RUNNER, startable=self._runner)])
        await self._supervisor.start([self._controller()])
        await self._supervisor.start(
            [self._service(service, name) for service, replicas in self._replicas.items() for name in replicas]
        )
        await self._supervisor.start([self._gateway()])
        await self._prepare()
        await self._until_everything_answers()

    async def _end_steps(self, hurry: asyncio.Event) -> None:
        """Steps end before everything else: what they talk to is there for as long as they run."""
        is_patient, bound = self._told_runner.stop_steps == "wait", self._told_runner.stop_wait_seconds
        running = await self._running_steps()
        if running and is_patient:
            self._say(f"waiting up to {bound:g} s for {running}; Ctrl-C again interrupts")
        ending = asyncio.create_task(self._supervisor.retire(RUNNER), name="end the steps")
        if is_patient:
            hurried = asyncio.create_task(hurry.wait())
            await asyncio.wait([ending, hurried], timeout=bound, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
            running = "" if ending.done() else await self._running_steps()
        if running:
            self._say(f"interrupting {running}; that is a failed attempt, repeated where the pipeline says so")
        while is_patient and not ending.done():
            # Again and again: a signal that comes while the one before is on its way is not heard.
            self._runner.process.send(signal.SIGTERM)
            await asyncio.wait([ending], timeout=1)
        await ending

    async def _running_steps(self) -> str:
        """In words; empty where there are none."""
        info = await runner_info(self._socket)
        if info is None or not info.running:
            return ""
        return "1 running step" if info.running == 1 else f"{info.running} running steps"

    def _console(self) -> Console:
        """From now on: that processes wait for one another while they come up is nobody's concern."""
        ours = (RUNNER, CONTROLLER, *self._every_replica(), GATEWAY)
        return Console([self._log(name) for name in ours], say=self._say)

    def _every_replica(self) -> list[str]:
        return [name for replicas in self._replicas.values() for name in replicas]

    def _runner_program(self) -> Program:
        # Not forked: steps must not end because the zygote did.
        command = self._command(RUNNER, [*self._serve, RUNNER], self._steps() | self._listens(RUNNER))
        its_own = self._told_runner.stop_wait_seconds + self._told_runner.step_grace_seconds
        return Program(command, stop_within_seconds=its_own + _STOP_WITHIN_SECONDS)

    def _controller(self) -> Row:
        credentials = self._database("run") | self._backing.bus(CONTROLLER) | self._backing.objects()
        engine = {"HEADRACE_ENGINE_DATA_DIR": str(self._data_dir.path / "engine")}
        return self._row(CONTROLLER, credentials | self._steps() | engine | self._listens(CONTROLLER))

    def _service(self, service: str, name: str) -> Row:
        credentials = self._database(service.replace("-", "_")) | self._backing.bus(service) | self._backing.objects()
        return self._row(name, credentials | self._fetching() | self._identity() | self._listens(name), serves=service)

    def _database(self, role: str) -> dict[str, str]:
        """As somebody, and with how many connections, unless whoever started us says how many."""
        variable = "HEADRACE_DATABASE_CONNECTIONS"
        return self._backing.database(role) | {variable: os.environ.get(variable) or str(self._connections)}

    def _fetching(self) -> dict[str, str]:
        """Only this machine reaches the gateway; what its users name may lie next to them, unless they say not."""
        variables = ("HEADRACE_FETCH_ANY_NETWORK", "HEADRACE_FETCH_ALLOWED_NETWORKS")
        return {} if any(name in os.environ for name in variables) else {variables[0]: "true"}

    def _gateway(self) -> Row:
        upstreams = {
            f"HEADRACE_{service.replace('-', '_').upper()}_UPSTREAMS": ",".join(
                f"http://{LOOPBACK}:{self._ports[name]}" for name in replicas
            )
            for service, replicas in self._replicas.items()
        }
        tokens = os.environ.get("HEADRACE_AUTH_TOKENS_FILE") or str(self._data_dir.path / "tokens.json")
        authentication = self._identity() | {"HEADRACE_AUTH_TOKENS_FILE": tokens}
        return self._row(GATEWAY, upstreams | authentication | self._listens(GATEWAY))

    def _identity(self) -> dict[str, str]:
        """The key by which services believe the gateway, where it asks clients who they are."""
        if os.environ.get("HEADRACE_AUTH", "none") == "none":
            return {}
        key = os.environ.get("HEADRACE_IDENTITY_KEY") or self._data_dir.secrets(["identity"])["identity"]
        return {"HEADRACE_IDENTITY_KEY": key}

    def _listens(self, name: str) -> dict[str, str]:
        return {"HEADRACE_LISTEN_HOST": LOOPBACK, "HEADRACE_LISTEN_PORT": str(self._ports[name])}

    def _steps(self) -> dict[str, str]:
        return {
            "HEADRACE_STEP_RUNNER_SOCKET": str(self._socket),
            "HEADRACE_STEPS_DIR": str(self._data_dir.steps),
            "HEADRACE_STEP_MASKED_PATHS": ",".join(self._masked()),
        }

    def _masked(self) -> list[str]:
        """What no step may see: what is kept here, and what the person who started us says."""
        kept = [str(self._data_dir.path), *filter(None, map(os.environ.get, _KEPT_FROM_STEPS))]
        for path in kept:
            if "," in path:  # The runner is told a list, separated by commas.
                raise StartFailure(f"{path}: steps cannot be kept from a path with a comma in it")
            for shared in filter(None, os.environ.get("HEADRACE_HOST_PATHS", "").split(",")):
                if overlap(shared.strip(), path):
                    raise StartFailure(f"HEADRACE_HOST_PATHS: {shared.strip()} would show steps what is kept in {path}")
        return [*kept, *filter(None, [os.environ.get("HEADRACE_STEP_MASKED_PATHS")])]

    def _row(self, name: str, variables: dict[str, str], *, serves: str | None = None) -> Row:
        command = self._command(name, [*self._serve, serves or name], variables)
        return Row(name=name, startable=Forked(self._zygote, command, stop_within_seconds=_STOP_WITHIN_SECONDS))

    async def _prepare(self) -> None:
        variables = self._backing.bus(ADMIN) | self._backing.objects()
        preparing = Forked(self._zygote, self._command("prepare", ["-m", "infra.embedded.prepare"], variables))
        await preparing.start()
        try:
            code = await preparing.exited()
        except asyncio.CancelledError:
            await preparing.stop()
            raise
        if code != 0:
            raise StartFailure(f"streams and bucket could not be declared: {preparing.last_words()}")

    def _command(self, name: str, arguments: list[str], variables: dict[str, str]) -> Command:
        return Command(
            argv=[sys.executable, *arguments],
            environment=_inherited() | variables,
            log=self._log(name),
        )

    def _log(self, name: str) -> Path:
        return self._data_dir.logs / f"{name}.log"

    async def _until_everything_answers(self) -> None:
        waiting_for = dict.fromkeys([*self._every_replica(), CONTROLLER], "/readyz")
        waiting_for |= {GATEWAY: "/apis/v1beta1/healthz"}
        further = len(self._every_replica()) - len(SERVICES)
        within_seconds = READY_WITHIN_SECONDS + further * _AND_FOR_EACH_REPLICA_SECONDS
        try:
            async with asyncio.timeout(within_seconds):
                for name, path in waiting_for.items():
                    await until_status(200, self._ports[name], path)
                name = RUNNER
                self._say_what_steps_lack(await until_runner_tells(self._socket))
                # One that waits for the lease is ready as well; it is at work when it listens to the runner.
                name = CONTROLLER
                await until_runner_is_watched(self._socket)
        except TimeoutError as error:
            raise StartFailure(f"{name} was not ready within {within_seconds} s (log: {self._log(name)})") from error

    def _say_what_steps_lack(self, runner: RunnerInfo) -> None:
        if runner.weaker is not None:
            how = "cannot run" if runner.runtime == "none" else "run in a weaker runtime"
            self._say(f"steps {how}: {runner.weaker}")


def _inherited() -> dict[str, str]:
    """Our environment for a child: settings of the person who started us reach every process that knows them."""
    paths = [str(_PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
