"""Facts as server-sent events, over HTTP, from the real broker."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest

from services.notifier.domain import Behind, Wanted
from services.notifier.streams import Streams
from shared.bus import EVENTS_STREAM, Bus
from shared.contracts.events import (
    EXPERIMENT_CREATED,
    NODE_STARTED,
    NODE_SUCCEEDED,
    RUN_CREATED,
    RUN_STARTED,
    RUN_SUCCEEDED,
)
from shared.contracts.states import ExperimentId, ExperimentState, NodePhase, NodeState
from shared.tasks import Tasks
from tests.component.notifier.conftest import Owners, Replica, run_state
from tests.support.eventually import eventually
from tests.support.facts import LONG_AGO
from tests.support.hooks import aiohttp_session
from tests.support.peers import Peer
from tests.support.service import Client

EVENTS = "/apis/headrace/v1/events"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    kind: str
    data: dict[str, Any]

    @property
    def told(self) -> tuple[str, str]:
        """What has happened, and to what."""
        return self.data["type"], self.data["subject"]


class Reading:
    """An event source, as browsers have it."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer
        self.last_id = ""

    async def next(self) -> Event:
        """The next event with data. Raises EOFError at the stream's end."""
        while True:
            fields: dict[str, str] = {}
            while (line := await self._line()) != "":
                name, _, value = line.partition(": ")
                if name:
                    fields[name] = value
            self.last_id = fields.get("id", self.last_id)
            if "data" in fields:
                return Event(id=self.last_id, kind=fields.get("event", "message"), data=json.loads(fields["data"]))

    async def some(self, number: int) -> list[Event]:
        return [await self.next() for _ in range(number)]

    async def _line(self) -> str:
        async with asyncio.timeout(20):
            line = await self._answer.content.readline()
        if not line:
            raise EOFError
        return line.decode().rstrip("\n")


@asynccontextmanager
async def reading(
    client: Client, path: str = EVENTS, *, last_id: str | None = None, **query: str
) -> AsyncIterator[Reading]:
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    async with aiohttp_session() as session, session.get(client.url + path, params=query, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.content_type == "text/event-stream"
        stream = Reading(answer)
        assert await stream._line() == "retry: 2000"
        yield stream


async def create_experiment(owners: Owners, identity: str) -> None:
    await owners.experiment.tell(
        EXPERIMENT_CREATED, ExperimentState(id=identity, version=1, name=identity, created_at=LONG_AGO)
    )


async def test_what_happens_is_told_as_cloud_events(notifier: Client, owners: Owners) -> None:
    async with reading(notifier) as stream:
        await owners.run.tell(RUN_STARTED, run_state("r"))
        event = await stream.next()

    assert event.kind == "message"
    assert {name: event.data[name] for name in ("specversion", "type", "source", "subject", "position")} == {
        "specversion": "1.0",
        "type": "kfp.run.started.v1",
        "source": "/headrace/run",
        "subject": "r",
        "position": 1,
    }
    assert event.data["data"] == msgspec.json.decode(msgspec.json.encode(run_state("r")))


@pytest.mark.parametrize(
    ("query", "taken"),
    [
        ({"resource": "run"}, ["r", "s"]),
        ({"resource": "run,experiment", "fact": "created"}, ["e", "r"]),
        ({"id": "s"}, ["s"]),
        ({"experiment_id": "e"}, ["e", "r"]),
        ({"experiment_id": "f", "fact": "started"}, ["s"]),
    ],
)
async def test_only_what_was_asked_for_is_told(
    notifier: Client, owners: Owners, query: Mapping[str, str], taken: list[str]
) -> None:
    async with reading(notifier, **query) as stream:
        await create_experiment(owners, "e")
        await owners.run.tell(RUN_CREATED, run_state("r"))
        await owners.run.tell(RUN_STARTED, run_state("s", experiment_id="f"))
        assert [event.data["subject"] for event in await stream.some(len(taken))] == taken


async def test_whoever_comes_back_goes_on_where_it_was(notifier: Client, owners: Owners) -> None:
    async with reading(notifier) as stream:
        await create_experiment(owners, "e")
        await owners.run.tell(RUN_CREATED, run_state("r"))
        await stream.some(2)
    for number in range(5):
        await owners.run.tell(RUN_STARTED, run_state(f"r-{number}"))
        await create_experiment(owners, f"e-{number}")
    async with reading(notifier, last_id=stream.last_id) as stream:
        events = await stream.some(10)
        await owners.run.tell(RUN_SUCCEEDED, run_state("r"))
        assert (await stream.next()).told == ("kfp.run.succeeded.v1", "r")

    by_owner: dict[str, list[int]] = {}
    for event in events:
        by_owner.setdefault(event.data["source"], []).append(event.data["position"])
    assert by_owner == {"/headrace/run": [2, 3, 4, 5, 6], "/headrace/experiment": [2, 3, 4, 5, 6]}


async def test_whoever_comes_back_may_find_another_replica(owners: Owners, replica: Replica) -> None:
    async with replica() as first, reading(first) as stream:
        await owners.run.tell(RUN_CREATED, run_state("r"))
        await stream.next()
    await owners.run.tell(RUN_STARTED, run_state("r"))
    async with replica() as second, reading(second, after=stream.last_id) as stream:
        assert (await stream.next()).told == ("kfp.run.started.v1", "r")


async def test_the_past_is_told_from_a_time_on(notifier: Client, owners: Owners) -> None:
    await owners.run.tell(RUN_CREATED, run_state("r"))
    async with reading(notifier, since="60s") as stream:
        assert (await stream.next()).told == ("kfp.run.created.v1", "r")
    async with reading(notifier, since="2999-01-01T00:00:00Z") as stream:
        await owners.run.tell(RUN_STARTED, run_state("r"))
        assert (await stream.next()).told == ("kfp.run.started.v1", "r")


async def test_the_events_of_a_run_begin_with_it_and_may_end_with_it(notifier: Client, owners: Owners) -> None:
    path = "/apis/headrace/v1/runs/r/events"
    await owners.run.tell(RUN_CREATED, run_state("r"))
    await owners.run.tell(RUN_STARTED, run_state("another"))
    async with reading(notifier, path, until="final") as stream:
        assert (await stream.next()).told == ("kfp.run.created.v1", "r")
        await owners.run.tell(RUN_SUCCEEDED, run_state("r"))
        assert (await stream.next()).told == ("kfp.run.succeeded.v1", "r")
        assert (await stream.next()).kind == "end"
        with pytest.raises(EOFError):
            await stream.next()


async def test_of_a_run_some_facts_alone_may_be_followed_until_its_end(notifier: Client, owners: Owners) -> None:
    for kind in (RUN_CREATED, RUN_STARTED):
        await owners.run.tell(kind, run_state("r"))
    async with reading(notifier, "/apis/headrace/v1/runs/r/events", fact="started", until="final") as stream:
        assert (await stream.next()).told == ("kfp.run.started.v1", "r")
        await owners.run.tell(RUN_SUCCEEDED, run_state("r"))
        assert (await stream.next()).kind == "end"


async def test_who_has_read_of_a_runs_end_is_told_that_there_is_nothing_more(owners: Owners, replica: Replica) -> None:
    path = "/apis/headrace/v1/runs/r/events"
    await owners.run.tell(RUN_SUCCEEDED, run_state("r"))
    async with replica(heartbeat_seconds=0.1) as client:
        async with reading(client, path, until="final", after="run:1") as stream:
            while not (await stream._line()).startswith("id: "):
                pass
            owners.over.add("r")
            assert (await stream.next()).kind == "end"
        async with reading(client, path, until="final", after="run:1") as stream:
            owners.known_runs.clear()
            assert (await stream.next()).kind == "end"


async def test_the_events_of_a_run_tell_of_its_steps_also_of_those_that_are_told_behind_its_end(
    notifier: Client, owners: Owners
) -> None:
    path = "/apis/headrace/v1/runs/r/events"
    steps = Peer("node", owners.run.bus)
    await owners.run.tell(RUN_CREATED, run_state("r"))
    await steps.tell(NODE_STARTED, step_state(NodePhase.RUNNING))
    async with reading(notifier, path, until="final") as stream:
        assert [event.told for event in await stream.some(2)] == [
            ("kfp.run.created.v1", "r"),
            ("kfp.node.started.v1", "r"),
        ]
        await owners.run.tell(RUN_SUCCEEDED, run_state("r"))
        assert (await stream.next()).told == ("kfp.run.succeeded.v1", "r")
        await steps.tell(NODE_SUCCEEDED, step_state(NodePhase.SUCCEEDED))
        last = await stream.next()
        assert last.told == ("kfp.node.succeeded.v1", "r")
        assert {"node:2", "run:2"} <= set(last.id.split(","))
        assert (await stream.next()).kind == "end"
    # The same, when all of it is past.
    async with reading(notifier, path, until="final") as stream:
        assert [event.kind for event in await stream.some(5)] == ["message"] * 4 + ["end"]


def step_state(phase: NodePhase) -> NodeState:
    return NodeState(
        id="r", version=1, node_id="n", name="r.n", type="Pod", phase=phase, experiment_id=ExperimentId("e")
    )


async def test_a_stream_may_end_where_it_would_wait(notifier: Client, owners: Owners) -> None:
    for number in range(3):
        await owners.run.tell(RUN_CREATED, run_state(f"r-{number}"))
    async with reading(notifier, since="60s", until="now") as stream:
        assert [event.data["subject"] for event in await stream.some(3)] == ["r-0", "r-1", "r-2"]
        assert (await stream.next()).kind == "end"


async def test_a_run_that_is_unknown_has_no_events(notifier: Client) -> None:
    answer = await notifier.call("GET", "/apis/headrace/v1/runs/nobody/events")
    assert answer.status == 404
    assert "nobody" in answer.json["error"]


@pytest.mark.parametrize(
    "query",
    [
        {"after": "run"},
        {"after": "run:-1"},
        {"after": ",".join(f"owner-{letter}{other}:1" for letter in "abcdefgh" for other in "abcdefgh")},
        {"since": "yesterday"},
        {"resource": "Run!"},
        {"id": "a.>"},
        {"fact": "*"},
        {"until": "final"},
    ],
)
async def test_what_cannot_be_understood_is_refused(notifier: Client, query: Mapping[str, str]) -> None:
    answer = await notifier.call("GET", EVENTS, query=dict(query))
    assert (answer.status, answer.json["code"]) == (400, 3), answer.body


async def test_a_silent_stream_still_moves_its_readers_place(owners: Owners, replica: Replica) -> None:
    async with replica(heartbeat_seconds=0.1) as client, reading(client, id="nobody") as stream:
        await owners.run.tell(RUN_CREATED, run_state("r"))

        async def place() -> bool:
            line = await stream._line()
            return line.startswith("id: ") and "run:1" in line

        assert await eventually(place)


async def test_what_is_kept_no_longer_is_said_to_be_missing(
    notifier: Client, owners: Owners, nats_urls: Mapping[str, str]
) -> None:
    for number in range(4):
        await owners.run.tell(RUN_CREATED, run_state(f"r-{number}"))
    admin = await Bus(nats_urls["admin"], name="admin").open()
    await admin._stream.purge_stream(EVENTS_STREAM, seq=4)
    await admin.close()
    async with reading(notifier, last_id="run:1") as stream:
        gap, event = await stream.some(2)
    assert (gap.kind, gap.data) == ("gap", {"owner": "run", "after": 1, "next": 4})
    assert event.data["position"] == 4


async def test_a_rebuilt_stream_is_no_news_to_those_who_follow(
    notifier: Client, owners: Owners, nats_urls: Mapping[str, str]
) -> None:
    async with reading(notifier) as stream:
        await owners.run.tell(RUN_CREATED, run_state("r"))
        await create_experiment(owners, "e")
        await stream.some(2)
        admin = await Bus(nats_urls["admin"], name="admin").open()
        await admin._stream.delete_stream(EVENTS_STREAM)
        await admin.close()
        owners.run.begin_again()
        await owners.run.tell(RUN_CREATED, run_state("r"))
        await owners.run.tell(RUN_STARTED, run_state("r"))
        event = await stream.next()
    assert (event.data["position"], event.data["type"]) == (2, "kfp.run.started.v1")


async def test_a_client_that_does_not_keep_up_is_cut_off_and_misses_nothing(
    owners: Owners, nats_urls: Mapping[str, str]
) -> None:
    bus = await Bus(nats_urls["notifier"], name="notifier").open()
    streams = Streams(bus, ask_seconds=2, heartbeat_seconds=0.1, most_unsent=10)
    tasks = Tasks()
    tasks.spawn("streams", streams.run)
    try:
        slow = await streams.open(Wanted(), None)
        easy = await streams.open(Wanted(whats=frozenset({"created"})), None)
        assert await anext(slow) == await anext(easy) == b"retry: 2000\n\n"
        assert b"heartbeat" in await anext(easy)  # It follows.
        await owners.run.tell(RUN_CREATED, run_state("r"))
        assert b"run:1\n" in await _next_told(easy)
        assert b"run:1\n" in await _next_told(slow)  # It happened behind the first piece.
        for _ in range(30):
            await owners.run.tell(RUN_STARTED, run_state("r"))
        # Everybody is served in turn: when another has what came last, this one has been passed over.
        await owners.run.tell(RUN_CREATED, run_state("another"))
        assert b"run:32\n" in await _next_told(easy)
        assert b"too far behind" in await _rest(slow)
        again = await streams.open(Wanted(), Behind(cursor={"run": 1}))
        assert await _told_until(again, 32) == list(range(2, 33))
    finally:
        await tasks.stop()
        await bus.close()


async def _next_told(stream: AsyncIterator[bytes]) -> bytes:
    while b"data: " not in (piece := await anext(stream)):
        pass
    return piece


async def _told_until(stream: AsyncIterator[bytes], position: int) -> list[int]:
    """The positions that a stream tells of, up to that one."""
    told: list[int] = []
    async with asyncio.timeout(20):
        while position not in told:
            told += map(int, re.findall(rb'"position":([0-9]+)', await anext(stream)))
    return told


async def test_a_process_that_ends_lets_go_of_its_readers(owners: Owners, nats_urls: Mapping[str, str]) -> None:
    bus = await Bus(nats_urls["notifier"], name="notifier").open()
    streams = Streams(bus, ask_seconds=2, heartbeat_seconds=15, most_unsent=10)
    tasks = Tasks()
    tasks.spawn("streams", streams.run)
    try:
        stream = await streams.open(Wanted(), None)
        await anext(stream)
        waiting = asyncio.create_task(_rest(stream))
        streams.end()
        async with asyncio.timeout(20):
            assert await waiting == b""
    finally:
        await tasks.stop()
        await bus.close()


async def _rest(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in stream])
