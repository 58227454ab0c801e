"""Somebody else's server on this machine that webhooks lead to, well-behaved or not."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from infra.embedded.ports import LOOPBACK


class Received(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def message_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> Any:
        return json.loads(self.body)

    @property
    def told(self) -> tuple[str, str]:
        """What has happened, and to what."""
        return self.event["type"].split(".")[2], self.event["subject"]


class Receiver:
    def __init__(self, port: int) -> None:
        self.url = f"http://{LOOPBACK}:{port}"
        self.received: list[Received] = []
        self.status = 200
        """What everybody is answered, unless something else is said for the path or the resource."""
        self.statuses: dict[str, int] = {}
        self.is_silent = False
        """Answers come when it speaks again."""
        self.most_at_once = 0
        self._at_once = 0
        self._changed = asyncio.Condition()

    async def some(self, number: int) -> list[Received]:
        """The first so many, as soon as they are here."""
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: len(self.received) >= number)
        return self.received[:number]

    async def until_busy(self, number: int) -> None:
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: self._at_once >= number)

    async def speak(self) -> None:
        async with self._changed:
            self.is_silent = False
            self._changed.notify_all()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(path=request.path, headers=headers, body=body))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            async with self._changed:
                self._changed.notify_all()
                await self._changed.wait_for(lambda: not self.is_silent)
        finally:
            self._at_once -= 1
        if request.path == "/to":
            return web.Response(status=302, headers={"Location": f"{self.url}/elsewhere"})
        subject = json.loads(body).get("subject", "")
        return web.Response(status=self.statuses.get(subject, self.status), text="x" * 200_000)


@asynccontextmanager
async def serving_receiver() -> AsyncIterator[Receiver]:
    with socket.create_server((LOOPBACK, 0)) as listening:
        receiver = Receiver(listening.getsockname()[1])
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", receiver.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        yield receiver
        await receiver.speak()
        await runner.cleanup()
