"""The step runner as a process: `python -m services.run.engine.embedded.runner`, settings from HEADRACE_…"""

# ruff: noqa: E402
from __future__ import annotations

import sys

# asyncio would load OpenSSL, a quarter of this process' memory, and nothing here is encrypted.
sys.modules["ssl"] = None  # type: ignore[assignment]

import asyncio
import signal

from services.run.engine.embedded.runner.journal import StepsDirectoryInUse
from services.run.engine.embedded.runner.server import SocketInUse, serve
from services.run.engine.embedded.runner.settings import RunnerSettings
from shared.logs import LogSettings, configure
from shared.settings import SettingsError, load


async def run() -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()

    def heed() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, heed)
    await serve(load(RunnerSettings), stop, hurry)


if __name__ == "__main__":
    try:
        log = load(LogSettings)
        configure("step-runner", format=log.log_format, level=log.log_level)
        asyncio.run(run())
    except (SettingsError, StepsDirectoryInUse, SocketInUse, OSError) as error:
        sys.exit(f"step-runner: {error}")
