"""Who is next where everybody belongs to a group: groups take turns, so that nobody waits for all that another group
has asked for before; within a group, first come is first served.

Coming, going and being next cost the same however many wait. Knows neither time nor what is waited for.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


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
