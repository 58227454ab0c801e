"""Keeps a table of processes alive, and ends them in order.

It knows names, lives and deaths, and nothing of what the processes are: the table is data. A process that dies is
started again, with a growing delay while it keeps dying and a short one once it has been steady. Nothing the
supervisor starts outlives it: an orderly stop ends each stage before the one below it, and the kernel ends whatever a
killed supervisor leaves.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from tenacity import AsyncRetrying, RetryCallState, wait_exponential, wait_random
from tenacity.wait import wait_base

from infra.embedded.failure import StartFailure
from infra.embedded.process import Command, Process

GIVE_UP_AFTER = 5
"""A process that dies so often in a row while the stack is starting will not come up by trying again."""


class Startable(Protocol):
    """A server or a plain command: it starts, ends, and starts again with the same data on the same ports."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def exited(self) -> int: ...

    def last_words(self) -> str:
        """The end of its log, or nothing."""
        ...


class Program:
    """A command as a Startable: it counts as started once it runs."""

    def __init__(self, command: Command, *, stop_within_seconds: float = 10) -> None:
        self._command = command
        self._stop_within_seconds = stop_within_seconds
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        if self._process is None:
            raise StartFailure(f"{self._command.argv[0]} was not started")
        return self._process

    async def start(self) -> None:
        self._process = Process.spawn(self._command)

    async def stop(self) -> None:
        await self.process.stop(within_seconds=self._stop_within_seconds)

    async def exited(self) -> int:
        return await self.process.exited()

    def last_words(self) -> str:
        return self.process.last_words()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the process table."""

    name: str
    startable: Startable


class _Died(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Supervisor:
    """`say` receives one line for a person whenever a process dies or cannot be started.

    `steady_after_seconds`: a process that lived this long before it died starts again with the shortest delay.
    """

    def __init__(
        self,
        *,
        say: Callable[[str], None],
        wait: wait_base | None = None,
        steady_after_seconds: float = 30,
    ) -> None:
        self._say = say
        self._wait = wait or wait_exponential(multiplier=0.2, max=15) + wait_random(0, 0.2)
        self._steady_after_seconds = steady_after_seconds
        self._stages: list[list[Row]] = []
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._settled = False
        self._hopeless: asyncio.Future[None] | None = None

    async def start(self, stage: Sequence[Row]) -> None:
        """Start the rows of a stage together, then keep them alive. Raises StartFailure when one does not start.

        Later stages end first. After a failure the caller still owes a `stop`.
        """
        self._stages.append(list(stage))
        started = await asyncio.gather(*(row.startable.start() for row in stage), return_exceptions=True)
        for outcome in started:
            if isinstance(outcome, BaseException):
                raise outcome
        for row in stage:
            self._keepers[row.name] = asyncio.create_task(self._keep(row), name=f"keep {row.name}")

    def settle(self) -> None:
        """The whole table has come up once: from now on no death is final, however often it repeats."""
        self._settled = True

    async def hopeless(self) -> None:
        """Never returns; raises StartFailure when, before `settle`, a process died too often in a row."""
        await self._hope()

    async def retire(self, name: str) -> None:
        """End one row before its turn, and keep it alive no longer. Harmless where it was never started."""
        for stage in self._stages:
            for row in [row for row in stage if row.name == name]:
                stage.remove(row)
                await self._end([row])

    async def stop(self) -> None:
        """End everything, last stage first, the rows of a stage together. Nothing is left when it returns."""
        for stage in reversed(self._stages):
            await self._end(stage)
        self._stages.clear()

    async def _end(self, rows: Sequence[Row]) -> None:
        keepers = [self._keepers.pop(row.name) for row in rows if row.name in self._keepers]
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        await asyncio.gather(*(_stop(row) for row in rows))

    async def _keep(self, row: Row) -> None:
        def announce(state: RetryCallState) -> None:
            died = state.outcome.exception() if state.outcome else None
            delay_seconds = state.next_action.sleep if state.next_action else 0.0
            self._say(f"{row.name} {died}; starting it again in {delay_seconds:.1f} s")
            if not self._settled and state.attempt_number >= GIVE_UP_AFTER and not self._hope().done():
                reason = row.startable.last_words() or str(died)
                self._hope().set_exception(StartFailure(f"{row.name} does not start: {reason}"))

        runs = True
        # No stop condition: it retries for ever. Cancellation is not an Exception and therefore ends it.
        async for attempt in AsyncRetrying(wait=self._wait, before_sleep=announce, sleep=asyncio.sleep):
            with attempt:
                if not runs:
                    try:
                        await row.startable.start()
                    except (StartFailure, OSError) as error:
                        raise _Died(f"did not start: {error}") from error
                since = time.monotonic()
                code = await row.startable.exited()
                runs = False
                if time.monotonic() - since >= self._steady_after_seconds:
                    attempt.retry_state.attempt_number = 1
                raise _Died(_ending(code))

    def _hope(self) -> asyncio.Future[None]:
        if self._hopeless is None:
            self._hopeless = asyncio.get_running_loop().create_future()
        return self._hopeless


async def _stop(row: Row) -> None:
    with suppress(StartFailure):  # It never came to life.
        await row.startable.stop()


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended (exit code {code})"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
