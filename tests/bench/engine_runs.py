"""Runs for the benchmarks of the engine: manifests of steps that do next to nothing, and word of how the runs end."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import DeliverPolicy

from tests.bench.house import House


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


def chain_of(template: str, steps: int, templates: Sequence[dict[str, Any]]) -> str:
    """So many calls of the template, one after the other."""
    tasks = [
        {"name": f"step-{n}", "template": template, "dependencies": [f"step-{n - 1}"] if n else []}
        for n in range(steps)
    ]
    return _workflow(tasks, templates)


def fan_of(template: str, steps: int, templates: Sequence[dict[str, Any]]) -> str:
    """So many calls of the template, side by side."""
    return _workflow([{"name": "each", "template": template, "withItems": list(range(steps))}], templates)


def _workflow(tasks: list[dict[str, Any]], templates: Sequence[dict[str, Any]]) -> str:
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "bench-"},
        "spec": {"entrypoint": "main", "templates": [{"name": "main", "dag": {"tasks": tasks}}, *templates]},
    }
    return msgspec.json.encode(workflow).decode()
