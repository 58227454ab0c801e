"""What executes the runs, over HTTP, as the controller tells it."""

from __future__ import annotations

import msgspec

from shared.contracts.questions import DESCRIBE_ENGINE, EngineAnswer, Nothing
from tests.component.run.conftest import World

WEAKER = EngineAnswer(name="embedded", runtime="none", weaker="no sandbox: bwrap is not installed")


async def test_the_engine_is_what_the_controller_says_and_a_503_while_there_is_none(world: World) -> None:
    async def describe(_: Nothing) -> EngineAnswer:
        return WEAKER

    url = f"{world.client.base}/apis/headrace/v1/engine"
    async with world.client.session.get(url) as response:
        assert response.status == 503
    answering = world.peers.buses["run-controller"].answering(DESCRIBE_ENGINE, describe)
    async with answering, world.client.session.get(url) as response:
        assert response.status == 200
        assert msgspec.json.decode(await response.read()) == msgspec.to_builtins(WEAKER)
