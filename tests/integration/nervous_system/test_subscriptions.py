"""Whatever happens to its replicas, a subscriber applies each fact once, in order."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nats
import pytest

from shared.bus import DEAD_STREAM, EVENTS_STREAM
from shared.contracts.events import EXPERIMENT_ARCHIVED, EXPERIMENT_CREATED, METRICS_REPORTED, FactKind
from shared.contracts.states import ExperimentState, MetricsState
from shared.database import Transaction
from shared.errors import Unavailable
from shared.migrate import migrate
from shared.outbox import Outbox, Relay
from shared.subscriptions import Applying, Dead, Done, Fact, Fetching, Later, Outcome, Together
from shared.telemetry import continue_trace, current_trace_id
from tests.integration.nervous_system.conftest import House
from tests.support.eventually import eventually
from tests.support.facts import LONG_AGO, effects, publish_again, record_effect
from tests.support.replica_process import replica_process


async def test_a_burst_goes_through_in_batches_each_fact_once(house: House) -> None:
    await house.two_of_everything()
    await asyncio.gather(*(house.change(f"thing-{nth}", times=50) for nth in range(6)))
    await house.applied_each_once(300)
    rows = await house.listener.fetch("select id, array_agg(version order by n) as versions from effects group by id")
    assert {row["id"]: row["versions"] for row in rows} == {f"thing-{n}": list(range(1, 51)) for n in range(6)}


async def test_a_fact_delivered_twice_is_applied_once(house: House) -> None:
    await house.two_of_everything()
    await house.change(times=3)
    await house.applied_each_once(3)
    await publish_again(house.owner, house.owner_bus, position=2)
    await house.change()
    await house.applied_each_once(4)


async def test_a_crash_between_commit_and_acknowledgement_applies_once(house: House) -> None:
    await house.relay()
    await house.change(times=5)
    await house.published(5)
    async with replica_process(house.orders("subscriber", at="before_acknowledging")) as replica:
        assert await replica.died() == -signal.SIGKILL
    assert await effects(house.listener) == [1, 2, 3, 4, 5]
    await house.subscriber()
    await house.change()
    await house.applied_each_once(6)


async def test_a_crash_before_the_commit_applies_once(house: House) -> None:
    await house.relay()
    await house.change(times=5)
    await house.published(5)
    async with replica_process(house.orders("subscriber", at="before_commit")) as replica:
        assert await replica.died() == -signal.SIGKILL
    assert await effects(house.listener) == []
    await house.subscriber()
    await house.change()
    await house.applied_each_once(6)


@pytest.mark.parametrize("point", ["before_commit", "before_acknowledging"])
async def test_a_subscriber_that_was_stopped_is_overtaken_and_does_no_harm_when_it_wakes(
    house: House, point: str
) -> None:
    """Stopped before its commit, it holds a transaction and unacknowledged facts: the database ends the first."""
    await house.relay()
    await house.change(times=5)
    await house.published(5)
    async with replica_process(house.orders("subscriber", at=point, signal="SIGSTOP")) as replica:
        await replica.stopped()
        await house.subscriber()
        await house.change(times=3)
        await house.applied_each_once(8)
        replica.send(signal.SIGCONT)
        await house.change(times=3)
        await house.applied_each_once(11)


async def test_facts_that_went_to_a_stopped_replica_are_waited_for(house: House) -> None:
    """It is stopped while it waits at the broker: what comes now goes to it, and comes back unacknowledged."""
    await house.relay()
    async with replica_process(house.orders("subscriber")) as replica:
        await house.change()
        await house.applied_each_once(1)
        replica.send(signal.SIGSTOP)
        await replica.stopped()
        await house.change(times=3)
        await house.published(4)
        await house.subscriber()
        await house.change(times=3)
        await house.applied_each_once(7)
        replica.send(signal.SIGCONT)
        await house.change()
        await house.applied_each_once(8)


async def test_what_a_handler_fetches_is_there_before_its_transaction_and_an_outage_of_that_is_waited_out(
    house: House,
) -> None:
    fetched: list[int] = []
    is_out = True

    async def fetch(facts: Sequence[Fact[Any]]) -> Applying:
        nonlocal is_out
        positions = [fact.message.position for fact in facts]
        if 3 in positions and is_out:
            is_out = False
            raise Unavailable("The store does not answer.")
        open_transactions = await house.listener.fetchval(
            "select count(*) from pg_stat_activity where state = 'idle in transaction' and usename = current_user"
        )
        assert open_transactions == 0
        fetched.extend(positions)

        async def apply(tx: Transaction) -> Outcome:
            for fact in facts:
                await record_effect(tx, fact)
            return Done()

        return apply

    await house.relay()
    await house.change(times=5)
    await house.published(5)
    await house.subscriber({EXPERIMENT_CREATED: Fetching(fetch)})
    await house.applied_each_once(5)
    assert not is_out
    assert fetched[-5:] == [1, 2, 3, 4, 5]

    # They come together, also where some of them come a second time.
    await house.change(times=40)
    await publish_again(house.owner, house.owner_bus, position=5)
    await house.applied_each_once(45)


async def test_facts_that_are_taken_together_come_in_their_order_each_once(house: House) -> None:
    taken: list[list[int]] = []

    async def record(tx: Transaction, facts: Sequence[Fact[Any]]) -> Outcome:
        taken.append([fact.message.position for fact in facts])
        for fact in facts:
            await record_effect(tx, fact)
        return Done()

    await house.relay()
    await house.change(times=30)
    await house.published(30)
    await house.subscriber({EXPERIMENT_CREATED: Together(record)})
    await house.applied_each_once(30)
    assert any(len(positions) > 1 for positions in taken)
    await publish_again(house.owner, house.owner_bus, position=5)
    await house.change(times=5)
    await house.applied_each_once(35)


async def test_facts_of_one_kind_are_applied_together_past_those_that_nobody_here_listens_to(house: House) -> None:
    together: list[list[int]] = []

    async def apply(tx: Transaction, facts: Sequence[Fact[Any]]) -> Outcome:
        together.append([fact.message.position for fact in facts])
        for fact in facts:
            await record_effect(tx, fact)
        return Done()

    await house.relay()
    for nth in range(1, 7):
        if nth % 3 == 0:
            async with house.owner.transaction() as tx:
                await house.outbox.add(
                    tx, EXPERIMENT_ARCHIVED, ExperimentState(id="b", version=nth, name="b", created_at=LONG_AGO)
                )
        else:
            await house.change()
    await house.published(6)
    await house.subscriber({EXPERIMENT_CREATED: Together(apply)})

    async def is_applied() -> bool:
        return await effects(house.listener) == [1, 2, 4, 5]

    await eventually(is_applied)
    assert [position for positions in together for position in positions] == [1, 2, 4, 5]

    # Some of them come a second time, and are not applied a second time.
    await publish_again(house.owner, house.owner_bus, position=4)
    await house.change(times=3)

    async def is_applied_to_the_end() -> bool:
        return await effects(house.listener) == [1, 2, 4, 5, 7, 8, 9]

    await eventually(is_applied_to_the_end)


async def test_one_bad_fact_does_not_spoil_those_that_are_applied_together_with_it(house: House) -> None:
    async def apply(tx: Transaction, facts: Sequence[Fact[Any]]) -> Outcome:
        if any(fact.message.position == 3 for fact in facts):
            return Dead("it is bad")
        for fact in facts:
            await record_effect(tx, fact)
        return Done()

    await house.relay()
    await house.change(times=5)
    await house.published(5)
    await house.subscriber({EXPERIMENT_CREATED: Together(apply)})

    async def is_applied() -> bool:
        return await effects(house.listener) == [1, 2, 4, 5]

    await eventually(is_applied)


async def test_a_leaving_replica_finishes_the_batch_in_hand(house: House) -> None:
    await house.relay()
    await house.change(times=3)
    await house.published(3)
    is_about_to_commit, may_commit = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        is_about_to_commit.set()
        await may_commit.wait()

    leaving = await house.subscriber(before_commit=wait, ack_wait_seconds=300)
    await asyncio.wait_for(is_about_to_commit.wait(), 10)
    leaving.cancel()
    may_commit.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(leaving, 10)

    assert await effects(house.listener) == [1, 2, 3]
    client = await nats.connect(house.nats_urls["admin"])

    async def is_acknowledged() -> bool:
        consumer = await client.jetstream().consumer_info(EVENTS_STREAM, "run--experiment")
        return (consumer.num_ack_pending, consumer.num_pending, consumer.num_redelivered) == (0, 0, 0)

    await eventually(is_acknowledged)
    await client.close()


async def test_what_a_leaving_replica_holds_goes_to_the_next_at_once(house: House) -> None:
    await house.relay()
    arrived = asyncio.Event()

    async def wait_for_ever(_: Transaction, __: Fact[Any]) -> Outcome:
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    leaving = await house.subscriber({EXPERIMENT_CREATED: wait_for_ever}, ack_wait_seconds=300)
    await house.change(times=3)
    await asyncio.wait_for(arrived.wait(), 10)
    await house.subscriber(ack_wait_seconds=300)
    leaving.cancel()
    # The broker alone would wait for the acknowledgement much longer.
    await house.applied_each_once(3)


async def test_later_for_a_while_then_done_keeps_the_order(house: House) -> None:
    await house.relay()
    refusals = 3

    async def hesitate(tx: Transaction, fact: Fact[Any]) -> Outcome:
        nonlocal refusals
        if fact.message.position == 3 and refusals:
            refusals -= 1
            return Later(0.02)
        return await record_effect(tx, fact)

    await house.change(times=6)
    await house.published(6)
    await house.subscriber({EXPERIMENT_CREATED: hesitate})
    await house.applied_each_once(6)
    assert refusals == 0


async def test_an_outage_in_a_handler_is_later_for_as_long_as_it_takes(house: House) -> None:
    await house.relay()
    tries = 0

    async def depend(tx: Transaction, fact: Fact[Any]) -> Outcome:
        nonlocal tries
        tries += 1
        if tries < 9:
            raise Unavailable("something else is out")
        return await record_effect(tx, fact)

    await house.subscriber({EXPERIMENT_CREATED: depend})
    await house.change(times=2)
    await house.applied_each_once(2)


async def test_later_for_ever_holds_up_one_owner_and_no_other(house: House) -> None:
    await house.relay()
    metrics = await metrics_owner(house)
    waited = asyncio.Event()

    async def never(_: Transaction, __: Fact[Any]) -> Outcome:
        waited.set()
        return Later(0.05)

    await house.subscriber({EXPERIMENT_CREATED: never, METRICS_REPORTED: record_effect})
    await house.change(times=2)
    await asyncio.wait_for(waited.wait(), 10)
    await metrics(3)
    await house.applied_each_once(3)
    assert {row["id"] for row in await house.listener.fetch("select id from effects")} == {"metrics"}


async def test_a_handler_that_fails_for_ever_puts_the_fact_aside_after_five_tries(house: House) -> None:
    await house.relay()
    tries = 0

    async def choke_on_two(tx: Transaction, fact: Fact[Any]) -> Outcome:
        nonlocal tries
        await record_effect(tx, fact)
        if fact.message.position == 2:
            tries += 1
            raise ValueError("this makes\r\nno sense")
        return Done()

    await house.change(times=4)
    await house.published(4)
    await house.subscriber({EXPERIMENT_CREATED: choke_on_two})
    await eventually(lambda: has_applied(house, 4))
    assert await effects(house.listener) == [1, 3, 4]
    assert tries == 1 + 5  # once in the batch, five times by itself
    (letter,) = await dead_letters(house)
    assert letter.subject == "kfp.dead.run.experiment.created.a"
    headers = dict(letter.headers or {})
    assert headers["Headrace-Reason"] == "ValueError('this makes\\r\\nno sense')"
    assert headers["Headrace-Attempts"] == "5"
    assert headers["ce-position"] == "2"
    assert letter.data == await house.owner.fetchval("select body from outbox where position = 2")


async def test_a_wrong_statement_in_a_handler_is_a_failure_and_no_outage(house: House) -> None:
    await house.relay()

    async def mistype(tx: Transaction, fact: Fact[Any]) -> Outcome:
        if fact.message.position == 1:
            await tx.execute("insert into effects (position) values ($1)", "closed")
        return await record_effect(tx, fact)

    await house.subscriber({EXPERIMENT_CREATED: mistype})
    await house.change(times=2)
    await eventually(lambda: has_applied(house, 2))
    assert await effects(house.listener) == [2]


async def test_what_a_handler_calls_dead_is_put_aside_at_once(house: House) -> None:
    await house.relay()

    async def refuse_one(tx: Transaction, fact: Fact[Any]) -> Outcome:
        if fact.message.position == 1:
            return Dead("not for us")
        return await record_effect(tx, fact)

    await house.subscriber({EXPERIMENT_CREATED: refuse_one})
    await house.change(times=3)
    await eventually(lambda: has_applied(house, 3))
    assert await effects(house.listener) == [2, 3]
    (letter,) = await dead_letters(house)
    assert (letter.headers or {})["Headrace-Reason"] == "not for us"


async def test_a_body_that_does_not_read_is_put_aside_and_the_rest_goes_on(house: House) -> None:
    await house.change(times=3)
    await house.owner.execute("update outbox set body = 'not json' where seq = 2")
    await house.relay()
    await house.published(3)
    await house.subscriber()
    await eventually(lambda: has_applied(house, 3))
    (letter,) = await dead_letters(house)
    assert letter.headers is not None
    assert "kfp.experiment.created.v1" in letter.headers["Headrace-Reason"]
    assert len(await effects(house.listener)) == 2


async def test_a_message_without_a_position_is_put_aside(house: House) -> None:
    await house.relay()
    await house.subscriber()
    client = await nats.connect(house.nats_urls["admin"])
    try:
        await client.jetstream().publish("kfp.event.experiment.created.x", b"{}")
    finally:
        await client.close()
    await house.change(times=2)
    await house.applied_each_once(2)
    (letter,) = await dead_letters(house)
    assert (letter.headers or {})["Headrace-Reason"] == "it has no position"


async def test_a_handler_works_inside_the_trace_that_its_fact_was_born_in(house: House) -> None:
    await house.relay()
    traces: list[str | None] = []

    async def follow(_: Transaction, __: Fact[Any]) -> Outcome:
        traces.append(current_trace_id())
        return Done()

    await house.subscriber({EXPERIMENT_CREATED: follow})
    born = [f"{nth:032x}" for nth in (1, 2)]
    for trace in born:
        with continue_trace(f"00-{trace}-b7ad6b7169203331-01"):
            await house.change()
    await eventually(lambda: has_applied(house, 2))
    assert traces == born


async def test_facts_nobody_here_handles_move_the_cursor(house: House) -> None:
    await house.relay()
    archived: FactKind[Any] = FactKind("experiment", "archived", EXPERIMENT_CREATED.body)
    await house.subscriber({archived: record_effect})
    await house.change(times=3)
    await eventually(lambda: has_applied(house, 3))
    assert await effects(house.listener) == []


async def has_applied(house: House, position: int) -> bool:
    return bool(await house.listener.fetchval("select max(position) >= $1 from cursors", position))


async def dead_letters(house: House) -> list[Any]:
    client = await nats.connect(house.nats_urls["admin"])
    try:
        js = client.jetstream()
        last = (await js.stream_info(DEAD_STREAM)).state.last_seq
        return [await js.get_msg(DEAD_STREAM, seq) for seq in range(1, last + 1)]
    finally:
        await client.close()


async def metrics_owner(house: House) -> Callable[[int], Awaitable[None]]:
    """A second owner, with its relay; call it to tell some facts."""
    database = await house.database("metrics")
    with TemporaryDirectory() as nothing:
        await migrate(database, Path(nothing))
    bus = await house.bus("metrics")
    house.run(Relay(database, bus, "metrics").run())
    outbox = Outbox("metrics", bus)

    async def tell(times: int) -> None:
        for version in range(1, times + 1):
            async with database.transaction() as tx:
                await outbox.add(tx, METRICS_REPORTED, MetricsState(id="metrics", version=version, metrics=()))

    return tell
