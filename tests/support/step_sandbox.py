"""What tests that run steps demand of this machine: in less than the full sandbox they would prove little."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.run.engine.embedded.runner.client import RunnerClient

_ANSWERS_WITHIN_SECONDS = 30
_FULL = ("bubblewrap", None)


def demand_full_sandbox(runner_socket: Path) -> None:
    """Fail where the step runner behind the socket runs steps in anything else, or in nothing."""
    client = RunnerClient(str(runner_socket), patience_seconds=_ANSWERS_WITHIN_SECONDS)
    with ThreadPoolExecutor(1) as elsewhere:  # fixtures ask for it, and some of them inside a running loop
        info = elsewhere.submit(asyncio.run, client.info()).result()
    if (info.runtime, info.weaker) != _FULL:
        pytest.fail(f"steps would run in less than the full sandbox: {info.runtime}; {info.weaker}", pytrace=False)
