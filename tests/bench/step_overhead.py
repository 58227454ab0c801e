"""What a step costs beyond its process: a chain of steps that do nothing but note the time, one after the other.

Through the API, from one step's beginning to the next one's, with an artifact handed on and without; and through the
step runner alone, which is what the sandbox, its journal and its socket cost without any workflow. The floor is fork
and exec of the same command.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from services.run.engine.embedded.runner.client import RunnerClient
from services.run.engine.embedded.runner.protocol import End, StepExited, StepLost
from services.run.engine.embedded.runtime import Process, StepSpec
from services.run.engine.embedded.runtime.choice import find_bubblewrap
from tests.bench.creation import client
from tests.bench.engine_runs import Finals, Notes, chain_of, listening, paces, relay_of, submit
from tests.bench.figures import Floor, Reading, Result, Row, Unit, median, percentile
from tests.bench.house import House, empty_folder, rest, standing
from tests.bench.processes import Meter

NAME = "step-overhead"
ABOUT = "an embedded step beyond the bare process: chains of 50, with artifacts and without, and the step runner alone"

STEPS = 50

_REPETITIONS = 3
_ENDS_WITHIN_SECONDS = 60


async def measure() -> Result:
    bare: list[float] = []
    boxed: list[float] = []
    alone: list[float] = []
    plain: list[list[float]] = []
    handing_on: list[list[float]] = []
    latencies: list[float] = []
    command = Notes.command("/dev/null")
    with standing() as house:
        meter, meter_of_artifacts = Meter(), Meter()
        async with _runner() as runner, client() as session, listening(house) as finals:
            chains = _Chains(house, session, finals)
            await runner.start(_spec("warm-up", command))
            await chains.paces("warm-up", chain_of, steps=2)
            await chains.paces("warm-up-artifacts", relay_of, steps=2)
            for repetition in range(_REPETITIONS):
                await rest(0.5)
                bare.append(_fork_and_exec(command))
                boxed.append(_fork_and_exec((*_sandbox(), *command)))
                alone.append(await _through_the_runner(runner, f"rep-{repetition}", command))
                with meter.running():
                    plain.append(await chains.paces(f"plain-{repetition}", chain_of))
                with meter_of_artifacts.running():
                    handing_on.append(await chains.paces(f"artifacts-{repetition}", relay_of))
                latencies.append(await chains.latency(f"single-{repetition}"))
    floors = (
        Floor(what=f"fork and exec of {command[0]}", reading=median([seconds * 1000 for seconds in bare])),
        Floor(what="the same in bare bubblewrap", reading=median([seconds * 1000 for seconds in boxed])),
    )
    own = floors[0].reading.value
    beyond, beyond_with = ([[pace - own for pace in paces] for paces in each] for each in (plain, handing_on))
    rows = (
        _row("embedded step, each of a chain of 50, median", percentile(beyond, 50), floors, budget=10),
        _row("embedded step, each of a chain of 50, p99", percentile(beyond, 99), floors),
        _row("with an artifact in and out, median", percentile(beyond_with, 50), floors),
        _row("with an artifact in and out, p99", percentile(beyond_with, 99), floors),
        _row("through the step runner alone, median", median([seconds * 1000 - own for seconds in alone]), floors),
        _row("run of one step, from the reply to its end", median([each * 1000 for each in latencies]), floors),
    )
    notes = (
        "steps: a figure is what a step takes beyond its floor (the whole run of one step: with it), and the ratio is "
        "that to the floor",
        f"a step of the chain costs {meter.each(STEPS * _REPETITIONS)}",
        f"and with an artifact in and out {meter_of_artifacts.each(STEPS * _REPETITIONS)}",
    )
    return Result(rows=rows, notes=notes)


def _row(quantity: str, figure: Reading, floors: tuple[Floor, ...], budget: float | None = None) -> Row:
    return Row(quantity=quantity, unit=Unit.MILLISECONDS, figure=figure, floors=floors, budget=budget)


def _fork_and_exec(command: Sequence[str]) -> float:
    """Seconds for one, the median of as many as the chain has."""
    seconds = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        subprocess.run(command, check=True)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _sandbox() -> tuple[str, ...]:
    """A namespace for its processes and the host's files as they are: less than any step gets."""
    program = find_bubblewrap()
    assert program is not None, "bubblewrap is not installed"
    return (program, "--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc")


# Through the API.


class _Chains:
    def __init__(self, house: House, session: aiohttp.ClientSession, finals: Finals) -> None:
        self._house = house
        self._session = session
        self._finals = finals
        self._notes = Notes(house)

    async def paces(
        self, name: str, shape: Callable[[Mapping[str, Any], int], str], *, steps: int = STEPS + 1
    ) -> list[float]:
        """Milliseconds from each step's beginning to the next one's."""
        await self._run(name, shape, steps)
        return paces(self._notes.read(name))

    async def latency(self, name: str) -> float:
        """Seconds from the reply to the fact that a run of one step has succeeded."""
        return await self._run(name, chain_of, 1)

    async def _run(self, name: str, shape: Callable[[Mapping[str, Any], int], str], steps: int) -> float:
        run_id = await submit(self._house, self._session, name, self._notes.of(name, shape, steps))
        begin = time.perf_counter()
        await self._finals.until_succeeded(run_id, within_seconds=_ENDS_WITHIN_SECONDS)
        return time.perf_counter() - begin


# Through the step runner alone.


@asynccontextmanager
async def _runner() -> AsyncIterator[RunnerClient]:
    with empty_folder() as room:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.run.engine.embedded.runner"),
            env={
                "PATH": os.environ["PATH"],
                "HEADRACE_STEP_RUNNER_SOCKET": str(room / "runner.sock"),
                "HEADRACE_STEPS_DIR": str(room / "steps"),
            },
            cwd=Path(__file__).parents[2],
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            yield RunnerClient(str(room / "runner.sock"))
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _through_the_runner(runner: RunnerClient, name: str, command: Sequence[str]) -> float:
    """Seconds for one, the median of as many as the chain has, each started when the one before is over."""
    seconds = []
    async with contextlib.aclosing(runner.events()) as events:
        for number in range(STEPS):
            key = f"{name}-{number}"
            begin = time.perf_counter()
            await runner.start(_spec(key, command))
            async for event in events:
                if event.key == key and isinstance(event, StepExited | StepLost):
                    break
            seconds.append(time.perf_counter() - begin)
            if not isinstance(event, StepExited) or event.exit.end is not End.EXITED or event.exit.exit_code != 0:
                raise RuntimeError(f"the step ended otherwise: {event}")
    return statistics.median(seconds)


def _spec(key: str, command: Sequence[str]) -> StepSpec:
    return StepSpec(key=key, main=Process(argv=tuple(command)))
