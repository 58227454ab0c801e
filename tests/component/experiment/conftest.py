"""The experiment service on real backing services; its followers are played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager

import msgspec
import pytest

from services.experiment.app import create_app
from services.experiment.settings import Settings
from shared.bus import Bus
from shared.database import Database
from tests.support.peers import open_buses
from tests.support.service import Client, serving


@pytest.fixture
def settings(database_urls: Mapping[str, str], nats_urls: Mapping[str, str]) -> Settings:
    return Settings(database_url=database_urls["experiment"], nats_url=nats_urls["experiment"])


Replica = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def replica(settings: Settings) -> Replica:
    return lambda **differing: serving(create_app(msgspec.structs.replace(settings, **differing)))


@pytest.fixture
async def experiments(replica: Replica) -> AsyncIterator[Client]:
    """Without any experiment, also without the default one that a process may make when it starts."""
    async with replica() as client:
        for experiment in (await client.get("/experiments")).get("experiments", []):
            await client.delete(f"/experiments/{experiment['id']}")
        yield client


@pytest.fixture
async def database(experiments: Client, settings: Settings) -> AsyncIterator[Database]:
    database = await Database(settings.database_url, name="test").open()
    yield database
    await database.close()


@pytest.fixture
async def buses(experiments: Client, nats_urls: Mapping[str, str]) -> AsyncIterator[dict[str, Bus]]:
    buses = await open_buses(nats_urls, "run", "job-scheduler")
    yield buses
    await asyncio.gather(*(bus.close() for bus in buses.values()))
