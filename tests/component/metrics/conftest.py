"""The metrics service on real backing services; the run service is played by the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime

import msgspec
import pytest

from services.metrics.app import create_app
from services.metrics.settings import Settings
from shared.contracts.events import RUN_CREATED, RUN_DELETED
from shared.contracts.questions import GET_RUN, AppliedAnswer, AppliedRequest, ById, applied
from shared.contracts.states import ExperimentId, RunState
from shared.database import Database
from shared.errors import NotFound
from tests.support.peers import Peer, open_buses
from tests.support.service import Client, serving

LONG_AGO = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)


class RunService:
    """The run service, as far as metrics are concerned."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.alive: set[str] = set()
        self.asked: list[str] = []
        self.waited_for: list[int] = []

    async def answer(self) -> None:
        await self.peer.bus.answer(GET_RUN, self._get)
        await self.peer.bus.answer(applied("run"), self._applied)

    async def create(self, run_id: str) -> None:
        """A run whose fact the metrics service has applied."""
        self.alive.add(run_id)
        await self.peer.tell(RUN_CREATED, _state(run_id, version=1))
        await self.peer.until_applied_by("metrics")

    async def delete(self, run_id: str) -> None:
        self.alive.discard(run_id)
        await self.peer.tell(RUN_DELETED, _state(run_id, version=2, is_deleted=True))
        await self.peer.until_applied_by("metrics")

    async def _get(self, question: ById) -> RunState:
        self.asked.append(question.id)
        if question.id not in self.alive:
            raise NotFound.of("Run", question.id)
        return _state(question.id, version=1)

    async def _applied(self, request: AppliedRequest) -> AppliedAnswer:
        assert request.owner == "metrics"
        self.waited_for.append(request.position)
        return AppliedAnswer(is_applied=True)


def _state(run_id: str, *, version: int, is_deleted: bool = False) -> RunState:
    return RunState(
        id=run_id,
        version=version,
        name=run_id,
        experiment_id=ExperimentId("e"),
        created_at=LONG_AGO,
        is_deleted=is_deleted,
    )


@pytest.fixture
def settings(database_urls: Mapping[str, str], nats_urls: Mapping[str, str]) -> Settings:
    return Settings(database_url=database_urls["metrics"], nats_url=nats_urls["metrics"])


Replica = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def replica(settings: Settings) -> Replica:
    return lambda **differing: serving(create_app(msgspec.structs.replace(settings, **differing)))


@pytest.fixture
async def runs(nats_urls: Mapping[str, str]) -> AsyncIterator[RunService]:
    buses = await open_buses(nats_urls, "run")
    service = RunService(Peer("run", buses["run"]))
    await service.answer()
    yield service
    await buses["run"].close()


@pytest.fixture
async def metrics(runs: RunService, replica: Replica) -> AsyncIterator[Client]:
    async with replica() as client:
        yield client


@pytest.fixture
async def database(metrics: Client, settings: Settings) -> AsyncIterator[Database]:
    database = await Database(settings.database_url, name="test").open()
    yield database
    await database.close()
