"""Facts leave their owner in order, without gaps, and look as the published language says."""

import asyncio
import random
from contextlib import suppress
from typing import Any
from uuid import uuid4

import msgspec
import nats
import pytest

from shared.bus import EVENTS_STREAM
from shared.contracts.events import EXPERIMENT_CREATED, RUN_CREATED
from shared.contracts.states import ExperimentState
from shared.database import Database
from shared.errors import Unavailable
from shared.outbox import FactTooLarge, Positions
from shared.telemetry import continue_trace
from tests.integration.nervous_system.conftest import House
from tests.support.facts import LONG_AGO, change, change_in


async def test_positions_have_no_gap_and_follow_each_resource_under_concurrent_writers(house: House) -> None:
    await house.relay()
    await house.relay()
    odds = random.Random(7)

    async def write() -> None:
        for _ in range(20):
            try:
                async with house.owner.transaction() as tx:
                    await change_in(tx, house.outbox, f"thing-{odds.randrange(5)}")
                    if odds.random() < 0.3:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                continue

    await asyncio.gather(*(write() for _ in range(8)))
    total = await house.owner.fetchval("select count(*) from outbox")
    assert 0 < total < 160
    await house.published(total)
    rows = await house.owner.fetch("select position, resource_id, body from outbox order by position")
    assert [row["position"] for row in rows] == list(range(1, total + 1))
    for thing in {row["resource_id"] for row in rows}:
        versions = [version_in(row["body"]) for row in rows if row["resource_id"] == thing]
        assert versions == list(range(1, len(versions) + 1))


async def test_a_rolled_back_change_tells_nothing_and_leaves_no_gap(house: House) -> None:
    await house.change()
    with suppress(ZeroDivisionError):
        async with house.owner.transaction() as tx:
            await change_in(tx, house.outbox, "a")
            raise ZeroDivisionError
    await house.change()
    await house.relay()
    await house.published(2)
    assert await house.owner.fetchval("select array_agg(position order by seq) from outbox") == [1, 2]


async def test_a_fact_is_a_cloud_event_with_a_position_and_the_trace_it_was_born_in(house: House) -> None:
    await house.relay()
    trace = "0af7651916cd43dd8448eb211c80319c"
    with continue_trace(f"00-{trace}-b7ad6b7169203331-01"):
        fact_id = await change(house.owner, house.outbox, "a", name="mill")
    await house.published(1)
    client = await nats.connect(house.nats_urls["events"])
    try:
        stored = await client.jetstream().get_msg(EVENTS_STREAM, 1)
    finally:
        await client.close()
    headers: dict[str, Any] = dict(stored.headers or {})
    assert stored.subject == "kfp.event.experiment.created.a"
    assert headers.pop("traceparent")[3:35] == trace
    added_at = await house.owner.fetchval("select added_at from outbox")
    assert headers.pop("ce-time") == added_at.isoformat().replace("+00:00", "Z")
    headers.pop("Nats-Expected-Stream")
    assert headers == {
        "Nats-Msg-Id": str(fact_id),
        "ce-specversion": "1.0",
        "ce-id": str(fact_id),
        "ce-type": "kfp.experiment.created.v1",
        "ce-source": "/headrace/experiment",
        "ce-subject": "a",
        "ce-datacontenttype": "application/json",
        "ce-position": "1",
        "content-type": "application/json",
    }
    assert version_in(stored.data or b"") == 1
    assert await Positions(house.owner).of(fact_id, within_seconds=20) == 1


async def test_each_who_waits_for_a_position_gets_that_of_the_own_fact(house: House) -> None:
    positions = Positions(house.owner)
    fact_ids = [await change(house.owner, house.outbox, f"thing-{nth}") for nth in range(20)]
    waiting = asyncio.gather(*(positions.of(fact_id, within_seconds=20) for fact_id in reversed(fact_ids)))
    await house.relay()
    assert await waiting == list(range(20, 0, -1))
    # Nobody waited any more; who comes later is looked after as well.
    fact_id = await change(house.owner, house.outbox, "late")
    assert await positions.of(fact_id, within_seconds=20) == 21


async def test_a_position_that_does_not_come_is_none(house: House) -> None:
    fact_id = await change(house.owner, house.outbox, "a")
    assert await Positions(house.owner).of(fact_id, within_seconds=0.05) is None


async def test_who_waits_for_a_position_hears_of_an_outage() -> None:
    positions = Positions(Database("postgresql://nowhere", name="test"))
    found = await asyncio.gather(*(positions.of(uuid4(), within_seconds=20) for _ in range(2)), return_exceptions=True)
    assert [type(each) for each in found] == [Unavailable, Unavailable]


async def test_a_fact_too_large_is_refused_and_its_transaction_writes_nothing(house: House) -> None:
    with pytest.raises(FactTooLarge):
        await change(house.owner, house.outbox, "a", name="x" * 256 * 1024)
    assert await house.owner.fetchval("select (select count(*) from outbox) + (select count(*) from things)") == 0


async def test_the_largest_fact_arrives(house: House) -> None:
    await house.two_of_everything()
    await change(house.owner, house.outbox, "a", name="x" * (256 * 1024 - 200))
    await house.applied_each_once(1)


async def test_an_outbox_refuses_the_facts_of_another_owner(house: House) -> None:
    state = ExperimentState(id="a", version=1, name="", created_at=LONG_AGO)
    async with house.owner.transaction() as tx:
        with pytest.raises(ValueError, match="run"):
            await house.outbox.add(tx, RUN_CREATED, state)


@pytest.mark.parametrize("identity", ["", "a b", "a.*", ">", "a..b", "a\nb"])
async def test_an_id_that_no_subject_can_carry_is_refused(house: House, identity: str) -> None:
    """Published, it would hold up every fact behind it."""
    with pytest.raises(ValueError, match="subject"):
        await change(house.owner, house.outbox, identity)


def version_in(body: bytes) -> int:
    return msgspec.json.decode(body, type=EXPERIMENT_CREATED.body).version
