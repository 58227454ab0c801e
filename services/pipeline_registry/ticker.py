"""The door of time: erase objects that nothing refers to any more, until they are gone."""

from __future__ import annotations

import asyncio
import logging

from shared.errors import Unavailable

from .usecases import Pipelines

_log = logging.getLogger(__name__)


async def erase_objects(pipelines: Pipelines, woken: asyncio.Event, *, poll_seconds: float) -> None:
    """Until cancelled. A deletion sets `woken`; polling finds what other replicas and earlier lives left."""
    while True:
        woken.clear()
        try:
            while await pipelines.erase_due_objects():
                pass
        except Unavailable as outage:
            _log.warning("erasing objects waits: %s", outage)
        try:
            async with asyncio.timeout(poll_seconds):
                await woken.wait()
        except TimeoutError:
            continue
