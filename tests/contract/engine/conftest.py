"""A working engine of each kind, and somebody who records what it reports."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from tests.contract.engine.engines import EngineFactory, EngineUnderTest, RunnerProcess, embedded, runner_process
from tests.contract.engine.recorder import Recorder
from tests.support.servers import ObjectStoreAccess


@pytest.fixture(scope="session")
def object_store_access(object_store: ObjectStoreAccess) -> ObjectStoreAccess:
    """One bucket for all: keys hold the workflow's name, and some stores reserve a lot of room for each bucket."""
    return msgspec.structs.replace(object_store, bucket=f"engines-{secrets.token_hex(6)}")


@pytest.fixture(scope="session")
def shared_runner() -> Iterator[RunnerProcess]:
    with runner_process() as runner:
        yield runner


@pytest.fixture(params=["embedded"])
def engine_factory(request: pytest.FixtureRequest) -> EngineFactory:
    """Every engine there is has to pass."""
    assert request.param == "embedded"
    return embedded(request.getfixturevalue("shared_runner"))


@pytest.fixture
async def under_test(
    engine_factory: EngineFactory, object_store_access: ObjectStoreAccess
) -> AsyncIterator[EngineUnderTest]:
    async with engine_factory(object_store_access) as made:
        yield made


@pytest.fixture
async def recorder(under_test: EngineUnderTest) -> AsyncIterator[Recorder]:
    recorder = Recorder(under_test.engine)
    following = asyncio.create_task(recorder.follow())
    yield recorder
    if following.done():
        following.result()
    following.cancel()
    await asyncio.wait([following])
