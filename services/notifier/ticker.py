"""The door of time of the notifier: deliveries are tried when they are due, without looking for them in between.

A replica sleeps until the next one is due, and is woken by a ping where that changes. It looks now and then all the
same: for what another replica has tried no further, and where a ping was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from shared.errors import Unavailable

from .deliveries import Claimed, Deliveries

_CONTENDED_SECONDS = 0.02
"""How long to wait for what another replica is claiming."""
_RETRY_SECONDS = 0.5

_log = logging.getLogger(__name__)


async def send(deliveries: Deliveries, woken: asyncio.Event, *, poll_seconds: float) -> None:
    """Until cancelled. What is being tried then is tried again later."""

    async def attempt(claimed: Claimed) -> None:
        if await deliveries.attempt(claimed):
            woken.set()

    complaint = ""
    async with asyncio.TaskGroup() as attempts:
        while True:
            woken.clear()
            try:
                for each in await deliveries.claim():
                    attempts.create_task(attempt(each))
                seconds = await deliveries.seconds_until_due()
                complaint = ""
            except Unavailable as error:
                # Once for each outage: the waiting repeats itself.
                _log.log(logging.DEBUG if str(error) == complaint else logging.WARNING, "nothing is sent: %s", error)
                complaint = str(error)
                seconds = _RETRY_SECONDS
            seconds = poll_seconds if seconds is None else min(max(seconds, _CONTENDED_SECONDS), poll_seconds)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), timeout=seconds)


async def forget(deliveries: Deliveries, *, every_seconds: float) -> None:
    """Until cancelled."""
    while True:
        await asyncio.sleep(every_seconds)
        try:
            await deliveries.forget()
        except Unavailable as error:
            _log.info("old deliveries are not forgotten: %s", error)
