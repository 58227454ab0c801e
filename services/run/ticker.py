"""The door of time of the run service: kept counts are folded while nobody waits for them."""

from __future__ import annotations

import asyncio

from .usecases import Runs


async def fold_counts(runs: Runs, *, every_seconds: float) -> None:
    """Until cancelled. Every replica does it; the statement lets one at a time work."""
    while True:
        await asyncio.sleep(every_seconds)
        await runs.fold_counts()
