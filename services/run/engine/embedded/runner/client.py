"""How the controller speaks to the step runner. It may come and go: steps and their outcomes wait for it.

A short request that meets a runner in its restart is tried again for a while, `events` for ever; each request may
be repeated without harm.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import msgspec
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential

from services.run.engine.embedded.runner.protocol import (
    MAX_LINE_BYTES,
    Done,
    End,
    Event,
    Forget,
    Info,
    Kill,
    List,
    Log,
    LogChunk,
    Refused,
    Reply,
    Request,
    RunnerInfo,
    Start,
    StepExited,
    StepLost,
    StepStarted,
    Watch,
)
from services.run.engine.embedded.runtime import StepSpec

Said = Event | LogChunk | RunnerInfo
"""What carries an answer; Done and Refused only end one."""

_LAST_WORD_SECONDS = 5.0

_decoder = msgspec.json.Decoder(Reply)


class RunnerRefused(Exception):
    """The runner answered that it cannot; the text says why."""


class RunnerClient:
    """`patience_seconds`: how long a short request waits for a runner that is not there, before ConnectionError."""

    def __init__(self, socket_path: str, *, patience_seconds: float = 10.0) -> None:
        self._socket_path = socket_path
        self._patience_seconds = patience_seconds

    async def start(self, spec: StepSpec) -> Event:
        """Start the step, or attach to it where its key is known; returns its state.

        A cancellation lets a request that is under way be answered first: whoever cancels a start is about to forget
        the step, and a start that the runner reads after that would run it.
        """
        reply = await self._ask(Start(spec=spec), is_heard_out=True)
        assert isinstance(reply, StepStarted | StepExited | StepLost)
        return _as_seen(reply)

    async def kill(self, key: str, reason: str) -> None:
        """Ask for the end; it is observed in `events`. Harmless for a step that is over or unknown."""
        await self._ask(Kill(key=key, reason=reason))

    async def forget(self, *keys: str) -> None:
        """Remove attempts and their files. Raises RunnerRefused where one still runs; the others are gone."""
        await self._ask(Forget(keys=keys))

    async def list_attempts(self) -> list[Event]:
        """The state of every attempt the runner knows."""
        return [
            _as_seen(reply) async for reply in self._replies(List()) if not isinstance(reply, LogChunk | RunnerInfo)
        ]

    async def info(self) -> RunnerInfo:
        reply = await self._ask(Info())
        assert isinstance(reply, RunnerInfo)
        return reply

    async def events(self) -> AsyncGenerator[Event, None]:
        """The state of every known attempt, then each change; again from the start after each reconnect, for ever."""
        while True:
            async for attempt in AsyncRetrying(
                wait=wait_exponential(multiplier=0.02, max=1.0), retry=retry_if_exception_type(OSError)
            ):
                with attempt:
                    connection = await self._connect()
            with contextlib.suppress(OSError):
                async with contextlib.aclosing(self._said_on(connection, Watch())) as replies:
                    async for reply in replies:
                        if isinstance(reply, StepStarted | StepExited | StepLost):
                            yield _as_seen(reply)

    async def read_log(self, key: str, offset: int = 0, follow: bool = False) -> AsyncGenerator[bytes, None]:
        """The bytes of the log from `offset` on; with `follow` until the step is over. Raises RunnerRefused."""
        async with contextlib.aclosing(self._replies(Log(key=key, offset=offset, follow=follow))) as replies:
            async for reply in replies:
                if isinstance(reply, LogChunk):
                    yield reply.data

    async def _ask(self, request: Request, *, is_heard_out: bool = False) -> Reply:
        """The one reply to a short request."""
        async for attempt in AsyncRetrying(
            wait=wait_exponential(multiplier=0.02, max=1.0),
            stop=stop_after_delay(self._patience_seconds),
            retry=retry_if_exception_type(OSError),
            reraise=True,
        ):
            with attempt:
                answer = self._answer(request)
                return await (_to_its_end(answer) if is_heard_out else answer)
        raise AssertionError("retries end with an answer or an error")

    async def _answer(self, request: Request) -> Reply:
        async with contextlib.aclosing(self._replies(request)) as replies:
            async for reply in replies:
                return reply
        return Done()

    async def _replies(self, request: Request) -> AsyncGenerator[Said, None]:
        async with contextlib.aclosing(self._said_on(await self._connect(), request)) as replies:
            async for reply in replies:
                yield reply

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self._socket_path, limit=MAX_LINE_BYTES)

    async def _said_on(
        self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: Request
    ) -> AsyncGenerator[Said, None]:
        """The replies up to Done. Raises RunnerRefused, and ConnectionError when the runner goes away before."""
        reader, writer = connection
        try:
            writer.write(msgspec.json.encode(request) + b"\n")
            await writer.drain()
            while line := await reader.readline():
                reply = _decoder.decode(line)
                if isinstance(reply, Refused):
                    raise RunnerRefused(reply.reason)
                if isinstance(reply, Done):
                    return
                yield reply
            raise ConnectionResetError("the step runner went away")
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _to_its_end(request: Coroutine[Any, Any, Reply]) -> Reply:
    answer = asyncio.ensure_future(request)
    try:
        return await asyncio.shield(answer)
    except asyncio.CancelledError:
        await asyncio.wait([answer], timeout=_LAST_WORD_SECONDS)
        if not answer.cancel() and not answer.cancelled():
            answer.exception()
        raise


def _as_seen(event: Event) -> Event:
    """An interrupted step is a lost one: what it would have ended with, nobody knows."""
    if isinstance(event, StepExited) and event.exit.end is End.INTERRUPTED:
        return StepLost(key=event.key, reason=event.exit.reason)
    return event
