from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.integration.gateway.house import GatewayUnderTest, House, RecordingService


@pytest.fixture
def house() -> Iterator[House]:
    with ExitStack() as rooms:
        yield House(rooms)


@pytest.fixture
def service() -> RecordingService:
    return RecordingService()


@pytest.fixture
def gateway(house: House, service: RecordingService) -> GatewayUnderTest:
    """In front of one replica of a service that answers everything."""
    return house.gateway(house.service(service).url)
