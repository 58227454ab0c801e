"""What steps have left, on record: for the engine, which asks for it before it starts a step that is the same."""

from __future__ import annotations

import msgspec

from shared.database import Database

from . import store
from .engine.embedded.cache import Kept

_kept_of = msgspec.json.Decoder(Kept).decode


class StepCache:
    """One for all replicas: of two that keep the same key, the later one counts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, key: str, *, max_age_seconds: float | None) -> Kept | None:
        body = await store.find_step_outputs(self._database, key, max_age_seconds)
        return None if body is None else _kept_of(body)

    async def keep(self, key: str, kept: Kept, *, run_id: str) -> None:
        await store.upsert_step_outputs(self._database, key, run_id, msgspec.json.encode(kept).decode())
