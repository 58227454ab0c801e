"""The engines that the contract holds for, each as a test can have it: working, and with what it works on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from services.run.engine import Engine
from services.run.engine.argo import ArgoEngine
from services.run.engine.argo.cluster import Cluster
from services.run.engine.argo.submitting import Submitting
from services.run.engine.embedded.cache import StepCache
from services.run.engine.embedded.driver import EmbeddedEngine
from services.run.engine.embedded.reconcile import Limits
from services.run.engine.embedded.runner.client import RunnerClient
from services.run.reading import MOST_WORKFLOW_BYTES
from shared.blobs import Blobs
from tests.support.argo import Interpreting, StandInArgo
from tests.support.eventually import eventually
from tests.support.kubernetes import FakeKubernetes
from tests.support.kubernetes.client import ApiClient, connected, connected_by
from tests.support.kubernetes.room import make_room
from tests.support.servers import ObjectStoreAccess
from tests.support.step_sandbox import demand_full_sandbox

ROOT = Path(__file__).parents[3]
KUBECONFIG = os.environ.get("HEADRACE_TEST_KUBECONFIG", "")


@dataclass(kw_only=True)
class EngineUnderTest:
    engine: Engine
    blobs: Blobs


EngineFactory = Callable[..., AbstractAsyncContextManager[EngineUnderTest]]
"""Called with the object store, `most_steps` and `most_runs`."""


class RunnerProcess:
    """A step runner as a process of its own; it may be killed and started again."""

    def __init__(self, room: Path) -> None:
        self.room = room
        self.socket = room / "runner.sock"
        self.steps_dir = room / "steps"
        self.data_dir = room / "data"
        self.signalled = threading.Event()
        """It was asked to stop."""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **settings: str) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HEADRACE_STEP_RUNNER_SOCKET": str(self.socket),
            "HEADRACE_STEPS_DIR": str(self.steps_dir),
            "HEADRACE_STEP_MASKED_PATHS": str(self.data_dir),
            "HEADRACE_STEP_GRACE_SECONDS": "5",
            "HEADRACE_STOP_STEPS": "interrupt",
            **settings,
        }
        with (self.room / "runner.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.run.engine.embedded.runner"],
                env=environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self.signalled.set()
            self._process.wait(timeout=30)

    def log(self) -> str:
        return (self.room / "runner.log").read_text()

    def claimed(self, claim: str, name: str) -> str:
        """What a file of a claim holds; nothing where there is none."""
        file = self._claim(claim) / name
        return file.read_text() if file.exists() else ""

    def let_go(self, claim: str) -> None:
        """Put the file `go` there, for which a step may wait."""
        (self._claim(claim) / "go").touch()

    def _claim(self, name: str) -> Path:
        return self.data_dir / "volumes/kubeflow/PersistentVolumeClaim" / name

    def client(self) -> RunnerClient:
        return RunnerClient(str(self.socket))


@contextlib.contextmanager
def runner_process(**settings: str) -> Iterator[RunnerProcess]:
    """A runner that answers. Fails the test where its steps would get less than the full sandbox."""
    room = Path(tempfile.mkdtemp(prefix="headrace-engine-"))
    runner = RunnerProcess(room)
    runner.start(**settings)
    try:
        demand_full_sandbox(runner.socket)
        yield runner
    finally:
        runner.stop()
        shutil.rmtree(room, ignore_errors=True)


def embedded(runner: RunnerProcess) -> EngineFactory:
    @contextlib.asynccontextmanager
    async def make(
        store: ObjectStoreAccess,
        most_steps: int = 8,
        most_runs: int = 100,
        limits: Limits | None = None,
        cache: StepCache | None = None,
        is_driven: bool = True,
    ) -> AsyncIterator[EngineUnderTest]:
        blobs = await open_blobs(store)
        engine = EmbeddedEngine(
            runner.client(),
            blobs,
            steps_dir=runner.steps_dir,
            data_dir=runner.data_dir,
            most_steps=most_steps,
            most_runs=most_runs,
            limits=limits,
            cache=cache,
        )
        await engine.check()
        work = asyncio.create_task(engine.run()) if is_driven else None
        try:
            yield EngineUnderTest(engine=engine, blobs=blobs)
            if work is not None:
                await _cleared_away(engine, runner)
        finally:
            if work is not None:
                work.cancel()
                await asyncio.wait([work])
            blobs.close()

    return make


def argo(runner: RunnerProcess) -> EngineFactory:
    """Argo is played by a brain that carries workflows out over the same runner. The API server is the fake one, or
    the one that HEADRACE_TEST_KUBECONFIG names."""

    @contextlib.asynccontextmanager
    async def make(
        store: ObjectStoreAccess,
        most_steps: int = 8,
        most_runs: int = 100,
        limits: Limits | None = None,
        cache: StepCache | None = None,
    ) -> AsyncIterator[EngineUnderTest]:
        async with (
            embedded(runner)(store, most_steps, 10_000, limits, cache, is_driven=False) as made,
            _cluster() as (
                api,
                cluster,
            ),
        ):
            assert isinstance(made.engine, EmbeddedEngine)
            limits_of_queue = Submitting(rate_per_second=1000, burst=1000, in_flight=most_runs)
            engine = ArgoEngine(
                cluster, namespaces=("kubeflow",), limits=limits_of_queue, most_workflow_bytes=MOST_WORKFLOW_BYTES
            )
            await engine.check()
            brain = Interpreting(api, made.engine, made.blobs)
            async with StandInArgo.working(api, brain, namespace="kubeflow"):
                work = asyncio.create_task(engine.run())
                try:
                    yield EngineUnderTest(engine=engine, blobs=made.blobs)
                finally:
                    work.cancel()
                    await asyncio.wait([work])

    return make


@contextlib.asynccontextmanager
async def _cluster() -> AsyncIterator[tuple[ApiClient, Cluster]]:
    if KUBECONFIG:
        cluster = Cluster.from_settings(kubeconfig=KUBECONFIG)
        async with connected_by(Path(KUBECONFIG)) as api:
            await make_room(api)
            yield api, cluster
            await cluster.close()
        return
    with tempfile.TemporaryDirectory() as folder:
        async with FakeKubernetes.serving() as fake, connected(fake.url, fake.token) as api:
            cluster = Cluster.from_settings(kubeconfig=str(fake.kubeconfig(Path(folder))))
            yield api, cluster
            await cluster.close()


async def _cleared_away(engine: EmbeddedEngine, runner: RunnerProcess) -> None:
    """What was done is also cleared away, without anybody's asking."""

    async def is_clear() -> bool:
        return not await engine.leftovers()

    try:
        await eventually(is_clear, within_seconds=10)
    except AssertionError:
        left = await runner.client().list_attempts()
        files = [str(path.relative_to(runner.room)) for path in runner.room.glob("*/*/*")]
        raise AssertionError(f"left: {left}; files: {files}; the runner: {runner.log()}") from None


async def open_blobs(store: ObjectStoreAccess) -> Blobs:
    blobs = Blobs(store.endpoint_url, access_key=store.access_key, secret_key=store.secret_key, bucket=store.bucket)
    await blobs.ensure_bucket()
    return blobs
