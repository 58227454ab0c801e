"""How much is kept of facts that were published, by age and by size; and what a lost broker gets of it."""

import asyncio
import shutil
from pathlib import Path

import nats
import pytest
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.errors import Error as JetStreamError

from infra.embedded.nats import NatsServer
from shared.bus import EVENTS_STREAM, Bus, BusError, StreamLimits, declare_streams
from shared.outbox import Keep
from tests.integration.nervous_system.conftest import House, house_on
from tests.support.eventually import eventually
from tests.support.facts import change

LONG_NAME = "x" * 5000


async def test_the_oldest_facts_go_when_there_are_more_than_may_be_kept(house: House) -> None:
    await grow(house, 12)
    relay = await house.relay(compare_seconds=0.2, keep=Keep(bytes=30_000))
    await house.published(12)

    async def are_forgotten() -> bool:
        return await kept(house) == list(range(8, 13))

    await eventually(are_forgotten)
    row = await house.owner.fetchrow(
        "select kept_bytes, (select sum(octet_length(body) + 500) from outbox) as bytes from relay"
    )
    assert row is not None
    assert row["kept_bytes"] == row["bytes"] <= 30_000
    assert not relay.done()


async def test_what_was_not_published_is_kept_whatever_its_size_and_age(
    database_urls: dict[str, str], own_nats: NatsServer, tmp_path: Path
) -> None:
    (tmp_path / "migrations").mkdir()
    async with house_on(database_urls, own_nats.urls(), tmp_path / "migrations") as house:
        keep = Keep(days=1, bytes=1)
        relay = await house.relay(compare_seconds=0.1, keep=keep)
        await grow(house, 1)

        await house.published(1)
        await eventually(lambda: nothing_is_kept(house))
        await own_nats.stop()
        await grow(house, 4)
        await house.owner.execute("update outbox set added_at = added_at - interval '10 days'")
        await own_nats.start()
        await house.subscriber()
        await house.applied_each_once(5)
        await eventually(lambda: nothing_is_kept(house))
        assert not relay.done()


@pytest.mark.parametrize(("days", "left"), [(7.0, [1, 2, 3, 4]), (0.5, [3, 4])])
async def test_the_oldest_facts_go_when_they_are_too_old(house: House, days: float, left: list[int]) -> None:
    await house.change(times=4)
    relay = await house.relay()
    await house.published(4)
    relay.cancel()
    await asyncio.wait([relay], timeout=5)
    await house.owner.execute("update outbox set added_at = added_at - interval '1 day' where position <= 2")
    await house.relay(keep=Keep(days=days))
    await house.change()
    await house.published(5)
    assert await kept(house) == [*left, 5]


async def test_facts_of_two_owners_in_one_schema_are_counted_and_kept_apart(house: House) -> None:
    """As those of runs and of their steps are."""
    await grow(house, 3)
    await house.owner.execute(
        """
        insert into outbox (type, owner, what, resource_id, body, traceparent)
        select type, 'step', what, resource_id, body, traceparent from outbox
        """
    )
    await house.relay(compare_seconds=0.2, keep=Keep(bytes=6_000))
    await house.published(3)

    async def are_forgotten() -> bool:
        return await kept(house) == [3]

    await eventually(are_forgotten)
    assert await house.owner.fetchval("select count(*) from outbox where owner = 'step' and position is null") == 3


async def test_the_limits_of_the_stream_are_what_it_is_declared_with_and_the_administrator_changes_them(
    own_nats: NatsServer,
) -> None:
    client = await nats.connect(own_nats.url("admin"))
    try:
        for limits in (StreamLimits(), StreamLimits.beyond(days=2, bytes=50_000_000)):
            await declare_streams(own_nats.url("admin"), limits)
            config = (await client.jetstream().stream_info(EVENTS_STREAM)).config
            assert (config.max_age, config.max_bytes) == (limits.days * 86400, limits.bytes)
        bus = await Bus(own_nats.url("run"), name="run").open()
        await bus.declare_streams()  # Those who may not change it leave it as it is.
        await bus.close()
        config = (await client.jetstream().stream_info(EVENTS_STREAM)).config
        assert (config.max_age, config.max_bytes) == (3 * 86400, 50_000_000)
    finally:
        await client.close()


async def test_a_broker_of_one_server_says_that_it_cannot_keep_the_streams_on_three(own_nats: NatsServer) -> None:
    with pytest.raises(BusError, match="KFP_EVENTS: replicas > 1 not supported"):
        await declare_streams(own_nats.url("admin"), StreamLimits(replicas=3))


async def test_a_durable_subscriber_from_outside_that_goes_by_positions_sees_no_gap_when_the_store_is_lost(
    database_urls: dict[str, str], own_nats: NatsServer, tmp_path: Path
) -> None:
    (tmp_path / "migrations").mkdir()
    async with house_on(database_urls, own_nats.urls(), tmp_path / "migrations") as house:
        await house.relay()
        outsider = Outsider(own_nats.url("events"))
        following = house.run(outsider.follow())
        await house.change(times=20)
        await outsider.has_seen(20)

        await own_nats.stop()
        shutil.rmtree(tmp_path / "nats" / "store")
        await house.change(times=10)
        await own_nats.start()
        await house.change(times=10)

        await outsider.has_seen(40)
        assert outsider.seen == list(range(1, 41))
        assert outsider.repeated >= 20  # The store was rebuilt from its beginning.
        assert not following.done()


class Outsider:
    """What somebody writes who goes by owner and position; its place in the stream goes with the store."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.seen: list[int] = []
        self.repeated = 0

    async def follow(self) -> None:
        client = await nats.connect(self._url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
        try:
            while True:
                try:
                    await self._read(client.jetstream())
                except (TimeoutError, NatsError, JetStreamError):
                    await asyncio.sleep(0.1)
        finally:
            await client.close()

    async def has_seen(self, position: int) -> None:
        async def has_seen() -> bool:
            return self.seen[-1:] == [position]

        await eventually(has_seen, within_seconds=40)

    async def _read(self, stream: JetStreamContext) -> None:
        config = ConsumerConfig(filter_subject="kfp.event.experiment.>", deliver_policy=DeliverPolicy.ALL)
        facts = await stream.pull_subscribe("", durable="outsider", stream=EVENTS_STREAM, config=config)
        while True:
            for message in await facts.fetch(50, timeout=1):
                position = int((message.headers or {})["ce-position"])
                if position > (self.seen[-1] if self.seen else 0):
                    self.seen.append(position)
                else:
                    self.repeated += 1
                await message.ack()
            await stream.consumer_info(EVENTS_STREAM, "outsider")


async def grow(house: House, times: int) -> None:
    for _ in range(times):
        await change(house.owner, house.outbox, "a", name=LONG_NAME)


async def nothing_is_kept(house: House) -> bool:
    return bool(await house.owner.fetchval("select not exists (select from outbox)"))


async def kept(house: House) -> list[int]:
    rows = await house.owner.fetch("select position from outbox where owner = 'experiment' order by position")
    return [row["position"] for row in rows]
