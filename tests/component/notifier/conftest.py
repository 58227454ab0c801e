"""The notifier on real backing services; the owners of facts are played by the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager

import msgspec
import pytest

from services.notifier.app import create_app
from services.notifier.settings import Settings
from shared.contracts.questions import GET_RUN, ById
from shared.contracts.states import ExperimentId, RunState, RunStatus
from shared.database import Database
from shared.errors import NotFound
from tests.support.facts import LONG_AGO
from tests.support.peers import Peer, open_buses
from tests.support.service import Client, serving

from .receiver import Receiver, serving_receiver

HOUR_SECONDS = 3600.0
TRIES = 3
"""After which no attempt but one is left; none of them comes while a test runs, unless the test moves the time."""


class Owners:
    """Whose facts are followed."""

    def __init__(self, peers: Mapping[str, Peer]) -> None:
        self.run = peers["run"]
        self.experiment = peers["experiment"]
        self.known_runs = {"r"}
        self.over: set[str] = set()

    async def answer(self) -> None:
        await self.run.bus.answer(GET_RUN, self._get_run)

    async def _get_run(self, question: ById) -> RunState:
        if question.id not in self.known_runs:
            raise NotFound.of("Run", question.id)
        status = RunStatus.SUCCEEDED if question.id in self.over else RunStatus.RUNNING
        return msgspec.structs.replace(run_state(question.id), status=status)


def run_state(run_id: str, *, experiment_id: str = "e", version: int = 1, error: str = "") -> RunState:
    return RunState(
        id=run_id,
        version=version,
        name=run_id,
        error=error,
        experiment_id=ExperimentId(experiment_id),
        created_at=LONG_AGO,
    )


@pytest.fixture
async def owners(nats_urls: Mapping[str, str]) -> AsyncIterator[Owners]:
    names = ("run", "experiment")
    buses = await open_buses(nats_urls, *names)
    owners = Owners({name: Peer(name, buses[name]) for name in names})
    for bus in buses.values():
        await bus.declare_streams()
    await owners.answer()
    yield owners
    for bus in buses.values():
        await bus.close()


@pytest.fixture
def settings(database_urls: Mapping[str, str], nats_urls: Mapping[str, str]) -> Settings:
    return Settings(
        database_url=database_urls["notifier"],
        nats_url=nats_urls["notifier"],
        fetch_any_network=True,
        delivery_poll_seconds=0.1,
        delivery_delays_seconds=(HOUR_SECONDS,) * TRIES,
    )


Replica = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def replica(settings: Settings) -> Replica:
    return lambda **differing: serving(create_app(msgspec.structs.replace(settings, **differing)))


@pytest.fixture
async def notifier(owners: Owners, replica: Replica) -> AsyncIterator[Client]:
    async with replica() as client:
        yield client


@pytest.fixture
async def rows(notifier: Client, database_urls: Mapping[str, str]) -> AsyncIterator[Database]:
    """The notifier's own, for tests that move its times."""
    database = await Database(database_urls["notifier"], name="test").open()
    yield database
    await database.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with serving_receiver() as receiver:
        yield receiver
