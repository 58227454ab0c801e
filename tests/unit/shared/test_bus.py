"""What the bus makes of its client's ways, where no broker is needed to see it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.bus import Consumer


class Connection:
    def __init__(self) -> None:
        self.is_connected = True
        self.stats = {"reconnects": 0}

    async def publish(self, *_: Any, **__: Any) -> None: ...


class Arrived:
    """A message that was given back, or not."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.is_given_back = False

    async def nak(self) -> None:
        self.is_given_back = True


class Inbox:
    """Waits for a message as the client does."""

    pending_msgs = 0

    def __init__(self) -> None:
        self.arriving: asyncio.Queue[Arrived] = asyncio.Queue()

    async def next_msg(self, timeout: float) -> Arrived:
        return await asyncio.wait_for(self.arriving.get(), timeout)


async def test_a_cancellation_that_comes_together_with_a_message_is_not_lost() -> None:
    inbox, message = Inbox(), Arrived()
    consumer = Consumer(Connection(), "durable", "inbox", inbox)  # type: ignore[arg-type]
    fetching = asyncio.create_task(consumer.fetch(10, within_seconds=30))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    inbox.arriving.put_nowait(message)
    await asyncio.sleep(0)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert message.is_given_back
