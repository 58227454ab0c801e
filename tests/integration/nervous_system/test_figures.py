"""What is shown of a schema as a whole: true figures, by one process at a time."""

from __future__ import annotations

import asyncio
from typing import Any

from infra.embedded.backup import RESTORED
from shared import telemetry
from shared.bus import Bus
from shared.contracts.events import EXPERIMENT_CREATED
from shared.database import Transaction
from shared.figures import Figures
from shared.leases import Lease
from shared.subscriptions import Dead, Fact, Outcome
from tests.integration.nervous_system.conftest import LEASE_SECONDS, House
from tests.support.eventually import eventually
from tests.support.servers import PostgresAccess


def shown(name: str, **labels: str) -> float | None:
    return telemetry.metrics.get_sample_value(f"headrace_{name}", labels)


def figures(house: House, name: str) -> Figures:
    """Of the one that tells, or of the one that listens."""
    database, bus = {"experiment": (house.owner, house.owner_bus), "run": (house.listener, house.listener_bus)}[name]
    return Figures(
        name,
        database,
        bus,
        relayed=["experiment"] if name == "experiment" else [],
        followed=["experiment"] if name == "run" else [],
        every_seconds=0.02,
        lease=Lease(database, "figures", seconds=LEASE_SECONDS),
    )


async def test_facts_wait_until_the_broker_has_them_and_a_subscriber_is_behind_until_it_has_applied_them(
    house: House,
) -> None:
    owner, listener = figures(house, "experiment"), figures(house, "run")
    await house.change(times=3)
    await owner.measure()
    of_owner = {"service": "experiment", "owner": "experiment"}
    assert shown("outbox_waiting", **of_owner) == 3
    first_age = shown("outbox_oldest_seconds", **of_owner)
    assert first_age is not None
    assert first_age > 0
    before = shown("facts_published_total", owner="experiment") or 0

    await house.relay()
    await house.published(3)
    await owner.measure()
    assert (shown("outbox_waiting", **of_owner), shown("outbox_oldest_seconds", **of_owner)) == (0, 0)
    assert shown("outbox_position", **of_owner) == 3
    assert shown("facts_published_total", owner="experiment") == before + 3
    assert shown("leases_held", lease="relay:experiment") == 1

    await listener.measure()
    assert shown("subscriber_behind", service="run", owner="experiment") == 3
    await house.subscriber()
    await house.applied_each_once(3)
    await listener.measure()
    assert shown("subscriber_behind", service="run", owner="experiment") == 0


async def test_after_a_restore_no_fact_waits_at_positions_that_nothing_was_given(
    house: House, postgres: PostgresAccess
) -> None:
    await house.relay()
    await house.change(times=3)
    await house.published(3)
    database = house.database_urls["experiment"].rpartition("/")[2]
    postgres.run(f'\\connect "{database}"\n{RESTORED.read_text()}')
    await figures(house, "experiment").measure()
    assert shown("outbox_waiting", service="experiment", owner="experiment") == 0


async def test_what_a_subscriber_gave_up_on_is_counted(house: House) -> None:
    async def give_up(_: Transaction, __: Fact[Any]) -> Outcome:
        return Dead("not for us")

    dead = {"subscriber": "run", "owner": "experiment", "outcome": "dead"}
    before = shown("facts_taken_total", **dead) or 0
    await house.relay()
    await house.subscriber({EXPERIMENT_CREATED: give_up})
    await house.change(times=2)

    async def are_dead() -> bool:
        return (shown("facts_taken_total", **dead) or 0) == before + 2

    await eventually(are_dead)
    await figures(house, "run").measure()
    assert shown("dead_letters", service="run") == 2


async def test_while_the_broker_is_away_it_is_still_shown_what_waits_for_it(house: House) -> None:
    await house.change(times=2)
    nowhere = Bus("nats://127.0.0.1:1", name="experiment")
    owner = ["experiment"]
    await Figures("experiment", house.owner, nowhere, relayed=owner, followed=owner).measure()
    assert shown("outbox_waiting", service="experiment", owner="experiment") == 2
    assert shown("subscriber_behind", service="experiment", owner="experiment") is None
    assert shown("dead_letters", service="experiment") == 0


async def test_one_process_shows_the_figures_and_another_when_that_one_has_gone(house: House) -> None:
    measured: list[str] = []

    def replica(name: str) -> asyncio.Task[None]:
        async def measure(_: object) -> None:
            measured.append(name)

        database, bus = house.owner, house.owner_bus
        # Longer than a busy machine keeps anybody from renewing it.
        lease = Lease(database, "figures", seconds=12)
        work = Figures(
            "experiment",
            database,
            bus,
            relayed=["experiment"],
            followed=[],
            further=[measure],
            every_seconds=0.01,
            lease=lease,
        )
        return house.run(work.run())

    async def several() -> bool:
        return len(measured) >= 5

    async def the_other() -> bool:
        return set(measured[-3:]) == {"other"}

    first = replica("first")
    await eventually(several)
    replica("other")
    measured.clear()
    await eventually(several)
    assert set(measured) == {"first"}
    first.cancel()
    await asyncio.wait([first])
    await eventually(the_other)
