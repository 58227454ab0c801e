"""What subscribers gave up on, over HTTP; the subscribers are played by the test."""

from __future__ import annotations

from shared.contracts.questions import (
    ById,
    DeadAnswer,
    DeadLetter,
    DeadLetterAnswer,
    DeadRequest,
    Nothing,
    dead,
    dead_letter,
    retry_dead,
)
from shared.errors import NotFound, WrongState
from tests.component.notifier.conftest import Owners, Replica
from tests.support.facts import LONG_AGO
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
        await bus.answer(dead("run"), self._dead)
        await bus.answer(dead_letter("run"), self._dead_letter)
        await bus.answer(retry_dead("run"), self._retry)

    async def _dead(self, _: DeadRequest) -> DeadAnswer:
        return DeadAnswer(letters=tuple(self.letters.values()), count=len(self.letters))

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
