"""How much of the machine a process of a step may use, kept by the kernel's control groups where we may make some, else
by looking at what its processes hold in memory.

A process that wants more memory than its limit is killed with all it begot, as a container is; one that wants more
processor time is slowed down, or not where there are no control groups. Limits of the address space (RLIMIT_AS) serve
neither: they count what is reserved, so that a JVM or a program of Go would not even start, they hold for each process
alone, and who meets them gets an error instead of an end.

Groups are made below one of our own, in the group this process is in or, in version 2 of the kernel's interface, where
a group with processes in it has no others, in the nearest one above it that we may use. Nothing else is changed there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from services.run.engine.embedded.runtime import Process
from services.run.engine.embedded.runtime import process as processes

_PERIOD_MICROSECONDS = 100_000
_SHORTEST_QUOTA_MICROSECONDS = 1000
_WATCH_SECONDS = 0.2
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_UNIFIED = ""
"""Version 2 has one hierarchy for all controllers; the kernel lists it without a name."""
_NOT_EVERYWHERE = ("memory.swap.max", "memory.memsw.limit_in_bytes", "memory.oom.group")
"""A kernel may be built without, or be too old."""
_ENTER = 'while [ "$1" != -- ]; do echo $$ >"$1" || exit 1; shift; done; shift; exec "$@"'
"""A shell that joins groups and becomes the command: whatever that begets is in there, too."""


class Bound(Protocol):
    """The limits of one process that is about to start."""

    words: tuple[str, ...]
    """What is put before its command."""

    def began(self, pid: int, kill: Callable[[], None]) -> None:
        """It runs as `pid`; `kill` ends it with everything it begot."""

    def ended(self) -> bool:
        """It is over, with everything it begot: whether for the memory it wanted. Gives everything back."""


class Keeper(Protocol):
    """A way of keeping limits."""

    name: str

    def bound(self, process: Process) -> Bound | None:
        """None where it has no limit that can be kept. Raises OSError."""

    def close(self) -> None:
        """Leave nothing behind. What still runs is kept no more."""


class ControlGroups:
    """`memory` and `cpu` are groups of our own, in version 2 the same one; without `cpu` only memory is limited."""

    def __init__(self, *, version: int, memory: Path, cpu: Path | None) -> None:
        self.name = f"control groups of version {version}" + ("" if cpu else ", memory alone")
        self._version = version
        self._memory = memory
        self._cpu = cpu
        self._numbers = itertools.count()
        for directory in self._own():
            directory.mkdir(exist_ok=True)
        self._empty()  # a former runner's

    def bound(self, process: Process) -> Bound | None:
        name = f"{os.getpid()}.{next(self._numbers)}"
        limited: dict[Path, dict[str, int | str]] = {}
        if process.memory_bytes is not None:
            limited.setdefault(self._memory / name, {}).update(self._of_memory(process.memory_bytes))
        if process.cpu_millis is not None and self._cpu is not None:
            limited.setdefault(self._cpu / name, {}).update(self._of_cpu(process.cpu_millis))
        if not limited:
            return None
        for group, values in limited.items():
            group.mkdir()
            for file, value in values.items():
                with contextlib.suppress(*([FileNotFoundError] if file in _NOT_EVERYWHERE else [])):
                    _write(group / file, value)
        events = "memory.events" if self._version == 2 else "memory.oom_control"
        return _InGroups(tuple(limited), events if process.memory_bytes is not None else None)

    def close(self) -> None:
        self._empty()
        for directory in self._own():
            with contextlib.suppress(OSError):
                directory.rmdir()

    def _of_memory(self, limit: int) -> dict[str, int | str]:
        if self._version == 2:
            return {"memory.max": limit, "memory.swap.max": 0, "memory.oom.group": 1}
        return {"memory.limit_in_bytes": limit, "memory.memsw.limit_in_bytes": limit}

    def _of_cpu(self, millis: int) -> dict[str, int | str]:
        quota = max(_SHORTEST_QUOTA_MICROSECONDS, millis * _PERIOD_MICROSECONDS // 1000)
        if self._version == 2:
            return {"cpu.max": f"{quota} {_PERIOD_MICROSECONDS}"}
        return {"cpu.cfs_period_us": _PERIOD_MICROSECONDS, "cpu.cfs_quota_us": quota}

    def _own(self) -> set[Path]:
        return {self._memory, self._cpu or self._memory}

    def _empty(self) -> None:
        for directory in self._own():
            for group in directory.iterdir():
                if group.is_dir():
                    with contextlib.suppress(OSError):  # the last of its processes is about to be gone
                        group.rmdir()


class _InGroups:
    def __init__(self, groups: tuple[Path, ...], events: str | None) -> None:
        self.words = ("/bin/sh", "-c", _ENTER, "sh", *(str(group / "cgroup.procs") for group in groups), "--")
        self._groups = groups
        self._events = None if events is None else groups[0] / events
        self._notice = -1
        self._has_exceeded = False

    def began(self, pid: int, kill: Callable[[], None]) -> None:
        """Version 2 kills the whole group by itself; version 1 kills one process of it and gives notice."""
        if self._events is None or self._events.name != "memory.oom_control":
            return
        self._notice = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        watched = os.open(self._events, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _write(self._groups[0] / "cgroup.event_control", f"{self._notice} {watched}")
        finally:
            os.close(watched)
        asyncio.get_running_loop().add_reader(self._notice, self._heard, kill)

    def _heard(self, kill: Callable[[], None]) -> None:
        asyncio.get_running_loop().remove_reader(self._notice)
        self._has_exceeded = True
        kill()

    def ended(self) -> bool:
        if self._notice >= 0:
            asyncio.get_running_loop().remove_reader(self._notice)
            os.close(self._notice)
        if self._events is not None:
            self._has_exceeded |= _number(self._events, "oom_kill") > 0
        for group in self._groups:
            with contextlib.suppress(OSError):  # removed with the others in the end
                group.rmdir()
        return self._has_exceeded


class Watch:
    """Looks at what processes hold in memory, a few times a second: for a moment they may have had more."""

    name = "a watch over memory alone"

    def __init__(self) -> None:
        self._watched: set[_Watched] = set()
        self._watching: asyncio.Task[None] | None = None

    def bound(self, process: Process) -> Bound | None:
        return None if process.memory_bytes is None else _Watched(self, process.memory_bytes)

    def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

    def add(self, watched: _Watched) -> None:
        self._watched.add(watched)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), name="watch the memory of steps")

    def discard(self, watched: _Watched) -> None:
        self._watched.discard(watched)

    async def _watch(self) -> None:
        while self._watched:
            await asyncio.sleep(_WATCH_SECONDS)
            children = await asyncio.to_thread(processes.children)
            for watched in list(self._watched):
                if await asyncio.to_thread(watched.is_over, children):
                    watched.end()


class _Watched:
    words: tuple[str, ...] = ()

    def __init__(self, watch: Watch, limit: int) -> None:
        self._watch = watch
        self._limit = limit
        self._pid = 0
        self._kill: Callable[[], None] = lambda: None
        self._has_exceeded = False

    def began(self, pid: int, kill: Callable[[], None]) -> None:
        self._pid, self._kill = pid, kill
        self._watch.add(self)

    def ended(self) -> bool:
        self._watch.discard(self)
        return self._has_exceeded

    def is_over(self, children: Mapping[int, Sequence[int]]) -> bool:
        own = list(processes.descendants(self._pid, children))
        # What is resident counts shared pages once for each process, and costs a hundredth of the exact amount.
        return sum(map(_resident_bytes, own)) > self._limit and sum(map(_own_bytes, own)) > self._limit

    def end(self) -> None:
        self._has_exceeded = True
        self._kill()


def find_control_groups(
    name: str, *, mounts: Path = Path("/proc/self/mountinfo"), own: Path = Path("/proc/self/cgroup")
) -> ControlGroups | None:
    """A group `name` in which memory can be limited, if this process may make one."""
    places = _places(mounts.read_text(), own.read_text())
    try:
        if "memory" in places:
            memory, cpu = places["memory"][-1], places.get("cpu", (None,))[-1]
            may_limit_cpu = cpu is not None and os.access(cpu, os.W_OK)
            return ControlGroups(version=1, memory=memory / name, cpu=cpu / name if cpu and may_limit_cpu else None)
    except OSError:
        return None
    for above in reversed(places.get(_UNIFIED, ())):
        with contextlib.suppress(OSError):
            return _unified(above / name)
    return None


def _places(mounts: str, own: str) -> dict[str, tuple[Path, ...]]:
    """For each controller the groups that this process is in, the outermost first."""
    ours: dict[str, PurePosixPath] = {}
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        ours.update(dict.fromkeys(controllers.split(","), PurePosixPath(path)))
    places: dict[str, tuple[Path, ...]] = {}
    for line in mounts.splitlines():
        place, _, what = line.partition(" - ")
        root, mounted_at = place.split()[3:5]
        kind, _, options = what.split()[:3]
        if kind not in ("cgroup", "cgroup2"):
            continue
        for controller in options.split(",") if kind == "cgroup" else [_UNIFIED]:
            own_path = ours.get(controller)
            if own_path is not None and own_path.is_relative_to(root):
                inside = own_path.relative_to(root)
                places[controller] = tuple(Path(mounted_at) / each for each in (*reversed(inside.parents), inside))
    return places


def _unified(directory: Path) -> ControlGroups:
    """Raises OSError where memory cannot be limited in there."""
    directory.mkdir(exist_ok=True)
    try:
        given = (directory / "cgroup.controllers").read_text().split()
        wanted = [controller for controller in ("memory", "cpu") if controller in given]
        _write(directory / "cgroup.subtree_control", " ".join(f"+{controller}" for controller in wanted))
        if "memory" in wanted:
            return ControlGroups(version=2, memory=directory, cpu=directory if "cpu" in wanted else None)
        raise FileNotFoundError(f"{directory} has no controller of memory")
    except OSError:
        directory.rmdir()
        raise


def _write(file: Path, value: int | str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def _number(file: Path, key: str) -> int:
    for line in file.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _own_bytes(pid: int) -> int:
    """What is its alone, and its part of what it shares with others; files that are mapped count for nobody."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    kibibytes = (line.split()[1] for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return sum(map(int, kibibytes)) * 1024
