"""Runs for the benchmarks of the engine: manifests of steps that do next to nothing, and word of how the runs end."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import DeliverPolicy

from tests.bench.house import House

_CLAIM = "bench-notes"


class Finals:
    """What the last fact of each run says."""

    def __init__(self) -> None:
        self._ended: defaultdict[str, asyncio.Future[str]] = defaultdict(asyncio.get_running_loop().create_future)

    async def heard(self, message: Msg) -> None:
        _, _, _, what, run_id = message.subject.split(".")
        if what in ("succeeded", "failed", "error", "lost") and not self._ended[run_id].done():
            self._ended[run_id].set_result(what)

    async def until_succeeded(self, run_id: str, *, within_seconds: float) -> None:
        """Raises RuntimeError where it ends otherwise, TimeoutError."""
        outcome = await asyncio.wait_for(self._ended[run_id], within_seconds)
        if outcome != "succeeded":
            raise RuntimeError(f"run {run_id} ended as {outcome}")


@asynccontextmanager
async def listening(house: House) -> AsyncIterator[Finals]:
    finals = Finals()
    subscriber = Client()
    await subscriber.connect(house.nats_url("events"), name="bench", allow_reconnect=False)
    await subscriber.jetstream().subscribe(
        "kfp.event.run.>", cb=finals.heard, ordered_consumer=True, deliver_policy=DeliverPolicy.NEW
    )
    try:
        yield finals
    finally:
        await subscriber.close()


async def submit(house: House, session: aiohttp.ClientSession, name: str, manifest: str) -> str:
    """The id of a new run. Raises RuntimeError where it is refused."""
    request = {"name": name, "pipeline_spec": {"workflow_manifest": manifest}}
    async with session.post(f"{house.url}/apis/v1beta1/runs", data=msgspec.json.encode(request)) as answer:
        said = await answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the run was refused, {answer.status}: {said[:300]!r}")
    return str(msgspec.json.decode(said)["run"]["id"])


class Notes:
    """Where the steps of a run write down when each begins and ends."""

    def __init__(self, house: House) -> None:
        self._folder = house.data_dir / "engine" / "volumes" / "kubeflow" / "PersistentVolumeClaim" / _CLAIM

    def of(self, name: str, shape: Callable[[Mapping[str, Any], int], str], steps: int) -> str:
        """A manifest of so many steps that write their times into the file `name`."""
        return shape(
            {
                "name": "note",
                "container": {
                    "image": "alpine",
                    "command": self.command(f"/notes/{name}"),
                    "volumeMounts": [{"name": "notes", "mountPath": "/notes"}],
                },
                "volumes": [{"name": "notes", "persistentVolumeClaim": {"claimName": _CLAIM}}],
            },
            steps,
        )

    @staticmethod
    def command(path: str) -> list[str]:
        # A line of this length is written whole, whoever else writes.
        return ["bash", "-c", f"b=$EPOCHREALTIME; echo $b $EPOCHREALTIME >> {path}"]

    def read(self, name: str) -> tuple[tuple[float, float], ...]:
        """When each step began and ended, by when it began; seconds of the epoch."""
        lines = (self._folder / name).read_text().splitlines()
        return tuple(sorted((float(begun), float(ended)) for begun, ended in map(str.split, lines)))


def paces(begun: Sequence[tuple[float, float]]) -> list[float]:
    """Milliseconds from one beginning to the next."""
    return [(later - earlier) * 1000 for (earlier, _), (later, _) in itertools.pairwise(begun)]


def chain_of(template: Mapping[str, Any], steps: int) -> str:
    """So many calls of the template, one after the other."""
    return _workflow([_link(template, n) for n in range(steps)], template)


def relay_of(template: Mapping[str, Any], steps: int) -> str:
    """A chain in which each step hands a file of its own to the next one."""
    baton = {"name": "baton", "path": "/tmp/baton"}
    received = {"name": "received", "path": "/tmp/received", "optional": True}
    tasks = [
        _link(template, n)
        | {
            "arguments": {
                "artifacts": [{"name": "received", "from": f"{{{{tasks.step-{n - 1}.outputs.artifacts.baton}}}}"}]
                if n
                else []
            }
        }
        for n in range(steps)
    ]
    container = template["container"]
    *shell, script = container["command"]
    container = container | {"command": [*shell, f"{script}; echo {{}} > {baton['path']}"]}
    runner = dict(template) | {
        "container": container,
        "inputs": {"artifacts": [received]},
        "outputs": {"artifacts": [baton]},
    }
    return _workflow(tasks, runner)


def _link(template: Mapping[str, Any], n: int) -> dict[str, Any]:
    return {"name": f"step-{n}", "template": template["name"], "dependencies": [f"step-{n - 1}"] if n else []}


def fan_of(template: Mapping[str, Any], steps: int) -> str:
    """So many calls of the template, side by side."""
    return _workflow([{"name": "each", "template": template["name"], "withItems": list(range(steps))}], template)


def _workflow(tasks: list[dict[str, Any]], template: Mapping[str, Any]) -> str:
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "bench-"},
        "spec": {"entrypoint": "main", "templates": [{"name": "main", "dag": {"tasks": tasks}}, template]},
    }
    return msgspec.json.encode(workflow).decode()
