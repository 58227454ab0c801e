"""Runs a stack whose processes are stubs, with the settings of `headrace up`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from infra.cli.up import ready, say
from infra.embedded.failure import StartFailure
from infra.embedded.settings import Settings
from infra.embedded.stack import run
from shared.settings import SettingsError, load

STUB = Path(__file__).with_name("stub_process.py")


def main() -> int:
    try:
        asyncio.run(run(load(Settings), ready=ready, say=say, serve=[str(STUB)]))
    except (SettingsError, StartFailure) as failure:
        say(f"cannot start: {failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
