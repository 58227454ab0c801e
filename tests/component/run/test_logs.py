"""What a step wrote, over HTTP: while it runs and afterwards (API specification, section 13, X7)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from services.run.step_logs import MOST_BYTES
from shared.contracts.questions import READ_LOG, LogAnswer, LogRequest
from shared.errors import Unavailable
from tests.component.run.conftest import Client, World, until
from tests.support.hooks import aiohttp_session

PREFIXES = ["/apis/v1beta1", "/apis/v1alpha1"]
KEY = "artifacts/w/a/main.log"
STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Step:
    """A step that writes, as its controller would tell of it."""

    def __init__(self, text: bytes = b"") -> None:
        self.text: bytes | None = text
        self.asked: list[LogRequest] = []
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def answer(self, asked: LogRequest) -> LogAnswer:
        self.asked.append(asked)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        if self.text is None:
            return LogAnswer()
        return LogAnswer(text=self.text[asked.offset : asked.offset + MOST_BYTES])


async def running(world: World, node_id: str = "a", type_: str = "Pod", **fields: Any) -> str:
    run_id = (await world.client.create())["id"]
    node = {"id": node_id, "name": node_id, "type": type_, "phase": "Running"} | fields
    await world.observe(run_id, "Running", started_at=STARTED, nodes=(node,))
    return str(run_id)


async def finish(world: World, run_id: str, text: bytes, node_id: str = "a") -> None:
    """The text is archived, then the record says so."""
    await world.blobs.put(KEY, text)
    artifacts = [{"name": "other", "s3": {"key": "no"}}, {"name": "main-logs", "s3": {"key": KEY}}]
    node = {"id": node_id, "name": node_id, "type": "Pod", "phase": "Succeeded", "outputs": {"artifacts": artifacts}}
    await world.observe(run_id, "Running", nodes=(node,))


async def text_of(client: Client, run_id: str, node_id: str = "a", *, prefix: str = PREFIXES[0], **query: str) -> bytes:
    url = f"{client.base}{prefix}/runs/{run_id}/nodes/{node_id}/log"
    async with client.session.get(url, params=query) as response:
        assert response.status == 200, await response.text()
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        return await response.read()


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_an_archived_text_is_read_as_it_is(world: World, prefix: str) -> None:
    run_id = await running(world)
    text = bytes(range(256)) * 3000
    await finish(world, run_id, text)

    for query in ({}, {"follow": "true"}, {"follow": "false"}):
        assert await text_of(world.client, run_id, prefix=prefix, **query) == text


async def test_a_running_step_shows_what_it_has_written_so_far(world: World) -> None:
    step = Step(b"x" * MOST_BYTES + b"the end so far")
    run_id = await running(world)

    async with world.peers.buses["run-controller"].answering(READ_LOG, step.answer):
        assert await text_of(world.client, run_id) == step.text
        other = await world.start_replica()
        assert await text_of(other, run_id) == step.text
    assert {asked.node_id for asked in step.asked} == {"a"}
    assert {asked.workflow_name for asked in step.asked} == {(await world.row(run_id))["workflow_name"]}


async def test_a_running_step_is_followed_to_its_end_and_nothing_is_missed_or_told_twice(world: World) -> None:
    step = Step(b"one\n")
    run_id = await running(world)
    url = f"{world.client.base}/apis/v1beta1/runs/{run_id}/nodes/a/log"

    async with (
        world.peers.buses["run-controller"].answering(READ_LOG, step.answer),
        world.client.session.get(url, params={"follow": "true"}) as response,
    ):
        assert await asyncio.wait_for(response.content.readexactly(4), 5) == b"one\n"
        step.text = b"one\ntwo\n"
        assert await asyncio.wait_for(response.content.readexactly(4), 5) == b"two\n"
        step.text = None
        await finish(world, run_id, b"one\ntwo\nthree\n")
        assert await asyncio.wait_for(response.read(), 5) == b"three\n"


async def test_who_follows_waits_for_a_controller_that_is_away(world: World) -> None:
    step = Step(b"back again")
    run_id = await running(world)
    url = f"{world.client.base}/apis/v1beta1/runs/{run_id}/nodes/a/log"

    async with world.client.session.get(url, params={"follow": "true"}) as response:
        assert response.status == 200
        async with world.peers.buses["run-controller"].answering(READ_LOG, step.answer):
            assert await asyncio.wait_for(response.content.readexactly(10), 10) == b"back again"
        await finish(world, run_id, b"back again")
        assert await asyncio.wait_for(response.read(), 10) == b""


async def test_a_text_that_nobody_archives_is_read_for_as_long_as_the_engine_has_it(world: World) -> None:
    run_id = await running(world)
    node = {"id": "a", "name": "a", "type": "Pod", "phase": "Succeeded"}
    await world.observe(run_id, "Succeeded", finished_at=STARTED, nodes=(node,))
    text = b"x" * MOST_BYTES + b"the end"
    step = Step(text)

    for query in ({}, {"follow": "true"}):
        assert await text_of(world.client, run_id, **query) == b"", "nobody has it"
        async with world.peers.buses["run-controller"].answering(READ_LOG, step.answer):
            assert await text_of(world.client, run_id, **query) == text


async def test_a_step_that_ends_while_it_is_asked_about_is_read_from_the_archive(world: World) -> None:
    step = Step()
    run_id = await running(world)
    step.meanwhile = lambda: finish(world, run_id, b"all of it")

    async with world.peers.buses["run-controller"].answering(READ_LOG, step.answer):
        assert await text_of(world.client, run_id) == b"all of it"


async def test_nobody_to_ask_about_a_running_step_is_an_outage(world: World) -> None:
    run_id = await running(world)
    async with world.peers.buses["run-controller"].answering(READ_LOG, Step(b"x").answer):
        assert await text_of(world.client, run_id) == b"x"

    answer = await world.client.call("GET", f"/runs/{run_id}/nodes/a/log")

    assert (answer.status, answer.body["code"]) == (503, 14)


async def test_an_engine_that_is_away_is_an_outage(world: World) -> None:
    async def away(_: LogRequest) -> LogAnswer:
        raise Unavailable("The step runner does not answer.")

    run_id = await running(world)
    async with world.peers.buses["run-controller"].answering(READ_LOG, away):
        answer = await world.client.call("GET", f"/runs/{run_id}/nodes/a/log")
    assert answer.status == 503


async def test_of_a_retried_step_the_last_attempt_is_read(world: World) -> None:
    step = Step(b"second try")
    run_id = await running(world, "r", "Retry", children=["r(0)", "r(1)"])
    await world.observe(run_id, "Running", nodes=({"id": "r(1)", "name": "r(1)", "type": "Pod", "phase": "Running"},))

    async with world.peers.buses["run-controller"].answering(READ_LOG, step.answer):
        assert await text_of(world.client, run_id, "r") == b"second try"
    assert {asked.node_id for asked in step.asked} == {"r(1)"}


async def test_what_writes_nothing_has_an_empty_text(world: World) -> None:
    run_id = await running(world, "dag", "DAG")
    await world.observe(run_id, "Running", nodes=({"id": "s", "name": "s", "type": "Skipped", "phase": "Skipped"},))

    assert await text_of(world.client, run_id, "dag", follow="true") == b""
    assert await text_of(world.client, run_id, "s", follow="true") == b""


async def test_a_run_that_ends_or_goes_leaves_nobody_following(world: World) -> None:
    ended, deleted = await running(world), await running(world)
    step = Step()
    async with world.peers.buses["run-controller"].answering(READ_LOG, step.answer):
        following = [asyncio.create_task(text_of(world.client, each, follow="true")) for each in (ended, deleted)]
        await until(lambda: _true(len(step.asked) >= 2))
        await world.observe(ended, "Error", finished_at=datetime.now(UTC))
        await world.client.call("DELETE", f"/runs/{deleted}")
        assert await asyncio.wait_for(asyncio.gather(*following), 10) == [b"", b""]


async def test_a_reader_who_leaves_is_not_asked_for_any_more(world: World) -> None:
    step = Step()
    run_id = await running(world)
    url = f"{world.client.base}/apis/v1beta1/runs/{run_id}/nodes/a/log"
    async with world.peers.buses["run-controller"].answering(READ_LOG, step.answer):
        async with aiohttp_session() as session, session.get(url, params={"follow": "true"}):
            await until(lambda: _true(len(step.asked) >= 1))
        asked = -1

        async def is_quiet() -> bool:
            nonlocal asked
            before, asked = asked, len(step.asked)
            await asyncio.sleep(0.5)
            return before == len(step.asked)

        await until(is_quiet)


async def test_unknown_runs_and_nodes_have_no_text(world: World) -> None:
    run_id = await running(world)

    unknown = await world.client.call("GET", "/runs/nope/nodes/a/log")
    assert (unknown.status, unknown.message) == (404, "Run nope not found.")
    unknown = await world.client.call("GET", f"/runs/{run_id}/nodes/b/log", follow="true")
    assert (unknown.status, unknown.message) == (404, f"log runs/{run_id}/nodes/b/log not found.")
    async with world.client.session.head(f"{world.client.base}/apis/v1beta1/runs/{run_id}/nodes/b/log") as head:
        assert head.status == 404
    async with world.client.session.head(f"{world.client.base}/apis/v1beta1/runs/{run_id}/nodes/a/log") as head:
        assert (head.status, head.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    malformed = await world.client.call("GET", f"/runs/{run_id}/nodes/a/log", follow="perhaps")
    assert malformed.status == 400


async def test_an_archived_text_that_is_gone_is_empty(world: World) -> None:
    run_id = await running(world)
    await finish(world, run_id, b"for a while")
    await world.blobs.delete(KEY)
    await world.observe(run_id, "Succeeded", finished_at=datetime.now(UTC))

    assert await text_of(world.client, run_id) == b""


async def test_a_text_on_its_way_to_the_archive_is_read_from_who_has_it(world: World) -> None:
    text = b"x" * MOST_BYTES + b"the end"
    run_id = await running(world)
    await finish(world, run_id, text)
    await world.blobs.delete(KEY)

    assert (await world.client.call("GET", f"/runs/{run_id}/nodes/a/log")).status == 503, "who has it does not answer"
    step = Step(text)
    async with world.peers.buses["run-controller"].answering(READ_LOG, step.answer):
        for query in ({}, {"follow": "true"}):
            assert await text_of(world.client, run_id, **query) == text

        async def arrive() -> None:
            await world.blobs.put(KEY, text)
            step.text = None

        step.meanwhile = arrive
        assert await text_of(world.client, run_id) == text


async def test_who_follows_a_text_on_its_way_waits_for_who_has_it(world: World) -> None:
    run_id = await running(world)
    await finish(world, run_id, b"all of it")
    await world.blobs.delete(KEY)
    url = f"{world.client.base}/apis/v1beta1/runs/{run_id}/nodes/a/log"

    async with world.client.session.get(url, params={"follow": "true"}) as response:
        assert response.status == 200
        async with world.peers.buses["run-controller"].answering(READ_LOG, Step(b"all of it").answer):
            assert await asyncio.wait_for(response.read(), 20) == b"all of it"


async def test_the_artifact_of_a_log_on_its_way_is_waited_for(world: World) -> None:
    run_id = await running(world)
    await finish(world, run_id, b"all of it")
    await world.blobs.delete(KEY)
    url = f"{world.client.base}/apis/headrace/v1/runs/{run_id}/nodes/a/artifacts/main-logs"

    async def read() -> tuple[int, bytes]:
        async with world.client.session.get(url) as response:
            return response.status, await response.read()

    assert (await read())[0] == 404
    reading = asyncio.create_task(read())
    await world.blobs.put(KEY, b"all of it")
    assert await asyncio.wait_for(reading, 20) == (200, b"all of it")


async def _true(value: bool) -> bool:
    return value
