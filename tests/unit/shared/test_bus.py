"""What the bus makes of its client's ways, where no broker is needed to see it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shared.bus import Consumer


class Arrived:
    """A message that was given back, or not."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.is_given_back = False

    async def nak(self) -> None:
        self.is_given_back = True


class Subscription:
    pending_msgs = 0

    async def unsubscribe(self) -> None: ...


class Connection:
    """Hands the one who subscribes what a test lets arrive."""

    def __init__(self) -> None:
        self.is_connected = True
        self.stats = {"reconnects": 0}

    def new_inbox(self) -> str:
        return "inbox"

    async def publish(self, *_: Any, **__: Any) -> None: ...

    async def subscribe(self, _: str, *, cb: Callable[[Arrived], Awaitable[None]]) -> Subscription:
        self.arrive = cb
        return Subscription()


async def test_a_message_that_comes_together_with_a_cancellation_is_given_back() -> None:
    connection, message = Connection(), Arrived()
    consumer = await Consumer.open(connection, "durable")  # type: ignore[arg-type]
    fetching = asyncio.create_task(consumer.fetch(10, within_seconds=30))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await connection.arrive(message)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert not message.is_given_back

    await consumer.close()

    assert message.is_given_back
