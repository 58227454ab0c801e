"""Print what the last run of all tests has shown: of each operation of the API, and how many tests there are of what.

Usage: python -m tests.coverage FILE. `make test` leaves the file; it ends with 1 where something is not shown, was
skipped or is expected to fail.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.coverage.evidence import Aspect, Ended, Evidence, Witnesses, by_operation, read
from tests.coverage.operations import CLIENTS, OPERATIONS
from tests.coverage.resources import KINDS, RESOURCES, counts

_GAP = "GAP"
_NOTHING = "–"


def main(arguments: Sequence[str]) -> int:
    file = Path(arguments[0])
    if not file.exists():
        print(f"There is no evidence yet: `make test` runs all tests and leaves it in {file}.", file=sys.stderr)
        return 1
    witnesses = read(file)
    print(f"As shown by the run of {len(witnesses.tests)} tests that began at {witnesses.began_at:%Y-%m-%d %H:%M} UTC.")
    empty = _show_operations(witnesses)
    _show_resources(witnesses)
    gaps = _show_gaps(witnesses, empty)
    return int(gaps > 0)


def _show_operations(witnesses: Witnesses) -> int:
    """Returns the number of empty cells."""
    shown = by_operation(witnesses)
    columns = [*(aspect.value for aspect in Aspect), CLIENTS]
    rows = [["operation", *columns]]
    operations_by_reason: dict[str, list[str]] = defaultdict(list)
    for name, operation in OPERATIONS.items():
        evidence = shown.get(name, Evidence())
        cells = {**{aspect.value: evidence.cell(aspect) for aspect in Aspect}, CLIENTS: evidence.clients}
        reasons = operation.reasons()
        for column, why in reasons.items():
            operations_by_reason[why].append(f"{name} {column}")
        rows.append([name, *(cells[column] or (_NOTHING if column in reasons else _GAP) for column in columns)])
    _show("Operations of the API", rows)
    print(f"\n{_NOTHING}  makes no sense:")
    for why, cells_of in operations_by_reason.items():
        print(f"   {why}: {', '.join(cells_of)}")
    return sum(cell == _GAP for row in rows for cell in row)


def _show_resources(witnesses: Witnesses) -> None:
    rows = [["tests of", *KINDS, "all", "not passed"]]
    of_resource = counts(witnesses)
    for resource in RESOURCES:
        count = of_resource[resource]
        numbers = [count.passed[kind] for kind in KINDS]
        if count.passed or count.gaps:
            rows.append(
                [resource, *(str(number or "") for number in numbers), str(count.passed.total()), str(count.gaps)]
            )
    _show("Tests by resource; a test of several counts for each", rows)


def _show_gaps(witnesses: Witnesses, empty: int) -> int:
    ended: dict[Ended, list[str]] = defaultdict(list)
    for witness in witnesses.tests:
        ended[witness.ended].append(witness.test)
    print(f"\n{len(ended[Ended.PASSED])} tests passed; {empty} cells are empty.")
    gaps = [(how, test) for how in Ended if how is not Ended.PASSED for test in ended[how]]
    for how, test in gaps:
        print(f"{_GAP}  {how.value}: {test}")
    return empty + len(gaps)


def _show(title: str, rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\n{title}\n")
    for row in rows:
        print("  ".join(_padded(row, widths)).rstrip())


def _padded(row: Iterable[str], widths: Iterable[int]) -> Iterable[str]:
    return (cell.ljust(width) for cell, width in zip(row, widths, strict=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
