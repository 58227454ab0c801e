"""A relay can die or sleep at any point: facts are published, once, in order."""

import asyncio
import signal

import nats
import pytest

from infra.embedded.backup import RESTORED
from shared.bus import EVENTS_STREAM, declare_streams
from tests.integration.nervous_system.conftest import House
from tests.support.eventually import eventually
from tests.support.facts import effects, publish_again
from tests.support.replica_process import replica_process
from tests.support.servers import PostgresAccess

A_LEAP = 1_000_000_000
"""Of positions, after a restore: see infra/postgres/restored.sql."""


async def stored_positions(house: House) -> list[int]:
    client = await nats.connect(house.nats_urls["admin"])
    try:
        js = client.jetstream()
        last = (await js.stream_info(EVENTS_STREAM)).state.last_seq
        stored = [await js.get_msg(EVENTS_STREAM, seq) for seq in range(1, last + 1)]
    finally:
        await client.close()
    return [int((message.headers or {})["ce-position"]) for message in stored]


async def test_two_relays_publish_each_fact_once(house: House) -> None:
    await house.relay()
    await house.relay()
    await house.change(times=30)
    await house.published(30)
    assert await stored_positions(house) == list(range(1, 31))


async def test_a_relay_killed_between_giving_positions_and_publishing_loses_nothing(house: House) -> None:
    await house.change(times=3)
    async with replica_process(house.orders("relay", at="before_publishing", signal="SIGKILL")) as replica:
        assert await replica.died() == -signal.SIGKILL
    assert await house.owner.fetchval("select array[allocated, published] from relay") == [3, 0]
    await house.relay()
    await house.change(times=2)
    await house.published(5)
    assert await stored_positions(house) == [1, 2, 3, 4, 5]


async def test_facts_acknowledged_but_not_recorded_are_not_doubled(house: House) -> None:
    relay = await house.relay()
    await house.change(times=3)
    await house.published(3)
    await end(relay)
    await house.owner.execute("update relay set published = 0")
    await house.relay()
    await house.change(times=2)
    await house.published(5)
    assert await stored_positions(house) == [1, 2, 3, 4, 5]


async def test_a_relay_that_was_stopped_is_overtaken_and_does_no_harm_when_it_wakes(house: House) -> None:
    await house.change(times=3)
    async with replica_process(house.orders("relay", at="before_publishing", signal="SIGSTOP")) as replica:
        await replica.stopped()
        # What it has in hand is as old to the broker as if it had slept for an hour: the ids say nothing any more.
        await house.owner.execute("update outbox set id = gen_random_uuid()")
        await house.relay()
        await house.change(times=2)
        await house.published(5)
        holder = await house.owner.fetchval("select holder from leases")
        replica.send(signal.SIGCONT)
        # It has learnt its lesson once it looks for work again, and finds the lease taken.
        await house.change(times=2)
        await house.published(7)
        await house.subscriber()
        await house.applied_each_once(7)
        assert await house.owner.fetchval("select holder from leases") == holder
    assert await stored_positions(house) == [1, 2, 3, 4, 5, 6, 7]


async def test_facts_lost_in_the_middle_of_a_batch_are_published_again_and_applied_in_order(house: House) -> None:
    """A connection that broke can have lost some facts and carried those behind them."""
    await house.change(times=6)
    relay = await house.relay()
    await house.published(6)
    await end(relay)
    client = await nats.connect(house.nats_urls["admin"])
    try:
        for seq in (2, 3):
            await client.jetstream().delete_msg(EVENTS_STREAM, seq)
        # As if the broker had never seen them: it forgets the ids with its memory, and so do we here.
        await house.owner.execute("update outbox set id = gen_random_uuid() where position in (2, 3)")
        await house.owner.execute("update relay set published = 1")
    finally:
        await client.close()
    await house.subscriber()
    await eventually(lambda: applied_the_first(house))
    await house.relay()
    await house.applied_each_once(6)


async def test_a_subscriber_that_misses_facts_asks_their_owner_for_them(house: House) -> None:
    await house.relay()
    await house.change(times=6)
    await house.published(6)
    client = await nats.connect(house.nats_urls["admin"])
    try:
        for seq in (2, 3):
            await client.jetstream().delete_msg(EVENTS_STREAM, seq)
        await house.owner.execute("update outbox set id = gen_random_uuid() where position in (2, 3)")
    finally:
        await client.close()
    await house.subscriber(gap_seconds=0.3)
    await house.applied_each_once(6)


@pytest.mark.parametrize("first_kept", [1, 4])
async def test_a_new_subscriber_begins_where_the_owners_retention_ends(house: House, first_kept: int) -> None:
    relay = await house.relay()
    await house.change(times=6)
    await house.published(6)
    await end(relay)
    await house.owner.execute("delete from outbox where position < $1", first_kept)
    client = await nats.connect(house.nats_urls["admin"])
    try:
        await client.jetstream().purge_stream(EVENTS_STREAM, seq=first_kept)
    finally:
        await client.close()
    await house.relay()
    await house.subscriber()

    async def seen() -> list[int]:
        return [row["position"] for row in await house.listener.fetch("select position from effects order by n")]

    async def complete() -> bool:
        return (await seen())[-1:] == [6]

    await eventually(complete)
    assert await seen() == list(range(first_kept, 7))


async def test_positions_go_on_where_the_broker_knows_more_than_a_restored_database(house: House) -> None:
    relay = await house.relay()
    await house.change(times=5)
    await house.published(5)
    await end(relay)
    await house.owner.execute("delete from outbox where position > 3")
    await house.owner.execute("update relay set allocated = 3, published = 3")
    await house.relay()
    await house.change()
    await house.published(6)
    assert await house.owner.fetchval("select max(position) from outbox") == 6


async def test_facts_go_on_behind_a_leap_and_our_own_do_not_wait_for_what_is_gone(
    house: House, postgres: PostgresAccess
) -> None:
    await restored_to(house, 3, applied=3, postgres=postgres)
    await house.relay()
    # Longer than the test waits: nobody takes the leap for facts that are late.
    await house.subscriber(gap_seconds=600)
    await house.change(times=2)

    async def are_applied() -> bool:
        return await effects(house.listener) == [1, 2, 3, A_LEAP + 4, A_LEAP + 5]

    await eventually(are_applied)
    assert await stored_positions(house) == [1, 2, 3, A_LEAP + 4, A_LEAP + 5]


async def test_a_subscriber_that_was_behind_applies_what_is_kept_and_passes_over_the_leap(
    house: House, postgres: PostgresAccess
) -> None:
    await restored_to(house, 3, applied=1, postgres=postgres)
    await house.relay()
    await house.subscriber(gap_seconds=0.2)
    await house.change()

    async def are_applied() -> bool:
        return await effects(house.listener) == [1, 2, 3, A_LEAP + 4]

    await eventually(are_applied)


async def test_a_new_stream_that_holds_the_newest_facts_already_gets_the_older_ones(house: House) -> None:
    relay = await house.relay()
    await house.change(times=3)
    await house.published(3)
    await end(relay)
    client = await nats.connect(house.nats_urls["admin"])
    try:
        await client.jetstream().delete_stream(EVENTS_STREAM)
    finally:
        await client.close()
    await declare_streams(house.nats_urls["admin"])
    await publish_again(house.owner, house.owner_bus, position=3)
    await house.relay()

    async def is_complete() -> bool:
        return sorted(await stored_positions(house)) == [1, 2, 3, 3]

    await eventually(is_complete)


async def test_a_stream_emptied_by_age_is_not_filled_again(house: House) -> None:
    relay = await house.relay()
    await house.change(times=3)
    await house.published(3)
    await end(relay)
    # The broker has forgotten their ids long ago, and would take them for new.
    await house.owner.execute("update outbox set id = gen_random_uuid(), added_at = added_at - interval '8 days'")
    client = await nats.connect(house.nats_urls["admin"])
    try:
        await client.jetstream().purge_stream(EVENTS_STREAM)
        await house.relay()
        await house.change()
        await house.published(4)
        assert (await client.jetstream().stream_info(EVENTS_STREAM)).state.messages == 1
    finally:
        await client.close()


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.done()


async def applied_the_first(house: House) -> bool:
    return bool(await house.listener.fetchval("select count(*) = 1 from effects"))


async def restored_to(house: House, position: int, *, applied: int, postgres: PostgresAccess) -> None:
    """Both databases as they were at a position of the owner's; it told five facts, all were applied, and all of the
    procedure has been done."""
    relay = await house.relay()
    subscriber = await house.subscriber()
    await house.change(times=5)
    await house.applied_each_once(5)
    await end(relay)
    await end(subscriber)
    await house.owner.execute("delete from outbox where position > $1", position)
    await house.owner.execute("update relay set allocated = $1, published = $1", position)
    await house.owner.execute("update things set version = $1", position)
    await house.listener.execute("delete from effects where position > $1", applied)
    await house.listener.execute("update cursors set position = $1", applied)
    database = house.database_urls["run"].rpartition("/")[2]
    postgres.run(f'\\connect "{database}"\n{RESTORED.read_text()}')
    client = await nats.connect(house.nats_urls["admin"])
    try:
        await client.jetstream().delete_stream(EVENTS_STREAM)
    finally:
        await client.close()
