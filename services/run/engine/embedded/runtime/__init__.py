"""The port between a step and the machine: what a step is, and what a way of running it must offer.

A step is described completely by its `StepSpec`: nothing is looked up later, so the same description can be
kept on disk, attached to again after a crash, and run by any implementation. This package knows processes,
files and mounts; it refuses to know workflows, templates, retries, object stores and databases.

    sandbox.py   a step in namespaces of its own (bubblewrap)
    container.py a step in containers of docker or podman
    choice.py    the probe that decides, by really running something
    process.py   a child process seen from outside: its end, its descendants, its signals
    limits.py    how much of the machine a process may use
    tree.py      where a path of the step lies on the host
    placing.py   what is put there before its start
    launcher.py  what v2-compatible steps start, inside themselves
    download.py  what fetches an artifact at a URL, in a sandbox of its own
    archive.py   outputs to tgz and back
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Protocol

import msgspec

from services.run.engine.embedded.runtime.tree import Tree

Key = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,199}$")]
"""Names an attempt and its directory: chosen by the controller, the same for the same (run, node, attempt)."""


class Mount(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A host directory seen at `target`; `sub_path` (made when absent) selects a part of it."""

    source: str
    target: str
    read_only: bool = False
    sub_path: str = ""


class Process(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A program to run; `env` is final, on top of the small fixed environment of the runtime."""

    argv: tuple[str, ...]
    runs_entrypoint: bool = False
    """`argv` are arguments of the program that the image names."""
    image: str = ""
    env: dict[str, str] = {}
    cwd: str = ""
    """Empty: the image's own, else the root."""
    mounts: tuple[Mount, ...] = ()
    memory_bytes: int | None = None
    """The most that it and what it begets may hold in memory."""
    cpu_millis: int | None = None
    """The most processor time they may have, in thousandths of a processor."""


class Placement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A writable copy put at `target` before the start: of `source` (a file or directory of the host) or of `text`."""

    target: str
    source: str | None = None
    text: str | None = None
    mode: int | None = None

    def __post_init__(self) -> None:
        if (self.source is None) == (self.text is None):
            raise ValueError("a placement has either a source or a text")


class StepSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt of one step.

    `init` run in order, each must exit 0; `sidecars` live beside `main` and are stopped when it ends. Every process
    has a private tree and mounts of its own, as containers of a pod have; `files` and `make_directories` belong to
    main's, and what lies under a mount goes into the mount. `outputs` are the paths that will be collected from main's
    tree. With `keep_stdout` what main writes there is kept by itself, too, without what it says to stderr.
    """

    key: Key
    main: Process
    init: tuple[Process, ...] = ()
    sidecars: tuple[Process, ...] = ()
    files: tuple[Placement, ...] = ()
    make_directories: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    deadline_seconds: float | None = None
    keep_stdout: bool = False


class CannotStart(Exception):
    """The step cannot become a process; the text says why, in words for the pipeline's author."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a process ended: its exit code, 128+s when a signal s ended it, or why it never began."""

    exit_code: int
    could_not_start: str | None = None
    out_of_memory: bool = False
    """It was killed because it wanted more than its limit."""


class Running(Protocol):
    """A started process with everything it begets."""

    async def wait(self) -> Ended:
        """Return when the process and all its descendants are gone."""

    def terminate(self) -> None:
        """Ask: TERM to every process at once."""

    def kill(self) -> None:
        """Do not ask."""


class Runtime(Protocol):
    """A way of turning steps into processes. `lay_out` and `prepare` block on the disk; `start` does not."""

    name: str

    def lay_out(self, spec: StepSpec, name: str, home: Path) -> Tree:
        """Decide where each path of process `name` of the step will lie; `home` is a directory for it alone.

        Raises CannotStart.
        """

    def prepare(self, spec: StepSpec, name: str, home: Path, tree: Tree) -> None:
        """Make the directories and place the files. Raises CannotStart."""

    def first_line(self, spec: StepSpec) -> str:
        """What the step's log begins with; empty where there is nothing to say."""

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
        """Start; stdout and stderr go to the file descriptor `log`, or stdout to its own. Raises CannotStart.

        At its end `outputs` lie where the tree says, as far as it left them.
        """

    def close(self) -> None:
        """No process of a step is left: leave nothing else behind."""


MAIN = "main"

CONTAINER_ENGINES = ("docker", "podman")
"""Runtimes whose processes are another's children, and outlive ours."""

Wanted = Literal["auto", "process", "docker", "podman"]
"""A runtime, or the sandbox (`process`) where it can be had and containers where it cannot."""


def processes_of(spec: StepSpec) -> dict[str, Process]:
    """Every process of the step under its name: init-0, …, main, sidecar-0, …"""
    return {
        **{f"init-{n}": process for n, process in enumerate(spec.init)},
        MAIN: spec.main,
        **{f"sidecar-{n}": process for n, process in enumerate(spec.sidecars)},
    }
