"""The supervisor over tiny processes: it restarts what dies, ends what it started, and leaves nothing."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tenacity import wait_exponential, wait_fixed

from infra.embedded.console import Console
from infra.embedded.failure import StartFailure
from infra.embedded.process import LOG_LIMIT_BYTES, Command, Process
from infra.embedded.supervisor import GIVE_UP_AFTER, Program, Row, Supervisor

STUB = Path(__file__).parents[2] / "support" / "stub_process.py"
WITHIN_SECONDS = 10


class Journal:
    """What the stub processes wrote about themselves."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def lines(self) -> list[str]:
        return self.file.read_text().splitlines() if self.file.exists() else []

    def events(self) -> list[str]:
        """`name event`, without the pids."""
        return [line.rpartition(" ")[0] for line in self.lines()]

    def pids(self, name: str) -> list[int]:
        return [int(line.split()[2]) for line in self.lines() if line.startswith(f"{name} started ")]

    async def until(self, reached: Callable[["Journal"], bool]) -> None:
        async with asyncio.timeout(WITHIN_SECONDS):
            while not reached(self):  # noqa: ASYNC110 - other processes write the file
                await asyncio.sleep(0.01)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
async def supervisor(said: list[str]) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(say=said.append, wait=wait_fixed(0.01))
    yield supervisor
    await supervisor.stop()


def stub(name: str, journal: Journal) -> Row:
    return row(name, [sys.executable, str(STUB), name], journal)


def row(name: str, argv: list[str], journal: Journal, *, stop_within_seconds: float = 5) -> Row:
    command = Command(
        argv=argv,
        environment={**os.environ, "HEADRACE_TEST_JOURNAL": str(journal.file)},
        log=journal.file.with_name(f"{name}.log"),
    )
    return Row(name=name, startable=Program(command, stop_within_seconds=stop_within_seconds))


async def test_a_process_is_started_again_after_a_short_while_unless_told_otherwise(
    journal: Journal, said: list[str]
) -> None:
    supervisor = Supervisor(say=said.append)
    try:
        await supervisor.start([stub("mill", journal)])
        await journal.until(lambda journal: len(journal.pids("mill")) == 1)
        os.kill(journal.pids("mill")[0], signal.SIGKILL)
        await journal.until(lambda journal: len(journal.pids("mill")) == 2)
    finally:
        await supervisor.stop()
    assert re.fullmatch(r"mill was ended by SIGKILL; starting it again in 0\.[234] s.*", said[0])


async def test_a_killed_process_is_started_again_and_said_so_once(
    supervisor: Supervisor, journal: Journal, said: list[str]
) -> None:
    await supervisor.start([stub("mill", journal)])
    await journal.until(lambda journal: len(journal.pids("mill")) == 1)
    os.kill(journal.pids("mill")[0], signal.SIGKILL)
    await journal.until(lambda journal: len(journal.pids("mill")) == 2)
    assert said == ["mill was ended by SIGKILL; starting it again in 0.0 s"]


async def test_the_delay_grows_while_a_process_keeps_dying_and_shrinks_after_a_steady_life(
    journal: Journal, said: list[str]
) -> None:
    dying = row("mill", ["/bin/sh", "-c", "exit 3"], journal)
    delays = wait_exponential(multiplier=0.1, max=0.4)
    for steady_after_seconds, expected in ((60.0, ["0.1", "0.2", "0.4", "0.4"]), (0.0, ["0.1", "0.1", "0.1", "0.1"])):
        said.clear()
        supervisor = Supervisor(say=said.append, wait=delays, steady_after_seconds=steady_after_seconds)
        supervisor.settle()
        try:
            await supervisor.start([dying])
            async with asyncio.timeout(WITHIN_SECONDS):
                while len(said) < 4:  # noqa: ASYNC110 - `say` is not a coroutine
                    await asyncio.sleep(0.01)
        finally:
            await supervisor.stop()
        assert said[:4] == [f"mill ended (exit code 3); starting it again in {delay} s" for delay in expected]


async def test_a_process_that_never_comes_up_makes_the_start_fail_with_its_last_words(
    supervisor: Supervisor, journal: Journal, said: list[str]
) -> None:
    await supervisor.start([row("mill", ["/bin/sh", "-c", "echo no water >&2; exit 1"], journal)])
    with pytest.raises(StartFailure, match=r"^mill does not start: no water$"):
        await asyncio.wait_for(supervisor.hopeless(), WITHIN_SECONDS)
    assert len(said) == GIVE_UP_AFTER


async def test_a_program_that_does_not_exist_makes_the_start_fail(supervisor: Supervisor, journal: Journal) -> None:
    with pytest.raises(StartFailure, match="cannot run /no/such/mill"):
        await supervisor.start([row("mill", ["/no/such/mill"], journal)])


async def test_later_stages_end_before_earlier_ones(supervisor: Supervisor, journal: Journal) -> None:
    for name in ("store", "mill", "gate"):
        await supervisor.start([stub(name, journal)])
    await journal.until(lambda journal: len(journal.lines()) == 3)
    await supervisor.stop()
    assert journal.events()[3:] == ["gate stopped", "mill stopped", "store stopped"]
    for name in ("store", "mill", "gate"):
        assert not _exists(journal.pids(name)[0])


async def test_a_retired_process_ends_before_its_turn_and_is_not_started_again(
    supervisor: Supervisor, journal: Journal, said: list[str]
) -> None:
    await supervisor.retire("gate")
    for name in ("store", "mill", "gate"):
        await supervisor.start([stub(name, journal)])
    await journal.until(lambda journal: len(journal.lines()) == 3)
    await supervisor.retire("mill")
    assert journal.events()[3:] == ["mill stopped"]
    await supervisor.stop()
    assert journal.events()[3:] == ["mill stopped", "gate stopped", "store stopped"]
    assert said == []


async def test_a_process_that_ignores_the_signal_is_killed_with_its_children(
    supervisor: Supervisor, journal: Journal
) -> None:
    stubborn = f"trap '' TERM; sleep 600 & echo child started $! >> {journal.file}; while :; do wait; done"
    await supervisor.start([row("mill", ["/bin/sh", "-c", stubborn], journal, stop_within_seconds=0.2)])
    await journal.until(lambda journal: len(journal.pids("child")) == 1)
    await supervisor.stop()
    await _gone(journal.pids("child")[0])


async def test_what_a_dead_process_leaves_in_its_group_goes_before_it_is_started_again(
    supervisor: Supervisor, journal: Journal
) -> None:
    leaving = f"sleep 600 & echo child started $! >> {journal.file}; sleep 600"
    await supervisor.start([row("mill", ["/bin/sh", "-c", leaving], journal)])
    await journal.until(lambda journal: len(journal.pids("child")) == 1)
    # The shell leads the group that its child is in.
    os.kill(os.getpgid(journal.pids("child")[0]), signal.SIGKILL)
    await journal.until(lambda journal: len(journal.pids("child")) == 2)
    await _gone(journal.pids("child")[0])


async def test_nothing_is_restarted_once_the_stop_began(
    supervisor: Supervisor, journal: Journal, said: list[str]
) -> None:
    await supervisor.start([stub("mill", journal)])
    await journal.until(lambda journal: len(journal.pids("mill")) == 1)
    await supervisor.stop()
    assert journal.events() == ["mill started", "mill stopped"]
    assert said == []


async def test_a_large_log_is_put_aside_when_its_process_starts(tmp_path: Path) -> None:
    log = tmp_path / "mill.log"
    with log.open("wb") as file:
        file.truncate(LOG_LIMIT_BYTES + 1)
    process = Process.spawn(Command(argv=["/bin/echo", "turning"], environment={}, log=log))
    assert await process.exited() == 0
    assert log.read_text() == "turning\n"
    assert (tmp_path / "mill.log.1").stat().st_size == LOG_LIMIT_BYTES + 1


def test_the_console_says_complaints_and_nothing_else(tmp_path: Path, said: list[str]) -> None:
    log = tmp_path / "run.log"
    log.write_text("12:00:00.000 run  ERROR of an earlier life\n")
    console = Console([log], say=said.append)
    with log.open("a") as file:
        file.write("12:00:01.000 run  resumed 3 runs\n12:00:02.000 run  WARNING lost the broker\n12:00:03.000 run  ERR")
    console.read_on()
    assert said == [f"12:00:02.000 run  WARNING lost the broker [{log}]"]
    with log.open("a") as file:
        file.write("OR half a line is completed\n")
    console.read_on()
    assert len(said) == 1, "one line in a while for a process that complains a lot"


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and _state(pid) != "Z"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


async def _gone(pid: int) -> None:
    """An orphan's end is seen a moment after the signal; a zombie waits for its reaper alone."""
    deadline = time.monotonic() + WITHIN_SECONDS
    while _exists(pid):
        assert time.monotonic() < deadline, f"process {pid} still lives"
        await asyncio.sleep(0.01)
