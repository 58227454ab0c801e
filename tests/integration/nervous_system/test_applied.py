"""Read your own writes: any replica of a subscriber can say how far it is."""

import asyncio
import time

from shared.contracts.events import EXPERIMENT_CREATED
from shared.contracts.questions import AppliedRequest
from shared.subscriptions import Subscriber, until_applied, until_published_and_applied
from tests.integration.nervous_system.conftest import House
from tests.support.facts import change, effects, record_effect
from tests.support.replica_process import replica_process


async def test_a_fact_is_applied_when_the_answer_says_so(house: House) -> None:
    await house.two_of_everything()
    for count in range(1, 21):
        fact_id = await change(house.owner, house.outbox, "a")
        assert await until_published_and_applied(
            house.owner_bus, house.owner, fact_id, ["run"], "experiment", within_seconds=5
        )
        assert len(await effects(house.listener)) == count


async def test_a_replica_that_follows_nothing_itself_answers_from_the_cursor(house: House) -> None:
    await house.relay()
    passive = Subscriber("run", house.listener, house.listener_bus, {EXPERIMENT_CREATED: record_effect})
    async with replica_process(house.orders("subscriber")):
        await house.change(times=2)
        # Asked of the object itself: over the bus, either replica may answer.
        answer = await passive.applied(AppliedRequest(owner="experiment", position=2, within_seconds=10))
    assert answer.is_applied
    assert await effects(house.listener) == [1, 2]


async def test_a_position_that_does_not_come_is_waited_for_no_longer_than_asked(house: House) -> None:
    await house.relay()
    await house.subscriber()
    await house.change()
    await house.applied_each_once(1)
    started = time.perf_counter()
    assert not await until_applied(house.owner_bus, ["run"], "experiment", 2, within_seconds=0.2)
    assert 0.2 <= time.perf_counter() - started < 1


async def test_nobody_waits_for_a_subscriber_that_is_gone(house: House) -> None:
    started = time.perf_counter()
    assert not await until_applied(house.owner_bus, ["run"], "experiment", 1, within_seconds=5)
    assert time.perf_counter() - started < 0.5


async def test_nobody_waits_longer_than_asked_for_a_fact_that_is_not_published(house: House) -> None:
    fact_id = await change(house.owner, house.outbox, "a")
    started = time.perf_counter()
    assert not await until_published_and_applied(
        house.owner_bus, house.owner, fact_id, ["run"], "experiment", within_seconds=0.2
    )
    assert time.perf_counter() - started < 1


async def test_an_owner_nobody_listens_to_is_applied(house: House) -> None:
    subscriber = Subscriber("run", house.listener, house.listener_bus, {EXPERIMENT_CREATED: record_effect})
    answer = await subscriber.applied(AppliedRequest(owner="metrics", position=9, within_seconds=1))
    assert answer.is_applied


async def test_many_ask_at_once(house: House) -> None:
    await house.two_of_everything()

    async def one(nth: int) -> bool:
        fact_id = await change(house.owner, house.outbox, f"thing-{nth}")
        return await until_published_and_applied(
            house.owner_bus, house.owner, fact_id, ["run"], "experiment", within_seconds=10
        )

    assert all(await asyncio.gather(*(one(nth) for nth in range(50))))
