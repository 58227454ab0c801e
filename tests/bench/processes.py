"""The process table of Linux: who belongs to a stack, how much of the memory is whose, and who else was busy."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

_GONE = (FileNotFoundError, ProcessLookupError)
_PROGRAMS = {"postgres": "postgres", "nats-server": "nats", "weed": "object-store"}


class Process(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    name: str
    """A service's name, a server's, or the program's where it is neither."""


def family(pid: int) -> list[Process]:
    """The process and all that descend from it."""
    children = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(*_GONE):
                children[_parent(entry)].append(int(entry.name))

    def walk(root: int) -> Iterator[Process]:
        with suppress(*_GONE):
            yield Process(pid=root, name=_name(root))
        for child in children[root]:
            yield from walk(child)

    return list(walk(pid))


def pss_mebibytes(process: Process) -> float:
    """What the process holds, pages shared by n processes counted as an n-th; 0 when it is gone."""
    with suppress(*_GONE):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


class Meter:
    """What this process and all its descendants use of the processors while the meter runs; it may run many times.

    It says what dominates, and hardly changes with what else the machine does.
    """

    def __init__(self) -> None:
        self._used: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def running(self) -> Iterator[None]:
        before = self._read()
        yield
        for name, seconds in self._read().items():
            self._used[name] += seconds - before.get(name, 0.0)

    def each(self, count: int) -> str:
        """The sum and its parts, for one of the `count` things that were done meanwhile."""
        milliseconds = {name: seconds * 1000 / count for name, seconds in self._used.items()}
        largest = sorted(milliseconds, key=lambda name: -milliseconds[name])
        parts = ", ".join(f"{name} {milliseconds[name]:.2f}" for name in largest if milliseconds[name] >= 0.01)
        return f"{sum(milliseconds.values()):.2f} ms of a processor each: {parts}"

    def _read(self) -> dict[str, float]:
        used: defaultdict[str, float] = defaultdict(float)
        for process in family(os.getpid()):
            is_client = process.pid == os.getpid()
            with suppress(*_GONE):
                # Of the client alone, and of all others with their children that have ended: steps are such children.
                ticks = _stat(Path(f"/proc/{process.pid}"))[11 : 13 if is_client else 15]
                used["this client" if is_client else process.name] += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        return used


class Strangers:
    """How busy everybody else keeps this machine: figures taken beside a busy stranger are figures of both."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._foreign_at_begin = self._foreign_seconds()

    def processors(self) -> float:
        """So many of the processors, on average, worked since the beginning for none of our processes.

        Ours are this one and those of its descendants that have ended, so ask when a benchmark has cleared up.
        """
        return max(0.0, self._foreign_seconds() - self._foreign_at_begin) / (time.monotonic() - self._begin)

    @staticmethod
    def _foreign_seconds() -> float:
        user, nice, system, _idle, _iowait, irq, softirq, steal, *_guest = (
            int(ticks) for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        )
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return busy - sum(os.times()[:4])


def _parent(entry: Path) -> int:
    return int(_stat(entry)[1])


def _stat(entry: Path) -> list[str]:
    """From the state on: the program's name before it stands in brackets and may hold anything."""
    return (entry / "stat").read_text().rpartition(")")[2].split()


def _name(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")
    match words:
        case [_, "-m", "infra.cli", "serve", name, *_]:
            return name
        case [_, "-m", "infra.cli", "up", *_]:
            return "supervisor"
        case [_, "-m", module, *_]:
            # The step runner replaces the command that names it.
            return "step-runner" if module.endswith(".runner") else module.rpartition(".")[2]
        case _:
            program = words[0].rpartition("/")[2].partition(":")[0]
            return _PROGRAMS.get(program, program)
