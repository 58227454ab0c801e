"""What a subscriber gave up on waits in its own rows, until somebody has it applied after all."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from infra.embedded.nats import NatsServer
from shared.contracts.events import EXPERIMENT_CREATED
from shared.contracts.questions import (
    ById,
    DeadLetter,
    DeadRequest,
    Nothing,
    dead,
    dead_letter,
    discard_dead,
    retry_dead,
)
from shared.database import Transaction
from shared.errors import NotFound, Unavailable, WrongState
from shared.subscriptions import Applying, Dead, Fact, Fetching, Later, Outcome
from tests.integration.nervous_system.conftest import House, house_on
from tests.support.eventually import eventually
from tests.support.facts import effects, record_effect


class Handler:
    """Gives up on the second fact until it is mended."""

    def __init__(self) -> None:
        self.outcome: Outcome | Exception | None = Dead("not for us")

    async def __call__(self, tx: Transaction, fact: Fact[Any]) -> Outcome:
        # Whatever it says, nothing of it may stay.
        done = await record_effect(tx, fact)
        if fact.message.position != 2 or self.outcome is None:
            return done
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
async def handler(house: House) -> Handler:
    """A subscriber that has passed four facts, and given up on the second of them."""
    handler = Handler()
    await house.relay()
    await house.subscriber({EXPERIMENT_CREATED: handler})
    await house.change(times=4)
    await passed(house, 4)
    assert await effects(house.listener) == [1, 3, 4]
    return handler


async def test_a_dead_letter_is_listed_and_shown_to_whoever_asks(house: House, handler: Handler) -> None:
    (letter,) = await letters(house)
    assert (letter.type, letter.resource_id, letter.position) == ("kfp.experiment.created.v1", "a", 2)
    assert (letter.reason, letter.tries) == ("not for us", 1)
    shown = await house.owner_bus.ask(dead_letter("run"), ById(id=letter.id), within_seconds=5)
    assert shown.letter == letter
    assert shown.body == await house.owner.fetchval("select body from outbox where position = 2")


async def test_dead_letters_are_asked_for_a_few_at_a_time(house: House) -> None:
    async def give_up(tx: Transaction, fact: Fact[Any]) -> Outcome:
        return Dead("not for us")

    await house.relay()
    await house.subscriber({EXPERIMENT_CREATED: give_up})
    await house.change(times=3)
    await passed(house, 3)
    first = await house.owner_bus.ask(dead("run"), DeadRequest(most=2), within_seconds=5)
    asked = DeadRequest(most=2, behind=first.letters[-1].place)
    second = await house.owner_bus.ask(dead("run"), asked, within_seconds=5)
    assert [[letter.position for letter in page.letters] for page in (first, second)] == [[1, 2], [3]]
    assert (first.count, second.count) == (3, 3)


async def test_a_dead_letter_is_applied_once_its_handler_is_mended_and_is_gone_then(
    house: House, handler: Handler
) -> None:
    (letter,) = await letters(house)
    handler.outcome = None

    await retry(house, letter.id)

    assert await effects(house.listener) == [1, 3, 4, 2]
    assert await letters(house) == ()
    with pytest.raises(NotFound):
        await retry(house, letter.id)
    await house.change()
    await passed(house, 5)
    assert await effects(house.listener) == [1, 3, 4, 2, 5]


async def test_a_dead_letter_that_is_discarded_is_never_applied(house: House, handler: Handler) -> None:
    (letter,) = await letters(house)
    handler.outcome = None

    await house.owner_bus.ask(discard_dead("run"), ById(id=letter.id), within_seconds=10)

    assert await letters(house) == ()
    for question in (discard_dead, retry_dead):
        with pytest.raises(NotFound):
            await house.owner_bus.ask(question("run"), ById(id=letter.id), within_seconds=10)
    await house.change()
    await passed(house, 5)
    assert await effects(house.listener) == [1, 3, 4, 5]


async def test_however_many_retry_at_once_it_is_applied_once(house: House, handler: Handler) -> None:
    await house.subscriber({EXPERIMENT_CREATED: handler})
    (letter,) = await letters(house)
    handler.outcome = None

    outcomes = await asyncio.gather(*(retry(house, letter.id) for _ in range(8)), return_exceptions=True)

    assert [type(outcome) for outcome in outcomes if outcome != Nothing()] == [NotFound] * 7
    assert await effects(house.listener) == [1, 3, 4, 2]


@pytest.mark.parametrize("outcome", [Dead("still not"), ValueError("still not")])
async def test_a_retry_that_is_given_up_on_again_leaves_the_letter_with_the_new_reason(
    house: House, handler: Handler, outcome: Outcome | Exception
) -> None:
    (letter,) = await letters(house)
    handler.outcome = outcome

    with pytest.raises(WrongState, match="still not"):
        await retry(house, letter.id)

    (left,) = await letters(house)
    assert "still not" in left.reason
    assert (left.id, left.tries, left.put_aside_at) == (letter.id, 2, letter.put_aside_at)
    assert await effects(house.listener) == [1, 3, 4]


@pytest.mark.parametrize("outcome", [Later(), Unavailable("The store does not answer.")])
async def test_a_retry_in_an_outage_changes_nothing(
    house: House, handler: Handler, outcome: Outcome | Exception
) -> None:
    before = await letters(house)
    handler.outcome = outcome

    with pytest.raises(Unavailable):
        await retry(house, before[0].id)

    assert await letters(house) == before
    assert await effects(house.listener) == [1, 3, 4]


async def test_what_a_handler_fetches_is_fetched_for_a_retry_too(house: House) -> None:
    is_mended = False

    async def fetch(facts: Sequence[Fact[Any]]) -> Applying:
        async def apply(tx: Transaction) -> Outcome:
            (fact,) = facts
            return await record_effect(tx, fact) if is_mended else Dead("nothing was fetched")

        return apply

    await house.relay()
    await house.subscriber({EXPERIMENT_CREATED: Fetching(fetch)})
    await house.change()
    await passed(house, 1)
    (letter,) = await letters(house)
    is_mended = True
    await retry(house, letter.id)
    assert await effects(house.listener) == [1]


async def test_dead_letters_outlive_the_brokers_store(
    database_urls: dict[str, str], own_nats: NatsServer, tmp_path: Path
) -> None:
    (tmp_path / "migrations").mkdir()
    async with house_on(database_urls, own_nats.urls(), tmp_path / "migrations") as house:
        handler = Handler()
        await house.relay()
        await house.subscriber({EXPERIMENT_CREATED: handler})
        await house.change(times=2)
        await passed(house, 2)
        before = await letters(house)

        await own_nats.stop()
        shutil.rmtree(tmp_path / "nats" / "store")
        await own_nats.start()
        await house.change()
        await passed(house, 3)

        assert await letters(house) == before
        handler.outcome = None
        await retry(house, before[0].id)
        assert await effects(house.listener) == [1, 3, 2]


async def letters(house: House) -> tuple[DeadLetter, ...]:
    answer = await house.owner_bus.ask(dead("run"), DeadRequest(), within_seconds=5)
    assert answer.count == len(answer.letters)
    return answer.letters


async def retry(house: House, letter_id: str) -> Nothing:
    return await house.owner_bus.ask(retry_dead("run"), ById(id=letter_id), within_seconds=10)


async def passed(house: House, position: int) -> None:
    async def has_passed() -> bool:
        return bool(await house.listener.fetchval("select max(position) >= $1 from cursors", position))

    await eventually(has_passed)
