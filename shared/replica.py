"""Event-fed copies of other services' small records: does it exist, is it open.

Only events write a copy. A copy may say yes; before refusing, ask the owner.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import msgspec

from shared.contracts.states import State
from shared.database import Connection, Transaction

S = TypeVar("S", bound=State)


async def keep(tx: Transaction, kind: str, state: State, *, is_deleted: bool = False) -> bool:
    """As `keep_all`, of one. Returns whether it was written."""
    return await keep_all(tx, kind, (state,), are_deleted=is_deleted) == 1


async def keep_all(tx: Transaction, kind: str, states: Sequence[State], *, are_deleted: bool = False) -> int:
    """Write the copies unless newer ones are here; of several states of one record the last counts. Returns how many
    were written.

    A deletion leaves its tombstone: no fact that comes late can revive the record.
    """
    # One statement cannot write a row twice.
    latest = {state.id: state for state in states}.values()
    written: int = await tx.fetchval(
        """
        with written as (
            insert into replicas (kind, id, version, is_deleted, state)
            select $1, id, version, $4, state::jsonb
            from unnest($2::text[], $3::bigint[], $5::text[]) as given (id, version, state)
            on conflict (kind, id) do update
            set version = excluded.version, is_deleted = excluded.is_deleted, state = excluded.state
            where replicas.version < excluded.version and not replicas.is_deleted
            returning 1
        )
        select count(*) from written
        """,
        kind,
        [state.id for state in latest],
        [state.version for state in latest],
        are_deleted,
        [msgspec.json.encode(state).decode() for state in latest],
    )
    return written


async def deleted_among(connection: Connection, kind: str, identities: Collection[str]) -> set[str]:
    """Those of whose end their owner has told: that is its no, for who cannot wait for another."""
    rows = await connection.fetch(
        "select id from replicas where kind = $1 and id = any($2::text[]) and is_deleted", kind, list(identities)
    )
    return {row["id"] for row in rows}


class Copies:
    """Some copies of several kinds, as they were at one moment."""

    def __init__(self, texts: Mapping[tuple[str, str], str]) -> None:
        self._texts = texts

    def find(self, kind: str, identity: str, type_: type[S]) -> S | None:
        """The copy, or None where it is none of these."""
        text = self._texts.get((kind, identity))
        return None if text is None else msgspec.json.decode(text, type=type_)


async def find_all(connection: Connection, identities: Collection[tuple[str, str]]) -> Copies:
    """As `find`, for several of (kind, id) by one statement."""
    rows = await connection.fetch(
        """
        select kind, id, state from replicas join unnest($1::text[], $2::text[]) as wanted (kind, id) using (kind, id)
        where not is_deleted
        """,
        [kind for kind, _ in identities],
        [identity for _, identity in identities],
    )
    return Copies({(row["kind"], row["id"]): row["state"] for row in rows})


async def find(connection: Connection, kind: str, identity: str, type_: type[S]) -> S | None:
    """The copy, or None where no event has told of it yet, or one has told of its end."""
    text = await connection.fetchval(
        "select state from replicas where kind = $1 and id = $2 and not is_deleted", kind, identity
    )
    return None if text is None else msgspec.json.decode(text, type=type_)
