"""One house for all tests of this folder, and a reason in words where there can be none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.containers.engine import Engine, NoEngine, container_engine
from tests.containers.house import House, NoCompose, NoPackages, built
from tests.containers.images import NoImages, provide


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "containers: needs a container engine and minutes; `make test-containers`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run these tests when they are asked for by name, never by the way."""
    if "containers" in str(config.getoption("markexpr")):
        return
    unasked = [item for item in items if item.get_closest_marker("containers")]
    if unasked:
        config.hook.pytest_deselected(items=unasked)
        items[:] = [item for item in items if item not in unasked]


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """An engine that has the public images. Its clients in this process, testcontainers among them, are told of it."""
    before = os.environ.get("DOCKER_HOST")
    try:
        with container_engine() as engine:
            stand_ins = provide(engine)
            said = f"stand-ins built here for {', '.join(stand_ins)}" if stand_ins else "the public images"
            print(f"\ncontainers: engine {engine.version}{' of our own' if engine.is_ours else ''}, {said}")
            os.environ.update({key: value for key, value in engine.environment.items() if key.startswith("DOCKER_")})
            yield engine
    except (NoEngine, NoImages) as reason:
        pytest.skip(str(reason))
    finally:
        os.environ.pop("DOCKER_HOST", None)
        if before is not None:
            os.environ["DOCKER_HOST"] = before


@pytest.fixture(scope="session")
def house(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Built, and not yet started."""
    try:
        with built(engine, tmp_path_factory.mktemp("house")) as house:
            yield house
    except (NoCompose, NoPackages) as reason:
        pytest.skip(str(reason))
