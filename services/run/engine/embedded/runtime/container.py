"""A step in containers of docker or podman, driven by their command line.

Here a step's image counts: it is pulled where it is absent, and its own program runs where the template names none. Of
the host a step sees its volumes, and the network, which is the host's as in the sandbox: main and sidecars meet at
localhost. Files are copied in before the start, and what will be collected is copied out at the end, as whoever runs
us: a step writes to the host in its volumes alone.

A container outlives its runner. Each bears labels by which a later runner finds what is left of a former one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import posixpath
import re
import secrets
import shutil
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from services.run.engine.embedded.runtime import (
    MAIN,
    CannotStart,
    Ended,
    Placement,
    Process,
    Running,
    StepSpec,
    processes_of,
)
from services.run.engine.embedded.runtime import process as processes
from services.run.engine.embedded.runtime import tree as trees
from services.run.engine.embedded.runtime.placing import mounted, place
from services.run.engine.embedded.runtime.tree import Branch, OutsideTree, Tree

if sys.version_info >= (3, 12):
    import tarfile
else:
    from backports import tarfile

_log = logging.getLogger(__name__)

_STEPS = "headrace.steps"
_RUNNER = "headrace.runner"
_THIS_RUNNER = secrets.token_hex(8)
_FILES = "files.tar"
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]*")
_LEAST_MEMORY_BYTES = 6 * 1024 * 1024
_LEAST_CPU_MILLIS = 10
"""What the engines take as a limit at least."""
_ANSWERS_WITHIN_SECONDS = 10
_ENGINE_RETURNS_WITHIN_SECONDS = 60
_RETRY_SECONDS = 1.0
_KILL_AGAIN_SECONDS = 0.2
_KILLED = 128 + signal.SIGKILL
_NEVER_RAN = ("created", "configured", "initialized")
_OVER = ("exited", "stopped", "dead")
_ABSENT = re.compile("no such container|no such file|could not (find|be found)", re.IGNORECASE)
_TERMINATE_ALL = ("sh", "-c", "kill -TERM -1")
_OF_EVERY_IMAGE = frozenset(
    {"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root"}
    | {"/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var"}  # noqa: S108 - of the image
)
"""Directories that are there, with modes that matter to the image's programs."""


class EngineSilent(Exception):
    """The engine does not do what it is told; the text is its reason."""


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """How the command line ended, and what it wrote."""

    code: int
    out: str
    error: str

    @property
    def reason(self) -> str:
        """Its last words."""
        lines = [line.strip() for line in self.error.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


class State(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A container as the engine describes it."""

    status: str
    exit_code: int
    out_of_memory: bool = msgspec.field(default=False, name="OOMKilled")


class CommandLine:
    """The command line of one engine, for the steps of one directory, which `steps` stands for."""

    def __init__(self, engine: str, program: str, steps: str) -> None:
        self.engine = engine
        self.labels = {_STEPS: steps, _RUNNER: _THIS_RUNNER}
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        self._program = program

    async def call(
        self, *arguments: str, environment: Mapping[str, str] | None = None, stdin: int | None = None
    ) -> Said:
        """Raises OSError, ValueError where nothing can be told."""
        with _Kept() as out, _Kept() as error:
            pid = self.spawn(
                *arguments, environment=environment, log=error.descriptor, stdout=out.descriptor, stdin=stdin
            )
            try:
                code = await processes.ended(pid)
            except asyncio.CancelledError:
                processes.send(pid, signal.SIGKILL)
                os.waitpid(pid, 0)  # noqa: ASYNC222 (it is dead)
                raise
            return Said(code=code, out=out.text(), error=error.text())

    def spawn(
        self,
        *arguments: str,
        log: int,
        environment: Mapping[str, str] | None = None,
        stdout: int | None = None,
        stdin: int | None = None,
    ) -> int:
        told = {**self.environment, **(environment or {})}
        return processes.spawn((self._program, *arguments), env=told, cwd="/", log=log, stdout=stdout, stdin=stdin)

    async def why_silent(self) -> str | None:
        """None where the engine answers."""
        try:
            async with asyncio.timeout(_ANSWERS_WITHIN_SECONDS):
                said = await self.call("version", "--format", "{{.Server.Version}}")
        except TimeoutError:
            return f"no answer for {_ANSWERS_WITHIN_SECONDS} s"
        except OSError as error:
            return str(error)
        return None if said.code == 0 else said.reason

    async def remove_leftovers(self) -> None:
        """Return when no other runner's container for these steps is there, however long the engine is away."""
        while True:
            try:
                leftovers = await self._ids(_STEPS) - await self._ids(_RUNNER)
                if not leftovers:
                    return
                await self.call("rm", "--force", "--volumes", *leftovers)
            except (EngineSilent, OSError) as error:
                _log.warning("containers of a former step runner may still run: %s: %s", self.engine, error)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _ids(self, label: str) -> set[str]:
        said = await self.call("ps", "--all", "--quiet", "--no-trunc", f"--filter=label={label}={self.labels[label]}")
        if said.code != 0:
            raise EngineSilent(said.reason)
        return set(said.out.split())


class Containers:
    """The runtime that such an engine makes. `environment`: what every step has beside what its pipeline says."""

    def __init__(self, command_line: CommandLine, *, environment: Mapping[str, str], keeps_limits: bool) -> None:
        self.name = command_line.engine
        self._command_line = command_line
        self._environment = environment
        self._keeps_limits = keeps_limits
        self._numbers = itertools.count()

    def lay_out(self, spec: StepSpec, name: str, home: Path) -> Tree:
        return Tree(
            branches=(
                Branch(target="/", source=str(home / "root")),
                *(mounted(mount) for mount in processes_of(spec)[name].mounts),
            )
        )

    def prepare(self, spec: StepSpec, name: str, home: Path, tree: Tree) -> None:
        if name != MAIN:
            os.mkdir(home, 0o700)
        os.mkdir(home / "root")
        if name == MAIN:
            place(spec, tree)
        cwd = processes_of(spec)[name].cwd
        if cwd and self.name == "podman":  # which does not make it, as the other one does
            with contextlib.suppress(OutsideTree):
                trees.make_directory(tree, cwd)
        _pack(home, made=(cwd, *spec.make_directories), files=spec.files if name == MAIN else ())

    def first_line(self, spec: StepSpec) -> str:
        return ""

    def start(
        self,
        process: Process,
        home: Path,
        tree: Tree,
        log: int,
        *,
        stdout: int | None = None,
        outputs: tuple[str, ...] = (),
    ) -> Running:
        if not _IMAGE.fullmatch(process.image):
            raise CannotStart(f"'{process.image}' is not the name of an image")
        if not process.argv and not process.runs_entrypoint:
            raise CannotStart("no command")
        name = f"headrace-{_THIS_RUNNER}-{next(self._numbers)}"
        environment = {**self._environment, **process.env}
        return _Contained(
            self._command_line,
            name,
            process.image,
            create=self._creation(name, process, tree, environment),
            environment={key: environment[key] for key in environment.keys() - self._command_line.environment.keys()},
            home=home,
            tree=tree,
            log=log,
            stdout=stdout,
            outputs=outputs,
        )

    def close(self) -> None:
        """Each container is removed at its own end."""

    def _creation(self, name: str, process: Process, tree: Tree, environment: Mapping[str, str]) -> list[str]:
        """What makes the container. Values of variables are no arguments, which everybody on this machine can read,
        but for those that the command line itself has by the same name."""
        told = ["create", f"--name={name}", "--pull=never", "--network=host", "--log-driver=none"]
        # Without this a host with SELinux keeps the container from its volumes.
        told += ["--security-opt=label=disable"]
        told += [f"--label={key}={value}" for key, value in self._command_line.labels.items()]
        told += [f"--mount={_mount(branch)}" for branch in tree.branches if branch.target != "/"]
        own = self._command_line.environment
        told += [f"--env={key}={value}" if key in own else f"--env={key}" for key, value in environment.items()]
        if process.cwd:
            told.append(f"--workdir={process.cwd}")
        if self._keeps_limits:
            told += _limits(process)
        if process.runs_entrypoint:
            return [*told, process.image, *process.argv]
        return [*told, f"--entrypoint={process.argv[0]}", process.image, *process.argv[1:]]


class _Contained:
    """One container from its image to its removal."""

    def __init__(
        self,
        command_line: CommandLine,
        name: str,
        image: str,
        *,
        create: Sequence[str],
        environment: Mapping[str, str],
        home: Path,
        tree: Tree,
        log: int,
        stdout: int | None,
        outputs: Sequence[str],
    ) -> None:
        self._command_line = command_line
        self._name = name
        self._image = image
        self._create = create
        self._environment = environment
        self._home = home
        self._tree = tree
        self._log = log
        self._stdout = stdout
        self._outputs = outputs
        self._pulling: int | None = None
        self._is_running = False
        self._is_killed = False
        self._asides: set[asyncio.Task[Any]] = set()
        self._life = asyncio.create_task(self._live(), name=f"container {name}")

    async def wait(self) -> Ended:
        return await self._life

    def terminate(self) -> None:
        """As a cluster asks its first process, which may not care, and by a shell of its image all the others."""
        if not self._is_running:
            self.kill()  # nothing of the step's runs yet, or any more
            return
        self._beside(self._command_line.call("kill", "--signal=TERM", self._name))
        self._beside(self._command_line.call("exec", self._name, *_TERMINATE_ALL))

    def kill(self) -> None:
        if self._is_killed:
            return
        self._is_killed = True
        if self._pulling is not None:
            processes.send(self._pulling, signal.SIGKILL)
        if self._is_running:
            self._beside(self._kill())

    async def _kill(self) -> None:
        """Again until it is over: the engine refuses for one that is just being started."""
        while self._is_running:
            await self._command_line.call("kill", self._name)
            await asyncio.wait([self._life], timeout=_KILL_AGAIN_SECONDS)

    def _beside(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)

    async def _live(self) -> Ended:
        try:
            await self._make()
            return Ended(exit_code=_KILLED) if self._is_killed else await self._carry()
        except (EngineSilent, OSError, ValueError) as error:
            return Ended(exit_code=1, could_not_start=str(error))
        finally:
            self._is_running = False
            await self._remove()

    async def _make(self) -> None:
        """Pull, create, copy in. Raises EngineSilent."""
        if (await self._command_line.call("image", "inspect", "--format={{.Id}}", self._image)).code != 0:
            await self._pull()
        if not self._is_killed:
            await self._demand(*self._create, environment=self._environment)
        files = self._home / _FILES
        if files.exists() and not self._is_killed:
            with files.open("rb") as opened:
                await self._demand("cp", "-", f"{self._name}:/", stdin=opened.fileno())
            files.unlink()

    async def _pull(self) -> None:
        """It may take long, and can be killed meanwhile."""
        if self._is_killed:
            return
        with _Kept() as said:
            self._pulling = self._command_line.spawn("pull", "--quiet", self._image, log=said.descriptor)
            code = await processes.ended(self._pulling)
            self._pulling = None
            if code != 0 and not self._is_killed:
                raise EngineSilent(f"image {self._image}: {Said(code=code, out='', error=said.text()).reason}")

    async def _carry(self) -> Ended:
        """Start it, and see it to its end."""
        written = os.fstat(self._log).st_size
        attached = self._command_line.spawn("start", "--attach", self._name, log=self._log, stdout=self._stdout)
        self._is_running = True
        code = await processes.ended(attached)
        state = await self._final_state()
        self._is_running = False
        if state.status in _NEVER_RAN:
            said = os.pread(self._log, 65536, written).decode(errors="replace")
            return _never_ran(Said(code=code, out="", error=said))
        await self._copy_out()
        return Ended(exit_code=state.exit_code, out_of_memory=state.out_of_memory and state.exit_code != 0)

    async def _final_state(self) -> State:
        """Of a container whose output has ended. Raises EngineSilent."""
        retry_until = asyncio.get_running_loop().time() + _ENGINE_RETURNS_WITHIN_SECONDS
        while True:
            said = await self._command_line.call("container", "inspect", "--format={{json .State}}", self._name)
            if said.code == 0:
                state = msgspec.json.decode(said.out, type=State)
                if state.status in (*_OVER, *_NEVER_RAN):
                    return state
                # It lost whoever listened to it, and goes on.
                await self._command_line.call("wait", self._name)
            elif _ABSENT.search(said.reason) or asyncio.get_running_loop().time() > retry_until:
                raise EngineSilent(f"the container is lost: {said.reason}")
            await asyncio.sleep(_KILL_AGAIN_SECONDS)

    async def _copy_out(self) -> None:
        """Its outputs, to where the tree says. What lies in a volume is there already."""
        follow = ("--follow-link",) if self._command_line.engine == "docker" else ()  # the other one always does
        copied: list[str] = []
        for path in sorted(map(posixpath.normpath, self._outputs), key=len):
            if any(_holds(above, path) for above in copied) or self._is_in_volume(path):
                continue
            try:
                target = trees.place_for(self._tree, path)
            except OutsideTree:
                continue
            said = await self._command_line.call("cp", *follow, f"{self._name}:{path}", str(target))
            if said.code == 0:
                copied.append(path)
            elif not _ABSENT.search(said.reason):
                os.write(self._log, f"headrace: {path} cannot be collected: {said.reason}\n".encode())

    def _is_in_volume(self, path: str) -> bool:
        return any(branch.target != "/" and _holds(branch.target, path) for branch in self._tree.branches)

    async def _remove(self) -> None:
        said = await self._command_line.call("rm", "--force", "--volumes", self._name)
        if said.code != 0 and not _ABSENT.search(said.reason):
            _log.warning("the container %s is left behind: %s", self._name, said.reason)

    async def _demand(
        self, *arguments: str, environment: Mapping[str, str] | None = None, stdin: int | None = None
    ) -> None:
        said = await self._command_line.call(*arguments, environment=environment, stdin=stdin)
        if said.code != 0:
            raise EngineSilent(said.reason)


def _never_ran(said: Said) -> Ended:
    """As a shell has it: a program found nowhere is 127, a file that is no program 126."""
    if re.search("executable file not found|no such file or directory", said.error):
        return Ended(exit_code=127)
    if re.search("permission denied|exec format error", said.error):
        return Ended(exit_code=126)
    return Ended(exit_code=1, could_not_start=said.reason)


def find_command_line(engine: str, steps: str) -> CommandLine | None:
    program = shutil.which(engine)
    return None if program is None else CommandLine(engine, program, steps)


def _mount(branch: Branch) -> str:
    """One line of CSV, as the engines read it."""
    fields = ["type=bind", f"source={branch.source}", f"target={branch.target}"]
    fields += ["readonly"] if branch.read_only else []
    return ",".join('"' + field.replace('"', '""') + '"' for field in fields)


def _limits(process: Process) -> list[str]:
    told = []
    if process.memory_bytes is not None:
        memory = max(process.memory_bytes, _LEAST_MEMORY_BYTES)
        told += [f"--memory={memory}", f"--memory-swap={memory}"]
    if process.cpu_millis is not None:
        told += [f"--cpus={max(process.cpu_millis, _LEAST_CPU_MILLIS) / 1000:.3f}"]
    return told


def _pack(home: Path, *, made: Sequence[str], files: Sequence[Placement]) -> None:
    """What was placed below home/root becomes an archive to be copied in: what lies there later was copied out."""
    root = home / "root"
    open_to_all = {posixpath.normpath(path) for path in made} - _OF_EVERY_IMAGE
    placed = [each.target for each in files if each.source is not None and os.path.isdir(each.source)]
    with tarfile.open(home / _FILES, "w") as archive:
        for directory, directories, others in os.walk(root):
            for name in (*directories, *others):
                path = os.path.join(directory, name)
                inside = "/" + os.path.relpath(path, root)
                entry = archive.gettarinfo(path, arcname=inside.lstrip("/"))
                entry.uid = entry.gid = 0
                entry.uname = entry.gname = ""
                if inside in open_to_all:
                    entry = entry.replace(mode=0o777, deep=False)  # whoever the image says may write there
                elif entry.isdir() and not any(_holds(above, inside) for above in placed):
                    continue  # on the way to something: as the image has it
                with open(path, "rb") if entry.isreg() else contextlib.nullcontext() as content:
                    archive.addfile(entry, content)
        is_empty = not archive.members
    if is_empty:  # which is no archive to every engine
        os.unlink(home / _FILES)
    shutil.rmtree(root)
    os.mkdir(root)


def _holds(directory: str, path: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


class _Kept:
    """What a short command writes, in memory."""

    def __enter__(self) -> Self:
        self.descriptor = os.memfd_create("said", os.MFD_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def text(self) -> str:
        return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0).decode("utf-8", errors="replace")
