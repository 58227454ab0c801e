"""`python -m tests.bench`: run the benchmarks one after the other, print one table, write one file."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import click
import msgspec
import uvloop
from rich.console import Console

from tests.bench import (
    cluster_engine,
    create_experiment,
    create_run,
    engine_scale,
    event_streams,
    fact_delay,
    growth,
    large_manifest,
    lists,
    memory,
    metrics_ingest,
    replicas,
    rolling_restart,
    schedule_lateness,
    start,
    step_overhead,
    webhook_delay,
)
from tests.bench.figures import Result, Row, show
from tests.bench.processes import Strangers

_BUSY_PROCESSORS = 0.25
"""So much work of strangers shows in every reading."""


class Benchmark(Protocol):
    """What every module of a benchmark offers."""

    NAME: str
    ABOUT: str

    async def measure(self) -> Result: ...


BENCHMARKS: tuple[Benchmark, ...] = (
    *(start, memory, create_experiment, create_run, large_manifest, lists, metrics_ingest, fact_delay, event_streams),
    webhook_delay,
    *(replicas, rolling_restart),
    *(schedule_lateness, step_overhead, engine_scale, cluster_engine, growth),
)

_AT_MOST_SECONDS = 180
"""For one benchmark; what takes longer hangs."""


@click.command()
@click.option("--list", "only_list", is_flag=True, help="Name the benchmarks and what each measures.")
@click.option(
    "--only",
    "names",
    multiple=True,
    type=click.Choice([each.NAME for each in BENCHMARKS]),
    metavar="NAME",
    help="Run this one; may be repeated.",
)
@click.option(
    "--json",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("bench-results.json"),
    show_default=True,
    help="Where to write every reading.",
)
def main(only_list: bool, names: tuple[str, ...], file: Path) -> None:
    """Measure Headrace on this machine, each figure against a floor taken in the same run.

    A budget that is not met is said, not punished: the exit code is 1 only when a benchmark could not run.
    """
    if only_list:
        for each in BENCHMARKS:
            click.echo(f"{each.NAME:<18} {each.ABOUT}")
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    chosen = [each for each in BENCHMARKS if not names or each.NAME in names]
    results: dict[str, Result] = {}
    failed: dict[str, str] = {}
    busy: dict[str, float] = {}
    machine = _machine()
    begin = time.monotonic()
    for each in chosen:
        click.echo(f"{time.monotonic() - begin:5.0f} s  {each.NAME}: {each.ABOUT}", err=True)
        strangers = Strangers()
        try:
            results[each.NAME] = _measured(each)
            busy[each.NAME] = round(strangers.processors(), 2)
        except asyncio.CancelledError:
            sys.exit(128 + signal.SIGTERM)
        except Exception as error:
            failed[each.NAME] = f"{type(error).__name__}: {error}"
            click.echo(f"         {each.NAME} could not be measured: {failed[each.NAME]}", err=True)
    show(list(results.values()), console)
    for name, processors in busy.items():
        if processors > _BUSY_PROCESSORS:
            console.print(f"! {name}: others kept {processors} processors busy; trust its ratios at most", style="red")
    report = {
        "machine": machine,
        "seconds": round(time.monotonic() - begin, 1),
        "benchmarks": {name: _reported(result) | {"strangers": busy[name]} for name, result in results.items()},
        "failed": failed,
    }
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    console.print(f"{report['seconds']} s; every reading: {file}", style="dim", highlight=False)
    sys.exit(1 if failed else 0)


def _measured(benchmark: Benchmark) -> Result:
    async def bounded() -> Result:
        # Ended from outside, a benchmark takes down what it has put up; Ctrl-C is seen to by the runner.
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with asyncio.timeout(_AT_MOST_SECONDS):
            return await benchmark.measure()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


def _reported(result: Result) -> dict[str, Any]:
    return {"rows": [_row(row) for row in result.rows], "notes": result.notes}


def _row(row: Row) -> dict[str, Any]:
    return msgspec.to_builtins(row) | {"ratio": row.ratio, "within": row.is_within}  # type: ignore[no-any-return]


def _machine() -> dict[str, Any]:
    """What a reader has to know before comparing."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or None,
        "processors": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
