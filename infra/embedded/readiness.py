"""Waiting for a server that was just started: until it answers, dies, or takes too long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from infra.embedded.failure import StartFailure
from infra.embedded.ports import LOOPBACK
from infra.embedded.process import Process
from services.run.engine.embedded.runner.protocol import Info, RunnerInfo

NOBODY_ANSWERS = 0
_INTERVAL_SECONDS = 0.01
_POLL_SECONDS = 0.03
_ANSWER_WITHIN_SECONDS = 5


async def until_ready(
    title: str, process: Process, answers: Callable[[], Awaitable[bool]], *, within_seconds: float
) -> None:
    """Return once `answers` says yes; raise StartFailure with the server's last words otherwise. No child is left."""
    try:
        async with asyncio.timeout(within_seconds):
            while not await answers():
                if not process.running:
                    reason = process.last_words() or "it said nothing"
                    raise StartFailure(f"{title} ended while starting: {reason} (log: {process.command.log})")
                await asyncio.sleep(_INTERVAL_SECONDS)
    except TimeoutError as error:
        process.kill()
        raise StartFailure(f"{title} was not ready within {within_seconds:g} s (log: {process.command.log})") from error
    except BaseException:
        process.kill()
        raise


async def http_status(port: int, path: str) -> int:
    """The status of a GET without credentials on the loopback interface, or NOBODY_ANSWERS.

    One request of one line; an HTTP client would cost the supervisor more memory than all the rest of it.
    """
    request = f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\nConnection: close\r\n\r\n"
    with suppress(OSError, TimeoutError, ValueError):
        async with asyncio.timeout(_ANSWER_WITHIN_SECONDS):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(request.encode())
                _version, status, *_reason = (await reader.readline()).split()
                return int(status)
            finally:
                writer.close()
    return NOBODY_ANSWERS


async def until_status(wanted: int, port: int, path: str) -> None:
    """Return once a GET is answered with `wanted`; the caller bounds the wait."""
    while True:
        if await http_status(port, path) == wanted:
            return
        await asyncio.sleep(_POLL_SECONDS)


async def until_runner_tells(socket: Path) -> RunnerInfo:
    """What the step runner behind the socket says of itself, once it does; the caller bounds the wait."""
    while True:
        if (info := await runner_info(socket)) is not None:
            return info
        await asyncio.sleep(_POLL_SECONDS)


async def until_runner_is_watched(socket: Path) -> None:
    """Return once an engine is at work with the step runner behind the socket; the caller bounds the wait."""
    while True:
        if (await until_runner_tells(socket)).is_watched:
            return
        await asyncio.sleep(_POLL_SECONDS)


async def runner_info(socket: Path) -> RunnerInfo | None:
    """What the step runner behind the socket says of itself; None where it does not answer."""
    with suppress(OSError, TimeoutError, msgspec.DecodeError):
        async with asyncio.timeout(_ANSWER_WITHIN_SECONDS):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(msgspec.json.encode(Info()) + b"\n")
                return msgspec.json.decode(await reader.readline(), type=RunnerInfo)
            finally:
                writer.close()
    return None
