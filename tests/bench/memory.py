"""What the idle stack holds in memory: the proportional set size of each of its processes, and their sum."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping

from tests.bench import processes
from tests.bench.backing import backing_servers
from tests.bench.figures import Floor, Result, Row, Unit, median
from tests.bench.house import empty_folder, rest, standing
from tests.bench.processes import Meter

NAME = "memory"
ABOUT = "memory of the idle stack, by process (PSS)"

_IDLE_SECONDS = 10


async def measure() -> Result:
    with empty_folder() as folder:
        async with backing_servers(folder / "data"):
            await rest(_IDLE_SECONDS)
            # The servers are this process's children here; it is not one of them.
            floor = held(os.getpid(), without_root=True)
    with standing() as house:
        meter = Meter()
        with meter.running():
            await rest(_IDLE_SECONDS)
        figure = held(house.pid)
    total = Row(
        quantity=f"memory of the idle stack, {_IDLE_SECONDS} s after it was ready",
        unit=Unit.MEBIBYTES,
        figure=median([sum(figure.values())]),
        floors=(Floor(what="the three servers alone", reading=median([sum(floor.values())])),),
        budget=700,
    )
    largest_first = sorted(figure, key=lambda name: -figure[name])
    parts = [
        Row(
            quantity=f"  {name}",
            unit=Unit.MEBIBYTES,
            figure=median([figure[name]]),
            floors=(Floor(what="alone", reading=median([floor[name]])),) if name in floor else (),
        )
        for name in largest_first
    ]
    note = f"the seconds after the start of an idle stack cost {meter.each(_IDLE_SECONDS)}"
    return Result(rows=(total, *parts), notes=(note,))


def held(pid: int, *, without_root: bool = False) -> Mapping[str, float]:
    """Name → MiB, of the process and all that descend from it."""
    held: Counter[str] = Counter()
    for process in processes.family(pid):
        if not (without_root and process.pid == pid):
            held[process.name] += processes.pss_mebibytes(process)  # type: ignore[assignment] # MiB, not whole ones
    return held
