"""How fast workflows are given to the cluster, whose turn is next, and what those hear who wait for it.

Argo's controller works on all workflows there are, and is slow for everybody where there are too many. So three things
bound what it is given: how many a second (with bursts), and how many at a time. Pure: it is told what time it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator

import msgspec

from services.run.engine.shards import ALL, SHARDS
from services.run.engine.turns import NEVER, Turns, whom_to_tell


class Submitting(msgspec.Struct, frozen=True, kw_only=True):
    """Of all controllers together where it is `in_flight`, of each where it is the rate."""

    rate_per_second: float = 20.0
    burst: int = 50
    """How many may go at once after a time without any."""
    in_flight: int = 0
    """How many workflows may be open at a time; 0: any number."""


class _Place(msgspec.Struct, kw_only=True):
    name: str
    group: str
    is_urgent: bool
    came_at: float
    told: str = ""
    told_at: float = NEVER


class Queue:
    """Names of workflows that wait, and of those that are open. Times are seconds of any clock that never goes back."""

    def __init__(self, limits: Submitting, *, now: float, shards: Collection[int] = ALL) -> None:
        """`shards`: whose part of `in_flight` is ours."""
        self._limits = limits
        self._most = part_of(limits.in_flight, shards)
        self._places: dict[str, _Place] = {}
        self._urgent: deque[str] = deque()
        self._waiting: Turns[str] = Turns()
        self._open: set[str] = set()
        self._tokens = float(limits.burst)
        self._counted_at = now

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def take_part_of(self, shards: Collection[int]) -> None:
        self._most = part_of(self._limits.in_flight, shards)

    def put(self, name: str, group: str, now: float, *, is_urgent: bool = False) -> None:
        """The urgent come first, and wait for the rate alone."""
        if name in self._places:
            return
        self._places[name] = _Place(name=name, group=group, is_urgent=is_urgent, came_at=now)
        if is_urgent:
            self._urgent.append(name)
        else:
            self._waiting.add(name, group)

    def take(self, now: float) -> str | None:
        """Whose turn it is, who counts as open from now on; None where nobody waits, or all have to."""
        self._count(now)
        if self._tokens < 1:
            return None
        if self._urgent:
            name = self._urgent.popleft()
        elif self._waiting and self._has_room:
            name = self._waiting.pop()
        else:
            return None
        self._tokens -= 1
        del self._places[name]
        self._open.add(name)
        return name

    def next_in(self, now: float) -> float | None:
        """Seconds until somebody's turn comes by itself; None where that takes an end, or somebody who waits."""
        if not self._urgent and not (self._waiting and self._has_room):
            return None
        self._count(now)
        return max(0.0, (1 - self._tokens) / self._limits.rate_per_second)

    def opened(self, name: str) -> None:
        """It is there already, whoever has given it."""
        self.leave(name)
        self._open.add(name)

    def ended(self, name: str) -> None:
        """It is over, or waits no more."""
        self.leave(name)
        self._open.discard(name)

    def leave(self, name: str) -> None:
        place = self._places.pop(name, None)
        if place is None:
            return
        if place.is_urgent:
            self._urgent.remove(name)
        else:
            self._waiting.remove(name, place.group)

    def news(self, now: float, trouble: str = "") -> list[tuple[str, str]]:
        """A few of those who wait with the words that are new to them.

        `trouble`: why nobody can go at present.
        """
        told = []
        for position, place in whom_to_tell(self._in_order(), now):
            word = f"position {position} in the queue: {trouble or self._reason(place)}"
            if word != place.told:
                place.told = word
                told.append((place.name, word))
        return told

    def _in_order(self) -> Iterator[_Place]:
        for names in (self._urgent, self._waiting):
            yield from (self._places[name] for name in names)

    def _reason(self, place: _Place) -> str:
        if place.is_urgent or self._has_room:
            return f"{self._limits.rate_per_second:g} runs a second are started (HEADRACE_SUBMISSIONS_PER_SECOND)"
        most = self._limits.in_flight
        if self._most == most:
            return f"the limit of concurrent runs is {most} (HEADRACE_MOST_RUNS)"
        return f"the limit of concurrent runs is {most}, of which this controller has {self._most} (HEADRACE_MOST_RUNS)"

    @property
    def _has_room(self) -> bool:
        return self._limits.in_flight == 0 or len(self._open) < self._most

    def _count(self, now: float) -> None:
        gained = (now - self._counted_at) * self._limits.rate_per_second
        self._tokens = min(float(self._limits.burst), self._tokens + gained)
        self._counted_at = now


def part_of(in_flight: int, shards: Collection[int]) -> int:
    """How many may be open in these shards. The parts of all shards add up to the whole, however they are divided; but
    who would have none gets one, so that everybody can go on."""

    def below(shard: int) -> int:
        return in_flight * shard // SHARDS

    return max(1, sum(below(shard + 1) - below(shard) for shard in shards)) if shards else 0
