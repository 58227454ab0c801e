"""What is said on the runner's socket, and what is kept on disk: one vocabulary for both.

A connection carries one request, a line of JSON, and its replies, a line each. There is no other state on a
connection, so that a client that reconnects has lost nothing.
"""

from __future__ import annotations

from datetime import datetime
from enum import Enum

import msgspec

from services.run.engine.embedded.runtime import StepSpec
from services.run.engine.embedded.runtime.tree import Tree

MAX_LINE_BYTES = 64 * 1024 * 1024


class End(Enum):
    """Why a step is over."""

    EXITED = "exited"
    COULD_NOT_START = "could-not-start"
    KILLED = "killed"
    """Somebody asked for it; `reason` is theirs."""
    DEADLINE = "deadline"
    INTERRUPTED = "interrupted"
    """The runner was stopped; what the step would have done is unknown."""


class StepStart(msgspec.Struct, frozen=True, kw_only=True):
    """`start.json`: written before the first process, so that its absence proves that nothing ran."""

    key: str
    started_at: datetime
    runtime: str
    tree: Tree | None = None
    """Of the main process; None when it could not be laid out."""


class StepExit(msgspec.Struct, frozen=True, kw_only=True):
    """`exit.json`: how the step ended."""

    key: str
    end: End
    exit_code: int
    """Of the process named by `blamed`; 128+s when signal s ended it; 0 when none is."""
    signal: int | None = None
    blamed: str | None = None
    """init-N, main or sidecar-N: the first that failed, in the order of blame."""
    out_of_memory: bool = False
    """`blamed` was killed because it wanted more than its limit."""
    reason: str = ""
    """Why it was killed or could not start."""
    processes: dict[str, int] = {}
    """The exit code of every process that ran."""
    started_at: datetime
    finished_at: datetime


class StepStarted(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    key: str
    started_at: datetime


class StepExited(msgspec.Struct, frozen=True, kw_only=True, tag="exited"):
    key: str
    exit: StepExit


class StepLost(msgspec.Struct, frozen=True, kw_only=True, tag="lost"):
    """The step was started and is gone, and nobody saw its end."""

    key: str
    reason: str


Event = StepStarted | StepExited | StepLost


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """Answered once `start.json` is durable, with the step's state. Repeating it attaches."""

    spec: StepSpec


class Kill(msgspec.Struct, frozen=True, kw_only=True, tag="kill"):
    """Answered at once; harmless for a step that is over or unknown."""

    key: str
    reason: str


class Forget(msgspec.Struct, frozen=True, kw_only=True, tag="forget"):
    """Answered when the attempts' directories are out of sight; refused for one that runs, harmless when unknown."""

    keys: tuple[str, ...]


class List(msgspec.Struct, frozen=True, kw_only=True, tag="list"):
    """Answered with one event per known attempt."""


class Watch(msgspec.Struct, frozen=True, kw_only=True, tag="watch"):
    """Answered with one event per known attempt, then with every change, for ever."""


class Log(msgspec.Struct, frozen=True, kw_only=True, tag="log"):
    """Answered with chunks from byte `offset` on; with `follow` until the step is over."""

    key: str
    offset: int = 0
    follow: bool = False


class Info(msgspec.Struct, frozen=True, kw_only=True, tag="info"):
    pass


Request = Start | Kill | Forget | List | Watch | Log | Info


class LogChunk(msgspec.Struct, frozen=True, kw_only=True, tag="log-chunk"):
    data: bytes


class RunnerInfo(msgspec.Struct, frozen=True, kw_only=True, tag="info"):
    runtime: str
    weaker: str | None
    """What is less than a full sandbox, why, and how to mend it."""
    steps_dir: str
    python: str
    limits: str = "nothing"
    """What keeps the limits of memory and of processor time."""
    running: int = 0
    """Steps that have begun and are not over."""
    is_watched: bool = False
    """Somebody hears how steps end: an engine is at work."""


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """The last reply, where nothing more is to be said."""


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The last reply, where the request cannot be carried out."""

    reason: str


Reply = StepStarted | StepExited | StepLost | LogChunk | RunnerInfo | Done | Refused
