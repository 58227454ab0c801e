"""The controller's side of logs: what one answer holds, and how long it waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

from services.run.engine import Engine
from services.run.step_logs import MOST_BYTES, answer
from shared.contracts.questions import LogRequest


class Text:
    """An engine that holds the text of one step, which is written into it while it is read."""

    def __init__(self, text: bytes = b"") -> None:
        self._text = text
        self._written = asyncio.Event()
        self.is_over = False
        self.readers = 0

    def write(self, text: bytes) -> None:
        self._text += text
        self._written.set()

    async def logs(self, _name: str, _node: str, *, follow: bool, offset: int) -> AsyncGenerator[bytes, None]:
        self.readers += 1
        try:
            while True:
                if chunk := self._text[offset : offset + 1000]:
                    offset += len(chunk)
                    yield chunk
                elif not follow or self.is_over:
                    return
                else:
                    self._written.clear()
                    await self._written.wait()
        finally:
            self.readers -= 1


async def read(engine: Text, **asked: Any) -> bytes:
    request = LogRequest(workflow_name="w", node_id="n", **asked)
    return (await answer(cast("Engine", engine), request)).text


async def test_what_is_there_is_answered_from_the_offset_on() -> None:
    assert await read(Text(b"0123456789"), offset=4) == b"456789"
    assert await read(Text(b"0123456789"), offset=10) == b""


async def test_an_answer_is_never_larger_than_a_message_may_be() -> None:
    text = bytes(range(256)) * (MOST_BYTES // 256) + b"more"
    assert await read(Text(text)) == text[:MOST_BYTES]
    assert await read(Text(text), offset=MOST_BYTES) == b"more"


async def test_what_is_not_written_yet_is_waited_for() -> None:
    engine = Text(b"so far")
    waiting = asyncio.create_task(read(engine, offset=6, within_seconds=10))
    async with asyncio.timeout(5):
        while not engine.readers:  # noqa: ASYNC110 - it is about to begin
            await asyncio.sleep(0)
    engine.write(b" and on")

    assert await asyncio.wait_for(waiting, 5) == b" and on"
    assert engine.readers == 0


async def test_a_silent_step_is_waited_for_in_vain_and_let_go() -> None:
    engine = Text()
    assert await read(engine, within_seconds=0.01) == b""
    assert engine.readers == 0


async def test_a_step_that_is_over_is_not_waited_for() -> None:
    engine = Text(b"done")
    engine.is_over = True
    assert await asyncio.wait_for(read(engine, offset=4, within_seconds=600), 5) == b""
