"""Bring a schema to what the code expects: numbered SQL files, forward only, each applied once.

Any number of replicas may start at once: an advisory lock lets one of them work, the rest find it done. A file
that changed after it was applied is an error, because another database has already seen the old text. A file that
was applied and is unknown here is none: during a rolling upgrade an older replica may start beside a newer one.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from shared.database import Database, Transaction

_log = logging.getLogger(__name__)

_SHARED_ROOM = Path(__file__).parent / "migrations"
_LOCK = 0x6865_6164  # "head"


class MigrationError(Exception):
    """A landed migration was edited."""


async def migrate(database: Database, service_room: Path) -> int:
    """Apply what is missing of the shared tables, then of the service's own. Returns how many files were applied."""
    async with database.transaction() as tx:
        # The lock's key is per schema: services share a database, not their migrations.
        await tx.execute("select pg_advisory_xact_lock($1, hashtext(current_schema()))", _LOCK)
        await tx.execute(
            """
            create table if not exists migrations (
                room text not null, name text not null, sha256 text not null,
                applied_at timestamptz not null default clock_timestamp(),
                constraint migrations_pkey primary key (room, name)
            )
            """
        )
        applied = 0
        for room_name, room in (("shared", _SHARED_ROOM), ("service", service_room)):
            applied += await _apply_room(tx, room_name, room)
        return applied


async def _apply_room(tx: Transaction, room_name: str, room: Path) -> int:
    known = {
        row["name"]: row["sha256"]
        for row in await tx.fetch("select name, sha256 from migrations where room = $1", room_name)
    }
    applied = 0
    for file, text in _files(room):
        digest = hashlib.sha256(text.encode()).hexdigest()
        if file.name in known:
            if known[file.name] != digest:
                raise MigrationError(f"{room_name}/{file.name} was edited after it had been applied")
            continue
        await tx.execute(text)
        await tx.execute(
            "insert into migrations (room, name, sha256) values ($1, $2, $3)", room_name, file.name, digest
        )
        _log.info("applied migration %s/%s", room_name, file.name)
        applied += 1
    return applied


def _files(room: Path) -> list[tuple[Path, str]]:
    return [(file, file.read_text(encoding="utf-8")) for file in sorted(room.glob("*.sql"))]
