"""The stack as a person meets it: started as a command, with real backing servers and stubs for the processes."""

import asyncio
import contextlib
import fcntl
import io
import os
import pty
import re
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import urllib3

from infra.cli.up import say
from infra.embedded.failure import StartFailure
from infra.embedded.ports import free_ports
from infra.embedded.preflight import refuse_unknown_settings, refuse_unsupported_platform
from infra.embedded.readiness import NOBODY_ANSWERS, http_status
from tests.support.running_stack import REAL, WITHIN_SECONDS, command_line, environment, started

PROCESSES = {
    *("experiment", "pipeline-registry", "run", "job-scheduler", "metrics", "notifier"),
    *("run-controller", "step-runner", "gateway"),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Open to other users, as a stack started by root needs it."""
    with tempfile.TemporaryDirectory(prefix="headrace-") as name:
        os.chmod(name, 0o711)
        yield Path(name)


async def test_it_comes_up_answers_and_ends_in_order_without_a_trace(folder: Path) -> None:
    async with started(folder / "data") as stack:
        await stack.ready()
        assert await http_status(stack.port, "/apis/v1beta1/healthz") == 200
        assert {event.split()[0] for event in stack.events()} == PROCESSES
        assert await stack.stop() == 0
        assert stack.living() == []
        assert await http_status(stack.port, "/") == NOBODY_ANSWERS
        ends = [event.split()[0] for event in stack.events() if event.endswith(" stopped")]
        # Steps may need everything else until they end.
        assert ends[:2] == ["step-runner", "gateway"]
        assert ends[-1] == "run-controller"
        assert await stack.complaints() == ""
    assert sorted(entry.name for entry in (folder / "data").iterdir()) == sorted(
        ["engine", "headrace.lock", "logs", "nats", "object-store", "ports.json", "postgres", "secrets.json", "steps"]
    )


async def test_ctrl_c_is_an_orderly_stop_and_the_next_start_continues(folder: Path) -> None:
    before: tuple[dict[str, int], bytes] | None = None
    for _ in range(2):
        async with started(folder / "data") as stack:
            await stack.ready()
            ports = msgspec.json.decode((folder / "data" / "ports.json").read_bytes(), type=dict[str, int])
            assert ports.pop("gateway") == stack.port
            kept = ports, (folder / "data" / "secrets.json").read_bytes()
            assert before in (None, kept)
            before = kept
            assert await stack.stop(signal.SIGINT) == 0


async def test_a_person_hears_at_the_start_that_steps_cannot_run_and_what_to_do(folder: Path) -> None:
    nothing = {"HEADRACE_RUNTIME": "process", "HEADRACE_STEP_BUBBLEWRAP": "/bin/false"}
    async with started(folder / "data", command=REAL, variables=nothing) as stack:
        said = await stack.next_complaint()
        assert said.startswith("headrace: steps cannot run: no sandbox: ")
        assert "let this user make namespaces: sysctl " in said
        await stack.ready()
        assert await stack.stop() == 0


async def test_replicas_have_ports_and_logs_of_their_own_and_the_gateway_knows_them_all(folder: Path) -> None:
    replicas = {"HEADRACE_REPLICAS": "run=3,job-scheduler=2"}
    told: list[str] = []
    for _ in range(2):
        async with started(folder / "data", variables=replicas) as stack:
            await stack.ready()
            kept = msgspec.json.decode((folder / "data" / "ports.json").read_bytes(), type=dict[str, int])
            told.append(await asyncio.to_thread(_said_by, stack.port))
            gateway = told[-1].splitlines()
            assert f"HEADRACE_RUN_UPSTREAMS={_urls(kept, 'run', 'run-2', 'run-3')}" in gateway
            assert f"HEADRACE_JOB_SCHEDULER_UPSTREAMS={_urls(kept, 'job-scheduler', 'job-scheduler-2')}" in gateway
            assert f"HEADRACE_METRICS_UPSTREAMS={_urls(kept, 'metrics')}" in gateway
            assert [await http_status(kept[name], "/") for name in ("run", "run-2", "run-3")] == [200] * 3
            begun = Counter(event.split()[0] for event in stack.events())
            assert begun == Counter(dict.fromkeys(PROCESSES, 1) | {"run": 3, "job-scheduler": 2})
            assert await stack.stop() == 0
    assert told[0] == told[1], "the next start finds everybody at the same place"
    logs = {file.stem for file in (folder / "data" / "logs").iterdir()}
    assert {"run", "run-2", "run-3", "job-scheduler-2", "metrics"} <= logs


async def test_a_replica_that_is_killed_is_started_again_while_the_others_go_on(folder: Path) -> None:
    async with started(folder / "data", variables={"HEADRACE_REPLICAS": "run=2"}) as stack:
        await stack.ready()
        os.kill(stack.pid_of("run"), signal.SIGKILL)
        assert re.match(r"headrace: run(-2)? was ended by SIGKILL; starting it", await stack.next_complaint())
        async with asyncio.timeout(WITHIN_SECONDS):
            while stack.events().count("run started") != 3:  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.01)
        assert await stack.stop() == 0
        assert stack.events().count("run stopped") == 2


async def test_a_signal_while_it_comes_up_leaves_nothing(folder: Path) -> None:
    async with started(folder / "data") as stack:
        async with asyncio.timeout(WITHIN_SECONDS):
            while not (folder / "data" / "logs" / "nats.log").exists():  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.01)
        assert await stack.stop() == 0
        assert stack.living() == []


async def test_a_terminal_that_closes_is_an_orderly_stop(folder: Path) -> None:
    ours, its = pty.openpty()
    async with started(folder / "data", terminal=its) as stack:
        os.close(its)
        said = b""
        while b"headrace ready " not in said:
            said += await asyncio.wait_for(asyncio.to_thread(os.read, ours, 4096), WITHIN_SECONDS)
        os.close(ours)
        assert await stack.ended() == 0
        assert stack.living() == []
        ends = [event.split()[0] for event in stack.events() if event.endswith(" stopped")]
        assert (ends[0], ends[-1]) == ("step-runner", "run-controller")


async def test_a_stack_that_is_to_outlive_its_terminal_does(folder: Path) -> None:
    async with started(folder / "data", prefix=["nohup"]) as stack:
        async with asyncio.timeout(WITHIN_SECONDS):
            while not (folder / "data" / "headrace.lock").exists():  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.01)
        assert signal.SIGHUP in ignored_by(stack.process.pid)
        assert await stack.stop() == 0


def test_nobody_is_told_anything_at_a_terminal_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, its = pty.openpty()
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(io.FileIO(its, "w"), write_through=True))
    os.close(ours)
    say("the end")


async def test_a_killed_process_and_a_killed_server_are_started_again(folder: Path) -> None:
    async with started(folder / "data") as stack:
        await stack.ready()
        os.kill(stack.pid_of("gateway"), signal.SIGKILL)
        assert _restarted("gateway") in await stack.next_complaint()
        await _answers(stack.port)
        for program, name in (("bin/postgres", "postgres"), ("nats-server", "nats"), ("weed", "object-store")):
            killed = stack.child(program)
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            assert _restarted(name) in await stack.next_complaint()
            async with asyncio.timeout(WITHIN_SECONDS):
                while stack.child(program) in (killed, None):  # noqa: ASYNC110 - a list of the kernel's
                    await asyncio.sleep(0.01)
        assert await stack.stop() == 0
        assert stack.living() == []


async def test_a_killed_zygote_takes_its_processes_along_and_all_come_back(folder: Path) -> None:
    async with started(folder / "data") as stack:
        await stack.ready()
        before = {name: stack.pid_of(name) for name in PROCESSES - {"step-runner"}}
        zygote = stack.child("infra.embedded.zygote")
        assert zygote is not None
        os.kill(zygote, signal.SIGKILL)
        async with asyncio.timeout(WITHIN_SECONDS):
            while any(stack.pid_of(name) == pid for name, pid in before.items()):  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.02)
        assert stack.events().count("step-runner started") == 1, "steps outlive the zygote"
        await _answers(stack.port)
        assert await stack.stop() == 0
        assert stack.living() == []


async def test_every_process_leads_a_session_and_is_listed_by_what_it_runs(folder: Path) -> None:
    async with started(folder / "data") as stack:
        await stack.ready()
        for name in PROCESSES:
            pid = stack.pid_of(name)
            assert os.getsid(pid) == pid
            interpreter, program, argument = command_line(pid).split(b"\0")
            assert (interpreter, argument) == (sys.executable.encode(), name.encode())
            assert program.endswith(b"/stub_process.py")
        assert await stack.stop() == 0


async def test_a_killed_supervisor_takes_everything_along_and_the_next_one_starts(folder: Path) -> None:
    async with started(folder / "data") as stack:
        await stack.ready()
        stack.process.kill()
        # At once, while servers of the killed stack may still be writing.
        async with started(folder / "data") as successor:
            await successor.ready()
            assert stack.living() == []
            assert await successor.stop() == 0
            assert await successor.complaints() == ""


async def test_two_stacks_run_at_once_on_two_folders(folder: Path) -> None:
    async with started(folder / "one") as one, started(folder / "two") as two:
        await asyncio.gather(one.ready(), two.ready())
        assert await one.stop() == 0
        assert await http_status(two.port, "/apis/v1beta1/healthz") == 200
        assert await two.stop() == 0


async def test_a_port_that_was_another_servers_last_time_serves_the_gateway(folder: Path) -> None:
    (port,) = free_ports(1)
    (folder / "data").mkdir(mode=0o711)
    (folder / "data" / "headrace.lock").touch()
    (folder / "data" / "ports.json").write_bytes(msgspec.json.encode({"nats": port}))
    async with started(folder / "data", port=port) as stack:
        await stack.ready()
        assert await stack.stop() == 0
        assert await stack.complaints() == ""


async def test_a_folder_too_long_for_a_socket_works(folder: Path) -> None:
    async with started(folder / ("deep" * 30) / "data") as stack:
        await stack.ready()
        assert await stack.stop() == 0
    assert [name for name in os.listdir("/tmp") if name.startswith(f"headrace-{os.geteuid()}-")] == []


async def test_a_folder_in_use_is_refused_and_its_stack_undisturbed(folder: Path) -> None:
    async with started(folder / "data") as stack:
        await stack.ready()
        async with started(folder / "data") as second:
            assert await second.ended() == 1
            holder = f"is in use by another headrace (process {stack.process.pid})"
            assert await second.complaints() == f"headrace: cannot start: the data directory {folder}/data {holder}\n"
        assert await http_status(stack.port, "/apis/v1beta1/healthz") == 200
        assert await stack.stop() == 0


async def test_ctrl_c_is_heard_while_servers_of_a_killed_stack_still_hold_the_folder(folder: Path) -> None:
    lock = folder / "data" / "headrace.lock"
    lock.parent.mkdir()
    lock.write_text("1 0.5")  # A process that is not.
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        async with started(folder / "data") as stack:
            async with asyncio.timeout(WITHIN_SECONDS):
                while lock not in opened_by(stack.process.pid):  # noqa: ASYNC110 - the kernel's list
                    await asyncio.sleep(0.01)
            assert await stack.stop(signal.SIGINT) == 0
            assert await stack.complaints() == ""


async def test_a_taken_port_is_refused_before_anything_is_written(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with started(folder / "data", port=port) as stack:
            assert await stack.ended() == 1
            assert await stack.complaints() == (
                f"headrace: cannot start: port {port} on 127.0.0.1 is taken: "
                "stop what listens there, or choose another by --port\n"
            )
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("HEADRACE_WEED", "/no/weed", "HEADRACE_WEED=/no/weed: this is not a program"),
        ("HEADRACE_PORT", "abc", "HEADRACE_PORT: 'abc' is not a port"),
        ("HEADRACE_PORT", "65536", "HEADRACE_PORT: '65536' is not a port"),
        ("HEADRACE_SECRETS_DIR", "/no/dir", "HEADRACE_SECRETS_DIR=/no/dir: there is no such directory"),
        ("HEADRACE_PROT", "1", "unknown setting HEADRACE_PROT (did you mean HEADRACE_PORT?)"),
        ("HEADRACE_REPLICAS", "runs=2", "replicas: 'runs=2' names no service (did you mean run?)"),
        ("HEADRACE_STOP_STEPS", "never", "HEADRACE_STOP_STEPS='never': Invalid enum value 'never'"),
    ],
)
async def test_a_wrong_setting_is_refused_before_anything_is_written(
    folder: Path, variable: str, value: str, complaint: str
) -> None:
    async with started(folder / "data", variables={variable: value}) as stack:
        assert await stack.ended() == 1
        assert await stack.complaints() == f"headrace: cannot start: {complaint}\n"
    assert os.listdir(folder) == []


async def test_steps_are_kept_from_all_that_is_kept_for_them(folder: Path) -> None:
    secrets = folder / "secrets"
    secrets.mkdir()
    variables = {"HEADRACE_SECRETS_DIR": str(secrets), "HEADRACE_STEP_MASKED_PATHS": "/etc/mine,/opt/mine"}
    async with started(folder / "data", variables=variables) as stack:
        await stack.ready()
        masked = f"HEADRACE_STEP_MASKED_PATHS={folder}/data,{secrets},/etc/mine,/opt/mine"
        assert masked in environment(stack.pid_of("step-runner"))
        assert await stack.stop() == 0


async def test_what_is_kept_from_steps_is_not_shared_with_them(folder: Path) -> None:
    async with started(folder / "data", variables={"HEADRACE_HOST_PATHS": f"/usr,{folder}"}) as stack:
        assert await stack.ended() == 1
        reason = f"HEADRACE_HOST_PATHS: {folder} would show steps what is kept in {folder}/data"
        assert await stack.complaints() == f"headrace: cannot start: {reason}\n"


async def test_a_folder_that_is_a_file_is_refused(folder: Path) -> None:
    (folder / "data").touch()
    async with started(folder / "data") as stack:
        assert await stack.ended() == 1
        complaint = f"headrace: cannot start: the data directory {folder}/data cannot be used: "
        assert (await stack.complaints()).startswith(complaint)


@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        ("mount -t tmpfs -o ro none", "cannot be used: Read-only file system"),
        ("mount -t tmpfs -o size=16m none", "is on a full disk: "),
    ],
)
async def test_a_disk_that_takes_nothing_is_refused(folder: Path, mount: str, reason: str) -> None:
    in_namespace = ("unshare", "--user", "--map-root-user", "--mount", "--")
    probe = await asyncio.create_subprocess_exec(*in_namespace, "/bin/sh", "-c", f"{mount} {folder}")
    if await probe.wait() != 0:
        pytest.skip("no user namespaces here: nothing can be mounted")
    mounted = (*in_namespace, "/bin/sh", "-c", f'{mount} {folder} && exec "$@"', "sh")
    async with started(folder / "data", prefix=mounted) as stack:
        assert await stack.ended() == 1
        complaints = await stack.complaints()
    assert complaints.startswith(f"headrace: cannot start: the data directory {folder}/data {reason}")
    assert complaints.count("\n") == 1


async def test_a_server_that_does_not_come_up_ends_what_did(folder: Path) -> None:
    liar = folder / "weed"
    liar.write_text("#!/bin/sh\necho the mill is dry >&2\nexit 1\n")
    liar.chmod(0o755)
    async with started(folder / "data", variables={"HEADRACE_WEED": str(liar)}) as stack:
        assert await stack.ended() == 1
        complaint = "headrace: cannot start: the object store ended while starting: the mill is dry (log: "
        assert (await stack.complaints()).startswith(complaint)
        assert stack.living() == []


def test_what_is_said_to_commands_that_reach_a_gateway_is_no_mistake() -> None:
    refuse_unknown_settings({"HEADRACE_URL": "http://127.0.0.1:1", "HEADRACE_TOKEN": "headrace_x"}, known=())


def test_an_unsupported_platform_is_told_of_docker_compose() -> None:
    refuse_unsupported_platform("linux", "x86_64")
    refuse_unsupported_platform("linux", "aarch64")
    for system, machine in (("darwin", "arm64"), ("win32", "AMD64"), ("linux", "riscv64")):
        with pytest.raises(StartFailure, match=f"not on {system} {machine}: use docker-compose up"):
            refuse_unsupported_platform(system, machine)


def ignored_by(pid: int) -> set[int]:
    (mask,) = re.findall(r"SigIgn:\s(\S+)", Path(f"/proc/{pid}/status").read_text())
    return {number for number in signal.valid_signals() if int(mask, 16) & 1 << number - 1}


def opened_by(pid: int) -> set[Path]:
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(descriptor.readlink())
    return found


def _urls(ports: dict[str, int], *names: str) -> str:
    return ",".join(f"http://127.0.0.1:{ports[name]}" for name in names)


def _said_by(port: int) -> str:
    return urllib3.request("GET", f"http://127.0.0.1:{port}/").data.decode()


def _restarted(name: str) -> str:
    return f"headrace: {name} was ended by SIGKILL; starting it again in 0."


async def _answers(port: int) -> None:
    async with asyncio.timeout(WITHIN_SECONDS):
        while await http_status(port, "/") != 200:  # noqa: ASYNC110 - another process's socket
            await asyncio.sleep(0.02)
