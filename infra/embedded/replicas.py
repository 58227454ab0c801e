"""How many replicas of each service a stack runs: what may be many on one machine, what cannot, and how each is called.

It knows the names of processes and how many connections the database takes, and nothing else of either.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from infra.embedded.postgres import SETTINGS

SERVICES = ("experiment", "pipeline-registry", "run", "job-scheduler", "metrics", "notifier")

_ONE_ALONE = {
    "gateway": "clients know one port, and one process listens there",
    "run-controller": "one drives the embedded engine, and another would only wait for its end",
    "step-runner": "the steps of one machine have one parent",
}
_FOR_OTHERS = 20
"""Connections that no process of ours takes: the server keeps three for its superuser, and people want to look."""
_MOST_CONNECTIONS = 10
"""Of one process; more than ten only wait for the processors."""
_LEAST_CONNECTIONS = 4
"""With fewer, requests wait for the background work of their own process."""


def counted(asked: Iterable[str]) -> dict[str, int]:
    """From `NAME=COUNT` each, or COUNT for every service that is not named. Raises ValueError, in words for people."""
    counts: dict[str, int] = {}
    otherwise = 1
    for text in asked:
        if text.isdecimal() and int(text) > 0:
            otherwise = int(text)
            continue
        name, _, number = text.partition("=")
        if not number.isdecimal() or not name:
            raise ValueError(f"replicas: {text!r} is neither COUNT nor NAME=COUNT, as run=2")
        if name not in SERVICES and name not in _ONE_ALONE:
            likely = difflib.get_close_matches(name, SERVICES, n=1)
            hint = f"did you mean {likely[0]}?" if likely else f"there are {', '.join(SERVICES)}"
            raise ValueError(f"replicas: {text!r} names no service ({hint})")
        if name in counts:
            raise ValueError(f"replicas: {name} is named twice")
        count = counts[name] = int(number)
        if count < 1:
            raise ValueError(f"replicas: {text!r}: there is at least one of each")
        if name in _ONE_ALONE and count > 1:
            raise ValueError(f"replicas: {text!r}: there is one {name}, because {_ONE_ALONE[name]}")
    of_services = {name: counts.get(name, otherwise) for name in SERVICES}
    if sum(of_services.values()) > _most_processes():
        raise ValueError(
            f"replicas: {sum(of_services.values())} processes are too many for the embedded database, "
            f"which has connections for {_most_processes()}"
        )
    return of_services


def names(service: str, count: int) -> list[str]:
    """`run`, `run-2`, `run-3`: the first is called as one that is alone, and keeps its port and its log."""
    return [service, *(f"{service}-{number}" for number in range(2, count + 1))]


def connections_each(counts: Mapping[str, int]) -> int:
    """How many connections each process of the stack may open, so that there are enough for all."""
    return min(_MOST_CONNECTIONS, _room() // (sum(counts.values()) + 1))


def _most_processes() -> int:
    return _room() // _LEAST_CONNECTIONS - 1


def _room() -> int:
    return int(SETTINGS["max_connections"]) - _FOR_OTHERS
