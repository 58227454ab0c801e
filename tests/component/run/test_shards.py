"""Replicas that share shards: all of them held, each by one, fairly; and who was overtaken can do nothing more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

import services.run
from services.run.engine.shards import ALL, SHARDS, shard_of
from shared.database import Database
from shared.leases import LeaseLost
from shared.migrate import migrate
from shared.shards import Shards, fence
from tests.support.eventually import eventually

LONG_SECONDS = 60.0
"""What would have to expire first is not seen by any test."""


class Replica:
    """One that takes part, with connections of its own."""

    def __init__(self, database: Database, seconds: float, tell: Callable[[], Awaitable[None]]) -> None:
        self.database = database
        self.shards = Shards(database, "argo", SHARDS, seconds=seconds, tell=tell)
        self.told: list[frozenset[int]] = []
        self.at_work: frozenset[int] = frozenset()
        self.task = asyncio.create_task(self._take_part())

    async def _take_part(self) -> None:
        async with self.shards.hold():
            await self.shards.keep(self._moved, _no_matter)

    async def _moved(self, held: frozenset[int]) -> None:
        self.told.append(held)
        self.at_work = held

    @property
    def doing(self) -> frozenset[int]:
        """What it would do something in, at this moment."""
        return frozenset(filter(self.shards.holds, self.at_work))

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        self.at_work = frozenset()

    async def die(self) -> None:
        """Without a word to the database."""
        await self.database.close()
        await self.stop()


class House:
    def __init__(self, url: str, closing: contextlib.AsyncExitStack) -> None:
        self._url = url
        self._closing = closing
        self.replicas: list[Replica] = []

    async def database(self) -> Database:
        database = await Database(self._url, name="test", max_size=2).open()
        self._closing.push_async_callback(database.close)
        return database

    async def start(self, *, seconds: float = LONG_SECONDS) -> Replica:
        async def wake_others() -> None:
            for other in self.replicas:
                if other is not replica:
                    other.shards.wake()

        replica = Replica(await self.database(), seconds, wake_others)
        self._closing.push_async_callback(replica.stop)
        self.replicas.append(replica)
        return replica

    async def until_shared(self, *expected: int) -> None:
        """So many shards each, all of them together, none twice."""

        async def is_shared() -> bool:
            doing = [each.doing for each in self.replicas]
            # Whoever hands on has let go before: at no moment are two at work on one.
            assert sum(map(len, doing)) == len(frozenset().union(*doing))
            return sorted(map(len, doing)) == sorted(expected)

        await eventually(is_shared, within_seconds=30)
        assert sum(expected) == SHARDS


@pytest.fixture
async def house(database_urls: dict[str, str]) -> AsyncIterator[House]:
    async with contextlib.AsyncExitStack() as closing:
        house = House(database_urls["run"], closing)
        await migrate(await house.database(), Path(services.run.__file__).parent / "migrations")
        yield house


async def test_each_one_that_comes_gets_its_share_at_once_and_leaves_it_to_the_others_when_it_goes(
    house: House,
) -> None:
    first = await house.start()
    await house.until_shared(64)
    second = await house.start()
    await house.until_shared(32, 32)
    third = await house.start()
    await house.until_shared(20, 22, 22)
    await first.stop()
    await house.until_shared(0, 32, 32)
    await third.stop()
    await house.until_shared(0, 0, 64)
    assert second.told[-1] == ALL


async def test_the_shards_of_one_that_died_are_taken_over_when_they_expire(house: House) -> None:
    dying = await house.start(seconds=1)
    await house.until_shared(64)
    await house.start(seconds=1)
    await house.until_shared(32, 32)
    await dying.die()
    await house.until_shared(0, 64)


async def test_one_that_was_overtaken_can_write_nothing_more_in_their_name(house: House) -> None:
    overtaken = await house.start()
    await house.until_shared(64)
    proof = overtaken.shards.proof(7)
    async with overtaken.database.transaction() as tx:
        await fence(tx, proof)
    await overtaken.database.execute("update shards set expires_at = '-infinity' where shard = 7")
    await overtaken.database.execute("update shard_members set expires_at = '-infinity'")
    other = Shards(await house.database(), "argo", SHARDS)
    taking = asyncio.create_task(other.keep(_nothing_to_do, _no_matter))
    await eventually(lambda: _met(other.holds(7)), within_seconds=30)
    taking.cancel()
    async with overtaken.database.transaction() as tx:
        with pytest.raises(LeaseLost):
            await fence(tx, proof)
    # And hears of it with the next renewal.
    overtaken.shards.wake()
    await eventually(lambda: _met(7 not in overtaken.at_work), within_seconds=30)
    with pytest.raises(LeaseLost):
        overtaken.shards.proof(7)


async def test_taking_over_waits_for_the_transaction_that_proves_a_shard(house: House) -> None:
    slow = await house.start()
    await house.until_shared(64)
    other = Shards(await house.database(), "argo", SHARDS)
    async with slow.database.transaction() as tx:
        await fence(tx, slow.shards.proof(7))
        slow.task.cancel()
        await other._database.execute("update shards set expires_at = '-infinity' where shard <> 7")
        taking = asyncio.create_task(other.keep(_nothing_to_do, _no_matter))
        await eventually(lambda: _met(other.holds(8)), within_seconds=30)
        assert not other.holds(7)
    taking.cancel()


async def test_one_that_says_nothing_for_too_long_knows_by_itself_that_it_holds_nothing(house: House) -> None:
    silent = await house.start(seconds=1)
    await house.until_shared(64)
    await silent.database.close()
    await eventually(lambda: _met(not silent.shards.holds(7)), within_seconds=30)
    with pytest.raises(LeaseLost):
        silent.shards.proof(7)
    await eventually(lambda: _met(silent.at_work == frozenset()), within_seconds=30)
    # Nobody has taken anything, and nobody was asked.
    assert await (await house.database()).fetchval("select count(distinct holder) = 1 and max(epoch) = 1 from shards")


async def test_one_that_held_nothing_for_a_while_begins_anew_with_what_is_its_own_still(house: House) -> None:
    """What it saw meanwhile was left to others, and there was none."""
    replica = await house.start(seconds=1)
    await house.until_shared(64)
    locking = await house.database()
    async with locking.transaction() as tx:
        await tx.execute("select from shards for update")
        await eventually(lambda: _met(not replica.shards.holds(7)), within_seconds=30)
    await eventually(lambda: _met(replica.told[2:][-2:] == [frozenset(), ALL]), within_seconds=30)


async def test_one_that_lost_a_shard_for_a_moment_is_told_without_it_first(house: House) -> None:
    """What it saw of it meanwhile was left to another."""
    replica = await house.start()
    await house.until_shared(64)
    await replica.database.execute("update shards set epoch = epoch + 1 where shard = 7")
    replica.shards.wake()
    await eventually(lambda: _met(replica.told[2:] == [ALL - {7}, ALL]), within_seconds=30)


async def test_the_database_knows_the_shard_of_a_run_as_we_do(house: House) -> None:
    ids = [f"run {number} läuft" for number in range(500)]
    rows = await (await house.database()).fetch(
        "select id, get_byte(decode(md5(id), 'hex'), 0) % 64 as shard from unnest($1::text[]) as id", ids
    )
    assert {row["id"]: row["shard"] for row in rows} == {each: shard_of(each) for each in ids}


async def _nothing_to_do(_: frozenset[int]) -> None: ...


def _no_matter() -> None: ...


async def _met(condition: bool) -> bool:
    return condition
