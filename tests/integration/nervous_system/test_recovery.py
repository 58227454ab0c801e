"""The broker or the database goes away, or loses everything: all resumes by itself, and nothing is applied twice."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest

from infra.embedded.nats import NatsServer
from infra.embedded.postgres import Postgres
from shared.bus import DEAD_STREAM, EVENTS_STREAM, Bus
from shared.errors import Unavailable
from tests.integration.nervous_system.conftest import House, house_on
from tests.support.eventually import eventually


@pytest.fixture
async def house(database_urls: dict[str, str], own_nats: NatsServer, tmp_path: Path) -> AsyncIterator[House]:
    """A house whose broker the test may stop."""
    (tmp_path / "migrations").mkdir()
    async with house_on(database_urls, own_nats.urls(), tmp_path / "migrations") as house:
        yield house


async def test_the_brokers_whole_store_is_lost_and_nothing_else(
    house: House, own_nats: NatsServer, tmp_path: Path
) -> None:
    await house.two_of_everything()
    await house.change(times=20)
    await house.applied_each_once(20)

    await own_nats.stop()
    shutil.rmtree(tmp_path / "nats" / "store")
    await house.change(times=3)
    await own_nats.start()

    await house.change(times=2)
    await house.applied_each_once(25)
    client = await nats.connect(own_nats.url("admin"))
    try:
        js = client.jetstream()
        assert (await js.stream_info(EVENTS_STREAM)).state.messages == 25
        assert (await js.stream_info(DEAD_STREAM)).state.messages == 0
        assert (await js.consumer_info(EVENTS_STREAM, "run--experiment")).config.durable_name
    finally:
        await client.close()
    assert await house.owner.fetchval("select allocated from relay") == 25


async def test_a_stream_deleted_while_everyone_is_connected_is_declared_and_filled_again(house: House) -> None:
    """Nobody is told. Whoever declares it anew, its newest facts say nothing of the older ones."""
    await house.relay(compare_seconds=0.2)
    await house.subscriber()
    await house.change(times=3)
    await house.applied_each_once(3)
    client = await nats.connect(house.nats_urls["admin"])
    try:
        await client.jetstream().delete_stream(EVENTS_STREAM)
        await house.change(times=2)
        await house.applied_each_once(5)

        async def is_filled() -> bool:
            return (await client.jetstream().stream_info(EVENTS_STREAM)).state.messages == 5

        await eventually(is_filled)
        await house.change()
        await house.applied_each_once(6)
    finally:
        await client.close()


async def test_the_broker_is_away_for_a_while(house: House, own_nats: NatsServer) -> None:
    await house.two_of_everything()
    await house.change(times=3)
    await house.applied_each_once(3)
    await own_nats.stop()
    await house.change(times=3)
    with pytest.raises(Unavailable):
        await house.owner_bus.check()
    await own_nats.start()
    await house.applied_each_once(6)
    await house.change()
    await house.applied_each_once(7)


async def test_the_broker_restarts_again_and_again_under_load(house: House, own_nats: NatsServer) -> None:
    await house.two_of_everything()
    writing = asyncio.create_task(house.change(times=600))
    for part in (100, 250, 400):

        async def written(part: int = part) -> bool:
            return bool(await house.owner.fetchval("select count(*) >= $1 from outbox", part))

        await eventually(written)
        await own_nats.stop()
        await own_nats.start()
    await writing
    await house.applied_each_once(600, within_seconds=30)


async def test_connections_that_are_taken_and_dropped_are_tried_again(own_nats: NatsServer) -> None:
    """What a broker does that is going down, and what stands before one that is away."""
    bus = await Bus(own_nats.url("run"), name="dropped").open(patience_seconds=10)
    await own_nats.stop()
    dropped = 0

    def drop(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dropped
        dropped += 1
        writer.close()

    async def several() -> bool:
        return dropped >= 3

    async def connected() -> bool:
        return bus.is_connected

    try:
        async with await asyncio.start_server(drop, "127.0.0.1", own_nats.port):
            await eventually(several)
            assert not bus.is_connected
        await own_nats.start()
        await eventually(connected)
    finally:
        await bus.close()


async def test_a_bus_opens_as_soon_as_the_broker_is_there(own_nats: NatsServer) -> None:
    await own_nats.stop()
    bus = Bus(own_nats.url("run"), name="early")
    opening = asyncio.create_task(bus.open(patience_seconds=10))
    await own_nats.start()
    await asyncio.wait_for(opening, 10)
    assert bus.is_connected
    await bus.close()


async def test_a_bus_that_finds_no_broker_says_so_in_time(own_nats: NatsServer) -> None:
    await own_nats.stop()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(Bus(own_nats.url("run"), name="early").open(patience_seconds=0.3), 3)
    await own_nats.start()


async def test_the_database_restarts(
    own_postgres: tuple[Postgres, dict[str, str]], nats_urls: dict[str, str], tmp_path: Path
) -> None:
    server, urls = own_postgres
    async with house_on(urls, nats_urls, tmp_path) as house:
        await house.two_of_everything()
        await house.change(times=3)
        await house.applied_each_once(3)
        await server.stop()
        with pytest.raises(Unavailable):
            await house.change()
        with pytest.raises(Unavailable):
            await house.owner.check()
        await server.start()

        async def changed() -> bool:
            try:
                await house.change()
            except Unavailable:
                return False
            return True

        await eventually(changed)
        await house.applied_each_once(4)
