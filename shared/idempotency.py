"""Creations that may be repeated: the same `Idempotency-Key` creates once and is answered alike for a day.

The key and the answer are kept in the transaction that creates, so they are never apart; of requests at the same moment
one creates and the others are given its answer, byte for byte, whatever became of the thing since. Only success is
kept: what was refused may be tried again under the same key. This module knows no resource: an answer is bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec

from shared.database import Connection, Database, Transaction
from shared.errors import AlreadyExists, InvalidInput, Refusal
from shared.identity import caller_subject

T = TypeVar("T")

HEADER: Final = "Idempotency-Key"
KEPT_HOURS: Final = 24

KEY_PATTERN: Final = "[!-~]{1,255}"
"""1 to 255 visible ASCII characters."""

_KEY = re.compile(KEY_PATTERN)
_FORGOTTEN_AT_ONCE = 10

Keep = Callable[[Transaction, T], Awaitable[None]]
"""To be called last in the transaction that creates, with what is answered."""


class Keyed(msgspec.Struct, frozen=True, kw_only=True):
    """A request that a client may repeat."""

    caller: str
    route: str
    key: str
    request: bytes
    """SHA-256 of its body."""


def keyed(route: str, key: str | None, body: bytes) -> Keyed | None:
    """The request under the key that its header named; None without the header. Raises InvalidInput."""
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise InvalidInput(f"The {HEADER} must be 1 to 255 visible ASCII characters.")
    return Keyed(caller=caller_subject(), route=route, key=key, request=hashlib.sha256(body).digest())


class Answers:
    """What a service has answered to requests with a key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def once(
        self, request: Keyed | None, create: Callable[[Keep[T]], Awaitable[T]], encode: Callable[[T], bytes]
    ) -> bytes:
        """The answer about what `create` makes, or the one that the same request was given before.

        Raises AlreadyExists where the key came with another request.
        """
        if request is None:
            return encode(await create(keep_nothing))
        kept = await _find(self._database, request)
        return await self._first(request, create, encode) if kept is None else kept

    async def _first(
        self, request: Keyed, create: Callable[[Keep[T]], Awaitable[T]], encode: Callable[[T], bytes]
    ) -> bytes:
        answer = b""

        async def keep(tx: Transaction, made: T) -> None:
            nonlocal answer
            answer = encode(made)
            await _keep(tx, request, answer)

        try:
            await create(keep)
        except _Taken as taken:
            return taken.answer
        except Refusal:
            # What stands in the way may be what the same request has made meanwhile: its name, above all.
            kept = await _find(self._database, request)
            if kept is None:
                raise
            return kept
        return answer


async def keep_nothing(_tx: Transaction, _made: object) -> None:
    """What `create` is given for a request without a key; who creates with one statement needs no transaction then."""


class _Taken(Exception):
    """The same request was faster."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self.answer = answer


async def _keep(tx: Transaction, request: Keyed, answer: bytes) -> None:
    # Waits for whoever holds the same key; afterwards the key is ours, or a later statement sees whose it is.
    kept = await tx.fetchval(
        """
        insert into idempotency_keys (caller, route, key, request, answer) values ($1, $2, $3, $4, $5)
        on conflict (caller, route, key) do update
        set request = excluded.request, answer = excluded.answer, kept_at = excluded.kept_at
        where idempotency_keys.kept_at < clock_timestamp() - make_interval(hours => $6)
        returning 1
        """,
        request.caller,
        request.route,
        request.key,
        request.request,
        answer,
        KEPT_HOURS,
    )
    if kept is None:
        found = await _find(tx, request)
        assert found is not None, "the row that was in the way has not expired"
        raise _Taken(found)
    await _forget_some(tx)


async def _find(connection: Connection, request: Keyed) -> bytes | None:
    row = await connection.fetchrow(
        """
        select request, answer from idempotency_keys
        where caller = $1 and route = $2 and key = $3
          and kept_at >= clock_timestamp() - make_interval(hours => $4)
        """,
        request.caller,
        request.route,
        request.key,
        KEPT_HOURS,
    )
    if row is None:
        return None
    if row["request"] != request.request:
        raise AlreadyExists(f"The {HEADER} {request.key} was used before with another request.")
    answer: bytes = row["answer"]
    return answer


async def _forget_some(tx: Transaction) -> None:
    """More than one for each that is kept: the table holds a day, and nobody has to sweep it."""
    await tx.execute(
        """
        delete from idempotency_keys where (caller, route, key) in (
            select caller, route, key from idempotency_keys
            where kept_at < clock_timestamp() - make_interval(hours => $1)
            order by kept_at limit $2 for update skip locked
        )
        """,
        KEPT_HOURS,
        _FORGOTTEN_AT_ONCE,
    )
