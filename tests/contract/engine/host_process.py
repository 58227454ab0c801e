"""A controller in small, as a process that can be killed: the engine, and a recorder that writes to a file first.

Its orders are in the environment. `HOST_DIE_AT` names the moment at which it kills itself, as `kill -9` would: one of
those named here, or `before` or `beyond` the record number n of the run, counted from 1.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from services.run.engine import Observation, Submission
from services.run.engine.embedded.driver import EmbeddedEngine
from services.run.engine.embedded.runner.client import RunnerClient
from shared.blobs import Blobs


class Records:
    """Observations as lines of JSON, each on the disk before it is acknowledged."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[dict[str, Any]]:
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        return [msgspec.json.decode(line) for line in lines if line.endswith(b"\n")]

    def write(self, observation: Observation) -> None:
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(observation) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {node["id"]: node for observation in self.read() for node in observation["nodes"]}


def die_if(moment: str) -> None:
    if os.environ.get("HOST_DIE_AT") == moment:
        os.kill(os.getpid(), signal.SIGKILL)


def read_submission(path: Path) -> Submission:
    return msgspec.json.decode(path.read_bytes(), type=Submission)


async def run() -> None:
    records = Records(Path(os.environ["HOST_RECORDS"]))
    submission = read_submission(Path(os.environ["HOST_SUBMISSION"]))
    blobs = Blobs(
        os.environ["HOST_STORE"],
        access_key=os.environ["HOST_ACCESS_KEY"],
        secret_key=os.environ["HOST_SECRET_KEY"],
        bucket=os.environ["HOST_BUCKET"],
    )
    engine = EmbeddedEngine(
        RunnerClient(os.environ["HOST_RUNNER_SOCKET"]),
        blobs,
        steps_dir=Path(os.environ["HOST_STEPS_DIR"]),
        data_dir=Path(os.environ["HOST_DATA_DIR"]),
    )
    work = asyncio.create_task(engine.run())
    written = records.read()
    if not any(observation["finished_at"] for observation in written):
        started_at = msgspec.convert(written[0]["started_at"], datetime) if written else None
        nodes = tuple(records.nodes().values())
        await engine.submit(msgspec.structs.replace(submission, nodes=nodes, started_at=started_at))
        async for number, observation in _numbered(engine.observe(), len(written)):
            phases = {node["phase"] for node in observation.nodes if node["type"] == "Pod"}
            if phases & {"Succeeded", "Failed", "Error"}:
                die_if("ended, not recorded")
            die_if(f"before {number}")
            records.write(observation)
            if "Pending" in phases:
                die_if("pending recorded, not started")
            await engine.recorded(observation)
            await asyncio.sleep(0)  # What waited for the record acts on it.
            die_if(f"beyond {number}")
            if observation.finished_at is not None:
                break
    for run_id in await _settled_leftovers(engine):
        await engine.erase(run_id)
    work.cancel()
    await asyncio.wait([work])
    blobs.close()


async def _numbered(observations: AsyncIterator[Observation], begun: int) -> AsyncIterator[tuple[int, Observation]]:
    number = begun
    async for observation in observations:
        number += 1
        yield number, observation


async def _settled_leftovers(engine: EmbeddedEngine) -> dict[str, int]:
    """What is left when nothing is being done any more."""
    while await engine.known():  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.01)
    return await engine.leftovers()


if __name__ == "__main__":
    asyncio.run(run())
