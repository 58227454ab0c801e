"""Room for so many at once: who gets it next, and what those hear who wait for it.

Whoever finds no room queues with its group, and groups take turns. Coming and going cost the same however many wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field

from services.run.engine.turns import LOOK_SECONDS, NEVER, Turns, whom_to_tell


@dataclass(eq=False, kw_only=True, slots=True)
class Ticket:
    """Somebody who wants room, and stands in the queue until it is admitted."""

    group: str
    is_admitted: bool = False
    position: int | None = None
    """In the order in which room will be given, from 1, as it was told last."""
    came_at: float = field(default_factory=time.monotonic)
    told_at: float = NEVER
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

    def _tell(self, position: int) -> None:
        self.position = position
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
            await asyncio.sleep(LOOK_SECONDS)
            self.tell_positions(time.monotonic())

    def tell_positions(self, now: float) -> None:
        for position, ticket in whom_to_tell(
            self._waiting, now, is_news=lambda position, ticket: ticket.position != position
        ):
            ticket._tell(position)

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
