"""The fake server in a process of its own: prints its URL and its token, and serves until it is told to stop."""

from __future__ import annotations

import asyncio
import signal

from tests.support.kubernetes import FakeKubernetes


async def main() -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with FakeKubernetes.serving() as fake:
        print(fake.url, fake.token, flush=True)
        await stopped.wait()


asyncio.run(main())
