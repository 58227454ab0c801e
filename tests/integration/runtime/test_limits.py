"""What happens to a step that wants more of the machine than its limit, by each way of keeping limits."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from services.run.engine.embedded.runner.protocol import End
from services.run.engine.embedded.runtime import StepSpec
from tests.integration.runtime.conftest import Runner

MEBIBYTE = 1024 * 1024
TAKE = "held = bytearray(200 * 1024 * 1024)"
HOG = f"import time; {TAKE}; time.sleep(1000)"
"""It holds what it took, until somebody looks."""
TOGETHER = """
import os
children = [os.fork() for _ in range(4)]
held = bytearray(40 * 1024 * 1024)
if all(children): print([os.waitpid(each, 0)[1] for each in children])
else: import time; time.sleep(2)
"""


def limited(runner: Runner, *argv: str, memory: int | None = None, cpu: int | None = None) -> StepSpec:
    spec = runner.spec(*argv)
    return msgspec.structs.replace(spec, main=msgspec.structs.replace(spec.main, memory_bytes=memory, cpu_millis=cpu))


async def test_who_wants_too_much_memory_is_killed_with_all_it_begot(runner: Runner) -> None:
    script = f"sleep 1000 & python3 -c '{HOG}'; echo went on; sleep 1000"
    ended = await runner.run(limited(runner, "sh", "-c", script, memory=100 * MEBIBYTE))
    assert (ended.end, ended.exit_code, ended.blamed, ended.out_of_memory) == (End.EXITED, 137, "main", True)
    assert runner.processes() == []


async def test_the_processes_of_a_step_share_its_limit(runner: Runner) -> None:
    ended = await runner.run(limited(runner, "python3", "-c", TOGETHER, memory=120 * MEBIBYTE))
    assert (ended.exit_code, ended.out_of_memory) == (137, True)


async def test_who_keeps_to_its_limit_is_not_noticed(runner: Runner) -> None:
    # Many threads and mappings reserve much more than they use.
    code = "import mmap; held = mmap.mmap(-1, 4 << 30); held[:10_000_000] = bytes(10_000_000); print('fine')"
    spec = limited(runner, "python3", "-c", code, memory=100 * MEBIBYTE, cpu=1000)
    ended = await runner.run(spec)
    assert (ended.exit_code, ended.out_of_memory, await runner.log_of(spec.key)) == (0, False, "fine\n")


async def test_an_init_process_has_a_limit_of_its_own(runner: Runner) -> None:
    hog = msgspec.structs.replace(runner.spec("python3", "-c", HOG).main, memory_bytes=50 * MEBIBYTE)
    ended = await runner.run(runner.spec("true", init=(hog,)))
    assert (ended.exit_code, ended.blamed, ended.out_of_memory) == (137, "init-0", True)


async def test_limits_are_not_kept_where_a_setting_says_so(mortal_runner: Runner) -> None:
    mortal_runner.stop()
    mortal_runner.start(HEADRACE_STEP_LIMITS="false")
    assert (await mortal_runner.client.info()).limits == "nothing"
    ended = await mortal_runner.run(limited(mortal_runner, "python3", "-c", TAKE, memory=50 * MEBIBYTE))
    assert (ended.exit_code, ended.out_of_memory) == (0, False)


async def test_processor_time_is_limited_by_control_groups(mortal_runner: Runner) -> None:
    kept_by = (await mortal_runner.client.info()).limits
    if not kept_by.startswith("control groups") or kept_by.endswith("alone"):
        pytest.skip(f"limits are kept by {kept_by} here")
    spec = limited(mortal_runner, "python3", "-c", BUSY, cpu=200)
    assert (await mortal_runner.run(spec)).exit_code == 0
    assert float(await mortal_runner.log_of(spec.key)) < 0.6


BUSY = """
import time
end = time.monotonic() + 1
while time.monotonic() < end: pass
print(time.process_time())
"""


async def test_no_control_group_is_left_neither_by_a_killed_runner_nor_by_one_that_was_stopped(
    mortal_runner: Runner,
) -> None:
    await mortal_runner.client.info()
    if not groups_of(mortal_runner):
        pytest.skip("there are no control groups for us here")
    spec = limited(mortal_runner, "sh", "-c", "echo up; sleep 1000", memory=50 * MEBIBYTE, cpu=500)
    await mortal_runner.client.start(spec)
    await mortal_runner.wait_for_log(spec.key, "up")
    assert steps_in(mortal_runner)
    mortal_runner.kill()
    await mortal_runner.wait_until_no_process_is_left()
    mortal_runner.start()
    await mortal_runner.end_of(spec.key)
    assert not steps_in(mortal_runner)
    mortal_runner.stop()
    assert groups_of(mortal_runner) == []


def steps_in(runner: Runner) -> list[Path]:
    return [step for group in groups_of(runner) for step in group.glob("*/cgroup.procs")]


def groups_of(runner: Runner) -> list[Path]:
    seen = os.stat(runner.steps_dir)
    return list(Path("/sys/fs/cgroup").rglob(f"headrace-steps-{seen.st_dev:x}-{seen.st_ino:x}"))
