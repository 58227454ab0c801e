"""The door of time of the job scheduler: slots are fired when they come, without looking for them in between.

A replica sleeps until the next slot is due, and is woken by a ping where that changes. It looks now and then all the
same: for what another replica has fired no further, and where a ping was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from shared.errors import Unavailable

from .reactions import Reactions
from .slots import Slots

_BATCH = 100
_CONTENDED_SECONDS = 0.01
"""How long to wait for what another replica is firing, at first."""
_RETRY_SECONDS = 0.5

_log = logging.getLogger(__name__)


async def fire(slots: Slots, reactions: Reactions, woken: asyncio.Event, *, poll_seconds: float) -> None:
    """Until cancelled."""
    complaint = ""
    contended_rounds = 0
    while True:
        woken.clear()
        try:
            is_idle = not await _fire_all(slots, reactions)
            seconds = await slots.seconds_until_due()
            complaint = ""
        except Unavailable as error:
            # Once for each outage: the waiting repeats itself.
            _log.log(logging.DEBUG if str(error) == complaint else logging.WARNING, "nothing fires: %s", error)
            complaint = str(error)
            is_idle, seconds = True, _RETRY_SECONDS
        seconds = poll_seconds if seconds is None else min(seconds, poll_seconds)
        # Due, and not to be had: another replica holds it, which may have been stopped.
        contended_rounds = contended_rounds + 1 if is_idle and seconds <= 0 else 0
        if contended_rounds:
            seconds = min(_CONTENDED_SECONDS * 2 ** min(contended_rounds - 1, 6), poll_seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0)):
                await woken.wait()


async def _fire_all(slots: Slots, reactions: Reactions) -> int:
    """What is due now; returns of how many jobs there was something."""
    total = 0
    while (fired := await slots.fire(_BATCH)) == _BATCH:
        total += fired
    total += fired
    while past := await slots.fire_backfills(_BATCH):
        total += past
    while caused := await reactions.fire(_BATCH):
        total += caused
    return total


async def check(slots: Slots, *, every_seconds: float) -> None:
    """Until cancelled. What was opened more recently than the interval is left alone."""
    while True:
        await asyncio.sleep(every_seconds)
        try:
            await slots.check(older_than_seconds=every_seconds)
        except Unavailable as error:
            _log.info("open slots are not looked after: %s", error)
