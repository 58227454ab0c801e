"""What the step runner counts, as Prometheus reads it.

Written by hand: the library that the other processes use brings an HTTP server and OpenSSL, and would be the largest
thing in a process that is kept small. Names, units and closed sets of labels are as everywhere.
"""

from __future__ import annotations

import os
import resource
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping

from services.run.engine.embedded.runner.protocol import End, StepExit

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS_SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)


class Figures:
    """Of one process, from its start on."""

    def __init__(self) -> None:
        self._begun_at_seconds = time.time()
        self._started = 0
        self._ended = dict.fromkeys(End, 0)
        self._durations = [0] * (len(_BUCKETS_SECONDS) + 1)
        self._sum_seconds = 0.0

    def step_started(self) -> None:
        self._started += 1

    def step_ended(self, exit: StepExit) -> None:
        seconds = (exit.finished_at - exit.started_at).total_seconds()
        self._ended[exit.end] += 1
        self._durations[bisect_left(_BUCKETS_SECONDS, seconds)] += 1
        self._sum_seconds += seconds

    def exposition(self, *, running: int, is_watched: bool) -> str:
        """All of them, in Prometheus' text format."""
        return "\n".join(self._lines(running, is_watched)) + "\n"

    def _lines(self, running: int, is_watched: bool) -> Iterator[str]:
        yield from _one("headrace_runner_steps_running", "gauge", "Steps that have begun and are not over.", running)
        yield from _one(
            "headrace_runner_watched", "gauge", "1 while an engine hears how steps end, else 0.", int(is_watched)
        )
        yield from _one("headrace_runner_steps_started_total", "counter", "Steps that have begun.", self._started)
        yield from _family(
            "headrace_runner_steps_ended_total",
            "counter",
            "Steps that are over, by how they ended.",
            {f'{{end="{end.value}"}}': count for end, count in self._ended.items()},
        )
        yield from self._histogram("headrace_runner_step_duration_seconds", "From a step's start to its end.")
        yield from _one("process_start_time_seconds", "gauge", "Since the epoch.", self._begun_at_seconds)
        times = os.times()
        yield from _one(
            "process_cpu_seconds_total", "counter", "Of this process, without its steps.", times.user + times.system
        )
        with open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[1])
        resident = pages * resource.getpagesize()
        yield from _one("process_resident_memory_bytes", "gauge", "Without its steps.", resident)
        yield from _one("process_open_fds", "gauge", "Open descriptors.", len(os.listdir("/proc/self/fd")))

    def _histogram(self, name: str, about: str) -> Iterator[str]:
        yield from (f"# HELP {name} {about}", f"# TYPE {name} histogram")
        count = 0
        for bound, here in zip((*map(str, _BUCKETS_SECONDS), "+Inf"), self._durations, strict=True):
            count += here
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f"{name}_sum {self._sum_seconds}"
        yield f"{name}_count {count}"


def _one(name: str, kind: str, about: str, value: float) -> Iterator[str]:
    return _family(name, kind, about, {"": value})


def _family(name: str, kind: str, about: str, values: Mapping[str, float]) -> Iterator[str]:
    yield from (f"# HELP {name} {about}", f"# TYPE {name} {kind}")
    yield from (f"{name}{labels} {value}" for labels, value in values.items())
