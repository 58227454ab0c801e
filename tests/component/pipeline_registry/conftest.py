"""The pipeline registry on real backing services."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import msgspec
import pytest

from services.pipeline_registry.app import create_app
from services.pipeline_registry.settings import Settings
from shared.blobs import Blobs
from shared.bus import Bus
from shared.database import Database
from tests.support.packages import PIPELINE
from tests.support.servers import ObjectStoreAccess
from tests.support.service import V1, Client, Reply, serving

from .site import Site, serving_site


@pytest.fixture
def settings(
    database_urls: Mapping[str, str], nats_urls: Mapping[str, str], object_store_access: ObjectStoreAccess
) -> Settings:
    return Settings(
        database_url=database_urls["pipeline_registry"],
        nats_url=nats_urls["pipeline-registry"],
        object_store_url=object_store_access.endpoint_url,
        object_store_access_key=object_store_access.access_key,
        object_store_secret_key=object_store_access.secret_key,
        object_store_bucket=object_store_access.bucket,
        erase_poll_seconds=0.1,
    )


Replica = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def replica(settings: Settings) -> Replica:
    """Start a replica; settings may differ by keyword."""
    return lambda **differing: serving(create_app(msgspec.structs.replace(settings, **differing)))


@pytest.fixture
async def registry(replica: Replica) -> AsyncIterator[Client]:
    async with replica() as client:
        yield client


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving_site() as site:
        yield site


@pytest.fixture
async def database(registry: Client, settings: Settings) -> AsyncIterator[Database]:
    database = await Database(settings.database_url, name="test").open()
    yield database
    await database.close()


@pytest.fixture
def blobs(settings: Settings) -> Iterator[Blobs]:
    blobs = Blobs(
        settings.object_store_url,
        access_key=settings.object_store_access_key,
        secret_key=settings.object_store_secret_key,
        bucket=settings.object_store_bucket,
    )
    yield blobs
    blobs.close()


@pytest.fixture
async def asker(registry: Client, nats_urls: Mapping[str, str]) -> AsyncIterator[Bus]:
    """Another service's connection to the bus."""
    bus = await Bus(nats_urls["run"], name="test").open()
    yield bus
    await bus.close()


async def send(
    registry: Client,
    content: bytes | str = PIPELINE,
    *,
    file_name: str = "hello.yaml",
    route: str = "upload",
    method: str = "POST",
    field: str = "uploadfile",
    key: str | None = None,
    **query: str,
) -> Reply:
    form = aiohttp.FormData()
    data = content.encode() if isinstance(content, str) else content
    form.add_field(field, io.BytesIO(data), filename=file_name, content_type="application/octet-stream")
    headers = {} if key is None else {"Idempotency-Key": key}
    return await registry.call(method, f"{V1}/pipelines/{route}", query=query, data=form, headers=headers)


async def upload(registry: Client, name: str = "hello", content: bytes | str = PIPELINE, **query: str) -> Any:
    answer = await send(registry, content, name=name, **query)
    assert answer.status == 200, answer.body
    return answer.json


async def upload_version(
    registry: Client, pipeline_id: str, name: str, content: bytes | str = PIPELINE, **query: str
) -> Any:
    answer = await send(registry, content, route="upload_version", pipelineid=pipeline_id, name=name, **query)
    assert answer.status == 200, answer.body
    return answer.json
