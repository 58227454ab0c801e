"""The step runner as a process: `python -m services.run.engine.embedded.runner`, settings from HEADRACE_…"""

# ruff: noqa: E402
from __future__ import annotations

import sys

# asyncio would load OpenSSL, a quarter of this process' memory, and it speaks to a unix socket only.
sys.modules["ssl"] = None  # type: ignore[assignment]

import asyncio
import logging
import signal

from services.run.engine.embedded.runner.journal import StepsDirectoryInUse
from services.run.engine.embedded.runner.server import SocketInUse, serve
from services.run.engine.embedded.runner.settings import RunnerSettings
from shared.settings import SettingsError, load


async def run() -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()

    def heed() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, heed)
    await serve(load(RunnerSettings), stop, hurry)


# As the other processes write, without the modules that `shared.logs` brings.
_LOG_FORMAT = "%(asctime)s.%(msecs)03d step-runner  %(levelname)s %(message)s"

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=_LOG_FORMAT, datefmt="%H:%M:%S")
    try:
        asyncio.run(run())
    except (SettingsError, StepsDirectoryInUse, SocketInUse, OSError) as error:
        sys.exit(f"step-runner: {error}")
