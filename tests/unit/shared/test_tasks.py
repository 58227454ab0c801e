from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest
from tenacity import wait_fixed, wait_none

from shared import telemetry
from shared.tasks import Tasks, TaskState


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  The state is asked for, it is never announced.
            await asyncio.sleep(0)


async def test_a_crashed_task_is_started_again_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    starts = 0
    third_start = asyncio.Event()

    async def crash_twice() -> None:
        nonlocal starts
        starts += 1
        if starts < 3:
            raise ConnectionError("gone")
        third_start.set()
        await asyncio.Event().wait()

    tasks = Tasks(wait=wait_none())
    tasks.spawn("relay", crash_twice)
    await asyncio.wait_for(third_start.wait(), 5)
    assert tasks.states() == {"relay": TaskState.RUNNING}
    assert "task relay crashed" in caplog.text
    assert "ConnectionError: gone" in caplog.text
    assert telemetry.metrics.get_sample_value("headrace_task_restarts_total", {"task": "relay"}) == 2
    await tasks.stop()


async def test_waiting_to_be_started_again_is_not_being_lost(caplog: pytest.LogCaptureFixture) -> None:
    crashed = asyncio.Event()

    async def crash() -> None:
        crashed.set()
        raise ConnectionError

    tasks = Tasks(wait=wait_fixed(3600))
    tasks.spawn("subscriber", crash)
    await asyncio.wait_for(crashed.wait(), 5)
    await _until(lambda: tasks.states()["subscriber"] is TaskState.WAITING)
    assert tasks.lost() == []
    await asyncio.wait_for(tasks.stop(), 5)


async def test_the_delay_grows_until_the_task_was_steady_for_a_while() -> None:
    attempts: list[int] = []
    enough = asyncio.Event()

    async def crash() -> None:
        if len(attempts) == 4:
            enough.set()
            await asyncio.Event().wait()
        raise ConnectionError

    class Remember(wait_none):
        def __call__(self, retry_state: object) -> float:
            attempts.append(retry_state.attempt_number)  # type: ignore[attr-defined]
            return 0.0

    growing = Tasks(wait=Remember(), steady_after_seconds=60)
    growing.spawn("one", crash)
    await asyncio.wait_for(enough.wait(), 5)
    assert attempts == [1, 2, 3, 4]
    await growing.stop()

    attempts.clear()
    enough.clear()
    steady = Tasks(wait=Remember(), steady_after_seconds=0)
    steady.spawn("two", crash)
    await asyncio.wait_for(enough.wait(), 5)
    assert attempts == [1, 1, 1, 1]
    await steady.stop()


async def test_a_task_that_returns_is_done_and_its_name_free() -> None:
    ran = 0

    async def once() -> None:
        nonlocal ran
        ran += 1

    tasks = Tasks()
    for _ in range(2):
        tasks.spawn("once", once)
        await _until(lambda: tasks.states()["once"] is TaskState.DONE)
    assert ran == 2
    assert tasks.lost() == []
    await tasks.stop()


async def test_a_task_cancelled_by_a_stranger_is_lost() -> None:
    strangers_victim: list[asyncio.Task[None]] = []
    started = asyncio.Event()

    async def work() -> None:
        current = asyncio.current_task()
        assert current is not None
        strangers_victim.append(current)
        started.set()
        await asyncio.Event().wait()

    tasks = Tasks()
    tasks.spawn("ticker", work)
    await asyncio.wait_for(started.wait(), 5)
    strangers_victim[0].cancel()
    await asyncio.wait(strangers_victim, timeout=5)
    assert tasks.lost() == ["ticker"]
    await tasks.stop()


async def test_tasks_stop_in_the_reverse_of_the_order_they_were_spawned_in() -> None:
    ended: list[str] = []
    ready = asyncio.Barrier(4)

    async def work(name: str) -> None:
        await ready.wait()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    tasks = Tasks()
    for name in ("database", "relay", "ticker"):
        tasks.spawn(name, lambda name=name: work(name))  # type: ignore[misc]
    await asyncio.wait_for(ready.wait(), 5)
    await tasks.stop()
    assert ended == ["ticker", "relay", "database"]
    with pytest.raises(RuntimeError, match="being stopped"):
        tasks.spawn("late", lambda: work("late"))


async def test_a_task_that_lost_its_cancellation_is_stopped_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    cancellations = 0
    started = asyncio.Event()

    async def lose_one() -> None:
        nonlocal cancellations
        while True:
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancellations += 1
                if cancellations > 1:
                    raise

    tasks = Tasks()
    tasks.spawn("streams", lose_one)
    await asyncio.wait_for(started.wait(), 5)
    await asyncio.wait_for(tasks.stop(), 9)
    assert (cancellations, caplog.text) == (2, "")


async def test_stop_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        started.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    tasks = Tasks()
    tasks.spawn("stubborn", stubborn)
    await asyncio.wait_for(started.wait(), 5)
    with caplog.at_level(logging.WARNING):
        await asyncio.wait_for(tasks.stop(within_seconds=0.05), 5)
    assert "task stubborn did not stop" in caplog.text
    release.set()


async def test_two_running_tasks_cannot_share_a_name() -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    tasks = Tasks()
    tasks.spawn("same", forever)
    with pytest.raises(ValueError, match="running already"):
        tasks.spawn("same", forever)
    await tasks.stop()


async def test_a_loop_that_goes_on_is_alive_and_one_that_has_stopped_turning_is_lost() -> None:
    tasks = Tasks()
    with tasks.loop("tell the engine", stuck_after_seconds=3600) as loop:
        assert tasks.lost() == []
        with tasks.loop("compare", stuck_after_seconds=0) as stuck:
            await _until(lambda: stuck.is_stuck)
            assert tasks.lost() == ["compare"]
        assert tasks.lost() == [], "one that has ended is not stuck"
        loop.turn()
    assert tasks.lost() == []
