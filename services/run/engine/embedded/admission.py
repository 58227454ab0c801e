"""Room for so many at once: who gets it next, and what those hear who wait for it.

Whoever finds no room queues with its group, and groups take turns. Coming and going cost the same however many wait,
and so does telling them where they stand: a few are told at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field

from services.run.engine.turns import Turns

_LOOK_SECONDS = 1.0
_MOST_TOLD = 10
"""At one look. To be told is to be written to a record, and a queue of any length may move all the time."""
_AGAIN_SECONDS = 3.0
"""Between two words to the same one."""


@dataclass(eq=False, kw_only=True, slots=True)
class Ticket:
    """Somebody who wants room, and stands in the queue until it is admitted."""

    group: str
    is_admitted: bool = False
    position: int | None = None
    """In the order in which room will be given, from 1, as it was told last."""
    came_at: float = field(default_factory=time.monotonic)
    told_at: float = -math.inf
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def positions(self) -> AsyncGenerator[int, None]:
        """Its position now and then, until it is admitted. Who waits for a moment only hears nothing."""
        while True:
            await self._news.wait()
            if self.is_admitted:
                return
            self._news.clear()
            assert self.position is not None, "the news is either the admission or a position"
            yield self.position

    def _tell(self, position: int, now: float) -> None:
        self.position, self.told_at = position, now
        self._news.set()

    def _admit(self) -> None:
        self.is_admitted = True
        self._news.set()


class Admission:
    """Room for `most` at once. `announce` must be running for those who wait to be told anything."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._free = most
        """Negative where the urgent have taken more than there is."""
        self._waiting: Turns[Ticket] = Turns()

    @contextlib.contextmanager
    def ticket(self, group: str, *, is_urgent: bool = False) -> Iterator[Ticket]:
        """A ticket from now until the block is left, admitted or not. The urgent are counted, and never wait."""
        ticket = Ticket(group=group)
        if is_urgent or self._free > 0:
            self._let_in(ticket)
        else:
            self._waiting.add(ticket, group)
        try:
            yield ticket
        finally:
            self._leave(ticket)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def admitted(self) -> int:
        return self._most - self._free

    def reason(self, position: int, what: str, setting: str) -> str:
        """Why one who stands there in the queue waits, and which setting would let more in."""
        return f"position {position} in the queue: the limit of concurrent {what} is {self._most} ({setting})"

    def urge(self, ticket: Ticket) -> None:
        """Let it in out of turn, whether there is room or not. Harmless for who does not wait (any more)."""
        if self._waiting.holds(ticket, ticket.group):
            self._waiting.remove(ticket, ticket.group)
            self._let_in(ticket)

    async def announce(self) -> None:
        """Tell those who wait where they stand, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.tell_positions(time.monotonic())

    def tell_positions(self, now: float) -> None:
        """Tell a few of those to whom it is news: who has waited longest for a word comes first."""

        def is_due(position: int, ticket: Ticket) -> bool:
            if ticket.position is None:
                return now - ticket.came_at >= _LOOK_SECONDS
            return ticket.position != position and now - ticket.told_at >= _AGAIN_SECONDS

        due = (entry for entry in enumerate(self._waiting, 1) if is_due(*entry))
        for position, ticket in heapq.nsmallest(_MOST_TOLD, due, key=lambda entry: entry[1].told_at):
            ticket._tell(position, now)

    def _let_in(self, ticket: Ticket) -> None:
        self._free -= 1
        ticket._admit()

    def _leave(self, ticket: Ticket) -> None:
        if ticket.is_admitted:
            self._free += 1
            self._fill()
        else:
            self._waiting.remove(ticket, ticket.group)

    def _fill(self) -> None:
        while self._free > 0 and self._waiting:
            self._let_in(self._waiting.pop())
