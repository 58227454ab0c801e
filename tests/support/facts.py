"""An owner that changes things and tells of them, and a listener that writes down every effect it applies.

Nothing in the table of effects is unique: what is applied twice is seen twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from shared.bus import Bus, Message
from shared.contracts.events import EXPERIMENT_CREATED
from shared.contracts.states import ExperimentState
from shared.database import Database, Transaction
from shared.outbox import Outbox
from shared.subscriptions import Done, Fact, Outcome

LONG_AGO = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)


async def make_things(database: Database) -> None:
    await database.execute("create table things (id text primary key, version bigint not null)")


async def make_effects(database: Database) -> None:
    await database.execute(
        "create table effects (n bigint generated always as identity, id text, version bigint, position bigint)"
    )


async def change(database: Database, outbox: Outbox, identity: str, *, name: str = "") -> UUID:
    """One transaction that changes one thing and tells of it."""
    async with database.transaction() as tx:
        return await change_in(tx, outbox, identity, name=name)


async def change_in(tx: Transaction, outbox: Outbox, identity: str, *, name: str = "") -> UUID:
    version = await tx.fetchval(
        """
        insert into things (id, version) values ($1, 1)
        on conflict (id) do update set version = things.version + 1 returning version
        """,
        identity,
    )
    state = ExperimentState(id=identity, version=version, name=name, created_at=LONG_AGO)
    return await outbox.add(tx, EXPERIMENT_CREATED, state)


async def publish_again(database: Database, bus: Bus, *, position: int) -> None:
    """Deliver a fact twice, as happens when the broker has forgotten its id."""
    row = await database.fetchrow("select * from outbox where position = $1", position)
    assert row is not None
    message = Message(
        id="another id",
        type=row["type"],
        owner=row["owner"],
        what=row["what"],
        resource_id=row["resource_id"],
        position=position,
        time=LONG_AGO,
        traceparent=row["traceparent"],
        body=row["body"],
    )
    assert await bus.publish([message]) == 1


async def record_effect(tx: Transaction, fact: Fact[Any]) -> Outcome:
    await tx.execute(
        "insert into effects (id, version, position) values ($1, $2, $3)",
        fact.state.id,
        fact.state.version,
        fact.message.position,
    )
    return Done()


async def effects(database: Database) -> list[int]:
    """The positions that were applied, in the order in which they were."""
    return [row["position"] for row in await database.fetch("select position from effects order by n")]


def each_once(positions: Iterable[int], last: int) -> bool:
    return list(positions) == list(range(1, last + 1))
