"""A working engine of each kind, and somebody who records what it reports."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from tests.contract.engine.engines import (
    KUBECONFIG,
    EngineFactory,
    EngineUnderTest,
    RunnerProcess,
    argo,
    embedded,
    runner_process,
)
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


@pytest.fixture(scope="session")
def runner_behind_argo() -> Iterator[RunnerProcess]:
    """One of its own: what is left of a workflow whose brain has ended with its test must not meet the other engine."""
    with runner_process() as runner:
        yield runner


_FACTORIES = {"embedded": (embedded, "shared_runner"), "argo": (argo, "runner_behind_argo")}

_ONLY_OF_AN_INTERPRETER = ("test_artifacts", "test_hand_written", "test_http_artifacts", "test_v2_compatible")
_RUNGS_OF_ARGO = {1, 2, 4, 8, 9, 12, 18, 25, 31, 32, 34, 35, 41, 42, 47, 56}
"""Those in which an object of Argo's looks different: kinds of nodes, ways to end, messages, outputs."""
_READING_LOGS = {
    "test_terminated_steps_end_with_all_their_descendants_within_ten_seconds",
    "test_an_erased_run_is_gone_with_its_processes",
    "test_the_log_of_a_running_step_can_be_followed",
    "test_terminate_reaches_the_command_behind_the_launcher",
}
"""A real API server has them from kubelets, and there is none."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Behind Argo, which is played, a workflow is carried out by the interpreter of the other engine. What shows that
    one's rules alone is asked again where all of it is wanted, and on a real API server (`make test-kubernetes`)."""
    if KUBECONFIG:
        again = [item for item in items if item.name.removesuffix("[argo]") in _READING_LOGS]
    elif os.environ.get("HEADRACE_TEST_EVERYTHING_BEHIND_ARGO"):
        return
    else:
        again = [item for item in items if _asks_the_interpreter_again(item)]
    if again:
        config.hook.pytest_deselected(items=again)
        items[:] = [item for item in items if item not in set(again)]


def _asks_the_interpreter_again(item: pytest.Item) -> bool:
    given = getattr(getattr(item, "callspec", None), "params", {})
    if given.get("engine_factory") != "argo":
        return False
    rung = given.get("rung")
    return item.path.stem in _ONLY_OF_AN_INTERPRETER or (rung is not None and rung.number not in _RUNGS_OF_ARGO)


@pytest.fixture(params=_FACTORIES)
def engine_factory(request: pytest.FixtureRequest) -> EngineFactory:
    """Every engine there is has to pass."""
    factory, runner = _FACTORIES[request.param]
    return factory(request.getfixturevalue(runner))


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
