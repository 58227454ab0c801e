"""From the command to the first answers: `headrace up` on a fresh folder (cold), and again on the same one (warm)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from infra.embedded.ports import free_ports
from infra.embedded.readiness import http_status
from tests.bench.backing import backing_servers
from tests.bench.figures import Floor, Result, Row, Unit, median
from tests.bench.house import empty_folder

NAME = "start"
ABOUT = "cold and warm start of the embedded stack, to the first 200"

_REPETITIONS = 3
_LOOK_EVERY_SECONDS = 0.01
_READY_WITHIN_SECONDS = 90
_STOP_WITHIN_SECONDS = 30
_HEALTHZ = "/apis/v1beta1/healthz"
_EXPERIMENTS = "/apis/v1beta1/experiments"


class Times(msgspec.Struct, kw_only=True):
    """In seconds, repetition by repetition."""

    servers: list[float] = []
    healthz: list[float] = []
    experiments: list[float] = []
    stop: list[float] = []


async def measure() -> Result:
    python: list[float] = []
    cold, warm = Times(), Times()
    for _ in range(_REPETITIONS):
        with empty_folder() as folder:
            python.append(_bare_python())
            for times in (cold, warm):
                times.servers.append(await _servers(folder / "servers"))
                await _stack(folder / "stack", times)
    rows = [
        row for kind, times, budget in (("cold", cold, None), ("warm", warm, 6.0)) for row in _rows(kind, times, budget)
    ]
    note = (
        f"start: a bare `python -c pass` takes {median(python).value:.2f} s; "
        f"an orderly stop takes {median(warm.stop).value:.1f} s"
    )
    return Result(rows=tuple(rows), notes=(note,))


def _rows(kind: str, times: Times, budget: float | None) -> list[Row]:
    floors = (Floor(what="the three servers alone", reading=median(times.servers)),)
    return [
        Row(
            quantity=f"{kind} start, to the first 200 of {title}",
            unit=Unit.SECONDS,
            figure=median(seconds),
            floors=floors,
            budget=budget,
        )
        for title, seconds in (("healthz", times.healthz), ("a list of experiments", times.experiments))
    ]


def _bare_python() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - begin


async def _servers(path: Path) -> float:
    begin = time.perf_counter()
    async with backing_servers(path):
        return time.perf_counter() - begin


async def _stack(data_dir: Path, times: Times) -> None:
    (port,) = free_ports(1)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    begin = time.perf_counter()
    process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs in this loop
        [sys.executable, "-m", "infra.cli", "up", "--port", str(port), "--data-dir", str(data_dir)],
        stdout=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_READY_WITHIN_SECONDS):
            await _until_200(process, port, _HEALTHZ)
            times.healthz.append(time.perf_counter() - begin)
            await _until_200(process, port, _EXPERIMENTS)
            times.experiments.append(time.perf_counter() - begin)
    finally:
        begin = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=_STOP_WITHIN_SECONDS)
        times.stop.append(time.perf_counter() - begin)


async def _until_200(process: subprocess.Popen[bytes], port: int, path: str) -> None:
    while await http_status(port, path) != 200:
        if process.poll() is not None:
            raise RuntimeError(f"headrace up ended with {process.returncode}")
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
