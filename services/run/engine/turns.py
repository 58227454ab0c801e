"""Who is next where everybody belongs to a group: groups take turns, so that nobody waits for all that another group
has asked for before; within a group, first come is first served.

Coming, going and being next cost the same however many wait. Who is told where it stands is said here as well: a few at
a time, because to be told is to be written to a record, and a queue of any length may move all the time. Knows nothing
of what is waited for.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Final, Generic, Protocol, TypeVar

T = TypeVar("T", bound=Hashable)

LOOK_SECONDS: Final = 1.0
"""Between two looks at whom to tell. Who waits for less hears nothing."""
_AGAIN_SECONDS: Final = 3.0
"""Between two words to the same one."""
_MOST_TOLD: Final = 10
"""At one look."""
NEVER: Final = -math.inf


class Hearing(Protocol):
    """Somebody who waits, by any clock that never goes back."""

    came_at: float
    told_at: float
    """NEVER before the first word."""


H = TypeVar("H", bound=Hearing)


def whom_to_tell(
    in_order: Iterable[H], now: float, *, is_news: Callable[[int, H], bool] = lambda _position, _each: True
) -> list[tuple[int, H]]:
    """Who hears its position now, which counts from 1: whoever has waited longest for a word comes first. They count as
    told. `is_news`: whether the position is any to who was told before."""

    def is_due(position: int, each: H) -> bool:
        if each.told_at == NEVER:
            return now - each.came_at >= LOOK_SECONDS
        return now - each.told_at >= _AGAIN_SECONDS and is_news(position, each)

    due = (entry for entry in enumerate(in_order, 1) if is_due(*entry))
    chosen = heapq.nsmallest(_MOST_TOLD, due, key=lambda entry: entry[1].told_at)
    for _, each in chosen:
        each.told_at = now
    return chosen


class Turns(Generic[T]):
    def __init__(self) -> None:
        self._queues: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()
        """Group → those of it who wait. The first group has the next turn; one of which nobody waits has no queue."""

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[T]:
        """Those who wait, in the order in which they will be next if nobody else comes."""
        turns = deque(iter(queue) for queue in self._queues.values())
        while turns:
            queue = turns.popleft()
            for each in queue:
                yield each
                turns.append(queue)
                break

    def holds(self, each: T, group: str) -> bool:
        return each in self._queues.get(group, ())

    def add(self, each: T, group: str) -> None:
        self._queues.setdefault(group, OrderedDict())[each] = None

    def remove(self, each: T, group: str) -> None:
        """Raises KeyError where it does not wait."""
        queue = self._queues[group]
        del queue[each]
        if not queue:
            del self._queues[group]

    def pop(self) -> T:
        """The next one, whose group then waits for its next turn. Raises KeyError where nobody waits."""
        group, queue = self._queues.popitem(last=False)
        each, _ = queue.popitem(last=False)
        if queue:
            self._queues[group] = queue
        return each
