"""Steps in containers of a real engine: images that count, files that come and go, ends of every kind."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.run.engine.embedded.runner.protocol import End, StepExit, StepExited, StepLost
from services.run.engine.embedded.runtime import Mount, Placement, Process
from services.run.engine.embedded.runtime.tree import find, read_text
from tests.containers.engine import Engine
from tests.containers.images import PYTHON_IMAGE
from tests.integration.runtime.conftest import Runner, runner_room
from tests.support.api import Api, workflow_of
from tests.support.running_stack import REAL, started

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]

COW = "headrace-test-cow"
_COW = rf"""
FROM {PYTHON_IMAGE}
ENV MOOD=calm
WORKDIR /pasture
RUN printf '#!/bin/sh\necho "moo $MOOD $PWD $*"\necho milk > /milk\n' > /bin/moo && chmod +x /bin/moo
ENTRYPOINT ["moo"]
CMD ["by", "default"]
"""
_WITHIN_SECONDS = 120


@pytest.fixture(scope="module")
def cow(engine: Engine) -> str:
    """An image with a program, an environment and a working directory of its own."""
    with tempfile.TemporaryDirectory(prefix="headrace-image-") as folder:
        Path(folder, "Dockerfile").write_text(_COW)
        engine.docker("build", "--quiet", "--tag", COW, folder)
    return COW


class Herd(Runner):
    """A step runner whose steps are containers."""

    engine: Engine

    async def in_container(self, image: str, *argv: str, **rest: Any) -> tuple[StepExit, str]:
        spec = self.spec(*argv, image=image, **rest)
        return await self.run(spec), await self.log_of(spec.key)

    def containers(self) -> list[str]:
        """What there is of this runner's steps, in any state."""
        seen = os.stat(self.steps_dir)
        label = f"label=headrace.steps=headrace-steps-{seen.st_dev:x}-{seen.st_ino:x}"
        return self.engine.docker("ps", "--all", "--quiet", "--filter", label).split()


@pytest.fixture
def herd(engine: Engine) -> Iterator[Herd]:
    with runner_room(is_ordinary_user=False, kind=Herd) as runner:
        assert isinstance(runner, Herd)
        runner.engine = engine
        start(runner)
        yield runner
        runner.stop()
        assert runner.containers() == []


def start(herd: Herd, **settings: str) -> None:
    own = {name: value for name, value in herd.engine.environment.items() if name.startswith("DOCKER_")}
    herd.start(**{"HEADRACE_RUNTIME": "docker", **own, **settings})


async def test_the_images_program_environment_and_directory_count(herd: Herd, cow: str) -> None:
    info = await herd.client.info()
    assert (info.runtime, info.weaker) == ("docker", None)
    ended, log = await herd.in_container(cow, runs_entrypoint=True)
    assert (ended.exit_code, log) == (0, "moo calm /pasture by default\n")
    _, log = await herd.in_container(cow, "loudly", runs_entrypoint=True, env={"MOOD": "cross"}, cwd="/tmp/barn")
    assert log == "moo cross /tmp/barn loudly\n"
    _, log = await herd.in_container(cow, "sh", "-c", 'echo "$MOOD $0 $*"', "a b", "$c")
    assert log == "calm a b $c\n"


async def test_variables_reach_the_step_whole_and_no_list_of_processes(herd: Herd, cow: str) -> None:
    herd.stop()
    start(herd, HEADRACE_STEP_ENVIRONMENT="WHO=installation NO_PROXY=a,b")
    odd = {"MULTI": "two\nlines", "QUOTED": '"$x" \\', "PATH": "/usr/local/bin:/usr/bin:/bin", "WHO": "pipeline"}
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    _, log = await herd.in_container(cow, "python3", "-c", code, env=odd)
    seen = json.loads(log)
    assert {**seen, **odd, "NO_PROXY": "a,b"} == seen
    assert not [name for name in seen if name.startswith(("HEADRACE", "DOCKER"))]


async def test_files_go_in_as_copies_and_what_the_step_leaves_comes_out(herd: Herd, cow: str) -> None:
    given, volume = herd.room / "given", herd.room / 'volume, "odd"'
    (given / "deep").mkdir(parents=True)
    (given / "deep" / "a").write_text("original")
    volume.mkdir()
    script = """
        cat /in/text /in/tree/deep/a; echo changed > /in/tree/deep/a; rm /in/text
        stat -c '%a %u' /tmp /tmp/out /in; touch /v/made; echo of the volume > /v/out
        cd /tmp/out; echo file > file; mkdir tree; echo leaf > tree/leaf; ln -s /tmp/out/file link
        echo ro > /ro/no; cat /milk 2>/dev/null; true
    """
    left = ("/tmp/out/tree/leaf", "/tmp/out/tree", "/tmp/out/file", "/tmp/out/link", "/v/out")
    spec = herd.spec(
        *("sh", "-c", script),
        image=cow,
        files=(
            Placement(target="/in/text", text="text "),
            Placement(target="/in/tree", source=str(given)),
            Placement(target="/v/placed", text="in the volume"),
        ),
        make_directories=("/tmp/out", "/", "/tmp"),
        outputs=(*left, "/tmp/none", "/in/text"),
        mounts=(
            Mount(source=str(volume), target="/v"),
            Mount(source=str(given), target="/ro", read_only=True, sub_path="deep"),
        ),
    )
    ended = await herd.run(spec)
    log = await herd.log_of(spec.key)
    assert ended.exit_code == 0, log
    assert log.startswith("text original1777 0\n777 0\n755 0\n")
    assert "Read-only file system" in log
    tree = herd.tree(spec.key)
    assert read_text(tree, "/tmp/out/file", limit_bytes=10) == "file\n"
    assert read_text(tree, "/tmp/out/link", limit_bytes=10) == "file\n"
    assert read_text(tree, "/tmp/out/tree/leaf", limit_bytes=10) == "leaf\n"
    assert find(tree, "/v/out") == volume / "out"
    assert [find(tree, path) for path in ("/tmp/none", "/in/text", "/in/tree", "/milk")] == [None] * 4
    assert (given / "deep" / "a").read_text() == "original"
    assert sorted(os.listdir(volume)) == ["made", "out", "placed"]


SERVES = """
import os, socket
server = socket.create_server(("127.0.0.1", 0))
with open("/v/port.new", "w") as file: file.write(str(server.getsockname()[1]))
os.rename("/v/port.new", "/v/port")
while True:
    with server.accept()[0] as caller: caller.sendall(b"hello from beside")
"""
ASKS = """
import os, socket, time
while not os.path.exists("/v/port"): time.sleep(0.02)
with socket.create_connection(("localhost", int(open("/v/port").read()))) as server:
    print(open("/v/init").read().strip(), server.makefile().read())
"""


async def test_init_containers_come_first_and_sidecars_are_met_at_localhost(herd: Herd, cow: str) -> None:
    volume = herd.room / "volume"
    volume.mkdir()
    shared = (Mount(source=str(volume), target="/v"),)

    def process(*argv: str) -> Process:
        return Process(argv=argv, image=cow, mounts=shared)

    spec = herd.spec(
        *("python3", "-c", ASKS),
        image=cow,
        mounts=shared,
        init=(process("sh", "-c", "echo first > /v/init"),),
        sidecars=(process("python3", "-c", SERVES),),
    )
    ended = await herd.run(spec)
    assert await herd.log_of(spec.key) == "first hello from beside\n"
    assert (ended.exit_code, ended.blamed) == (0, None)
    ended, _ = await herd.in_container(cow, "true", init=(process("sh", "-c", "exit 3"),))
    assert (ended.exit_code, ended.blamed, "main" in ended.processes) == (3, "init-0", False)


async def test_ends_of_every_kind(herd: Herd, cow: str) -> None:
    ended, _ = await herd.in_container(cow, "sh", "-c", "exit 7")
    assert (ended.end, ended.exit_code) == (End.EXITED, 7)
    ended, _ = await herd.in_container(cow, "sh", "-c", "kill -9 $$; sleep 10 & kill -9 $!; wait $!")
    assert (ended.end, ended.exit_code) == (End.EXITED, 137)
    ended, _ = await herd.in_container(cow, "no-such-command")
    assert (ended.end, ended.exit_code) == (End.EXITED, 127)
    ended, _ = await herd.in_container(cow, "/etc/passwd")
    assert (ended.end, ended.exit_code) == (End.EXITED, 126)
    ended, _ = await herd.in_container("headrace.invalid/no:1", "true")
    assert ended.end is End.COULD_NOT_START
    assert ended.reason.startswith("image headrace.invalid/no:1: ")
    ended, _ = await herd.in_container("--privileged", "true")
    assert (ended.end, ended.reason) == (End.COULD_NOT_START, "'--privileged' is not the name of an image")
    spec = herd.spec("python3", "-c", "bytearray(200 * 1024 * 1024)", image=cow)
    limited = msgspec.structs.replace(spec.main, memory_bytes=64 * 1024 * 1024, cpu_millis=1)
    ended = await herd.run(msgspec.structs.replace(spec, main=limited))
    assert (ended.exit_code, ended.out_of_memory) == (137, True)


TALKS = """
    trap 'echo main asked' TERM
    sh -c 'trap "echo child asked; exit" TERM; echo up; sleep 1000 & wait' &
    while :; do wait $!; sleep 0.1; done
"""


async def test_a_killed_step_is_asked_and_then_ended_and_a_deadline_ends_it_too(herd: Herd, cow: str) -> None:
    spec = herd.spec("sh", "-c", TALKS, image=cow)
    await herd.client.start(spec)
    await herd.wait_for_log(spec.key, "up")
    await herd.client.kill(spec.key, "terminated by its user")
    ended = await herd.end_of(spec.key)
    assert isinstance(ended, StepExited)
    assert (ended.exit.end, ended.exit.exit_code) == (End.KILLED, 137)
    log = await herd.log_of(spec.key)
    assert "main asked\n" in log
    assert "child asked\n" in log
    ended_by_time = await herd.run(herd.spec("sleep", "1000", image=cow, deadline_seconds=3))
    assert ended_by_time.end is End.DEADLINE


async def test_a_step_is_killed_at_any_moment_of_its_start(herd: Herd, cow: str) -> None:
    async def at_once(_: str) -> None:
        return

    async def when_it_is_created(_: str) -> None:
        while not await asyncio.to_thread(herd.containers):
            pass

    async def when_it_runs(key: str) -> None:
        await herd.wait_for_log(key, "up")

    for moment in (at_once, when_it_is_created, when_it_runs):
        spec = herd.spec("sh", "-c", "echo up; sleep 1000", image=cow)
        await herd.client.start(spec)
        async with asyncio.timeout(30):
            await moment(spec.key)
        await herd.client.kill(spec.key, "at once")
        ended = await herd.end_of(spec.key)
        assert isinstance(ended, StepExited)
        assert ended.exit.end is End.KILLED


async def test_containers_of_a_killed_runner_are_removed_before_their_step_is_lost(herd: Herd, cow: str) -> None:
    spec = herd.spec("sh", "-c", "echo up; sleep 1000", image=cow)
    await herd.client.start(spec)
    await herd.wait_for_log(spec.key, "up")
    herd.kill()
    assert len(herd.containers()) == 1, "a container outlives its runner"
    start(herd)
    assert isinstance(await herd.end_of(spec.key), StepLost)
    assert herd.containers() == []


async def test_a_runner_of_another_runtime_removes_them_too(herd: Herd, cow: str) -> None:
    spec = herd.spec("sh", "-c", "echo up; sleep 1000", image=cow)
    await herd.client.start(spec)
    await herd.wait_for_log(spec.key, "up")
    herd.kill()
    start(herd, HEADRACE_RUNTIME="process")
    assert isinstance(await herd.end_of(spec.key), StepLost)
    assert herd.containers() == []


async def test_where_no_sandbox_can_be_made_steps_run_in_containers_and_it_is_said(herd: Herd, cow: str) -> None:
    herd.stop()
    start(herd, HEADRACE_RUNTIME="auto", HEADRACE_STEP_BUBBLEWRAP="/bin/false")
    info = await herd.client.info()
    assert info.runtime == "docker"
    assert info.weaker is not None
    assert info.weaker.startswith("no sandbox: ")
    assert info.weaker.endswith(
        "; steps run in containers of docker instead; HEADRACE_RUNTIME=docker says that it is meant so"
    )
    ended, log = await herd.in_container(cow, "echo", "ran")
    assert (ended.exit_code, log) == (0, "ran\n")


async def test_a_pipeline_runs_on_its_images(engine: Engine, cow: str) -> None:
    """The whole stack: a step without a command, a value and a file that are passed on, and a volume."""
    variables = {"HEADRACE_RUNTIME": "docker"}
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        async with started(Path(folder, "data"), command=REAL, variables=variables) as stack:
            await stack.ready()
            detail = await asyncio.to_thread(_carried_out, f"http://127.0.0.1:{stack.port}", cow)
            assert await stack.stop() == 0
    nodes = {node["displayName"]: node for node in workflow_of(detail)["status"]["nodes"].values()}
    assert detail["run"]["status"] == "Succeeded", [(name, node.get("message")) for name, node in nodes.items()]
    said = {each["name"]: each["value"] for each in nodes["read"]["outputs"]["parameters"]}
    assert said == {"all": "milk cheese 3.11 from the volume"}


def _carried_out(url: str, image: str) -> Any:
    api = Api(url)
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "on-images-"},
        "spec": {
            "entrypoint": "main",
            "volumeClaimTemplates": [{"metadata": {"name": "v"}, "spec": {}}],
            "templates": [
                {"name": "main", "dag": {"tasks": [
                    {"name": "milk", "template": "milk"},
                    {"name": "make", "template": "make", "dependencies": ["milk"]},
                    {"name": "read", "template": "read", "dependencies": ["make"], "arguments": {
                        "parameters": [{"name": "milk", "value": "{{tasks.milk.outputs.parameters.milk}}"}],
                        "artifacts": [{"name": "cheese", "from": "{{tasks.make.outputs.artifacts.cheese}}"}]}},
                ]}},
                {"name": "milk", "container": {"image": image},
                 "outputs": {"parameters": [{"name": "milk", "valueFrom": {"path": "/milk"}}]}},
                {"name": "make",
                 "container": {"image": PYTHON_IMAGE, "command": ["sh", "-c"],
                               "args": ["echo cheese > /tmp/wheel/cheese; echo from the volume > /v/note"],
                               "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
                 "outputs": {"artifacts": [{"name": "cheese", "path": "/tmp/wheel/cheese"}]}},
                {"name": "read", "inputs": {"parameters": [{"name": "milk"}],
                                            "artifacts": [{"name": "cheese", "path": "/in/cheese"}]},
                 "script": {"image": PYTHON_IMAGE, "command": ["python3"], "source": _READ,
                            "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
                 "outputs": {"parameters": [{"name": "all", "valueFrom": {"path": "/all"}}]}},
            ],
        },
    }  # fmt: skip
    spec = {"workflow_manifest": json.dumps(workflow)}
    run_id = api.post("/apis/v1beta1/runs", {"name": "on images", "pipeline_spec": spec})["run"]["id"]
    return api.run_when(run_id, within_seconds=_WITHIN_SECONDS)


_READ = """
import sys
version = "%d.%d" % sys.version_info[:2]
cheese, note = (open(path).read().strip() for path in ("/in/cheese", "/v/note"))
with open("/all", "w") as all:
    print("{{inputs.parameters.milk}}", cheese, version, note, file=all)
"""
