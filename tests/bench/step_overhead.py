"""What a step costs beyond its process: a chain of steps that do nothing, one after the other.

Through the API, from the reply that accepts the run to the fact that it has succeeded; and through the step runner
alone, which is what the sandbox, its journal and its socket cost without any workflow. The floor is fork and exec of
the same command.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from services.run.engine.embedded.runner.client import RunnerClient
from services.run.engine.embedded.runner.protocol import End, StepExited, StepLost
from services.run.engine.embedded.runtime import Process, StepSpec
from services.run.engine.embedded.runtime.choice import find_bubblewrap
from tests.bench.creation import client
from tests.bench.engine_runs import Finals, chain_of, listening, submit
from tests.bench.figures import Floor, Result, Row, Unit, median
from tests.bench.house import House, empty_folder, rest, standing
from tests.bench.processes import Meter

NAME = "step-overhead"
ABOUT = "an embedded step beyond the bare process: a chain of 50, and through the step runner alone"

STEPS = 50

_REPETITIONS = 3
_COMMAND = ("sh", "-c", "true")
_ENDS_WITHIN_SECONDS = 60
_NOTHING = {"name": "nothing", "container": {"image": "alpine", "command": list(_COMMAND)}}


async def measure() -> Result:
    bare: list[float] = []
    boxed: list[float] = []
    alone: list[float] = []
    chained: list[float] = []
    latencies: list[float] = []
    with standing() as house:
        meter = Meter()
        async with _runner() as runner, client() as session, listening(house) as finals:
            await _step(runner, "warm-up")
            await _chain(house, session, finals, steps=1)
            for repetition in range(_REPETITIONS):
                await rest(0.5)
                bare.append(_fork_and_exec(_COMMAND))
                boxed.append(_fork_and_exec((*_sandbox(), *_COMMAND)))
                alone.append(await _through_the_runner(runner, f"rep-{repetition}"))
                with meter.running():
                    chained.append(await _chain(house, session, finals, steps=STEPS) / STEPS)
                latencies.append(await _chain(house, session, finals, steps=1))
    floors = (
        Floor(what=f"fork and exec of {' '.join(_COMMAND)}", reading=median([seconds * 1000 for seconds in bare])),
        Floor(what="the same in bare bubblewrap", reading=median([seconds * 1000 for seconds in boxed])),
    )
    rows = (
        _row("embedded step, chain of 50 through the API, each", chained, floors, beyond=True, budget=10),
        _row("embedded step, through the step runner alone", alone, floors, beyond=True),
        _row("run of one step, from the reply to its end", latencies, floors, beyond=False),
    )
    notes = (
        "steps: a figure is what a step takes beyond its floor, and the ratio is that to the floor",
        f"a step of the chain costs {meter.each(STEPS * _REPETITIONS)}",
    )
    return Result(rows=rows, notes=notes)


def _row(
    quantity: str, seconds: list[float], floors: tuple[Floor, ...], *, beyond: bool, budget: float | None = None
) -> Row:
    """Where only what lies `beyond` the bare process counts, each repetition against its own floor."""
    less = floors[0].reading.repetitions if beyond else (0.0,) * len(seconds)
    return Row(
        quantity=quantity,
        unit=Unit.MILLISECONDS,
        figure=median([each * 1000 - own for each, own in zip(seconds, less, strict=True)]),
        floors=floors,
        budget=budget,
    )


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


async def _chain(house: House, session: aiohttp.ClientSession, finals: Finals, *, steps: int) -> float:
    """Seconds from the reply to the fact that the run has succeeded."""
    run_id = await submit(house, session, f"chain of {steps}", chain_of("nothing", steps, [_NOTHING]))
    begin = time.perf_counter()
    await finals.until_succeeded(run_id, within_seconds=_ENDS_WITHIN_SECONDS)
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


async def _through_the_runner(runner: RunnerClient, name: str) -> float:
    """Seconds for one, the median of as many as the chain has, each started when the one before is over."""
    seconds = []
    async with contextlib.aclosing(runner.events()) as events:
        for number in range(STEPS):
            key = f"{name}-{number}"
            begin = time.perf_counter()
            await runner.start(_spec(key))
            async for event in events:
                if event.key == key and isinstance(event, StepExited | StepLost):
                    break
            seconds.append(time.perf_counter() - begin)
            if not isinstance(event, StepExited) or event.exit.end is not End.EXITED or event.exit.exit_code != 0:
                raise RuntimeError(f"the step ended otherwise: {event}")
    return statistics.median(seconds)


async def _step(runner: RunnerClient, key: str) -> None:
    await runner.start(_spec(key))


def _spec(key: str) -> StepSpec:
    return StepSpec(key=key, main=Process(argv=_COMMAND))
