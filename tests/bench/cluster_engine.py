"""The engine on a cluster: how fast runs become workflows there, how fast what happens there is known, and a start over
many that have ended.

The API server is the tests' own, in a process of its own, or a real one (HEADRACE_BENCH_KUBECONFIG); Argo does not run:
the benchmark writes what it would write. Whoever records does so in memory. Floors are the same requests and the same
watch by a bare client.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from services.run.engine import Observation
from services.run.engine.argo import ArgoEngine, shapes
from services.run.engine.argo.cluster import Cluster
from services.run.engine.argo.submitting import Submitting
from services.run.reading import MOST_WORKFLOW_BYTES
from tests.bench.figures import Floor, Result, Row, Unit, median, percentile
from tests.bench.processes import Meter, Process, pss_mebibytes
from tests.contract.engine.manifests import c, dag, task, workflow
from tests.contract.engine.recorder import Run, new_run
from tests.support.kubernetes.client import ApiClient, connected, connected_by
from tests.support.kubernetes.room import NAMESPACE, WORKFLOWS, make_room

NAME = "cluster-engine"
ABOUT = "runs to workflows of a cluster and back, and a start over ten thousand that have ended"

_AT_ONCE = 16
_COUNTS = (1, 100, 2000)
_UNMETERED = Submitting(rate_per_second=1e6, burst=1_000_000)
_WATCHED = 100
_UPDATES = 20
_ENDED = 10_000
_UNTOLD = 1_000
"""Ended while no controller ran."""
_OPEN = 100
_WITHIN_SECONDS = 90
_MANIFEST = workflow(
    dag(*(task(f"t{number}", "s") for number in range(10))), templates={"s": c("echo hello; " + "#" * 1000)}
)
_STARTED, _FINISHED = "2026-01-01T10:00:00Z", "2026-01-01T10:00:09Z"


async def measure() -> Result:
    async with _server() as (api, kubeconfig, what):
        rows, meter = await _submissions(api, kubeconfig)
        rows += await _updates(api, kubeconfig)
        rows += await _starts(api, kubeconfig)
    notes = (
        f"cluster-engine: {what}; workflows of ten steps, {len(_body(new_run(_MANIFEST))) / 1024:.0f} KiB; not metered",
        f"cluster-engine: {_COUNTS[-1]:,} submissions cost {meter.each(_COUNTS[-1])}",
    )
    return Result(rows=tuple(rows), notes=notes)


@contextlib.asynccontextmanager
async def _server() -> AsyncIterator[tuple[ApiClient, Path, str]]:
    given = os.environ.get("HEADRACE_BENCH_KUBECONFIG")
    if given:
        async with connected_by(Path(given)) as api:
            await make_room(api)
            yield api, Path(given), "a real API server"
        return
    serving = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.support.kubernetes", stdout=PIPE)
    assert serving.stdout is not None
    try:
        url, token = (await serving.stdout.readline()).decode().split()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kubeconfig"
            path.write_bytes(msgspec.json.encode(_config(url, token)))
            async with connected(url, token) as api:
                yield api, path, "the tests' own API server"
    finally:
        serving.terminate()
        await serving.wait()


def _config(url: str, token: str) -> dict[str, Any]:
    return {
        "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": url}}],
        "users": [{"name": "bench", "user": {"token": token}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
    }


class _Records:
    """Acknowledges at once, and knows how far it has come."""

    def __init__(self, engine: ArgoEngine) -> None:
        self.engine = engine
        self.taken = 0
        self.ended: set[str] = set()
        self.last: dict[str, Observation] = {}
        self._changed = asyncio.Event()

    async def follow(self) -> None:
        async for observation in self.engine.observe():
            self.taken += 1
            self.last[observation.run_id] = observation
            if observation.finished_at is not None:
                self.ended.add(observation.run_id)
            await self.engine.recorded(observation)
            self._changed.set()

    async def until(self, state: Callable[[], bool]) -> None:
        async with asyncio.timeout(_WITHIN_SECONDS):
            while not state():
                self._changed.clear()
                await self._changed.wait()


@contextlib.asynccontextmanager
async def _working(kubeconfig: Path) -> AsyncIterator[_Records]:
    engine = ArgoEngine(
        Cluster.from_settings(kubeconfig=str(kubeconfig)),
        namespaces=(NAMESPACE,),
        limits=_UNMETERED,
        most_workflow_bytes=MOST_WORKFLOW_BYTES,
    )
    await engine.about()  # Loads the client, which is no part of what is measured.
    records = _Records(engine)
    tasks = [asyncio.create_task(engine.run()), asyncio.create_task(records.follow())]
    try:
        yield records
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.wait(tasks)
        await engine.close()


# From submit to the object


async def _submissions(api: ApiClient, kubeconfig: Path) -> tuple[list[Row], Meter]:
    rows: list[Row] = []
    meter = Meter()
    async with _working(kubeconfig) as records:
        await records.engine.known()
        for count in _COUNTS:
            repetitions = 20 if count == 1 else 3 if count == 100 else 1
            delays, seconds, floors = [], [], []
            for _ in range(repetitions):
                bare = [new_run(_MANIFEST) for _ in range(count)]
                floors.append(await _at_once(_created(api, run) for run in bare))
                runs = [new_run(_MANIFEST) for _ in range(count)]
                with meter.running() if count == _COUNTS[-1] else contextlib.nullcontext():
                    taken, lasted = await _submitted(api, records, runs)
                delays.append(taken)
                seconds.append(lasted)
                await _removed(api)
            rows.append(
                Row(
                    quantity=f"{count:,} runs submitted: submit to workflow object, p99"
                    if count > 1
                    else "a run submitted: submit to workflow object, p50",
                    unit=Unit.MILLISECONDS,
                    figure=percentile(delays, 99 if count > 1 else 50),
                )
            )
            if count > 1:
                rows.append(
                    Row(
                        quantity=f"  submissions a second over {count:,}",
                        unit=Unit.PER_SECOND,
                        figure=median([count / each for each in seconds]),
                        floors=(
                            Floor(
                                what=f"bare POSTs, {_AT_ONCE} at once",
                                reading=median([count / each for each in floors]),
                            ),
                        ),
                    )
                )
    return rows, meter


async def _submitted(api: ApiClient, records: _Records, runs: Sequence[Run]) -> tuple[list[float], float]:
    """Milliseconds of each from `submit` until the object is seen in a watch, and seconds of all."""
    begun: dict[str, float] = {}
    seen: dict[str, float] = {}
    version = (await api.get(WORKFLOWS, limit="1")).version
    async with asyncio.timeout(_WITHIN_SECONDS), api.watch(WORKFLOWS, resourceVersion=version) as events:
        began = time.perf_counter()
        for run in runs:
            begun[run.name] = time.perf_counter()
            await records.engine.submit(run.submission())
        async for event in events:
            if event.type == "ADDED" and event.name in begun:
                seen[event.name] = time.perf_counter()
                if len(seen) == len(begun):
                    break
    return [(seen[name] - at) * 1000 for name, at in begun.items()], time.perf_counter() - began


# From a change to its record


async def _updates(api: ApiClient, kubeconfig: Path) -> list[Row]:
    runs = [new_run(_MANIFEST) for _ in range(_WATCHED)]
    await _at_once(_created(api, run) for run in runs)
    floor = await _at_once(_shown(api, run, _UPDATES) for run in runs)
    async with _working(kubeconfig) as records:
        await records.engine.known()
        await records.until(lambda: len(records.last) == _WATCHED)
        began, taken = time.perf_counter(), records.taken
        writing = asyncio.create_task(_at_once(_shown(api, run, _UPDATES, last="Succeeded") for run in runs))
        await records.until(lambda: len(records.ended) == _WATCHED)
        lasted = time.perf_counter() - began
        await writing
        told = records.taken - taken
    await _removed(api)
    changes = _WATCHED * _UPDATES
    return [
        Row(
            quantity=f"{changes:,} changes of {_WATCHED} workflows: a second, from change to recorded status",
            unit=Unit.PER_SECOND,
            figure=median([changes / lasted]),
            floors=(Floor(what="the same changes, seen by nobody", reading=median([changes / floor])),),
        ),
        Row(quantity="  observations a second among them", unit=Unit.PER_SECOND, figure=median([told / lasted])),
    ]


# A start


async def _starts(api: ApiClient, kubeconfig: Path) -> list[Row]:
    rows: list[Row] = []
    open_runs = [new_run(_MANIFEST) for _ in range(_OPEN)]
    for is_recorded, count, what in ((True, _ENDED, "on record"), (False, _UNTOLD, "not on record")):
        ended = [new_run(_MANIFEST) for _ in range(count)]
        await _at_once(
            itertools.chain(
                (_created(api, run, ended=True, is_recorded=is_recorded) for run in ended),
                (_created(api, run) for run in open_runs),
            )
        )
        before = _held_mebibytes()
        async with _working(kubeconfig) as records:
            began = time.perf_counter()
            known = await records.engine.known()
            ready = time.perf_counter() - began
            assert known >= {run.run_id for run in open_runs}
            peak = _held_mebibytes()
            rows += [
                Row(
                    quantity=f"start over {count:,} ended workflows, {what}, and {_OPEN} open: until ready",
                    unit=Unit.SECONDS,
                    figure=median([ready]),
                ),
                Row(quantity="  memory that takes", unit=Unit.MEBIBYTES, figure=median([peak - before])),
            ]
            if not is_recorded:
                await records.until(lambda: len(records.ended) == _UNTOLD)
                rows.append(
                    Row(
                        quantity="  until all their ends are recorded",
                        unit=Unit.SECONDS,
                        figure=median([time.perf_counter() - began]),
                    )
                )
        await _removed(api)
    return rows


def _held_mebibytes() -> float:
    return pss_mebibytes(Process(pid=os.getpid(), name="this client"))


# What Argo would write


def _body(run: Run) -> bytes:
    return msgspec.json.encode(shapes.new_object(run.submission()))


async def _created(api: ApiClient, run: Run, *, ended: bool = False, is_recorded: bool = False) -> None:
    document = shapes.new_object(run.submission())
    if ended:
        document["status"] = _status(run, 9, "Succeeded")
    if is_recorded:
        document["metadata"]["labels"][shapes.PERSISTED] = "true"
    (await api.post(WORKFLOWS, document)).ok()


async def _shown(api: ApiClient, run: Run, times: int, *, last: str = "Running") -> None:
    for number in range(times):
        phase = last if number == times - 1 else "Running"
        (await api.merge(f"{WORKFLOWS}/{run.name}", {"status": _status(run, number, phase)})).ok()


def _status(run: Run, progress: int, phase: str) -> dict[str, Any]:
    """A graph of ten steps, of which one changes with each bit of progress."""
    is_over = phase != "Running"
    nodes = {str(run.name): _node(run.name, "DAG", phase)}
    for number in range(10):
        done = is_over or number != progress % 10
        nodes[f"{run.name}-{number}"] = _node(f"{run.name}-{number}", "Pod", "Succeeded" if done else "Running")
    return {"phase": phase, "startedAt": _STARTED, "finishedAt": _FINISHED if is_over else None, "nodes": nodes}


def _node(node_id: str, kind: str, phase: str) -> dict[str, Any]:
    return {
        "id": node_id,
        "name": node_id,
        "displayName": node_id,
        "type": kind,
        "templateName": "main",
        "phase": phase,
        "startedAt": _STARTED,
        "finishedAt": None if phase == "Running" else _FINISHED,
    }


async def _removed(api: ApiClient) -> None:
    await make_room(api)


async def _at_once(works: Iterable[Awaitable[None]]) -> float:
    """Seconds that all of them take, a few at a time."""
    left = iter(works)

    async def take() -> None:
        for work in left:
            await work

    began = time.perf_counter()
    await asyncio.gather(*(take() for _ in range(_AT_ONCE)))
    return time.perf_counter() - began
