"""Bounded waiting for a state that nobody signals, such as a row that another process writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T]], *, within_seconds: float = 15) -> T:
    """What `look` returns as soon as that is true; fails with what it returned last."""
    seen: T | None = None
    try:
        async with asyncio.timeout(within_seconds):
            while not (seen := await look()):  # noqa: ASYNC110 - nobody signals it, that is the point
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {within_seconds:g} s; last seen: {seen!r}") from None
    return seen
