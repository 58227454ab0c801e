"""The door of time of the run service: kept counts are folded while nobody waits for them."""

from __future__ import annotations

import asyncio

from shared.database import Database

from . import store


async def fold_counts(database: Database, *, every_seconds: float) -> None:
    """Until cancelled. Every replica does it; the statement lets one at a time work."""
    while True:
        await asyncio.sleep(every_seconds)
        await store.fold_counts(database)
