"""Questions between services: answers are shared out, refusals arrive as they were, and nobody waits for nobody."""

import asyncio
import time

import msgspec
import pytest

from shared.bus import Bus
from shared.contracts.questions import (
    GET_EXPERIMENT,
    ById,
    Question,
    RepeatAnswer,
    RepeatRequest,
    repeat,
)
from shared.contracts.states import ExperimentState
from shared.errors import Internal, InvalidInput, NotFound, Refusal, Unavailable
from shared.telemetry import continue_trace, current_trace_id
from tests.integration.nervous_system.conftest import House
from tests.support.facts import LONG_AGO


def state_of(request: ById) -> ExperimentState:
    return ExperimentState(id=request.id, version=1, name="mill", created_at=LONG_AGO)


async def ask(bus: Bus, identity: str = "a", *, within_seconds: float = 5) -> ExperimentState:
    return await bus.ask(GET_EXPERIMENT, ById(id=identity), within_seconds=within_seconds)


async def test_a_question_is_answered_inside_the_trace_of_whoever_asks(house: House) -> None:
    traces: list[str | None] = []

    async def answer(request: ById) -> ExperimentState:
        traces.append(current_trace_id())
        return state_of(request)

    await house.owner_bus.answer(GET_EXPERIMENT, answer)
    with continue_trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"):
        assert await ask(house.listener_bus) == state_of(ById(id="a"))
    assert traces == ["0af7651916cd43dd8448eb211c80319c"]


async def test_a_question_to_nobody_is_refused_at_once(house: House) -> None:
    waited_seconds = []
    for _ in range(5):
        started = time.perf_counter()
        with pytest.raises(Unavailable):
            await ask(house.listener_bus)
        waited_seconds.append(time.perf_counter() - started)
    # The best of them: a busy machine may hold up any one.
    assert min(waited_seconds) < 0.1


async def test_a_question_that_nobody_answers_in_time_is_refused(house: House) -> None:
    release = asyncio.Event()

    async def ponder(request: ById) -> ExperimentState:
        await release.wait()
        return state_of(request)

    await house.owner_bus.answer(GET_EXPERIMENT, ponder)
    with pytest.raises(Unavailable):
        await ask(house.listener_bus, within_seconds=0.1)
    release.set()


async def test_whoever_answers_is_heard_from_the_moment_on_that_it_says_so(house: House) -> None:
    async def answer(request: ById) -> ExperimentState:
        return state_of(request)

    for nth in range(300):
        async with house.owner_bus.answering(GET_EXPERIMENT, answer):
            assert await ask(house.listener_bus, str(nth)) == state_of(ById(id=str(nth)))


@pytest.mark.parametrize(
    "refusal",
    [
        NotFound.of("Experiment", "müh\nle"),
        InvalidInput("no", cause="because", layers=("Get experiment failed.",)),
        Unavailable("The database does not answer.", cause="gone"),
    ],
)
async def test_a_refusal_arrives_as_it_was(house: House, refusal: Refusal) -> None:
    async def refuse(_: ById) -> ExperimentState:
        raise refusal

    await house.owner_bus.answer(GET_EXPERIMENT, refuse)
    with pytest.raises(type(refusal)) as caught:
        await ask(house.listener_bus)
    assert (caught.value.message, caught.value.cause, caught.value.layers, caught.value.error) == (
        refusal.message,
        refusal.cause,
        refusal.layers,
        refusal.error,
    )


async def test_a_bug_in_an_answer_is_an_internal_error_for_whoever_asks(house: House) -> None:
    async def fail(_: ById) -> ExperimentState:
        raise ZeroDivisionError("oops")

    await house.owner_bus.answer(GET_EXPERIMENT, fail)
    with pytest.raises(Internal, match="oops"):
        await ask(house.listener_bus)


async def test_an_answer_too_large_for_the_bus_is_a_refusal(house: House) -> None:
    async def say_much(request: ById) -> ExperimentState:
        return msgspec.structs.replace(state_of(request), name="x" * 2_000_000)

    await house.owner_bus.answer(GET_EXPERIMENT, say_much)
    with pytest.raises(Internal, match="too large"):
        await ask(house.listener_bus)


async def test_an_answer_of_another_shape_is_an_internal_error(house: House) -> None:
    other = Question("experiment", "get", ById, RepeatAnswer)

    async def answer(_: ById) -> RepeatAnswer:
        return RepeatAnswer(position=1)

    await house.owner_bus.answer(other, answer)
    with pytest.raises(Internal, match="does not read"):
        await ask(house.listener_bus)


async def test_a_slow_answer_holds_up_no_other(house: House) -> None:
    release = asyncio.Event()

    async def answer(request: ById) -> ExperimentState:
        if request.id == "slow":
            await release.wait()
        return state_of(request)

    await house.owner_bus.answer(GET_EXPERIMENT, answer)
    slow = asyncio.create_task(ask(house.listener_bus, "slow"))
    for _ in range(20):
        await ask(house.listener_bus, "quick")
    assert not slow.done()
    release.set()
    assert (await slow).id == "slow"


async def test_two_replicas_share_the_questions(house: House) -> None:
    answered = [0, 0]
    for nth, bus in enumerate((house.owner_bus, await house.bus("experiment"))):

        async def answer(request: ById, nth: int = nth) -> ExperimentState:
            answered[nth] += 1
            return state_of(request)

        await bus.answer(GET_EXPERIMENT, answer)
    await asyncio.gather(*(ask(house.listener_bus, str(nth)) for nth in range(100)))
    assert sum(answered) == 100
    assert min(answered) > 0


async def test_a_replica_that_leaves_finishes_the_answers_it_began(house: House) -> None:
    leaving = await house.bus("experiment")
    asked, release = asyncio.Event(), asyncio.Event()

    async def answer(request: ById) -> ExperimentState:
        asked.set()
        await release.wait()
        return state_of(request)

    await leaving.answer(GET_EXPERIMENT, answer)
    asking = asyncio.create_task(ask(house.listener_bus))
    await asyncio.wait_for(asked.wait(), 5)
    closing = asyncio.create_task(leaving.close())
    release.set()
    assert (await asking).id == "a"
    await closing


async def test_no_question_is_lost_while_a_replica_leaves(house: House) -> None:
    leaving, asked, release = await house.bus("experiment"), asyncio.Event(), asyncio.Event()
    by_leaving: list[str] = []

    async def answer_last(request: ById) -> ExperimentState:
        by_leaving.append(request.id)
        asked.set()
        await release.wait()
        return state_of(request)

    async def answer(request: ById) -> ExperimentState:
        return state_of(request)

    await leaving.answer(GET_EXPERIMENT, answer_last)
    asking = [asyncio.create_task(ask(house.listener_bus, "first", within_seconds=15))]
    await asyncio.wait_for(asked.wait(), 5)
    await house.owner_bus.answer(GET_EXPERIMENT, answer)
    closing = asyncio.create_task(leaving.close())
    asking += [asyncio.create_task(ask(house.listener_bus, str(nth), within_seconds=15)) for nth in range(50)]
    release.set()
    assert [state.id for state in await asyncio.gather(*asking)] == ["first", *map(str, range(50))]
    await closing

    by_leaving.clear()
    for nth in range(20):
        await ask(house.listener_bus, str(nth))
    assert by_leaving == []


async def test_answering_again_replaces_the_handler(house: House) -> None:
    for position in (1, 2):

        async def answer(_: object, position: int = position) -> RepeatAnswer:
            return RepeatAnswer(position=position)

        await house.owner_bus.answer(repeat("experiment"), answer)
    said = {
        (await house.listener_bus.ask(repeat("experiment"), RepeatRequest(position=1), within_seconds=5)).position
        for _ in range(20)
    }
    assert said == {2}
