"""Facts as server-sent events: what happened since somebody last looked, then what happens, in one stream without gaps.

One reader per process follows the broker, and hands each fact to those who follow. Whoever comes back says up to where
it has read: for each owner of facts the last position, which outlives the broker's store. What lies between is read
from the broker, for that client alone. A client that does not keep up is cut off, not waited for: it comes back and
reads on from where it was. No replica remembers a client.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from datetime import datetime

import msgspec
from prometheus_client import Counter, Gauge

from shared import telemetry
from shared.bus import Bus, BusError, Message, Reader, Stand
from shared.contracts.events import FACTS
from shared.contracts.questions import GET_RUN, ById
from shared.errors import NotFound, Unavailable

from . import telling
from .domain import Behind, Cursor, Since, Start, Until, Wanted, write_cursor
from .telling import ENDS, Told

_log = logging.getLogger(__name__)
_streams_open = Gauge("headrace_event_streams_open", "Clients that follow events.", registry=telemetry.metrics)
_streams_ended = Counter(
    "headrace_event_streams_ended_total",
    "Streams of events that ended; `reason` is end, cut (the client did not keep up), drain, broker or left.",
    ("reason",),
    registry=telemetry.metrics,
)

RUN_OWNERS = frozenset({"run", "node", "metrics"})
"""Whose facts carry the id of a run as their own."""

_OWNERS = tuple(sorted({kind.owner for kind in FACTS.values()}))
_EVERYTHING = ("kfp.event.>",)
_BATCH = 500
_FETCH_SECONDS = 5.0
_PAUSE_SECONDS = 0.5
_OPEN_SECONDS = 5.0
_LINGER_SECONDS = 0.5
"""After the end of a run: what is told of its last steps goes another way, and may come behind it."""
_MOST_AT_ONCE = 100
"""Events that leave as one piece."""
_RECONNECT = b"retry: 2000\n\n"
_BEHIND = b": too far behind; come back with the last id\n\n"
_END = b"event: end\ndata: {}\n\n"
"""Event sources come back to a stream that ends, unless they are told that it is over."""


class Streams:
    """All streams of this process. `run` must be running for anything to arrive."""

    def __init__(self, bus: Bus, *, ask_seconds: float, heartbeat_seconds: float, most_unsent: int) -> None:
        self._bus = bus
        self._ask_seconds = ask_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._most_unsent = most_unsent
        self._stream: datetime | None = None
        """Which stream we read; another one counts from the beginning."""
        self._place = 0
        self._seen: dict[str, int] = {}
        self._at_first: dict[str, int] = {}
        """What the broker held when we came: older facts of a stream that is rebuilt are no news."""
        self._followers: set[_Follower] = set()
        self._reading = asyncio.Event()
        self._is_ending = False

    # Everybody's reader

    async def run(self) -> None:
        """Follow the broker, for as long as it is away too, until cancelled."""
        while True:
            try:
                await self._read()
            except BusError as error:
                _log.warning("events do not arrive: %s", error)
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _read(self) -> None:
        stand = await self._bus.stand()
        if self._stream is None:
            self._place = stand.last
            self._at_first = {owner: await self._bus.last_position(owner) for owner in _OWNERS}
        elif self._stream != stand.created_at:
            self._place = 0
            self._seen = {**self._at_first, **self._seen}
        self._stream = stand.created_at
        reader = await self._bus.reader(_EVERYTHING, start=self._place + 1)
        try:
            self._reading.set()
            while True:
                for place, message in await reader.fetch(_BATCH, within_seconds=_FETCH_SECONDS):
                    self._take(message)
                    self._place = place
        finally:
            await reader.close()

    def _take(self, message: Message) -> None:
        if message.position <= self._seen.get(message.owner, 0):
            return
        self._seen[message.owner] = message.position
        if self._followers:
            told = telling.told(message)
            for follower in self._followers:
                follower.take(told)

    def end(self) -> None:
        """Let go of everybody: they find another replica."""
        self._is_ending = True
        for follower in self._followers:
            follower.wake()

    # One client's stream

    async def open(self, wanted: Wanted, start: Start, *, until: Until = Until.NOTHING) -> AsyncIterator[bytes]:
        """The client's stream, piece by piece. Raises Unavailable."""
        return self._pieces(wanted, await self._past(wanted, start), until)

    async def open_run(
        self, run_id: str, start: Start, *, whats: frozenset[str] = frozenset(), until: Until = Until.NOTHING
    ) -> AsyncIterator[bytes]:
        """What is wanted about one run; everything, where nothing is named. Raises InvalidInput, NotFound,
        Unavailable."""
        read = whats | ENDS if whats and until is Until.FINAL else whats
        wanted = Wanted(owners=RUN_OWNERS, whats=read, resource_id=run_id)
        await self._bus.ask(GET_RUN, ById(id=run_id), within_seconds=self._ask_seconds)
        return self._pieces(wanted, await self._past(wanted, start), until, whats=whats)

    async def _is_over(self, run_id: str) -> bool:
        try:
            run = await self._bus.ask(GET_RUN, ById(id=run_id), within_seconds=self._ask_seconds)
        except NotFound:
            return True
        except Unavailable:
            return False
        return run.status.is_final

    async def _past(self, wanted: Wanted, start: Start) -> _Past:
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                await self._reading.wait()
                match start:
                    case None:
                        return _Past()
                    case Since(at=at):
                        # Where nothing lies behind the time, nothing up to here is wanted.
                        stand = await self._bus.stand()
                        return _Past(reader=await self._bus.reader(wanted.subjects, start=at), place=stand.last)
                    case Behind(cursor=cursor):
                        return await self._behind(wanted, cursor)
        except (BusError, TimeoutError) as error:
            raise Unavailable("The broker does not answer.", cause=repr(error)) from error

    async def _behind(self, wanted: Wanted, cursor: Cursor) -> _Past:
        stand = await self._bus.stand()
        missed: list[_Gap] = []
        places: list[int] = []
        for owner in (*_OWNERS, *(cursor.keys() - set(_OWNERS))):
            if wanted.owners and owner not in wanted.owners:
                continue
            # One that is not named had told nothing by then.
            position = cursor.get(owner, 0)
            found = await self._first_behind(owner, position, stand)
            if found is None:
                continue
            place, next_position = found
            places.append(place)
            if owner in cursor and next_position > position + 1:
                missed.append(_Gap(owner=owner, after=position, next=next_position))
        start = min(places, default=stand.last + 1)
        reader = await self._bus.reader(wanted.subjects, start=start)
        return _Past(reader=reader, place=start - 1, cursor=cursor, missed=tuple(missed))

    async def _first_behind(self, owner: str, position: int, stand: Stand) -> tuple[int, int] | None:
        """Place and position of the first fact behind the position; positions grow with places."""
        if await self._bus.last_position(owner) <= position:
            return None
        found = None
        low, high = stand.first, stand.last
        while low <= high:
            middle = (low + high) // 2
            at = await self._bus.find_next(owner, from_=middle)
            if at is not None and at[1] <= position:
                low = at[0] + 1
                continue
            found = at or found
            high = middle - 1
        return found

    async def _pieces(
        self, wanted: Wanted, past: _Past, until: Until, *, whats: frozenset[str] = frozenset()
    ) -> AsyncGenerator[bytes, None]:
        """Of what is wanted, those facts are told; all, where none is named."""
        follower = _Follower(wanted, most=self._most_unsent, patience_seconds=self._heartbeat_seconds)
        cursor = dict(past.cursor)
        is_over = False
        reason = "left"
        _streams_open.inc()
        try:
            if past.reader is None:
                self._followers.add(follower)  # Whoever has read the first piece misses nothing of what happens then.
            yield _RECONNECT + b"".join(gap.piece for gap in past.missed)
            async with aclosing(self._news(wanted, past, follower, until)) as batches:
                async for batch in batches:
                    piece = b""
                    for told in batch.news:
                        cursor[told.owner] = told.position
                        if not whats or told.what in whats:
                            piece += b"id: " + write_cursor(cursor).encode() + b"\ndata: " + told.event + b"\n\n"
                        if until is Until.FINAL and told.is_final:
                            is_over = True
                            follower.patience_seconds = _LINGER_SECONDS
                    cursor = dict(batch.cursor)
                    if piece:
                        yield piece
                    elif is_over and batch.is_pause:
                        break
                    elif batch.is_pause:
                        # An id without data moves the client's place and is no event to it.
                        yield b": heartbeat\nid: " + write_cursor(cursor).encode() + b"\n\n"
                        # Who comes back may have read of the run's end before.
                        if until is Until.FINAL and await self._is_over(wanted.resource_id):
                            reason = "end"
                            yield _END
                            return
            if until is Until.NOW or is_over:
                reason = "end"
                yield _END
            elif follower.is_cut:
                reason = "cut"
                yield _BEHIND
            else:
                reason = "drain"
        except BusError as error:
            # The client has the id of what it read last, and comes back for the rest.
            reason = "broker"
            _log.warning("a stream of events ends: %s", error)
        finally:
            self._followers.discard(follower)
            _streams_open.dec()
            _streams_ended.labels(reason).inc()

    async def _news(
        self, wanted: Wanted, past: _Past, follower: _Follower, until: Until
    ) -> AsyncGenerator[_Batch, None]:
        """What is behind the client's place, and what happens from now on."""
        passed = dict(past.cursor)
        place = past.place
        if past.reader is not None:
            async with aclosing(_pending(past.reader)) as batches:
                async for batch in batches:
                    place = batch[-1][0]
                    yield _batch(wanted, (message for _, message in batch), passed)
            self._followers.add(follower)
        # What happens from here on is kept for this client. What has happened up to here is read now, or behind it.
        reached = self._at_first | self._seen
        if past.reader is not None:
            rest = await self._bus.reader(wanted.subjects, start=place + 1)
            async with aclosing(_pending(rest)) as batches:
                async for batch in batches:
                    yield _batch(wanted, (message for _, message in batch), passed)
        if until is Until.NOW:
            return
        before = dict(passed)
        _advance(passed, reached)
        while not (self._is_ending or follower.is_cut):
            news = [told for told in follower.taken() if told.position > before.get(told.owner, 0)]
            _advance(passed, {told.owner: told.position for told in news})
            yield _Batch(news=tuple(news), cursor=passed)
            if not follower.has_news and not await follower.is_woken():
                # All there was is read, or nothing to this client.
                _advance(passed, self._seen)
                yield _Batch(cursor=passed, is_pause=True)


class _Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that are kept no longer."""

    owner: str
    after: int
    next: int

    @property
    def piece(self) -> bytes:
        return b"event: gap\ndata: " + msgspec.json.encode(self) + b"\n\n"


class _Past(msgspec.Struct, frozen=True, kw_only=True):
    """What a client has to read before it is where everybody is."""

    reader: Reader | None = None
    place: int = 0
    """The last one that need not be read."""
    cursor: Cursor = {}
    missed: tuple[_Gap, ...] = ()


class _Follower:
    """What waits for one client."""

    def __init__(self, wanted: Wanted, *, most: int, patience_seconds: float) -> None:
        self._wanted = wanted
        self.patience_seconds = patience_seconds
        """How long there may be nothing for the client before it hears that there is nothing."""
        self._most = most
        self._waiting: deque[Told] = deque()
        self._woken = asyncio.Event()
        self.is_cut = False

    def take(self, told: Told) -> None:
        if self.is_cut or not self._wanted.takes(told.owner, told.what, told.resource_id, told.about):
            return
        if len(self._waiting) >= self._most:
            self.is_cut = True
            self._waiting.clear()
        else:
            self._waiting.append(told)
        self._woken.set()

    def wake(self) -> None:
        self._woken.set()

    @property
    def has_news(self) -> bool:
        return bool(self._waiting)

    def taken(self) -> list[Told]:
        self._woken.clear()
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), _MOST_AT_ONCE))]

    async def is_woken(self) -> bool:
        """Whether there is something before the client's patience ends."""
        try:
            async with asyncio.timeout(self.patience_seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
        return self._woken.is_set()


class _Batch(msgspec.Struct, frozen=True, kw_only=True):
    news: tuple[Told, ...] = ()
    cursor: Cursor
    """Where the client is when it has read them."""
    is_pause: bool = False


async def _pending(reader: Reader) -> AsyncGenerator[list[tuple[int, Message]], None]:
    """What lies ahead now, and whatever comes in the meantime. Raises BusError."""
    try:
        while reader.pending:
            if batch := await reader.fetch(_BATCH, within_seconds=_FETCH_SECONDS):
                yield batch
            else:
                raise BusError("what lies in the stream does not arrive")
    finally:
        await reader.close()


def _batch(wanted: Wanted, messages: Iterable[Message], passed: dict[str, int]) -> _Batch:
    """What is new to one who has `passed` so much, which grows."""
    news = []
    for message in messages:
        if message.position > passed.get(message.owner, 0):
            passed[message.owner] = message.position
            told = telling.told(message)
            if wanted.takes(told.owner, told.what, told.resource_id, told.about):
                news.append(told)
    return _Batch(news=tuple(news), cursor=dict(passed))


def _advance(cursor: dict[str, int], by: Cursor) -> None:
    for owner, position in by.items():
        cursor[owner] = max(position, cursor.get(owner, 0))
