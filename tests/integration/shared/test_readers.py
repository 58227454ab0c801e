"""The processes that read, at work and beyond their limits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from shared.errors import Unavailable
from shared.readers import Limits, OverLimit, Readers

MEBIBYTE = 1024 * 1024
LIMITS = Limits(
    processes=1,
    queue_seconds=60,
    cpu_seconds=0.25,
    seconds=60,
    memory_bytes=256 * MEBIBYTE,
    settings="package_read",
)


@pytest.fixture
async def readers() -> AsyncIterator[Callable[..., Readers]]:
    made: list[Readers] = []

    def make(**differing: float) -> Readers:
        made.append(Readers("tests.support.reading:obey", msgspec.structs.replace(LIMITS, **differing)))
        return made[-1]

    yield make
    for each in made:
        await each.close()


async def ask(readers: Readers, request: bytes) -> tuple[int, bytes]:
    """The id of the process that answered, and what it said."""
    pid, _, said = (await readers.read(lambda: request)).partition(b" ")
    return int(pid), said


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_process_is_used_again_and_one_that_may_have_grown_is_not(readers: Callable[..., Readers]) -> None:
    few = readers()
    first, said = await ask(few, b"hello")
    assert said == b"hello"
    large = os.urandom(3 * MEBIBYTE)
    second, said = await ask(few, large)
    assert (second, said) == (first, large)
    assert not is_alive(first)
    third, _ = await ask(few, b"")
    assert third != first
    await few.close()
    assert not is_alive(third)


async def test_only_processor_time_counts_as_time(readers: Callable[..., Readers]) -> None:
    """As when the machine has other things to do: the process waits, and is none the worse for it."""
    few = readers()
    assert (await ask(few, b"wait 1"))[1] == b"wait 1"


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (
            b"compute",
            "it takes more than 0.25 s of processor time to read; "
            "the setting HEADRACE_PACKAGE_READ_CPU_SECONDS says so",
        ),
        (
            b"allocate 300000000",
            "it takes more than 256 MiB of memory, or more depth, to read; "
            "the setting HEADRACE_PACKAGE_READ_MEMORY_BYTES says so",
        ),
        (b"recurse", "more depth"),
        (b"abort", "more depth"),
    ],
)
async def test_what_is_over_a_limit_is_told_with_its_setting_and_the_next_is_read(
    readers: Callable[..., Readers], request_: bytes, reason: str
) -> None:
    few = readers()
    for _ in range(2):  # In a fresh process, and in one that has already answered.
        with pytest.raises(OverLimit) as over:
            await ask(few, request_)
        assert reason in str(over.value)
        assert (await ask(few, b"hello"))[1] == b"hello"


async def test_a_process_that_takes_too_long_is_ended_and_nobody_elses_fault(readers: Callable[..., Readers]) -> None:
    few = readers(seconds=0.5)
    with pytest.raises(Unavailable, match=r"longer than 0\.5 s; the setting HEADRACE_PACKAGE_READ_SECONDS says so"):
        await ask(few, b"wait 600")


async def test_an_idle_process_that_has_died_is_replaced(readers: Callable[..., Readers]) -> None:
    few = readers()
    pid, _ = await ask(few, b"hello")
    os.kill(pid, 9)
    assert (await ask(few, b"hello"))[1] == b"hello"


async def test_who_waits_for_a_turn_waits_a_bounded_time(readers: Callable[..., Readers]) -> None:
    few = readers(queue_seconds=0.2)
    slow = await begun(few, b"wait 600")
    with pytest.raises(Unavailable, match="Too much is being read at this moment"):
        await few.read(never)
    await given_up(slow)
    assert (await ask(few, b"hello"))[1] == b"hello"


async def test_an_answer_that_nobody_waits_for_is_not_given_to_the_next(readers: Callable[..., Readers]) -> None:
    few = readers()
    await ask(few, b"hello")
    await given_up(await begun(few, b"wait 0.1"))
    assert (await ask(few, b"hello"))[1] == b"hello"


def never() -> bytes:
    pytest.fail("what waits is not made, and takes no memory")


async def begun(readers: Readers, request: bytes) -> asyncio.Task[bytes]:
    """A request whose turn has come."""
    its_turn = asyncio.Event()
    loop = asyncio.get_running_loop()

    def made() -> bytes:
        loop.call_soon_threadsafe(its_turn.set)
        return request

    task = asyncio.create_task(readers.read(made))
    await its_turn.wait()
    return task


async def given_up(task: asyncio.Task[bytes]) -> None:
    task.cancel()
    await asyncio.wait([task])
