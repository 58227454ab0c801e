"""Facts that a subscriber gave up on, as rows of its schema: they outlive the broker's store.

A row is written in the transaction that moves the cursor past the fact, and goes in the one that applies it after all.
Knows rows; what applies a fact is `shared.subscriptions`.
"""

from __future__ import annotations

from shared.bus import Message
from shared.contracts.questions import DeadLetter
from shared.database import Connection, Transaction

LONGEST_REASON = 500


async def insert(tx: Transaction, subscriber: str, message: Message, reason: str, tries: int) -> None:
    """One that is put aside again is one still."""
    await tx.execute(
        """
        insert into dead_letters
            (subscriber, id, type, owner, what, resource_id, position, told_at, traceparent, body, reason, tries)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
        on conflict (subscriber, id) do update set reason = excluded.reason, tries = excluded.tries
        """,
        subscriber,
        message.id,
        message.type,
        message.owner,
        message.what,
        message.resource_id,
        message.position,
        message.time,
        message.traceparent,
        message.body,
        _plain(reason),
        tries,
    )


async def list_oldest(connection: Connection, subscriber: str, most: int, *, behind: int = 0) -> tuple[DeadLetter, ...]:
    """Those behind a place, in the order of their places."""
    rows = await connection.fetch(
        """
        select id, type, owner, what, resource_id, position, told_at as time, reason, tries, put_aside_at, seq as place
        from dead_letters where subscriber = $1 and seq > $3 order by seq limit $2
        """,
        subscriber,
        most,
        behind,
    )
    return tuple(DeadLetter(**row) for row in rows)


async def count(connection: Connection, subscriber: str, *, most: int | None = None) -> int:
    """Up to `most`, where that is given."""
    found: int = await connection.fetchval(
        "select count(*) from (select from dead_letters where subscriber = $1 limit $2) as letters", subscriber, most
    )
    return found


async def find(connection: Connection, subscriber: str, letter_id: str) -> tuple[DeadLetter, Message] | None:
    row = await connection.fetchrow(
        """
        select id, type, owner, what, resource_id, position, told_at as time, traceparent, body,
            reason, tries, put_aside_at, seq as place
        from dead_letters where subscriber = $1 and id = $2
        """,
        subscriber,
        letter_id,
    )
    if row is None:
        return None
    fields = dict(row)
    own = {name: fields.pop(name) for name in ("traceparent", "body")}
    about = {name: fields.pop(name) for name in ("reason", "tries", "put_aside_at", "place")}
    return DeadLetter(**fields, **about), Message(**fields, **own)


async def delete(tx: Transaction, subscriber: str, letter_id: str) -> bool:
    """Whether it was there still: who comes second waits for the first, and finds nothing."""
    gone: int | None = await tx.fetchval(
        "delete from dead_letters where subscriber = $1 and id = $2 returning 1", subscriber, letter_id
    )
    return gone is not None


async def note_try(connection: Connection, subscriber: str, letter_id: str, reason: str) -> None:
    await connection.execute(
        "update dead_letters set reason = $3, tries = tries + 1 where subscriber = $1 and id = $2",
        subscriber,
        letter_id,
        _plain(reason),
    )


def _plain(reason: str) -> str:
    """What a text column can hold."""
    return reason.replace("\x00", "\ufffd")[:LONGEST_REASON]
