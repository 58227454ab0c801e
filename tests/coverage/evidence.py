"""What tests have seen of the API, test by test, and the file in which a run of the tests leaves it.

Most of it is noted by itself: every answer that a test reads passes a hook. What an answer shows beyond its status, a
test says by the fixture `evidence`. Only a test that passed has shown anything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime
from enum import Enum
from pathlib import Path

import msgspec


class Aspect(Enum):
    """What has to be shown of each operation; the values are columns of the table."""

    SUCCESS = "success"
    VALIDATION = "validation"
    NOT_FOUND = "not found"
    ENCODING = "encoding"


class Ended(Enum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    EXPECTED_FAILURE = "xfailed"


class Witness(msgspec.Struct, kw_only=True):
    """One test."""

    test: str
    ended: Ended = Ended.PASSED
    heard: dict[str, dict[int, int]] = {}
    """How often an operation was answered with a status."""
    judged: dict[str, int] = {}
    """How many answers of an operation were held against the published reference, and found to be as it says."""
    shown: list[tuple[str, Aspect, str]] = []
    """Of an operation, in a word or two."""
    clients: list[tuple[str, str]] = []
    """A client that people have, and an operation that it got through."""

    @property
    def has_passed(self) -> bool:
        return self.ended is Ended.PASSED


class Witnesses(msgspec.Struct, frozen=True, kw_only=True):
    """A run of the tests."""

    began_at: datetime
    tests: list[Witness]

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.encode(self))


def read(file: Path) -> Witnesses:
    return msgspec.json.decode(file.read_bytes(), type=Witnesses)


class Evidence:
    """Of one operation, by all tests that passed."""

    def __init__(self) -> None:
        self._successes = 0
        self._judged = 0
        self._shown: dict[Aspect, Counter[str]] = defaultdict(Counter)
        self._clients: set[str] = set()

    def cell(self, aspect: Aspect) -> str:
        """Empty where nothing was shown."""
        words = list(self._shown[aspect])
        if aspect is Aspect.SUCCESS and self._successes:
            words.insert(0, f"{self._successes} tests")
        if aspect is Aspect.ENCODING and self._judged:
            words.insert(0, f"{self._judged} answers as published")
        return ", ".join(words)

    @property
    def clients(self) -> str:
        """With their versions: `kfp 0.1.38 1.8.22`."""
        versions: dict[str, list[str]] = defaultdict(list)
        for client in sorted(self._clients):
            name, _, version = client.rpartition("-") if client[-1].isdigit() else (client, "", "")
            versions[name].append(version)
        return ", ".join(" ".join([name, *found]).strip() for name, found in versions.items())

    def heed(self, operation: str, witness: Witness) -> None:
        self._successes += any(200 <= status < 300 for status in witness.heard.get(operation, ()))
        self._judged += witness.judged.get(operation, 0)
        for named, aspect, words in witness.shown:
            if named == operation:
                self._shown[aspect][words] += 1
        self._clients.update(client for client, named in witness.clients if named == operation)


def by_operation(witnesses: Witnesses) -> dict[str, Evidence]:
    found: dict[str, Evidence] = defaultdict(Evidence)
    for witness in witnesses.tests:
        if witness.has_passed:
            for operation in _operations_of(witness):
                found[operation].heed(operation, witness)
    return found


def _operations_of(witness: Witness) -> Iterator[str]:
    shown = (operation for operation, _, _ in witness.shown)
    driven = (operation for _, operation in witness.clients)
    yield from {*witness.heard, *shown, *driven}
