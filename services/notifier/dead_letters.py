"""Facts that subscribers gave up on, for people: listed, shown, and applied after all.

Each subscriber keeps its own and is asked for them; nothing is kept here.
"""

from __future__ import annotations

import asyncio

from shared.bus import Bus
from shared.contracts.questions import (
    SUBSCRIBERS,
    ById,
    DeadAnswer,
    DeadLetterAnswer,
    DeadRequest,
    dead,
    dead_letter,
    retry_dead,
)
from shared.errors import NotFound


class DeadLetters:
    def __init__(self, bus: Bus, *, ask_seconds: float) -> None:
        self._bus = bus
        self._ask_seconds = ask_seconds

    async def list_oldest(self, subscriber: str) -> dict[str, DeadAnswer]:
        """The oldest of one subscriber, or of each where it is empty. Raises NotFound, Unavailable."""
        subscribers = (_known(subscriber),) if subscriber else SUBSCRIBERS
        answers = await asyncio.gather(
            *(self._bus.ask(dead(each), DeadRequest(), within_seconds=self._ask_seconds) for each in subscribers)
        )
        return dict(zip(subscribers, answers, strict=True))

    async def get(self, subscriber: str, letter_id: str) -> DeadLetterAnswer:
        """Raises NotFound, Unavailable."""
        question = dead_letter(_known(subscriber))
        return await self._bus.ask(question, ById(id=letter_id), within_seconds=self._ask_seconds)

    async def retry(self, subscriber: str, letter_id: str) -> None:
        """Raises NotFound, WrongState where the subscriber gives up on it again, Unavailable."""
        question = retry_dead(_known(subscriber))
        await self._bus.ask(question, ById(id=letter_id), within_seconds=self._ask_seconds)


def _known(subscriber: str) -> str:
    if subscriber not in SUBSCRIBERS:
        raise NotFound.of("Subscriber", subscriber)
    return subscriber
