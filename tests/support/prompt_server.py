"""The HTTP server of the services, which ends as soon as it may. Hundreds of tests start one or more."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn

from shared.web import DRAIN_LIMIT_SECONDS, KEEP_ALIVE_SECONDS

_TICK_SECONDS = 0.005
_TICKS_A_DAY = 864_000


def as_in_production(app: Any, **how: Any) -> uvicorn.Config:
    """A configuration with the time limits of `shared.web.run_server`: a connection must not end under its client."""
    return uvicorn.Config(
        app, timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=DRAIN_LIMIT_SECONDS, **how
    )


class PromptServer(uvicorn.Server):
    """The original looks ten times a second whether it shall end, and then waits as long whether anybody is there."""

    async def main_loop(self) -> None:
        tick = 0
        while not await self.on_tick(tick):
            tick = (tick + 1) % _TICKS_A_DAY
            await asyncio.sleep(_TICK_SECONDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listening in (*self.servers, *(sockets or ())):
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110 - they tell nobody
                    await asyncio.sleep(_TICK_SECONDS)
        except TimeoutError:
            for task in self.server_state.tasks:
                task.cancel()
        await self.lifespan.shutdown()
