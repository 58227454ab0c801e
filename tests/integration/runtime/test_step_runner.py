"""The life of steps under the runner: ends, kills, deadlines, and who may die without harm."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra.embedded.ports import free_ports
from services.run.engine.embedded.runner.client import RunnerClient, RunnerRefused
from services.run.engine.embedded.runner.protocol import End, Event, StepExit, StepExited, StepLost, StepStarted
from services.run.engine.embedded.runtime import Mount, Process, StepSpec
from tests.integration.runtime.conftest import Runner, runner_room
from tests.support.eventually import eventually
from tests.support.ordinary_user import PYTHON_PATH

FAMILY = """
    trap 'echo main asked; exit 0' TERM
    (trap 'echo child asked' TERM; (trap '' TERM; echo stubborn is there; while :; do sleep 0.05; done) & while :; do
        sleep 0.05; done) &
    setsid sleep 1000 &
    while :; do sleep 0.05; done
"""
"""Main ends when asked, its child does not, a grandchild ignores it, and another has left the session."""


async def test_a_kill_asks_every_process_at_once_and_leaves_none(runner: Runner) -> None:
    spec = runner.spec("bash", "-c", FAMILY)
    await runner.client.start(spec)
    await runner.wait_for_log(spec.key, "stubborn is there")
    await runner.client.kill(spec.key, "terminated by its user")
    ended = await runner.end_of(spec.key)
    assert isinstance(ended, StepExited)
    assert (ended.exit.end, ended.exit.reason) == (End.KILLED, "terminated by its user")
    assert "main asked" in await runner.log_of(spec.key)
    assert runner.processes() == []


async def test_who_ignores_the_question_is_killed_after_the_grace(runner: Runner) -> None:
    spec = runner.spec("python3", "-c", STUBBORN)
    await runner.client.start(spec)
    await runner.wait_for_log(spec.key, "ready")
    await runner.client.kill(spec.key, "enough")
    await runner.client.kill(spec.key, "enough already")
    ended = await runner.end_of(spec.key)
    assert isinstance(ended, StepExited)
    assert (ended.exit.end, ended.exit.exit_code, ended.exit.reason) == (End.KILLED, 137, "enough")
    assert "asked" in await runner.log_of(spec.key)
    assert (ended.exit.finished_at - ended.exit.started_at).total_seconds() >= 1.0


STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
print("ready", flush=True)
while True: time.sleep(0.05)
"""


async def test_a_kill_in_the_first_moment_is_a_kill(runner: Runner) -> None:
    for _ in range(5):
        spec = runner.spec("sleep", "1000")
        starting = asyncio.create_task(runner.client.start(spec))
        while not any(event.key == spec.key for event in await runner.client.list_attempts()):
            pass
        await runner.client.kill(spec.key, "at once")
        await starting
        ended = await runner.end_of(spec.key)
        assert isinstance(ended, StepExited)
        assert ended.exit.end is End.KILLED


async def test_a_daemon_left_behind_dies_with_main(runner: Runner) -> None:
    ended, log = await runner.shell("(setsid sleep 1000 &) ; echo done")
    assert (ended.exit_code, log) == (0, "done\n")
    assert runner.processes() == []


async def test_the_deadline_ends_the_step_and_says_so(runner: Runner) -> None:
    ended = await runner.run(runner.spec("sleep", "1000", deadline_seconds=0.3))
    assert (ended.end, ended.exit_code) == (End.DEADLINE, 143)
    assert (ended.finished_at - ended.started_at).total_seconds() < 5


async def test_a_start_that_is_repeated_runs_once(runner: Runner, volume: Path) -> None:
    mounts = (Mount(source=str(volume), target="/v"),)
    spec = runner.spec("sh", "-c", "echo ran >>/v/runs; sleep 0.3", mounts=mounts)
    await asyncio.gather(*(runner.client.start(spec) for _ in range(4)))
    await runner.end_of(spec.key)
    assert isinstance(await runner.client.start(spec), StepExited)
    assert (volume / "runs").read_text() == "ran\n"


async def test_the_log_is_followed_from_any_byte_to_the_end(runner: Runner) -> None:
    spec = runner.spec("sh", "-c", "echo 0123456789; sleep 0.3; echo the end")
    await runner.client.start(spec)
    assert b"".join([chunk async for chunk in runner.client.read_log(spec.key, 4, follow=True)]) == b"456789\nthe end\n"
    with pytest.raises(RunnerRefused, match="nobody is not known"):
        [chunk async for chunk in runner.client.read_log("nobody")]


async def test_a_forgotten_attempt_leaves_nothing_and_a_running_one_cannot_be_forgotten(runner: Runner) -> None:
    spec = runner.spec(
        "sh", "-c", "mkdir -p /tmp/closed/deep && touch /tmp/closed/deep/x && chmod 0 /tmp/closed; sleep 0.3"
    )
    await runner.client.start(spec)
    with pytest.raises(RunnerRefused, match="still runs"):
        await runner.client.forget(spec.key)
    await runner.end_of(spec.key)
    await runner.client.forget(spec.key)
    await runner.client.forget(spec.key)
    assert spec.key not in os.listdir(runner.steps_dir)
    assert spec.key not in [event.key for event in await runner.client.list_attempts()]
    async with asyncio.timeout(20):
        while os.listdir(runner.steps_dir / ".trash"):  # noqa: ASYNC110 (removed by a process of the runner's)
            await asyncio.sleep(0.02)


async def test_a_controller_that_dies_finds_its_step_still_running_and_run_once(
    mortal_runner: Runner, tmp_path: Path
) -> None:
    spec = mortal_runner.spec(
        *("sh", "-c", "echo ran >>/v/runs; while [ ! -e /v/go ]; do sleep 0.02; done"),
        mounts=(Mount(source=str(tmp_path), target="/v"),),
    )
    (tmp_path / "spec.json").write_bytes(msgspec.json.encode(spec))
    controller = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", CONTROLLER, str(mortal_runner.room / "runner.sock"), str(tmp_path / "spec.json")],
        env={"PYTHONPATH": PYTHON_PATH},
        stdout=subprocess.PIPE,
    )
    assert controller.stdout is not None
    assert await asyncio.to_thread(controller.stdout.readline) == b"started\n"
    controller.kill()
    controller.wait()
    controller.stdout.close()
    assert isinstance(await mortal_runner.client.start(spec), StepStarted)
    (tmp_path / "go").touch()
    ended = await mortal_runner.end_of(spec.key)
    assert isinstance(ended, StepExited)
    assert ended.exit.exit_code == 0
    assert (tmp_path / "runs").read_text() == "ran\n"


CONTROLLER = """
import asyncio, msgspec, pathlib, sys
from services.run.engine.embedded.runner.client import RunnerClient
from services.run.engine.embedded.runtime import StepSpec

async def main():
    client = RunnerClient(sys.argv[1])
    await client.start(msgspec.json.decode(pathlib.Path(sys.argv[2]).read_bytes(), type=StepSpec))
    async for event in client.events():
        print(type(event).__name__.removeprefix("Step").lower(), flush=True)

asyncio.run(main())
"""


async def test_a_killed_runner_takes_its_steps_along_and_its_successor_reports_them_lost(mortal_runner: Runner) -> None:
    finished = mortal_runner.spec("sh", "-c", "exit 5")
    exit_before = await mortal_runner.run(finished)
    running = mortal_runner.spec("bash", "-c", FAMILY)
    await mortal_runner.client.start(running)
    await mortal_runner.wait_for_log(running.key, "stubborn is there")
    async with contextlib.aclosing(mortal_runner.client.events()) as events:
        assert {(await anext(events)).key for _ in range(2)} == {finished.key, running.key}
        mortal_runner.kill()
        await mortal_runner.wait_until_no_process_is_left()
        mortal_runner.start()
        seen: dict[str, Event] = {}
        async with asyncio.timeout(20):
            while not isinstance(seen.get(running.key), StepLost):
                event = await anext(events)
                seen[event.key] = event
    assert seen[finished.key] == StepExited(key=finished.key, exit=exit_before)
    again = await mortal_runner.client.start(running)
    assert isinstance(again, StepLost), "a lost step is not run again under the same key"
    stored = (mortal_runner.steps_dir / finished.key / "exit.json").read_bytes()
    assert msgspec.json.decode(stored, type=StepExit) == exit_before
    assert (mortal_runner.steps_dir / running.key / "exit.json").read_bytes().strip(b"\0") == b""


async def test_a_step_that_was_being_made_when_its_runner_died_is_ended_before_it_is_lost(
    mortal_runner: Runner,
) -> None:
    await mortal_runner.client.info()
    for _ in range(3):
        spec = mortal_runner.spec("sleep", "1000")
        await mortal_runner.client.start(spec)
        mortal_runner.kill()
        mortal_runner.start()
        assert isinstance(await mortal_runner.end_of(spec.key), StepLost)
        assert mortal_runner.processes() == []


async def test_a_stopped_runner_ends_its_steps_and_notes_it(mortal_runner: Runner) -> None:
    spec = mortal_runner.spec("sh", "-c", "trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.02; done")
    await mortal_runner.client.start(spec)
    await mortal_runner.wait_for_log(spec.key, "ready")
    assert await asyncio.to_thread(mortal_runner.stop) == 0
    assert mortal_runner.processes() == []
    noted = msgspec.json.decode((mortal_runner.steps_dir / spec.key / "exit.json").read_bytes(), type=StepExit)
    assert noted.end is End.INTERRUPTED
    assert not (mortal_runner.room / "runner.sock").exists()
    mortal_runner.start()
    assert isinstance(await mortal_runner.end_of(spec.key), StepLost)
    assert "asked" in await mortal_runner.log_of(spec.key)


async def test_a_runner_that_is_stopped_while_somebody_listens_says_nothing_of_it(mortal_runner: Runner) -> None:
    spec = mortal_runner.spec("sh", "-c", "echo ready; while :; do sleep 0.02; done")
    await mortal_runner.client.start(spec)

    async def follow() -> None:
        with contextlib.suppress(OSError):  # The runner went away, or the step was over a moment before.
            async for _ in mortal_runner.client.read_log(spec.key, follow=True):
                reading.set()

    reading = asyncio.Event()
    following = asyncio.create_task(follow())
    async with contextlib.aclosing(mortal_runner.client.events()) as events:
        await anext(events)
        await asyncio.wait_for(reading.wait(), 30)
        said = mortal_runner.log()
        assert await asyncio.to_thread(mortal_runner.stop) == 0
    await following
    (told,) = mortal_runner.log().removeprefix(said).splitlines()
    assert told.endswith("interrupting 1 running step")


async def test_a_runner_may_let_its_steps_end_before_it_does_and_starts_no_others(
    mortal_runner: Runner, tmp_path: Path
) -> None:
    mortal_runner.stop()
    mortal_runner.start(HEADRACE_STOP_STEPS="wait", HEADRACE_STOP_WAIT_SECONDS="600")
    mounts = (Mount(source=str(tmp_path), target="/v"),)
    specs = [mortal_runner.spec("sh", "-c", "until [ -e /v/go ]; do sleep 0.02; done", mounts=mounts) for _ in range(2)]
    for spec in specs:
        await mortal_runner.client.start(spec)
    mortal_runner.ask_to_stop()
    await mortal_runner.wait_until_said("waiting up to 600 s for 2 running steps")
    impatient = RunnerClient(str(mortal_runner.room / "runner.sock"), patience_seconds=0.1)
    with pytest.raises(ConnectionError):
        await impatient.start(mortal_runner.spec("true"))
    assert (await mortal_runner.client.info()).running == 2

    (tmp_path / "go").touch()
    assert await asyncio.to_thread(mortal_runner.ended) == 0

    mortal_runner.start()
    for spec in specs:
        ended = await mortal_runner.end_of(spec.key)
        assert isinstance(ended, StepExited)
        assert (ended.exit.end, ended.exit.exit_code) == (End.EXITED, 0)
    assert len(await mortal_runner.client.list_attempts()) == 2


@pytest.mark.parametrize("wait_seconds", [0.3, 600])
async def test_a_runner_waits_for_its_steps_no_longer_than_it_may_or_until_it_is_asked_again(
    mortal_runner: Runner, wait_seconds: float
) -> None:
    mortal_runner.stop()
    mortal_runner.start(HEADRACE_STOP_STEPS="wait", HEADRACE_STOP_WAIT_SECONDS=str(wait_seconds))
    spec = mortal_runner.spec("sleep", "1000")
    await mortal_runner.client.start(spec)
    mortal_runner.ask_to_stop()
    await mortal_runner.wait_until_said(f"waiting up to {wait_seconds} s for 1 running step;")
    if wait_seconds == 600:
        mortal_runner.ask_to_stop()

    assert await asyncio.to_thread(mortal_runner.ended) == 0

    assert "interrupting 1 running step\n" in mortal_runner.log()
    assert mortal_runner.processes() == []
    noted = msgspec.json.decode((mortal_runner.steps_dir / spec.key / "exit.json").read_bytes(), type=StepExit)
    assert noted.end is End.INTERRUPTED


async def test_what_was_never_durably_started_runs_when_it_is_started_again(mortal_runner: Runner) -> None:
    spec = mortal_runner.spec("echo", "ran")
    await mortal_runner.client.info()
    mortal_runner.kill()
    half = mortal_runner.steps_dir / spec.key
    half.mkdir()
    (half / "exit.json").touch()
    (half / "start.json").write_bytes(b'{"key":"')
    mortal_runner.start()
    assert (await mortal_runner.run(spec)).exit_code == 0
    assert await mortal_runner.log_of(spec.key) == "ran\n"


@pytest.fixture
def runner_on_a_small_disk() -> Iterator[Runner]:
    if os.getuid() != 0:
        pytest.skip("only root can mount a small disk")
    with runner_room(is_ordinary_user=False) as runner:
        runner.steps_dir.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", runner.steps_dir], check=True)
        try:
            runner.start()
            yield runner
            runner.close()
        finally:
            subprocess.run(["umount", "--lazy", runner.steps_dir], check=True)


async def test_a_step_that_fills_the_disk_ends_and_leaves_room_for_the_next(runner_on_a_small_disk: Runner) -> None:
    runner = runner_on_a_small_disk
    spec = runner.spec("sh", "-c", "exec dd if=/dev/zero of=/all bs=4k")
    assert (await runner.run(spec)).exit_code == 1
    with pytest.raises(RunnerRefused, match="No space left on device"):
        await runner.client.start(runner.spec("true"))
    await runner.client.forget(spec.key)

    async def runs_again() -> bool:
        try:
            return (await runner.run(runner.spec("true"))).exit_code == 0
        except RunnerRefused:
            return False  # What was forgotten is removed in the background.

    assert await eventually(runs_again)


async def test_a_second_runner_over_the_same_directory_is_refused(mortal_runner: Runner) -> None:
    await mortal_runner.client.info()
    second = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "services.run.engine.embedded.runner"],
        env={
            "PYTHONPATH": PYTHON_PATH,
            "HEADRACE_STEP_RUNNER_SOCKET": str(mortal_runner.room / "second.sock"),
            "HEADRACE_STEPS_DIR": str(mortal_runner.steps_dir),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert second.stderr == f"step-runner: {mortal_runner.steps_dir} is in use by another step runner\n"


async def test_the_socket_is_for_our_user_alone_and_the_process_is_small(mortal_runner: Runner) -> None:
    await mortal_runner.client.info()
    assert (mortal_runner.room / "runner.sock").stat().st_mode & 0o777 == 0o600
    assert mortal_runner.resident_bytes() < 27 * 1024 * 1024


async def test_without_a_sandbox_a_step_is_refused_in_clear_words_not_run_bare(mortal_runner: Runner) -> None:
    mortal_runner.stop()
    mortal_runner.start(HEADRACE_RUNTIME="process", HEADRACE_STEP_BUBBLEWRAP="/bin/false")
    info = await mortal_runner.client.info()
    assert info.runtime == "none"
    assert info.weaker is not None
    assert info.weaker.startswith("no sandbox: ")
    ended = await mortal_runner.run(mortal_runner.spec("true"))
    assert (ended.end, ended.reason) == (End.COULD_NOT_START, info.weaker)


async def test_a_start_that_no_runner_takes_is_called_off_at_once(tmp_path: Path) -> None:
    is_refused = asyncio.Event()

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        is_refused.set()

    async with await asyncio.start_unix_server(hang_up, tmp_path / "runner.sock"):
        client = RunnerClient(str(tmp_path / "runner.sock"), patience_seconds=600)
        starting = asyncio.create_task(
            client.start(StepSpec(key="a", main=Process(argv=("true",), env={}, cwd="/"))),
        )
        await asyncio.wait_for(is_refused.wait(), 20)
        starting.cancel()
        ended, _ = await asyncio.wait([starting], timeout=3)

    assert ended == {starting}


async def test_a_client_without_a_runner_gives_up_in_its_time(tmp_path: Path) -> None:
    client = RunnerClient(str(tmp_path / "none.sock"), patience_seconds=0.2)
    began = time.monotonic()
    with pytest.raises(FileNotFoundError):
        await client.info()
    assert time.monotonic() - began < 5


async def test_nonsense_on_the_socket_is_refused_and_harms_nobody(runner: Runner) -> None:
    reader, writer = await asyncio.open_unix_connection(str(runner.room / "runner.sock"))
    writer.write(b'{"type":"start","spec":{"key":"../../x","main":{"argv":["true"]}}}\n')
    assert b"refused" in await reader.readline()
    writer.close()
    await writer.wait_closed()
    assert (await runner.run(runner.spec("true"))).exit_code == 0


async def _page(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    return int(head.split(" ")[1]), body


async def test_who_watches_the_runner_sees_whether_it_is_ready_and_what_its_steps_came_to() -> None:
    (port,) = free_ports(1)
    with runner_room(is_ordinary_user=False) as runner:
        runner.start(HEADRACE_LISTEN_PORT=str(port), HEADRACE_LOG_FORMAT="json")
        await runner.shell("exit 0")
        await runner.run(runner.spec("sleep", "1000", deadline_seconds=0.2))
        assert await _page(port, "/livez") == (200, "ok\n")
        assert await _page(port, "/readyz") == (200, "ok\n")
        assert (await _page(port, "/apis"))[0] == 404
        assert (await _page(port, "/metrics", "POST"))[0] == 405
        status, text = await _page(port, "/metrics")
        assert status == 200
        seen = {
            sample.name + str(sample.labels.get("end", "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert seen["headrace_runner_steps_started_total"] == 2
        assert seen["headrace_runner_steps_ended_totalexited"] == 1
        assert seen["headrace_runner_steps_ended_totaldeadline"] == 1
        assert seen["headrace_runner_step_duration_seconds_count"] == 2
        assert seen["headrace_runner_steps_running"] == 0
        first = msgspec.json.decode(runner.log().splitlines()[0])
        assert (first["process"], first["level"]) == ("step-runner", "info")


async def test_who_asks_the_runner_for_nothing_is_hung_up_on_and_holds_nobody_up() -> None:
    (port,) = free_ports(1)
    with runner_room(is_ordinary_user=False) as runner:
        runner.start(HEADRACE_LISTEN_PORT=str(port))
        await runner.wait_until_said("steps run in")
        await eventually(lambda: _answers(port))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(writer):
            writer.write(b"GET /livez HTTP/1.1\r\nX: " + b"x" * 20_000)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 30) == b""
        assert await _page(port, "/livez") == (200, "ok\n")


async def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        return await _page(port, "/livez") == (200, "ok\n")
    return False
