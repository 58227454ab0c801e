"""Webhooks: from a fact on the real broker to a receiver on this machine."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from services.notifier.domain import MOST_WEBHOOKS
from shared.bus import EVENTS_STREAM, Bus
from shared.contracts.events import (
    EXPERIMENT_CREATED,
    NODE_STARTED,
    RUN_CREATED,
    RUN_FAILED,
    RUN_STARTED,
    RUN_SUCCEEDED,
)
from shared.contracts.states import ExperimentId, ExperimentState, NodePhase, NodeState
from shared.database import Database
from tests.component.notifier.conftest import HOUR_SECONDS, TRIES, Owners, Replica, run_state
from tests.component.notifier.receiver import Receiver
from tests.support.eventually import eventually
from tests.support.facts import LONG_AGO
from tests.support.peers import Peer
from tests.support.service import Client

WEBHOOKS = "/apis/headrace/v1/webhooks"


async def create(notifier: Client, receiver: Receiver, **asked: Any) -> dict[str, Any]:
    answer = await notifier.call("POST", WEBHOOKS, json={"name": "hook", "url": f"{receiver.url}/hook", **asked})
    assert answer.status == 200, answer.body
    webhook: dict[str, Any] = answer.json
    return webhook


async def show(notifier: Client, webhook: Mapping[str, Any], below: str = "", **query: str) -> Any:
    answer = await notifier.call("GET", f"{WEBHOOKS}/{webhook['id']}{below}", query=query)
    assert answer.status == 200, answer.body
    return answer.json


async def do(notifier: Client, webhook: Mapping[str, Any], verb: str) -> Any:
    answer = await notifier.call("POST", f"{WEBHOOKS}/{webhook['id']}{verb}")
    assert answer.status == 200, answer.body
    return answer.json


async def deliveries(notifier: Client, webhook: Mapping[str, Any]) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = (await show(notifier, webhook, "/deliveries")).get("deliveries", [])
    return listed


async def statuses(notifier: Client, webhook: Mapping[str, Any]) -> list[str]:
    return [delivery["status"] for delivery in await deliveries(notifier, webhook)]


async def until(notifier: Client, webhook: Mapping[str, Any], *wanted: str) -> None:
    async def is_so() -> bool:
        return await statuses(notifier, webhook) == list(wanted)

    await eventually(is_so, within_seconds=20)


async def until_tried(notifier: Client, webhook: Mapping[str, Any], *tries: int) -> dict[str, Any]:
    """The first delivery, when the first ones were tried so often in vain."""

    async def tried() -> dict[str, Any] | None:
        listed = await deliveries(notifier, webhook)
        return listed[0] if [each.get("tries", 0) for each in listed[: len(tries)]] == list(tries) else None

    found = await eventually(tried, within_seconds=20)
    assert found is not None
    return found


async def let_time_pass(rows: Database) -> None:
    """What waits for its next attempt is due."""
    await rows.execute("update queues set due_at = clock_timestamp() where due_at is not null and not is_claimed")


async def test_a_fact_is_sent_signed_as_a_cloud_event(notifier: Client, owners: Owners, receiver: Receiver) -> None:
    webhook = await create(notifier, receiver)
    await owners.run.tell(RUN_FAILED, run_state("r", error="broke"))
    (received,) = await receiver.some(1)

    assert received.path == "/hook"
    assert received.headers["content-type"] == "application/cloudevents+json"
    event = Verifier(webhook["secret"]).verify(received.body, received.headers)
    assert received.message_id == event["id"]
    assert (event["type"], event["subject"], event["data"]["error"]) == ("kfp.run.failed.v1", "r", "broke")
    with pytest.raises(WebhookVerificationError):
        Verifier("whsec_" + base64.b64encode(bytes(32)).decode()).verify(received.body, received.headers)
    await until(notifier, webhook, "delivered")
    (delivery,) = await deliveries(notifier, webhook)
    assert (delivery["event_id"], delivery["code"], delivery["tries"]) == (event["id"], 200, 1)
    whole = await show(notifier, webhook, f"/deliveries/{delivery['id']}")
    assert json.loads(whole["event"]) == event
    assert [attempt["code"] for attempt in whole["attempts"]] == [200]


async def test_only_what_is_wanted_is_sent_and_nothing_of_before(
    notifier: Client, owners: Owners, receiver: Receiver
) -> None:
    await owners.run.tell(RUN_FAILED, run_state("before", experiment_id="e"))
    await create(notifier, receiver, resources=["run"], facts=["failed", "succeeded"], experiment_id="e")
    await owners.run.tell(RUN_FAILED, run_state("other", experiment_id="f"))
    await owners.run.tell(RUN_STARTED, run_state("started"))
    await owners.experiment.tell(EXPERIMENT_CREATED, ExperimentState(id="e", version=1, name="e", created_at=LONG_AGO))
    await owners.run.tell(RUN_FAILED, run_state("mine"))
    await owners.run.tell(RUN_SUCCEEDED, run_state("mine-too"))

    await owners.run.until_applied_by("notifier")
    await owners.experiment.until_applied_by("notifier")
    assert {each.told for each in await receiver.some(2)} == {("failed", "mine"), ("succeeded", "mine-too")}
    assert len(receiver.received) == 2


async def test_the_secret_is_told_once(notifier: Client, receiver: Receiver) -> None:
    webhook = await create(notifier, receiver, facts=["failed"])
    assert webhook["secret"].startswith("whsec_")
    shown = await show(notifier, webhook)
    listed = await notifier.call("GET", WEBHOOKS)

    assert shown == {name: value for name, value in webhook.items() if name != "secret"}
    assert listed.json == {"webhooks": [shown], "total_size": 1}
    assert webhook["secret"].encode() not in listed.body


async def test_a_rotated_secret_and_the_former_one_both_sign(
    notifier: Client, owners: Owners, receiver: Receiver, rows: Database
) -> None:
    webhook = await create(notifier, receiver)
    secret = (await do(notifier, webhook, ":rotate"))["secret"]
    await owners.run.tell(RUN_CREATED, run_state("r"))
    (received,) = await receiver.some(1)
    for each in (webhook["secret"], secret):
        Verifier(each).verify(received.body, received.headers)

    await rows.execute("update webhooks set former_until = clock_timestamp()")
    await owners.run.tell(RUN_STARTED, run_state("r"))
    _, received = await receiver.some(2)
    Verifier(secret).verify(received.body, received.headers)
    with pytest.raises(WebhookVerificationError):
        Verifier(webhook["secret"]).verify(received.body, received.headers)


async def test_single_steps_are_told_to_those_who_ask_for_them(
    notifier: Client, owners: Owners, receiver: Receiver
) -> None:
    everything = await create(notifier, receiver)
    await create(notifier, receiver, name="steps", resources=["node"])
    step = NodeState(
        id="r", version=1, node_id="n", name="r.n", type="Pod", phase=NodePhase.RUNNING, experiment_id=ExperimentId("e")
    )
    await Peer("node", owners.run.bus).tell(NODE_STARTED, step)
    await receiver.some(1)
    # What the other one might have wanted of it was written down together with this.
    assert await show(notifier, everything, "/deliveries") == {}


async def test_what_is_not_taken_is_sent_again_later_and_nothing_overtakes_it(
    notifier: Client, owners: Owners, receiver: Receiver, rows: Database
) -> None:
    webhook = await create(notifier, receiver)
    receiver.statuses["r"] = 500
    await owners.run.tell(RUN_CREATED, run_state("r"))
    delivery = await until_tried(notifier, webhook, 1)
    assert (delivery["status"], delivery["code"]) == ("waiting", 500)
    assert delivery["reason"] == "The receiver answers 500."
    assert "failing_since" in await show(notifier, webhook)
    wait = await rows.fetchval("select extract(epoch from due_at - clock_timestamp()) from queues where subject = 'r'")
    assert HOUR_SECONDS - 60 < wait <= HOUR_SECONDS

    await owners.run.tell(RUN_STARTED, run_state("r"))
    await owners.run.tell(RUN_CREATED, run_state("s"))
    assert [each.told for each in await receiver.some(2)] == [("created", "r"), ("created", "s")]
    receiver.statuses.clear()
    await let_time_pass(rows)
    received = await receiver.some(4)
    assert [each.told for each in received[2:]] == [("created", "r"), ("started", "r")]
    assert received[2].message_id == received[0].message_id
    await until(notifier, webhook, "delivered", "delivered", "delivered")
    assert "failing_since" not in await show(notifier, webhook)
    whole = await show(notifier, webhook, f"/deliveries/{delivery['id']}")
    assert [attempt["code"] for attempt in whole["attempts"]] == [500, 200]


async def test_after_its_last_attempt_a_delivery_is_given_up_and_the_next_one_is_tried(
    notifier: Client, owners: Owners, receiver: Receiver, rows: Database
) -> None:
    webhook = await create(notifier, receiver)
    receiver.status = 503
    await owners.run.tell(RUN_CREATED, run_state("r"))
    await until_tried(notifier, webhook, 1)
    await owners.run.tell(RUN_STARTED, run_state("r"))
    await owners.run.until_applied_by("notifier")
    await rows.execute("update deliveries set tries = $1 where tries > 0", TRIES)
    await let_time_pass(rows)

    await until(notifier, webhook, "gave-up", "waiting")
    assert [each.told[0] for each in await receiver.some(3)] == ["created", "created", "started"]
    assert (await show(notifier, webhook))["status"] == "active"


async def test_a_webhook_of_which_nothing_is_taken_for_a_day_is_paused_and_resumed_with_all_that_waits(
    notifier: Client, owners: Owners, receiver: Receiver, rows: Database
) -> None:
    webhook = await create(notifier, receiver)
    receiver.status = 500
    await owners.run.tell(RUN_CREATED, run_state("r"))
    await owners.run.tell(RUN_CREATED, run_state("s"))
    await until_tried(notifier, webhook, 1, 1)
    await rows.execute("update webhooks set failing_since = clock_timestamp() - interval '25 hours'")
    await rows.execute("update deliveries set tries = $1", TRIES)
    await let_time_pass(rows)
    # Both for the last time, at once: neither is given up.
    await until_tried(notifier, webhook, TRIES + 1, TRIES + 1)
    paused = await show(notifier, webhook)
    assert paused["status"] == "paused"
    assert paused["pause_reason"] == "Nothing was taken for 24 hours. The last attempt: The receiver answers 500."

    await owners.run.tell(RUN_STARTED, run_state("r"))
    await owners.run.until_applied_by("notifier")
    await let_time_pass(rows)
    assert await statuses(notifier, webhook) == ["waiting", "waiting", "waiting"]
    receiver.status = 200
    await do(notifier, webhook, ":resume")
    await until(notifier, webhook, "delivered", "delivered", "delivered")
    assert len(receiver.received) == 7
    resumed = await show(notifier, webhook)
    assert (resumed["status"], "pause_reason" in resumed) == ("active", False)


async def test_who_answers_that_it_is_gone_is_left_alone(
    notifier: Client, owners: Owners, receiver: Receiver, rows: Database
) -> None:
    webhook = await create(notifier, receiver)
    receiver.status = 410
    await owners.run.tell(RUN_CREATED, run_state("r"))
    await until_tried(notifier, webhook, 1)
    shown = await show(notifier, webhook)
    assert (shown["status"], shown["pause_reason"]) == ("paused", "The receiver answers 410: it wants no more.")

    await let_time_pass(rows)
    await owners.run.tell(RUN_STARTED, run_state("r"))
    await owners.run.until_applied_by("notifier")
    assert await statuses(notifier, webhook) == ["waiting", "waiting"]
    assert len(receiver.received) == 1


async def test_what_happens_while_somebody_pauses_it_waits(
    notifier: Client, owners: Owners, receiver: Receiver
) -> None:
    webhook = await create(notifier, receiver)
    await do(notifier, webhook, ":pause")
    await owners.run.tell(RUN_CREATED, run_state("r"))
    await owners.run.until_applied_by("notifier")
    assert await statuses(notifier, webhook) == ["waiting"]
    assert (await show(notifier, webhook))["pause_reason"] == "Somebody has paused it."
    assert receiver.received == []

    await do(notifier, webhook, ":resume")
    await receiver.some(1)


async def test_a_delivery_is_sent_again_when_it_is_asked_for(
    notifier: Client, owners: Owners, receiver: Receiver
) -> None:
    webhook = await create(notifier, receiver)
    await owners.run.tell(RUN_CREATED, run_state("r"))
    (first,) = await receiver.some(1)
    await until(notifier, webhook, "delivered")
    (delivery,) = await deliveries(notifier, webhook)
    await do(notifier, webhook, f"/deliveries/{delivery['id']}:redeliver")

    _, again = await receiver.some(2)
    assert (again.message_id, again.body) == (first.message_id, first.body)
    await until(notifier, webhook, "delivered")
    receiver.status = 500
    await owners.run.tell(RUN_STARTED, run_state("r"))
    await receiver.some(3)
    await until(notifier, webhook, "delivered", "waiting")


async def test_what_waits_for_its_next_attempt_is_sent_at_once_when_it_is_asked_for(
    notifier: Client, owners: Owners, receiver: Receiver
) -> None:
    webhook = await create(notifier, receiver)
    receiver.status = 500
    await owners.run.tell(RUN_CREATED, run_state("r"))
    delivery = await until_tried(notifier, webhook, 1)
    receiver.status = 204
    await do(notifier, webhook, f"/deliveries/{delivery['id']}:redeliver")
    await until(notifier, webhook, "delivered")
    assert len(receiver.received) == 2


async def test_a_test_is_sent_at_once_and_its_outcome_told(notifier: Client, receiver: Receiver) -> None:
    webhook = await create(notifier, receiver, facts=["failed"])
    await do(notifier, webhook, ":pause")
    outcome = await do(notifier, webhook, ":test")
    assert (outcome["is_delivered"], outcome["code"]) == (True, 200)
    (received,) = receiver.received
    event = Verifier(webhook["secret"]).verify(received.body, received.headers)
    assert (event["type"], event["subject"]) == ("kfp.webhook.test.v1", webhook["id"])

    receiver.status = 500
    outcome = await do(notifier, webhook, ":test")
    assert "is_delivered" not in outcome
    assert (outcome["code"], outcome["reason"]) == (500, "The receiver answers 500.")
    assert await deliveries(notifier, webhook) == []


async def test_redirects_are_not_followed(notifier: Client, receiver: Receiver) -> None:
    webhook = await create(notifier, receiver, url=f"{receiver.url}/to")
    outcome = await do(notifier, webhook, ":test")
    assert outcome["reason"] == "The receiver answers 302. Redirects are not followed."
    assert [each.path for each in receiver.received] == ["/to"]


async def test_a_receiver_that_does_not_answer_in_time_has_not_taken_it(
    replica: Replica, owners: Owners, receiver: Receiver
) -> None:
    async with replica(deliver_seconds=0.3) as notifier:
        webhook = await create(notifier, receiver)
        receiver.is_silent = True
        outcome = await do(notifier, webhook, ":test")
    assert outcome["reason"] == "There is no answer within 0.3 s."


async def test_slack_is_told_in_words(notifier: Client, owners: Owners, receiver: Receiver) -> None:
    await create(notifier, receiver, format="slack", facts=["failed"])
    await owners.run.tell(RUN_FAILED, run_state("r", error="no <space> left"))
    (received,) = await receiver.some(1)
    assert received.headers["content-type"] == "application/json"
    assert received.event == {"text": "run *r* failed: no &lt;space&gt; left (kfp.run.failed.v1, r)"}


async def test_what_cannot_be_sent_fails_alone(
    notifier: Client, owners: Owners, receiver: Receiver, rows: Database
) -> None:
    webhook = await create(notifier, receiver, format="slack")
    await do(notifier, webhook, ":pause")
    await owners.run.tell(RUN_CREATED, run_state("r"))
    await owners.run.until_applied_by("notifier")
    await rows.execute("update deliveries set event = 'no event'")
    await owners.run.tell(RUN_CREATED, run_state("s"))
    await owners.run.until_applied_by("notifier")
    await do(notifier, webhook, ":resume")
    await until(notifier, webhook, "waiting", "delivered")
    delivery = await until_tried(notifier, webhook, 1)
    assert delivery["reason"] == "It cannot be sent, and the log of the notifier says why."


async def test_a_url_with_an_address_that_is_not_public_is_refused(replica: Replica) -> None:
    async with replica(fetch_any_network=False) as notifier:
        for address in ("127.0.0.1", "[::1]", "10.0.0.1", "169.254.169.254"):
            answer = await notifier.call("POST", WEBHOOKS, json={"name": "hook", "url": f"http://{address}/"})
            assert (answer.status, answer.json["code"]) == (400, 3)
            message = answer.json["details"][0]["error_message"]
            assert message == f"The webhook's URL http://{address}/ is not allowed."
            assert "HEADRACE_FETCH_ALLOWED_NETWORKS" in answer.json["error"]


async def test_a_name_that_leads_to_an_address_that_is_not_public_is_not_connected_to(
    replica: Replica, owners: Owners, receiver: Receiver
) -> None:
    async with replica(fetch_any_network=False) as notifier:
        webhook = await create(notifier, receiver, url=receiver.url.replace("127.0.0.1", "localhost"))
        outcome = await do(notifier, webhook, ":test")
        assert "HEADRACE_FETCH_ALLOWED_NETWORKS" in outcome["reason"]
        await owners.run.tell(RUN_CREATED, run_state("r"))
        delivery = await until_tried(notifier, webhook, 1)
    assert "HEADRACE_FETCH_ALLOWED_NETWORKS" in delivery["reason"]
    assert receiver.received == []
    async with replica(fetch_any_network=False, fetch_allowed_networks=("127.0.0.0/8", "::1/128")) as notifier:
        assert (await do(notifier, webhook, ":test"))["is_delivered"]


async def test_two_replicas_deliver_everything_once_and_in_order(
    notifier: Client, replica: Replica, owners: Owners, receiver: Receiver
) -> None:
    async with replica() as other:
        webhook = await create(other, receiver)
        for _ in range(10):
            for run_id in "abcde":
                await owners.run.tell(RUN_STARTED, run_state(run_id))
        received = await receiver.some(50)
        await until(notifier, webhook, *["delivered"] * 20)
        await owners.run.until_applied_by("notifier")
    assert len(receiver.received) == len({each.message_id for each in received}) == 50
    for run_id in "abcde":
        positions = [each.event["position"] for each in received if each.event["subject"] == run_id]
        assert positions == sorted(positions)


async def test_one_receiver_that_is_slow_is_asked_so_many_at_once_and_holds_up_no_other(
    replica: Replica, owners: Owners, receiver: Receiver
) -> None:
    async with replica(deliveries_at_once=4, deliveries_at_once_each=2) as notifier:
        receiver.is_silent = True
        await create(notifier, receiver, facts=["created"])
        for run_id in "abcdef":
            await owners.run.tell(RUN_CREATED, run_state(run_id))
        await receiver.until_busy(2)
        await create(notifier, receiver, facts=["started"])
        await owners.run.tell(RUN_STARTED, run_state("g"))
        assert (await receiver.some(3))[2].told == ("started", "g")
        assert receiver.most_at_once == 3
        await receiver.speak()
        await receiver.some(7)


async def test_a_rebuilt_stream_delivers_nothing_twice(
    notifier: Client, owners: Owners, receiver: Receiver, nats_urls: Mapping[str, str]
) -> None:
    webhook = await create(notifier, receiver)
    await owners.run.tell(RUN_CREATED, run_state("r"))
    await until(notifier, webhook, "delivered")
    admin = await Bus(nats_urls["admin"], name="admin").open()
    await admin._stream.delete_stream(EVENTS_STREAM)
    await admin.close()
    owners.run.begin_again()
    await owners.run.tell(RUN_CREATED, run_state("r"))
    await owners.run.tell(RUN_STARTED, run_state("r"))

    assert [each.told[0] for each in await receiver.some(2)] == ["created", "started"]
    await until(notifier, webhook, "delivered", "delivered")
    assert len(receiver.received) == 2


async def test_a_replica_that_ends_between_sending_and_writing_it_down_has_it_sent_again_under_the_same_id(
    notifier: Client, replica: Replica, owners: Owners, receiver: Receiver, rows: Database
) -> None:
    webhook = await create(notifier, receiver)
    await do(notifier, webhook, ":pause")
    await owners.run.tell(RUN_CREATED, run_state("r"))
    await owners.run.until_applied_by("notifier")
    receiver.is_silent = True
    async with replica() as other:
        await do(other, webhook, ":resume")
        await receiver.some(1)
        # Its claim has expired, and somebody else's follows: it is not heard any more.
        await rows.execute("update queues set claim = claim + 1, due_at = clock_timestamp()")
        await receiver.some(2)
    await receiver.speak()
    await until(notifier, webhook, "delivered")
    assert len({each.message_id for each in receiver.received}) == 1
    assert await rows.fetchval("select waiting from queues") == 0


async def test_what_a_replica_was_sending_when_it_was_ended_is_sent_by_another_at_once(
    notifier: Client, replica: Replica, owners: Owners, receiver: Receiver, rows: Database
) -> None:
    async with replica() as other:
        webhook = await create(other, receiver)
        receiver.is_silent = True
        for run_id in "abcdef":
            await owners.run.tell(RUN_CREATED, run_state(run_id))
        await receiver.some(6)
    await receiver.speak()
    await until(notifier, webhook, *["delivered"] * 6)
    assert len({each.message_id for each in receiver.received}) == 6
    assert await rows.fetchval("select count(*) from queues where is_claimed") == 0


async def test_old_deliveries_are_forgotten(
    notifier: Client, owners: Owners, receiver: Receiver, rows: Database, replica: Replica
) -> None:
    done, waits = await create(notifier, receiver), await create(notifier, receiver)
    await do(notifier, waits, ":pause")
    await owners.run.tell(RUN_CREATED, run_state("r"))
    await until(notifier, done, "delivered")
    await rows.execute("update deliveries set created_at = clock_timestamp() - interval '8 days'")
    await owners.run.tell(RUN_STARTED, run_state("r"))
    await until(notifier, done, "delivered", "delivered")
    await until(notifier, waits, "waiting", "waiting")
    async with replica(forget_deliveries_seconds=0.05):
        await until(notifier, done, "delivered")
        await until(notifier, waits, "waiting")
    assert await rows.fetchval("select count(*) from attempts") == 1
    await do(notifier, waits, ":resume")
    await until(notifier, waits, "delivered")
    assert [each.told[0] for each in receiver.received] == ["created", "started", "started"]


async def test_a_webhook_is_changed_and_deleted(notifier: Client, owners: Owners, receiver: Receiver) -> None:
    webhook = await create(notifier, receiver, resources=["run"], facts=["failed"], job_id="j")
    path = f"{WEBHOOKS}/{webhook['id']}"
    answer = await notifier.call("PATCH", path, json={"facts": ["succeeded"], "job_id": "", "name": "other"})
    assert answer.status == 200
    changed = answer.json
    assert (changed["name"], changed["facts"], changed["resources"]) == ("other", ["succeeded"], ["run"])
    assert "job_id" not in changed
    assert changed == await show(notifier, webhook)
    await owners.run.tell(RUN_SUCCEEDED, run_state("r"))
    await receiver.some(1)

    assert (await notifier.call("DELETE", path)).status == 200
    for method, below in (("GET", ""), ("DELETE", ""), ("PATCH", ""), ("GET", "/deliveries"), ("POST", ":test")):
        assert (await notifier.call(method, path + below, json={})).status == 404
    await owners.run.tell(RUN_SUCCEEDED, run_state("s"))
    await owners.run.until_applied_by("notifier")
    assert len(receiver.received) == 1


async def test_what_makes_no_webhook_is_refused(notifier: Client, receiver: Receiver) -> None:
    webhook = await create(notifier, receiver)
    refused: list[dict[str, Any]] = [
        {"name": ""},
        {"name": "x" * 2001},
        {"url": ""},
        {"url": "ftp://example.com/"},
        {"url": "http://"},
        {"url": "file:///etc/passwd"},
        {"format": "teams"},
        {"resources": ["runs"]},
        {"facts": ["suceeded"]},
        {"facts": ["Failed!"]},
        {"facts": "failed"},
        {"job_id": "x" * 2001},
        {"fact": ["failed"]},
    ]
    for asked in refused:
        new = {"name": "hook", "url": receiver.url, **asked}
        for method, path, document in (("POST", WEBHOOKS, new), ("PATCH", f"{WEBHOOKS}/{webhook['id']}", asked)):
            answer = await notifier.call(method, path, json=document)
            assert (answer.status, answer.json["code"]) == (400, 3), (method, asked)
    assert (await notifier.call("GET", WEBHOOKS)).json["total_size"] == 1


async def test_there_may_be_so_many(notifier: Client, receiver: Receiver, rows: Database) -> None:
    await rows.execute(
        "insert into webhooks (id, name, url, secret) select n, n, 'http://h', 'whsec_x' from generate_series(1, $1) n",
        MOST_WEBHOOKS,
    )
    answer = await notifier.call("POST", WEBHOOKS, json={"name": "hook", "url": receiver.url})
    assert (answer.status, answer.json["code"]) == (409, 10)


async def test_a_creation_repeated_under_its_key_makes_one_webhook(notifier: Client, receiver: Receiver) -> None:
    asked = {"json": {"name": "hook", "url": receiver.url}, "headers": {"Idempotency-Key": "k"}}
    first, second = await asyncio.gather(*(notifier.call("POST", WEBHOOKS, **asked) for _ in range(2)))
    assert first.body == second.body
    assert (await notifier.call("GET", WEBHOOKS)).json["total_size"] == 1


async def test_deliveries_are_listed_in_pages(notifier: Client, owners: Owners, receiver: Receiver) -> None:
    webhook = await create(notifier, receiver)
    for run_id in "abc":
        await owners.run.tell(RUN_CREATED, run_state(run_id))
    await until(notifier, webhook, *["delivered"] * 3)
    page = await show(notifier, webhook, "/deliveries", page_size="2", sort_by="subject desc")
    rest = await show(notifier, webhook, "/deliveries", page_size="2", page_token=page["next_page_token"])
    assert [each["subject"] for each in page["deliveries"] + rest["deliveries"]] == ["c", "b", "a"]
    assert page["total_size"] == 3
    only = {"predicates": [{"key": "subject", "op": "EQUALS", "string_value": "b"}]}
    assert (await show(notifier, webhook, "/deliveries", filter=json.dumps(only)))["total_size"] == 1
