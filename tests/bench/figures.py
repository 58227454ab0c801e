"""What a benchmark brings home: readings of figures and floors, budgets, and the table that shows them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from enum import Enum

import msgspec
from rich.console import Console
from rich.table import Table


class Unit(Enum):
    MILLISECONDS = "ms"
    SECONDS = "s"
    PER_SECOND = "/s"
    MEBIBYTES = "MiB"
    TIMES = "×"
    REQUESTS = "requests"

    @property
    def more_is_better(self) -> bool:
        return self is Unit.PER_SECOND


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One number, and what each repetition said alone."""

    value: float
    repetitions: tuple[float, ...]


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """The least that the same thing costs; `what` says how it was done."""

    what: str
    reading: Reading


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity. The first floor is the one that the ratio is taken against."""

    quantity: str
    unit: Unit
    figure: Reading
    floors: tuple[Floor, ...] = ()
    budget: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.figure.value / self.floors[0].reading.value if self.floors else None

    @property
    def is_within(self) -> bool | None:
        if self.budget is None:
            return None
        if self.unit.more_is_better:
            return self.figure.value >= self.budget
        return self.figure.value <= self.budget


class Result(msgspec.Struct, frozen=True, kw_only=True):
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    """What somebody who reads the numbers has to know, or would ask next."""


def percentile(repetitions: Sequence[Sequence[float]], percent: float) -> Reading:
    """Of all samples together: the worst moment of one repetition must not vanish in a median of repetitions."""
    pooled = [sample for samples in repetitions for sample in samples]
    return Reading(
        value=_quantile(pooled, percent), repetitions=tuple(_quantile(samples, percent) for samples in repetitions)
    )


def median(repetitions: Sequence[float]) -> Reading:
    return Reading(value=statistics.median(repetitions), repetitions=tuple(repetitions))


def _quantile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` of them do not exceed: a time that was really seen."""
    ordered = sorted(samples)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def show(results: Sequence[Result], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("quantity", overflow="fold")
    table.add_column("floor", justify="right")
    table.add_column("what the floor is", style="dim", overflow="fold")
    for heading in ("figure", "ratio", "budget", "within?"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        for row in result.rows:
            _add(table, row)
        table.add_section()
    console.print(table)
    for note in (note for result in results for note in result.notes):
        console.print(f"· {note}", style="dim", markup=False, highlight=False)


def _add(table: Table, row: Row) -> None:
    first = row.floors[0] if row.floors else None
    table.add_row(
        row.quantity,
        _shown(first.reading.value, row.unit) if first else "",
        first.what if first else "",
        _shown(row.figure.value, row.unit),
        "" if row.ratio is None else f"{row.ratio:.2f}",
        "" if row.budget is None else f"{'≥' if row.unit.more_is_better else '≤'} {_shown(row.budget, row.unit)}",
        {None: "", True: "yes", False: "NO"}[row.is_within],
    )
    for other in row.floors[1:]:
        table.add_row("", _shown(other.reading.value, row.unit), other.what)


def _shown(value: float, unit: Unit) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit.value}"
