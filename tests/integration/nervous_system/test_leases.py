"""One holder at a time, by the database's clock; who was overtaken can write nothing more."""

import asyncio
import time

import pytest

from shared.leases import Lease, LeaseLost
from tests.integration.nervous_system.conftest import House
from tests.support.eventually import eventually


async def test_a_lease_handed_back_is_taken_at_once(house: House) -> None:
    async with Lease(house.owner, "mill").hold():
        pass
    started = time.perf_counter()
    async with Lease(house.owner, "mill").hold():
        assert time.perf_counter() - started < 0.5


async def test_a_lease_is_held_by_one_at_a_time(house: House) -> None:
    inside = 0
    most = 0

    async def work() -> None:
        nonlocal inside, most
        async with Lease(house.owner, "mill", seconds=0.2).hold():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(work() for _ in range(4)))
    assert most == 1


async def test_a_lease_that_is_not_renewed_is_taken_over_and_fences_its_holder(house: House) -> None:
    overtaken = Lease(house.owner, "mill", seconds=60)
    async with overtaken.hold():
        async with house.owner.transaction() as tx:
            await overtaken.fence(tx)
        await overtaken.confirm()
        await house.owner.execute("update leases set expires_at = clock_timestamp() - interval '1 second'")
        async with Lease(house.owner, "mill").hold():
            async with house.owner.transaction() as tx:
                with pytest.raises(LeaseLost):
                    await overtaken.fence(tx)
            with pytest.raises(LeaseLost):
                await overtaken.confirm()
    assert await house.owner.fetchval("select epoch from leases") == 2


async def test_a_lease_outlives_its_term_while_its_holder_lives(house: House) -> None:
    lease = Lease(house.owner, "mill", seconds=0.3)
    async with lease.hold():
        first = await house.owner.fetchval("select expires_at from leases")

        async def is_renewed_twice() -> bool:
            return bool(
                await house.owner.fetchval("select expires_at > $1::timestamptz + interval '0.15 s' from leases", first)
            )

        await eventually(is_renewed_twice, within_seconds=3)
        await lease.confirm()


async def test_taking_over_waits_for_the_transaction_that_uses_the_lease(house: House) -> None:
    """The next holder must not start on a state that is still being written."""
    slow = Lease(house.owner, "mill", seconds=60)
    async with slow.hold():
        async with house.owner.transaction() as tx:
            await slow.fence(tx)
            # Through another connection the row cannot be expired while it is shared: the renewal waits, too.
            expiring = asyncio.create_task(house.owner.execute("update leases set expires_at = '-infinity'"))

            async def is_waiting() -> bool:
                return bool(await house.owner.fetchval("select count(*) > 0 from pg_locks where not granted"))

            await eventually(is_waiting)
            assert not expiring.done()
        await expiring


async def test_whoever_waits_does_not_hold_up_the_holder(house: House) -> None:
    lease = Lease(house.owner, "mill", seconds=60)
    async with lease.hold():
        async with house.owner.transaction() as tx:
            await lease.fence(tx)
            waiting = asyncio.create_task(Lease(house.owner, "mill", seconds=0.04).hold().__aenter__())
            for _ in range(5):
                await house.owner.fetchval("select 1")
            assert await house.owner.fetchval("select count(*) from pg_locks where not granted") == 0
        waiting.cancel()
        await asyncio.wait([waiting])
