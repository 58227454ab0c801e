"""The hooks by which a run of the tests collects evidence, and the fixture by which a test adds to it.

`pytest --evidence FILE` leaves it in a file, for `python -m tests.coverage` to show. Where tests run in several worker
processes, each hands what it has collected to the one that started it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.coverage.evidence import Aspect, Ended, Witness, Witnesses
from tests.coverage.operations import name_of
from tests.support import hooks


class Collector:
    """Knows the test that runs. Threads and fixtures of it speak for it too."""

    def __init__(self) -> None:
        self._witnesses: dict[str, Witness] = {}
        self._current = Witness(test="")
        self._began_at = datetime.now(UTC)

    def begin(self, test: str) -> None:
        self._current = self._witnesses[test] = Witness(test=test)

    def hear(self, method: str, target: str, status: int, is_judged: bool) -> None:
        operation = name_of(method, target)
        if operation is None:
            return
        statuses = self._current.heard.setdefault(operation, {})
        statuses[status] = statuses.get(status, 0) + 1
        if is_judged:
            self._current.judged[operation] = self._current.judged.get(operation, 0) + 1

    def shown(self, operation: str, aspect: Aspect, what: str) -> None:
        """The test saw `what`, in a word or two, and agreed with it."""
        self._current.shown.append((operation, aspect, what))

    def driven_by(self, client: str, operation: str) -> None:
        """A client that people have got through the operation."""
        self._current.clients.append((client, operation))

    def all_driven_by(self, client: str) -> None:
        """Everything that the test has heard so far was asked as this client asks it."""
        for operation in self._current.heard:
            self.driven_by(client, operation)

    def ended(self, report: pytest.TestReport) -> None:
        """Told of each phase; what went wrong in any of them counts."""
        witness = self._witnesses.get(report.nodeid)
        if witness is None:
            return  # It ran in a worker, which says so itself.
        if report.skipped:
            witness.ended = Ended.EXPECTED_FAILURE if hasattr(report, "wasxfail") else Ended.SKIPPED
        elif report.failed:
            witness.ended = Ended.FAILED

    def take_over(self, witnesses: Witnesses) -> None:
        """What a worker has collected."""
        self._witnesses.update((witness.test, witness) for witness in witnesses.tests)

    def witnesses(self) -> Witnesses:
        return Witnesses(began_at=self._began_at, tests=list(self._witnesses.values()))


_HANDED_OVER = "evidence"

_collector = Collector()
hooks.listeners.append(_collector.hear)


@pytest.fixture
def evidence() -> Collector:
    return _collector


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--evidence", type=Path, metavar="FILE", help="leave there what the tests have seen of the API")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _collector.begin(item.nodeid)
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _collector.ended(report)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker has ended; one that crashed hands over nothing."""
    handed_over = getattr(node, "workeroutput", {}).get(_HANDED_OVER)
    if handed_over is not None:
        _collector.take_over(msgspec.json.decode(handed_over, type=Witnesses))


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--evidence")
    if file is None:
        return
    witnesses = _collector.witnesses()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_HANDED_OVER] = msgspec.json.encode(witnesses).decode()
    else:
        witnesses.write(file)
