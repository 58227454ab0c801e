"""Waiting for a server that was just started: until it answers, dies, or takes too long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from infra.embedded.failure import StartFailure
from infra.embedded.process import Process

_INTERVAL_SECONDS = 0.01


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
