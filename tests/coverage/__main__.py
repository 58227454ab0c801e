"""Run the tests that hand in evidence and print what they have shown; ends with 1 where a cell is empty or a test
was skipped.

Usage: python -m tests.coverage
"""

from __future__ import annotations

import sys

import pytest

from tests.coverage import plugin
from tests.coverage.evidence import Aspect
from tests.coverage.operations import OPERATIONS

_TESTS = ("tests/system/test_operations.py", "tests/system/test_all_clients.py")


class _Keeper:
    """Takes the evidence from the session before it is gone."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []
        self.skips = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.skips += report.skipped

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.rows = list(plugin.of(session.config).rows(OPERATIONS))


def main() -> int:
    keeper = _Keeper()
    ended = pytest.main(["-q", *_TESTS], plugins=[keeper])
    heads = ("operation", *(aspect.value for aspect in Aspect), "clients")
    for row in (heads, *keeper.rows):
        print(" | ".join(f"{cell or 'GAP':<11}" for cell in row))
    gaps = sum(not cell for row in keeper.rows for cell in row) + keeper.skips
    print(f"{len(keeper.rows)} operations, {gaps} gaps, {keeper.skips} of them skipped tests")
    return int(ended != 0 or gaps > 0)


if __name__ == "__main__":
    sys.exit(main())
