"""What subscribers gave up on, over HTTP; the subscribers are played by the test."""

from __future__ import annotations

from datetime import timedelta
from urllib.parse import quote

import msgspec

from shared.bus import Bus
from shared.contracts.questions import (
    LAST_PLACE,
    ById,
    DeadAnswer,
    DeadLetter,
    DeadLetterAnswer,
    DeadRequest,
    Nothing,
    dead,
    dead_letter,
    discard_dead,
    retry_dead,
)
from shared.errors import NotFound, WrongState
from tests.component.notifier.conftest import Owners, Replica
from tests.support.facts import LONG_AGO
from tests.support.peers import open_buses
from tests.support.service import Client

LETTER = DeadLetter(
    id="f",
    type="kfp.metrics.reported.v1",
    owner="metrics",
    what="reported",
    resource_id="r",
    position=7,
    time=LONG_AGO,
    reason="it makes no sense",
    tries=5,
    put_aside_at=LONG_AGO,
)
WIRE = {
    "subscriber": "run",
    "id": "f",
    "type": "kfp.metrics.reported.v1",
    "subject": "r",
    "position": 7,
    "time": "2020-01-02T03:04:05Z",
    "reason": "it makes no sense",
    "tries": 5,
    "put_aside_at": "2020-01-02T03:04:05Z",
}


class Subscriber:
    """The run service, as far as it has something that it gave up on."""

    def __init__(self) -> None:
        self.letters = {"f": LETTER}
        self.is_mended = False

    async def answer(self, owners: Owners) -> None:
        bus = owners.run.bus
        await self.list_for("run", bus)
        await bus.answer(dead_letter("run"), self._dead_letter)
        await bus.answer(retry_dead("run"), self._retry)
        await bus.answer(discard_dead("run"), self._discard)

    async def list_for(self, name: str, bus: Bus) -> None:
        await bus.answer(dead(name), self._dead)

    async def _dead(self, asked: DeadRequest) -> DeadAnswer:
        behind = [letter for letter in self.letters.values() if letter.place > asked.behind]
        return DeadAnswer(letters=tuple(behind[: asked.most]), count=len(self.letters))

    async def _dead_letter(self, request: ById) -> DeadLetterAnswer:
        if request.id not in self.letters:
            raise NotFound.of("Dead letter", request.id)
        return DeadLetterAnswer(letter=self.letters[request.id], body=b'{"id":"r"}')

    async def _retry(self, request: ById) -> Nothing:
        await self._dead_letter(request)
        if not self.is_mended:
            raise WrongState("it makes no sense")
        del self.letters[request.id]
        return Nothing()

    async def _discard(self, request: ById) -> Nothing:
        await self._dead_letter(request)
        del self.letters[request.id]
        return Nothing()


async def test_dead_letters_are_listed_shown_and_applied_after_all(notifier: Client, owners: Owners) -> None:
    subscriber = Subscriber()
    await subscriber.answer(owners)

    listed = await notifier.call("GET", "/apis/headrace/v1/dead?subscriber=run")
    assert (listed.status, listed.json) == (200, {"dead_letters": [WIRE], "total_size": 1})
    shown = await notifier.call("GET", "/apis/headrace/v1/dead/run/f")
    assert (shown.status, shown.json) == (200, WIRE | {"data": '{"id":"r"}'})
    refused = await notifier.call("POST", "/apis/headrace/v1/dead/run/f:retry")
    assert (refused.status, refused.json["details"][0]["error_message"]) == (409, "it makes no sense")
    subscriber.is_mended = True
    applied = await notifier.call("POST", "/apis/headrace/v1/dead/run/f:retry")
    assert (applied.status, applied.json) == (200, {})
    assert (await notifier.call("GET", "/apis/headrace/v1/dead?subscriber=run")).json == {}
    assert (await notifier.call("POST", "/apis/headrace/v1/dead/run/f:retry")).status == 404


async def test_a_dead_letter_is_deleted_and_one_that_is_not_there_is_said_so(notifier: Client, owners: Owners) -> None:
    await Subscriber().answer(owners)
    for status in (200, 404):
        answer = await notifier.call("DELETE", "/apis/headrace/v1/dead/run/f")
        assert answer.status == status
    assert answer.json["details"][0]["error_message"] == "Dead letter f not found."
    assert answer.json["error"].startswith("Delete dead letter failed: ")
    assert (await notifier.call("GET", "/apis/headrace/v1/dead?subscriber=run")).json == {}


async def test_dead_letters_of_all_subscribers_are_paged_by_time(
    notifier: Client, owners: Owners, nats_urls: dict[str, str]
) -> None:
    """Of one that does not say where a letter stands nothing comes twice, either."""
    minutes = {"run": [0, 2, 4, 6], "metrics": [1, 5], "job-scheduler": [3]}
    others = await open_buses(nats_urls, "metrics", "job-scheduler")
    for name, bus in {"run": owners.run.bus, **others}.items():
        subscriber = Subscriber()
        subscriber.letters = {
            f"{name}-{minute}": msgspec.structs.replace(
                LETTER,
                id=f"{name}-{minute}",
                put_aside_at=LONG_AGO + timedelta(minutes=minute),
                place=LAST_PLACE if name == "job-scheduler" else minute + 1,
            )
            for minute in minutes[name]
        }
        await subscriber.list_for(name, bus)

    pages: list[list[str]] = []
    token = ""
    while not pages or token:
        answer = await notifier.call("GET", f"/apis/headrace/v1/dead?page_size=3&page_token={quote(token)}")
        assert (answer.status, answer.json["total_size"]) == (200, 7)
        pages.append([letter["id"] for letter in answer.json["dead_letters"]])
        token = answer.json.get("next_page_token", "")

    for bus in others.values():
        await bus.close()
    assert pages == [["run-0", "metrics-1", "run-2"], ["job-scheduler-3", "run-4", "metrics-5"], ["run-6"]]


async def test_a_page_of_dead_letters_that_cannot_be_meant_is_refused(notifier: Client, owners: Owners) -> None:
    subscriber = Subscriber()
    subscriber.letters = {each: msgspec.structs.replace(LETTER, id=each, place=int(each)) for each in ("1", "2")}
    await subscriber.list_for("run", owners.run.bus)
    first = await notifier.call("GET", "/apis/headrace/v1/dead?subscriber=run&page_size=1")
    token = quote(first.json["next_page_token"])
    second = await notifier.call("GET", f"/apis/headrace/v1/dead?page_token={token}")
    assert [letter["id"] for letter in second.json["dead_letters"]] == ["2"]
    for query in ("page_size=-1", "page_token=x", "page_token=e30=", f"subscriber=metrics&page_token={token}"):
        answer = await notifier.call("GET", f"/apis/headrace/v1/dead?{query}")
        assert (answer.status, answer.json["code"]) == (400, 3), query


async def test_nobody_is_asked_who_is_no_subscriber(notifier: Client) -> None:
    for path in ("dead?subscriber=gateway", "dead/gateway/f"):
        assert (await notifier.call("GET", f"/apis/headrace/v1/{path}")).status == 404
    assert (await notifier.call("POST", "/apis/headrace/v1/dead/experiment.x/f:retry")).status == 404


async def test_a_list_that_not_everybody_answers_for_is_none(owners: Owners, replica: Replica) -> None:
    await Subscriber().answer(owners)
    async with replica(retry_seconds=0.5) as notifier:
        answer = await notifier.call("GET", "/apis/headrace/v1/dead")
    assert answer.status == 503
    assert "job-scheduler" in answer.json["details"][0]["error_message"]
