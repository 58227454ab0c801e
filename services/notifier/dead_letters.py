"""Facts that subscribers gave up on, for people: listed, shown, and applied after all or discarded.

Each subscriber keeps its own and is asked for them; nothing is kept here.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import heapq
from itertools import islice

import msgspec

from shared import listing
from shared.bus import Bus
from shared.contracts.questions import (
    LAST_PLACE,
    SUBSCRIBERS,
    ById,
    DeadAnswer,
    DeadLetter,
    DeadLetterAnswer,
    DeadRequest,
    dead,
    dead_letter,
    discard_dead,
    retry_dead,
)
from shared.errors import NotFound
from shared.listing import Page

Letters = Page[tuple[str, DeadLetter]]
"""With the subscriber of each."""


class _Token(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Up to where the pages before have led."""

    subscriber: str
    places: dict[str, int]


class DeadLetters:
    def __init__(self, bus: Bus, *, ask_seconds: float) -> None:
        self._bus = bus
        self._ask_seconds = ask_seconds

    async def list(self, subscriber: str, page_size: int, page_token: str) -> Letters:
        """Of one subscriber, or of all where it is empty: the oldest first.

        Raises NotFound, InvalidInput, Unavailable.
        """
        size = listing.size_of_page(page_size)
        token = _read_token(page_token, subscriber) if page_token else _Token(subscriber=subscriber, places={})
        subscribers = (_known(token.subscriber),) if token.subscriber else SUBSCRIBERS
        answers = await asyncio.gather(
            *(self._oldest(each, size + 1, behind=token.places.get(each, 0)) for each in subscribers)
        )
        found = [
            [(each, letter) for letter in answer.letters] for each, answer in zip(subscribers, answers, strict=True)
        ]
        rows = tuple(islice(heapq.merge(*found, key=lambda row: row[1].put_aside_at), size))
        is_last = sum(map(len, found)) == len(rows)
        reached = msgspec.structs.replace(token, places=token.places | {each: letter.place for each, letter in rows})
        return Page(
            rows=rows,
            total_size=sum(answer.count for answer in answers),
            next_page_token="" if is_last else base64.b64encode(msgspec.json.encode(reached)).decode(),
        )

    async def _oldest(self, subscriber: str, most: int, *, behind: int) -> DeadAnswer:
        asked = DeadRequest(most=0 if behind == LAST_PLACE else most, behind=behind)
        return await self._bus.ask(dead(subscriber), asked, within_seconds=self._ask_seconds)

    async def get(self, subscriber: str, letter_id: str) -> DeadLetterAnswer:
        """Raises NotFound, Unavailable."""
        question = dead_letter(_known(subscriber))
        return await self._bus.ask(question, ById(id=letter_id), within_seconds=self._ask_seconds)

    async def discard(self, subscriber: str, letter_id: str) -> None:
        """Raises NotFound, Unavailable."""
        question = discard_dead(_known(subscriber))
        await self._bus.ask(question, ById(id=letter_id), within_seconds=self._ask_seconds)

    async def retry(self, subscriber: str, letter_id: str) -> None:
        """Raises NotFound, WrongState where the subscriber gives up on it again, Unavailable."""
        question = retry_dead(_known(subscriber))
        await self._bus.ask(question, ById(id=letter_id), within_seconds=self._ask_seconds)


def _read_token(text: str, subscriber: str) -> _Token:
    """Raises InvalidInput."""
    try:
        token = msgspec.json.decode(base64.b64decode(text, validate=True), type=_Token)
        if not all(0 <= place <= LAST_PLACE for place in token.places.values()):
            raise ValueError("it leads nowhere")
    except (binascii.Error, msgspec.DecodeError, ValueError, RecursionError) as error:
        raise listing.no_token(str(error)) from error
    if subscriber and subscriber != token.subscriber:
        raise listing.other_criteria()
    return token


def _known(subscriber: str) -> str:
    if subscriber not in SUBSCRIBERS:
        raise NotFound.of("Subscriber", subscriber)
    return subscriber
