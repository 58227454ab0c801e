"""Finding the processes of a test's steps on this machine, wherever they hang in the tree."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from pathlib import Path
from typing import Any


def new_marker() -> str:
    return f"headrace-test-{uuid.uuid4()}"


def marked(template: dict[str, Any], marker: str) -> dict[str, Any]:
    """The container with the marker in its environment, which its children inherit."""
    container = {**template["container"], "env": [{"name": "MARKER", "value": marker}]}
    return {**template, "container": container}


def processes_with(marker: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and marker.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


async def gone(marker: str, *, within_seconds: float = 10) -> None:
    async with asyncio.timeout(within_seconds):
        while processes_with(marker):  # noqa: ASYNC110 - they are nobody's children
            await asyncio.sleep(0.02)


async def begun(marker: str, *, within_seconds: float = 10) -> None:
    """A node runs from the moment its start is durable; its process follows."""
    async with asyncio.timeout(within_seconds):
        while not processes_with(marker):  # noqa: ASYNC110 - they are nobody's children
            await asyncio.sleep(0.02)
