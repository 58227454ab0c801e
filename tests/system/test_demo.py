"""`headrace demo`, the first thing that anybody runs: it shows what it promises, and leaves nothing however it ends."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.running_stack import WITHIN_SECONDS, Started, started

_DEMO = (sys.executable, "-m", "infra.cli", "demo")

pytestmark = pytest.mark.timeout(240)


async def test_it_runs_a_pipeline_from_nothing_to_its_result_and_shows_what_came_of_it(open_folder: Path) -> None:
    async with a_demo(open_folder) as demo:
        assert demo.process.stdout is not None
        shown = (await asyncio.wait_for(demo.process.stdout.read(), 2 * WITHIN_SECONDS)).decode()
        assert await demo.ended() == 0
        assert await demo.complaints() == ""
        assert demo.living() == []
    steps = {line.strip() for line in shown.splitlines() if line.startswith("  Succeeded ")}
    assert {f"Succeeded  {name}" for name in ("load-data", "Train logistic", "Evaluate logistic", "deploy")} <= steps
    assert "the run Succeeded" in shown
    assert re.search(r"^  logistic-accuracy +9\d\.\d%   from Evaluate logistic$", shown, re.MULTILINE)
    assert re.search(r'^artifact train-model of Train logistic\n  \{"kind": "logistic", ', shown, re.MULTILINE)
    facts = re.findall(r"^ +\d+\.\d\d s  kfp\.event\.run\.([a-z]+)\.", shown, re.MULTILINE)
    assert facts == ["created", "started", "succeeded"]
    assert os.listdir(open_folder) == []


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGTERM, "created run "), (signal.SIGINT, "Starting "), (signal.SIGHUP, "Starting ")],
)
async def test_the_first_signal_ends_it_and_others_do_not_hurry_it(
    open_folder: Path, number: signal.Signals, moment: str
) -> None:
    async with a_demo(open_folder) as demo:
        await said(demo, moment)
        demo.process.send_signal(number)
        assert await demo.next_complaint() == f"headrace demo: {number.name}: stopping …\n"
        for another in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            demo.process.send_signal(another)
        assert await demo.ended() == 128 + number
        assert await demo.complaints() == ""
        assert demo.living() == []
    assert os.listdir(open_folder) == []


async def test_killed_it_takes_its_stack_along(open_folder: Path) -> None:
    async with a_demo(open_folder) as demo:
        await said(demo, "Starting ")
        demo.process.kill()
        await demo.all_gone()


@asynccontextmanager
async def a_demo(folder: Path) -> AsyncIterator[Started]:
    """Not on a terminal; what it keeps for a while lies in `folder`."""
    async with started(folder, command=_DEMO, variables={"TMPDIR": str(folder)}) as demo:
        yield demo


async def said(demo: Started, words: str) -> None:
    """Returns once it has printed a line that begins so."""
    assert demo.process.stdout is not None
    async with asyncio.timeout(2 * WITHIN_SECONDS):
        while not (line := await demo.process.stdout.readline()).startswith(words.encode()):
            assert line, f"it ended before it said {words!r}: {await demo.complaints()}"
