"""What tests hand in about operations, kept while the tests run, and the table made of it. Knows no operation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from enum import Enum


class Aspect(Enum):
    """What has to be shown of each operation; the values are the table's columns."""

    SUCCESS = "success"
    VALIDATION = "validation"
    NOT_FOUND = "not found"
    ENCODING = "encoding"


class Evidence:
    def __init__(self) -> None:
        self._shown: dict[tuple[str, Aspect], list[str]] = defaultdict(list)
        self._clients: dict[str, set[str]] = defaultdict(set)

    def shown(self, operation: str, aspect: Aspect, what: str) -> None:
        """A test saw `what`, in a word or two, and agreed with it."""
        self._shown[operation, aspect].append(what)

    def driven_by(self, client: str, operation: str) -> None:
        self._clients[operation].add(client)

    def rows(self, operations: Iterable[str]) -> Iterator[tuple[str, ...]]:
        """Operation, its aspects in order, its clients. An empty cell is a gap."""
        for operation in operations:
            aspects = (_joined(self._shown[operation, aspect]) for aspect in Aspect)
            yield (operation, *aspects, _joined(sorted(self._clients[operation])))


def _joined(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))
