"""Controllers are killed in turn while the cluster's API server goes away, cuts watches and forgets versions, and while
objects are deleted behind everybody's back: no run is lost, stuck or done twice.

HEADRACE_CHAOS_KILLS asks for more: how things lie at each kill is the machine's affair, so more kills see more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from infra.embedded.ports import free_ports
from services.run.domain import EngineName
from services.run.engine import WorkflowName
from tests.component.run.conftest import World
from tests.contract.engine.argo_by_hand import ArgoByHand
from tests.contract.engine.recorder import Run
from tests.support.argo import StandInArgo, Walk, Walking
from tests.support.argo.held import Held
from tests.support.eventually import eventually
from tests.support.kubernetes import FakeKubernetes
from tests.support.kubernetes.client import connected

_KILLS = int(os.environ.get("HEADRACE_CHAOS_KILLS", "2"))
_RUNS_EACH = 6
_DELETED_EACH = 1
_PATIENCE_SECONDS = 120
"""A process starts, and another's shards come to it, on a machine that may have other things to do."""
_ROOT = Path(__file__).parents[3]
_FINAL = ("Succeeded", "Failed", "Error")


class Controllers:
    """Two, as processes, that end only by being killed."""

    def __init__(self, world: World, nats_url: str, kubeconfig: Path, log: Path) -> None:
        settings = world.settings
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(_ROOT),
            "HEADRACE_DATABASE_URL": settings.database_url,
            "HEADRACE_NATS_URL": nats_url,
            "HEADRACE_OBJECT_STORE_URL": settings.object_store_url,
            "HEADRACE_OBJECT_STORE_ACCESS_KEY": settings.object_store_access_key,
            "HEADRACE_OBJECT_STORE_SECRET_KEY": settings.object_store_secret_key,
            "HEADRACE_OBJECT_STORE_BUCKET": settings.object_store_bucket,
            "HEADRACE_ENGINE": "argo",
            "HEADRACE_KUBECONFIG": str(kubeconfig),
            "HEADRACE_POLL_SECONDS": "0.2",
            "HEADRACE_COMPARE_SECONDS": "2",
        }
        self._log = log
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(self) -> None:
        (port,) = free_ports(1)
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "infra.cli", "serve", "run-controller"),
                env=self._environment | {"HEADRACE_LISTEN_PORT": str(port)},
                cwd=_ROOT,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)

    async def kill_one(self) -> None:
        """Whoever has run for longest."""
        process = self._processes.pop(0)
        process.kill()
        await process.wait()

    def said(self) -> str:
        return self._log.read_text()[-4000:]


@contextlib.asynccontextmanager
async def controllers(world: World, nats_url: str, kubeconfig: Path, log: Path) -> AsyncIterator[Controllers]:
    both = Controllers(world, nats_url, kubeconfig, log)
    try:
        for _ in range(2):
            await both.start()
        yield both
    finally:
        while both._processes:
            await both.kill_one()


@pytest.mark.timeout(600)
async def test_no_run_is_lost_stuck_or_done_twice_whoever_is_killed_and_whatever_is_away(
    world: World, nats_urls: dict[str, str], tmp_path: Path
) -> None:
    client = await world.start_replica(engine=EngineName.ARGO)
    dice = random.Random(20261128)
    objects: defaultdict[str, set[str]] = defaultdict(set)
    """The objects that Argo has seen under each name."""

    def walk(workflow: Held) -> Walk:
        objects[workflow.name].add(workflow.uid)
        return Walk(steps=2, step_seconds=dice.choice((0.0, 0.3, 1.0)), has_pods=False)

    async with (
        FakeKubernetes.serving() as fake,
        connected(fake.url, fake.token) as api,
        StandInArgo.working(api, Walking(api, walk), namespace="kubeflow"),
        controllers(
            world, nats_urls["run-controller"], fake.kubeconfig(tmp_path), tmp_path / "controllers.log"
        ) as both,
    ):
        argo = ArgoByHand(fake, api)
        made: list[Run] = []
        deleted: set[str] = set()
        cutting = asyncio.create_task(_cut_every_second(fake))
        for number in range(_KILLS):
            for _ in range(_RUNS_EACH):
                run_id = (await client.create())["id"]
                name = WorkflowName((await world.row(run_id))["workflow_name"])
                made.append(Run(name=name, run_id=run_id, workflow={}))
            if number % 2:
                fake.compact()
            else:
                await fake.stop()
                await asyncio.sleep(dice.uniform(0.2, 2.0))  # so long is it away
                await fake.start()
            for run in dice.sample(made[-_RUNS_EACH:], _DELETED_EACH):
                await eventually(partial(argo.object, run), within_seconds=_PATIENCE_SECONDS)
                await argo.delete(run)
                deleted.add(run.run_id)
            await both.kill_one()
            await both.start()

        async def ended() -> bool:
            states = [str((await client.get(run.run_id)).get("status")) for run in made]
            return all(state in _FINAL for state in states)

        try:
            await eventually(ended, within_seconds=_PATIENCE_SECONDS)
        except AssertionError:
            stuck = [run for run in made if (await client.get(run.run_id)).get("status") not in _FINAL]
            shown = [(await client.get(run.run_id), await argo.object(run)) for run in stuck]
            raise AssertionError(f"stuck: {shown}; the controllers: {both.said()}") from None
        cutting.cancel()

    for run in made:
        facts = Counter(await world.facts(run.run_id))
        ends = facts["succeeded"] + facts["failed"] + facts["error"]
        assert (facts["created"], ends) == (1, 1), (run, facts)
        assert facts["lost"] == facts["error"]
        # What is deleted before anything of it is on record was never there, and begins anew.
        if run.run_id not in deleted:
            assert (facts["succeeded"], len(objects[run.name])) == (1, 1), (run, facts, both.said())
    print(f"{len(made)} runs, {_KILLS} kills, {len(deleted)} objects deleted: lost 0, stuck 0, doubled 0")


async def _cut_every_second(fake: FakeKubernetes) -> None:
    while True:
        await asyncio.sleep(1)
        fake.cut_watches()
