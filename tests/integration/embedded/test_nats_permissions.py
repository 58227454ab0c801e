"""The bus itself refuses a process that speaks for another."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.js.api import ConsumerConfig

from infra.nats.permissions import USERS

FACT_OWNERS = {
    "experiment": "experiment",
    "pipeline-registry": "pipeline-registry",
    "run": "run",
    "job-scheduler": "job-scheduler",
    "metrics": "metrics",
    "notifier": "notifier",
}
WITHIN_SECONDS = 5


class Speaker:
    """One logged-in client, and what the server complained about."""

    def __init__(self, client: Client, complaints: asyncio.Queue[str]) -> None:
        self.client = client
        self._complaints = complaints

    async def is_refused_to_publish(self, subject: str) -> bool:
        await self.client.publish(subject, b"{}")
        return await self._was_refused(subject)

    async def is_refused_to_subscribe(self, subject: str) -> bool:
        await self.client.subscribe(subject)
        return await self._was_refused(subject)

    async def _was_refused(self, subject: str) -> bool:
        # The server handles a connection's lines in order: once it answers a ping, any complaint was sent before. The
        # client's first ping may overtake what it still holds back, the second cannot.
        await self.client.flush()
        await self.client.flush()
        if self._complaints.empty():
            return False
        complaint = self._complaints.get_nowait()
        assert subject.lower() in complaint.lower()
        return True


@asynccontextmanager
async def logged_in(url: str) -> AsyncIterator[Speaker]:
    complaints: asyncio.Queue[str] = asyncio.Queue()

    async def keep(error: Exception) -> None:
        complaints.put_nowait(str(error))

    user = urlsplit(url).username
    inboxes = "_INBOX" if user == "events" else f"_REPLY.{user}"
    client = await nats.connect(url, error_cb=keep, allow_reconnect=False, inbox_prefix=inboxes)
    try:
        yield Speaker(client, complaints)
    finally:
        await client.close()


@pytest.fixture
async def stream(nats_urls: dict[str, str]) -> None:
    async with logged_in(nats_urls["admin"]) as admin:
        js = admin.client.jetstream()
        await js.add_stream(name="KFP_EVENTS", subjects=["kfp.event.>"])
        await js.add_stream(name="KFP_DEAD", subjects=["kfp.dead.>"])


async def test_experiment_cannot_state_a_fact_about_a_run(nats_urls: dict[str, str]) -> None:
    async with logged_in(nats_urls["experiment"]) as experiment:
        assert await experiment.is_refused_to_publish("kfp.event.run.x")


@pytest.mark.parametrize("user", [*FACT_OWNERS, "run-controller", "events"])
async def test_a_user_states_the_facts_of_its_own_service_alone(nats_urls: dict[str, str], user: str) -> None:
    async with logged_in(nats_urls[user]) as speaker:
        for owner in FACT_OWNERS.values():
            refused = await speaker.is_refused_to_publish(f"kfp.event.{owner}.created.1")
            assert refused is (FACT_OWNERS.get(user) != owner), owner


async def test_only_the_run_service_states_facts_about_nodes(nats_urls: dict[str, str]) -> None:
    async with logged_in(nats_urls["run"]) as run, logged_in(nats_urls["metrics"]) as metrics:
        assert not await run.is_refused_to_publish("kfp.event.node.succeeded.1")
        assert await metrics.is_refused_to_publish("kfp.event.node.succeeded.1")


async def test_a_process_buries_only_its_own_dead_letters(nats_urls: dict[str, str]) -> None:
    async with logged_in(nats_urls["metrics"]) as metrics:
        assert not await metrics.is_refused_to_publish("kfp.dead.metrics.run.created.1")
        assert await metrics.is_refused_to_publish("kfp.dead.run.run.created.1")


async def test_a_process_answers_only_questions_asked_of_it(nats_urls: dict[str, str]) -> None:
    async with logged_in(nats_urls["run-controller"]) as controller:
        assert not await controller.is_refused_to_subscribe("kfp.ask.run-controller.>")
        assert await controller.is_refused_to_subscribe("kfp.ask.experiment.get")


async def test_anybody_may_ask_and_gets_the_answer(nats_urls: dict[str, str]) -> None:
    async def answer(message: Msg) -> None:
        await message.respond(b"yes")

    async with logged_in(nats_urls["experiment"]) as experiment, logged_in(nats_urls["run-controller"]) as controller:
        await experiment.client.subscribe("kfp.ask.experiment.get", queue="experiment", cb=answer)
        await experiment.client.flush()
        reply = await controller.client.request("kfp.ask.experiment.get", b"?", timeout=WITHIN_SECONDS)
        assert reply.data == b"yes"
        with pytest.raises(NoRespondersError):
            await controller.client.request("kfp.ask.metrics.report", b"?", timeout=WITHIN_SECONDS)


@pytest.mark.usefixtures("stream")
async def test_a_process_publishes_and_follows_facts_by_a_durable_consumer(nats_urls: dict[str, str]) -> None:
    async with logged_in(nats_urls["experiment"]) as experiment, logged_in(nats_urls["run"]) as run:
        js = run.client.jetstream()
        await js.add_consumer(
            "KFP_EVENTS", ConsumerConfig(durable_name="run-experiment", filter_subject="kfp.event.experiment.>")
        )
        ack = await experiment.client.jetstream().publish("kfp.event.experiment.created.1", b"{}")
        consumer = await js.pull_subscribe_bind("run-experiment", stream="KFP_EVENTS")
        (message,) = await consumer.fetch(1, timeout=WITHIN_SECONDS)
        await message.ack_sync(timeout=WITHIN_SECONDS)
        assert message.metadata.sequence.stream == ack.seq
        last = await experiment.client.jetstream().get_last_msg("KFP_EVENTS", "kfp.event.experiment.>")
        assert last.seq == ack.seq


@pytest.mark.usefixtures("stream")
async def test_a_process_declares_the_streams_and_can_neither_change_nor_delete_them(nats_urls: dict[str, str]) -> None:
    async with logged_in(nats_urls["run"]) as run:
        for request in ("DELETE.KFP_EVENTS", "PURGE.KFP_EVENTS", "CREATE.MINE", "UPDATE.KFP_EVENTS"):
            assert await run.is_refused_to_publish(f"$JS.API.STREAM.{request}")
        for stream in ("KFP_EVENTS", "KFP_DEAD"):
            assert not await run.is_refused_to_publish(f"$JS.API.STREAM.CREATE.{stream}")


@pytest.mark.usefixtures("stream")
async def test_the_events_user_follows_facts_and_says_nothing(nats_urls: dict[str, str]) -> None:
    async with logged_in(nats_urls["events"]) as events, logged_in(nats_urls["run"]) as run:
        following = await events.client.jetstream().subscribe("kfp.event.run.>", ordered_consumer=True)
        await run.client.jetstream().publish("kfp.event.run.created.1", b"{}")
        message = await following.next_msg(timeout=WITHIN_SECONDS)
        assert message.subject == "kfp.event.run.created.1"
        assert await events.is_refused_to_publish("kfp.ask.run.get")
        assert await events.is_refused_to_publish("kfp.ping.run")
        assert await events.is_refused_to_subscribe("kfp.ask.>")


@pytest.mark.usefixtures("stream")
async def test_the_events_user_keeps_a_place_of_its_own_in_the_stream(nats_urls: dict[str, str]) -> None:
    async with logged_in(nats_urls["events"]) as events, logged_in(nats_urls["run"]) as run:
        js = events.client.jetstream()
        mine = await js.pull_subscribe("kfp.event.run.>", durable="somebody", stream="KFP_EVENTS")
        await run.client.jetstream().publish("kfp.event.run.created.1", b"{}")
        (message,) = await mine.fetch(1, timeout=WITHIN_SECONDS)
        await message.ack_sync(timeout=WITHIN_SECONDS)
        assert message.subject == "kfp.event.run.created.1"
        assert await js.delete_consumer("KFP_EVENTS", "somebody")


@pytest.mark.usefixtures("stream")
async def test_the_events_user_takes_nothing_away_from_a_service(nats_urls: dict[str, str]) -> None:
    async with logged_in(nats_urls["events"]) as events, logged_in(nats_urls["run"]) as run:
        js = run.client.jetstream()
        config = ConsumerConfig(durable_name="run--experiment", filter_subject="kfp.event.experiment.>")
        await js.add_consumer("KFP_EVENTS", config)
        for request in ("MSG.NEXT", "DELETE", "DURABLE.CREATE", "CREATE"):
            assert await events.is_refused_to_publish(f"$JS.API.CONSUMER.{request}.KFP_EVENTS.run--experiment"), request
        assert await events.is_refused_to_publish("$JS.ACK.KFP_EVENTS.run--experiment.1.1.1.1.1")
        # What the server would take a name from although the subject has none.
        named = {"stream_name": "KFP_EVENTS", "config": {"name": "run--experiment", "filter_subject": "kfp.event.none"}}
        await events.client.request(
            "$JS.API.CONSUMER.CREATE.KFP_EVENTS", json.dumps(named).encode(), timeout=WITHIN_SECONDS
        )
        info = await js.consumer_info("KFP_EVENTS", "run--experiment")
        assert (info.config.filter_subject, info.config.durable_name) == ("kfp.event.experiment.>", "run--experiment")


async def test_the_events_user_hears_no_answer_to_a_question(nats_urls: dict[str, str]) -> None:
    async def answer(message: Msg) -> None:
        await message.respond(b"a secret")

    async with logged_in(nats_urls["experiment"]) as experiment, logged_in(nats_urls["run"]) as run:
        await experiment.client.subscribe("kfp.ask.experiment.get", queue="experiment", cb=answer)
        await experiment.client.flush()
        await experiment.client.flush()
        async with logged_in(nats_urls["events"]) as events:
            assert await events.is_refused_to_subscribe("_REPLY.>")
            overheard = await events.client.subscribe("_INBOX.>")
            await events.client.flush()
            await events.client.flush()
            await run.client.request("kfp.ask.experiment.get", b"?", timeout=WITHIN_SECONDS)
            await events.client.flush()
            assert overheard.pending_msgs == 0


async def test_nobody_is_let_in_without_the_password(nats_urls: dict[str, str]) -> None:
    host, port = nats_urls["run"].rpartition("@")[2].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'CONNECT {"user":"run","pass":"guess","verbose":false}\r\nPING\r\n')
    said = await asyncio.wait_for(reader.read(), WITHIN_SECONDS)
    writer.close()
    await writer.wait_closed()
    assert b"Authorization Violation" in said


def test_the_page_about_events_lists_what_subscribers_may_do() -> None:
    page = (Path(__file__).parents[3] / "gateway" / "docs" / "events.md").read_text()
    _, *rows = page.partition("| publish | subscribe |\n")[2].strip().splitlines()
    columns = zip(*(row.split("|")[1:3] for row in rows), strict=True)
    listed = [tuple(cell.strip(" `") for cell in column if cell.strip()) for column in columns]
    (events,) = (user for user in USERS if user.name == "events")

    assert listed == [events.publish, events.subscribe]
