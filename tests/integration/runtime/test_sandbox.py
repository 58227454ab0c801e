"""What a step sees and what of it reaches the host: the real sandbox, as our own user and as an ordinary one."""

from __future__ import annotations

import asyncio
import os
import stat
import zipfile
from pathlib import Path, PurePosixPath

from services.run.engine.embedded.runner.protocol import End
from services.run.engine.embedded.runtime import Mount, Placement
from services.run.engine.embedded.runtime.tree import find, read_text
from tests.integration.runtime.conftest import HOST_SECRET, Runner


async def test_the_full_sandbox_is_what_runs_here(runner: Runner) -> None:
    info = await runner.client.info()
    assert info.runtime == "bubblewrap"
    assert info.weaker is None


async def test_parallel_steps_have_a_tmp_of_their_own(runner: Runner) -> None:
    async def write(text: str) -> str:
        script = f"ls /tmp; echo {text} >/tmp/output; sleep 0.2; cat /tmp/output"
        _, log = await runner.shell(script)
        return log

    logs = await asyncio.gather(write("one"), write("two"))
    assert tuple(logs) == ("one\n", "two\n")


async def test_root_level_files_are_collected_and_the_host_root_stays_as_it_was(runner: Runner) -> None:
    before = sorted(os.listdir("/"))
    spec = runner.spec("sh", "-c", "echo hi >/output.txt; mkdir -p /outputs/a; echo {} >/mlpipeline-metrics.json")
    assert (await runner.run(spec)).exit_code == 0
    tree = runner.tree(spec.key)
    assert read_text(tree, "/output.txt", limit_bytes=100) == "hi\n"
    assert read_text(tree, "/mlpipeline-metrics.json", limit_bytes=100) == "{}\n"
    outputs = find(tree, "/outputs/a")
    assert outputs is not None
    assert outputs.is_dir()
    assert sorted(os.listdir("/")) == before


async def test_what_a_step_writes_over_the_host_stays_in_its_layer(runner: Runner) -> None:
    spec = runner.spec("sh", "-c", "echo x >/etc/headrace-test && echo y >/usr/headrace-test && echo z >$HOME/mine")
    assert (await runner.run(spec)).exit_code == 0
    tree = runner.tree(spec.key)
    assert read_text(tree, "/etc/headrace-test", limit_bytes=9) == "x\n"
    assert read_text(tree, "/usr/headrace-test", limit_bytes=9) == "y\n"
    assert read_text(tree, "/root/mine", limit_bytes=9) == "z\n"
    assert "headrace-test" not in os.listdir("/etc")
    assert find(tree, "/etc/passwd") is None, "a file of the host is no output"
    _, log = await runner.shell("cat /etc/headrace-test /root/mine")
    assert log.count("No such file") == 2


async def test_python_python3_and_a_shell_that_knows_double_brackets(runner: Runner) -> None:
    code = "import sys; print(sys.version_info[0])"
    ended, log = await runner.shell(
        f"python -c '{code}' && python3 -u -c '{code}' && [[ a == a ]] && /bin/sh -c '[[ b == b ]]' && echo fine"
    )
    assert (ended.exit_code, log) == (0, "3\n3\nfine\n")


async def test_the_generated_program_of_the_sdk_runs(runner: Runner) -> None:
    script = 'program_path=$(mktemp)\nprintf "%s" "$0" > "$program_path"\npython3 -u "$program_path" "$@"\n'
    spec = runner.spec("sh", "-ec", script, "import sys; print(sys.argv[1:])", "--x", "1")
    assert (await runner.run(spec)).exit_code == 0
    assert await runner.log_of(spec.key) == "['--x', '1']\n"


async def test_a_step_that_hunts_finds_neither_the_environment_nor_a_secret_of_the_server(runner: Runner) -> None:
    hunt = f"""
        cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n' | grep -e HEADRACE
        tr '\\0' '\\n' </proc/1/cmdline | sed '/^--$/q' | grep -e {runner.room}
        ls {runner.room}/data {runner.room} 2>/dev/null
        mount -t tmpfs x /mnt 2>/dev/null && echo mounted
        umount /usr 2>/dev/null && echo bared
        mknod /usr/disk b 8 0 2>/dev/null && echo device
        # Asked, not tried: a hole here would change the machine the test runs on.
        for one in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/fs; do [ -w $one ] && echo $one; done
        ls /proc | grep -c '^[0-9]'
        env | cut -d= -f1 | grep -v -e '^_$' -e PWD -e SHLVL | sort | tr '\\n' ' '
    """
    _, log = await runner.shell(hunt)
    assert len(log.splitlines()) == 2, log
    processes, names = log.splitlines()
    assert int(processes) <= 8
    assert names.split() == ["HOME", "LANG", "MARKER", "PATH", "PIP_BREAK_SYSTEM_PACKAGES"]


async def test_packages_to_install_come_into_the_step_alone(runner: Runner, volume: Path) -> None:
    _write_wheel(volume / "headrace_test_tiny-1.0-py3-none-any.whl")
    # As the SDK puts it in front of a function with packages_to_install.
    install = "python3 -m pip install --quiet --no-warn-script-location 'headrace-test-tiny'"
    use = ("python3", "-c", "import headrace_test_tiny as tiny; print(tiny.size); print(tiny.__file__)")
    spec = runner.spec(
        *("sh", "-c", f'({install} || {install} --user) && "$0" "$@"', *use),
        env={"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        mounts=(Mount(source=str(volume), target="/wheels", read_only=True),),
    )
    assert (await runner.run(spec)).exit_code == 0, await runner.log_of(spec.key)
    size, place = (await runner.log_of(spec.key)).splitlines()[-2:]
    assert size == "small"
    assert find(runner.tree(spec.key), place) is not None, "it is in the step's own layer, not on the host"
    if runner.is_ordinary_user:
        assert place.startswith("/root/.local/")
    ended, _ = await runner.shell("python3 -c 'import headrace_test_tiny'")
    assert ended.exit_code == 1, "another step has none of it"


def _write_wheel(file: Path) -> None:
    """A package of one module, as an index would serve it."""
    about = "headrace_test_tiny-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr("headrace_test_tiny.py", "size = 'small'\n")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: headrace-test-tiny\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "".join(f"{name},,\n" for name in (*wheel.namelist(), f"{about}/RECORD")))
    file.chmod(0o644)


async def test_nobodys_home_is_seen_but_for_the_interpreter_in_it(runner: Runner) -> None:
    of_interpreter = _in_homes((await runner.client.info()).python)
    _, log = await runner.shell("for home in /root /home /srv; do ls -A $home; done 2>/dev/null; true")
    assert set(log.split()) == of_interpreter
    ended, _ = await runner.shell("echo key > $HOME/.netrc && mkdir -p $HOME/.local/lib && python3 -c 'import json'")
    assert ended.exit_code == 0


def _in_homes(program: str) -> set[str]:
    """The entry of a home that leads to the program."""
    real = PurePosixPath(os.path.realpath(program))
    return {real.relative_to(home).parts[0] for home in ("/root", "/home", "/srv") if real.is_relative_to(home)}


async def test_a_data_directory_inside_a_visible_one_is_masked(mortal_runner: Runner) -> None:
    visible = Path("/var/tmp") / f"{mortal_runner.marker}-secret"
    visible.mkdir()
    (visible / "password").write_text(HOST_SECRET)
    try:
        mortal_runner.stop()
        mortal_runner.start(HEADRACE_STEP_MASKED_PATHS=str(visible))
        _, log = await mortal_runner.shell(
            f"ls -A {visible}; cat {visible}/password; umount {visible}; ls -A {visible}"
        )
        assert HOST_SECRET not in log
        assert "password\n" not in log
    finally:
        (visible / "password").unlink()
        visible.rmdir()


async def test_exit_codes_and_signals_pass_through(runner: Runner) -> None:
    async def end(*argv: str) -> tuple[End, int, int | None]:
        ended = await runner.run(runner.spec(*argv))
        return ended.end, ended.exit_code, ended.signal

    assert await end("sh", "-c", "exit 7") == (End.EXITED, 7, None)
    assert await end("sh", "-c", "kill -9 $$") == (End.EXITED, 137, 9)
    assert await end("python3", "-c", "import os; os.abort()") == (End.EXITED, 134, 6)
    assert await end("no-such-command") == (End.EXITED, 127, None)
    assert await end("/no/such/command") == (End.EXITED, 127, None)
    assert await end("/etc/passwd") == (End.EXITED, 126, None)


async def test_mounts_are_shared_and_parts_of_them_can_be_read_only(runner: Runner, volume: Path) -> None:
    shared = Mount(source=str(volume), target="/mnt/data")
    ended, _ = await runner.shell("mkdir -p /mnt/data/part && echo 1 >/mnt/data/part/one", mounts=(shared,))
    assert ended.exit_code == 0
    assert (volume / "part" / "one").read_text() == "1\n"
    part = Mount(source=str(volume), target="/only", read_only=True, sub_path="part")
    fresh = Mount(source=str(volume), target="/tmp/outputs/x", sub_path="made/here")
    spec = runner.spec(
        "sh", "-c", "cat /only/one; echo no >/only/two; echo out >/tmp/outputs/x/data", mounts=(part, fresh)
    )
    assert (await runner.run(spec)).exit_code == 0
    log = await runner.log_of(spec.key)
    assert log.startswith("1\n")
    assert "Read-only file system" in log
    assert (volume / "made" / "here" / "data").read_text() == "out\n"
    assert find(runner.tree(spec.key), "/tmp/outputs/x/data") == volume / "made" / "here" / "data"


async def test_a_sub_path_that_a_step_made_a_link_leads_nowhere_else(runner: Runner, volume: Path) -> None:
    await runner.shell("ln -s /etc /v/way-out", mounts=(Mount(source=str(volume), target="/v"),))
    _, log = await runner.shell("ls /v", mounts=(Mount(source=str(volume), target="/v", sub_path="way-out"),))
    assert log == ""
    assert (volume / "etc").is_dir(), "the link is followed inside the volume"


async def test_files_are_writable_copies_with_their_modes(runner: Runner, volume: Path) -> None:
    (volume / "source").mkdir()
    (volume / "source" / "a").write_text("original")
    files = (
        Placement(target="/tmp/inputs/dir", source=str(volume / "source")),
        Placement(target="/tmp/inputs/one/data", source=str(volume / "source" / "a")),
        Placement(target="/argo/staging/script", text="#!/bin/sh\necho ran\n", mode=0o755),
        Placement(target="/v/placed", text="in the mount"),
        Placement(target="/usr/share/headrace/deep", text="in a layer\n"),
    )
    script = (
        "echo changed >/tmp/inputs/dir/a; echo changed >/tmp/inputs/one/data; /argo/staging/script; cat /v/placed;"
        "cat /usr/share/headrace/deep; ls /usr/share | wc -l"
    )
    mounts = (Mount(source=str(volume), target="/v"),)
    spec = runner.spec("sh", "-ec", script, files=files, mounts=mounts, make_directories=("/tmp/outputs/x",))
    assert (await runner.run(spec)).exit_code == 0
    assert (volume / "source" / "a").read_text() == "original"
    log = await runner.log_of(spec.key)
    assert log.startswith("ran\nin the mountin a layer\n")
    assert int(log.split()[-1]) > 5, "the host's /usr/share is still seen beneath"
    assert (volume / "placed").read_text() == "in the mount"
    placed = find(runner.tree(spec.key), "/argo/staging/script")
    assert placed is not None
    assert stat.S_IMODE(placed.stat().st_mode) == 0o755
    assert find(runner.tree(spec.key), "/tmp/outputs/x") is not None


async def test_a_working_directory_is_made(runner: Runner) -> None:
    _, log = await runner.shell("pwd", cwd="/workspace/deep")
    assert log == "/workspace/deep\n"


async def test_what_cannot_be_placed_or_mounted_is_said(runner: Runner) -> None:
    ended = await runner.run(runner.spec("true", files=(Placement(target="/x", source="/no/such/file"),)))
    assert (ended.end, ended.reason) == (End.COULD_NOT_START, "/no/such/file: No such file or directory")
    ended = await runner.run(runner.spec("true", mounts=(Mount(source="/no/such", target="/x"),)))
    assert (ended.end, ended.reason) == (End.COULD_NOT_START, "/no/such: no such directory to mount")


async def test_the_first_line_says_that_the_image_is_ignored_and_both_outputs_follow(runner: Runner) -> None:
    _, log = await runner.shell("echo out; echo err >&2; echo out again", image="alpine:3")
    assert log == ("headrace: this step runs as a process; its image alpine:3 is not used\nout\nerr\nout again\n")


async def test_the_program_of_an_image_is_not_known(runner: Runner) -> None:
    spec = runner.spec("an argument", image="cowsay", runs_entrypoint=True)
    ended = await runner.run(spec)
    assert (ended.end, ended.reason) == (End.COULD_NOT_START, "image entrypoint unknown: cowsay")


async def test_planted_links_do_not_lead_the_collector_out(runner: Runner) -> None:
    script = """
        ln -s /etc/shadow /tmp/shadow; ln -s ../../../../../../../../etc/passwd /tmp/climb; ln -s /tmp/real /tmp/link
        echo mine >/tmp/real; ln -s loop /tmp/loop; mkfifo /tmp/fifo; ln -s /proc/self/environ /tmp/env
    """
    spec = runner.spec("sh", "-c", script)
    await runner.run(spec)
    tree = runner.tree(spec.key)
    assert [find(tree, f"/tmp/{name}") for name in ("shadow", "climb", "loop", "env")] == [None] * 4
    assert find(tree, "/tmp/../../../etc/passwd") is None
    assert read_text(tree, "/tmp/link", limit_bytes=10) == "mine\n"


async def test_init_processes_come_first_and_sidecars_end_with_main(runner: Runner, volume: Path) -> None:
    mounts = (Mount(source=str(volume), target="/v"),)

    def process(script: str) -> object:
        return runner.spec("sh", "-c", script, mounts=mounts).main

    spec = runner.spec(
        *("sh", "-c", "cat /v/order; while [ ! -e /v/sidecar ]; do sleep 0.01; done; ls /tmp"),
        init=(process("echo first >/v/order; touch /tmp/of-init"), process("echo second >>/v/order")),
        sidecars=(process("touch /v/sidecar; exec sleep 1000"),),
        mounts=mounts,
    )
    ended = await runner.run(spec)
    assert await runner.log_of(spec.key) == "first\nsecond\n"
    assert (ended.exit_code, ended.blamed) == (0, None)
    assert ended.processes == {"init-0": 0, "init-1": 0, "main": 0, "sidecar-0": 143}

    failed = await runner.run(runner.spec("true", init=(process("exit 3"),)))
    assert (failed.exit_code, failed.blamed, "main" in failed.processes) == (3, "init-0", False)
    failed = await runner.run(runner.spec("sleep", "0.3", sidecars=(process("exit 4"),)))
    assert (failed.exit_code, failed.blamed) == (4, "sidecar-0")


async def test_each_process_sees_its_own_mounts_alone(runner: Runner, volume: Path) -> None:
    a, b = ((Mount(source=str(volume), target="/v", sub_path=part),) for part in "ab")
    of_init = runner.spec("sh", "-c", "echo of init >/v/said", mounts=b).main
    bare = runner.spec("sh", "-c", "[ ! -e /v ]").main

    ended, _ = await runner.shell("[ ! -e /v/said ] && echo of main >/v/said", mounts=a, init=(of_init, bare))

    assert (ended.exit_code, ended.blamed) == (0, None)
    assert ((volume / "a" / "said").read_text(), (volume / "b" / "said").read_text()) == ("of main\n", "of init\n")
