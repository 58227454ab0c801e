"""What the step runner is told at its start; read from HEADRACE_… by `shared.settings.load`."""

from __future__ import annotations

import os
import re
import shlex
import sys
from typing import Annotated, Literal

import msgspec

from services.run.engine.embedded.runtime import Wanted
from shared.settings import Port

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


def server_python() -> str:
    """The interpreter this server is built on, not its virtual environment: steps have packages of their own."""
    exact = f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    return exact if os.path.exists(exact) else f"{sys.base_prefix}/bin/python3"


class RunnerSettings(msgspec.Struct, frozen=True, kw_only=True):
    step_runner_socket: str
    """Path of the unix socket (mode 0600); at most 107 bytes, which is the kernel's limit."""

    steps_dir: str
    """Where each attempt keeps its journal, its log and its private tree. Belongs to one runner."""

    listen_host: str = "127.0.0.1"

    listen_port: Port | None = None
    """Where those who watch it ask: `/livez`, `/readyz`, `/metrics`. Nowhere, unless told."""

    runtime: Wanted = "auto"
    """What steps run in: `process` is the sandbox, where images are ignored; `docker` and `podman` run the images.

    `auto`: the sandbox, or containers where this machine does not let us make one. Whether a step may leave its command
    to its image is decided when its run is created, by the same setting of the run service: under `auto` it may not.
    """

    step_python: str = msgspec.field(default_factory=server_python)
    """What `python` and `python3` mean inside a step: a path, or a name that our PATH leads to.

    The python of a virtual environment brings that environment's packages.
    """

    step_environment: str = ""
    """Variables that every step gets: `NAME=VALUE` words, quoted as in a shell. Proxies and package indexes go here.

    What the pipeline itself says wins. Steps can read all of it, so it is no place for the server's secrets.
    """

    step_masked_paths: tuple[str, ...] = ()
    """Host paths no step may see: the server's data directory and secrets. `steps_dir` is always one."""

    step_host_directories: tuple[str, ...] = ("/usr", "/etc", "/var", "/opt")
    """Host directories that steps see, each under a private writable layer, which costs every step about 0.4 ms.

    People's homes are not among them: keys and cloud credentials lie there. Of a home that holds `step_python` steps
    see the interpreter's own directory.
    """

    step_limits: bool = True
    """Whether steps are kept to the memory and the processors that their manifest limits them to.

    Memory: by control groups where this user may make them, else by a look a few times a second. Processors: by control
    groups alone.
    """

    step_grace_seconds: float = 5.0
    """Between TERM and KILL."""

    stop_steps: Literal["wait", "interrupt"] = "wait"
    """What an orderly stop does to steps that run.

    `wait`: they may end, for a while or until a second signal. `interrupt`: they are stopped at once. A step that was
    interrupted is a failed attempt, as one whose machine was lost: its retry rules decide.
    """

    stop_wait_seconds: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    """How long `wait` waits; what still runs then is interrupted."""

    step_bubblewrap: str = ""
    """Another bwrap (0.11 or newer) than the wheel's."""

    def __post_init__(self) -> None:
        _ = self.step_variables

    @property
    def step_variables(self) -> dict[str, str]:
        """`step_environment` by name. Raises ValueError."""
        try:
            words = shlex.split(self.step_environment)
        except ValueError as error:
            raise ValueError(f"HEADRACE_STEP_ENVIRONMENT cannot be read: {error}") from error
        for word in words:
            if not _VARIABLE.match(word):
                raise ValueError(f"HEADRACE_STEP_ENVIRONMENT holds what is no NAME=VALUE: {word!r}")
        return dict(word.split("=", 1) for word in words)
