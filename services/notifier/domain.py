"""What somebody who follows facts asks for, where in their order they stand, and what a webhook is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final, NewType

import msgspec

from shared.addresses import is_of_the_web
from shared.errors import InvalidInput, NotFound, WrongState
from shared.lengths import check_length

_WORD = re.compile(r"[a-z]+(-[a-z]+)*")
_TOKEN = re.compile(r"[^\s.*>]{1,300}")
_PLACE = re.compile(r"([a-z]+(?:-[a-z]+)*):([0-9]{1,18})")

_MOST_PLACES = 50
"""More than there will be owners. The id of every event repeats them."""

Cursor = Mapping[str, int]
"""For each owner of facts the position of the last one seen. Positions have no gaps."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """Which resources a fact speaks of, beside its own."""

    experiment_id: str = ""
    pipeline_id: str = ""
    job_id: str = ""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which facts are wanted; what is left out is any. Conditions are joined by "and", the members of a set by "or"."""

    owners: frozenset[str] = frozenset()
    whats: frozenset[str] = frozenset()
    resource_id: str = ""
    about: About = About()

    def __post_init__(self) -> None:
        for word in self.owners | self.whats:
            if not _WORD.fullmatch(word):
                raise InvalidInput(f"{word!r} is no word of an event's type.")
        if self.resource_id and not _TOKEN.fullmatch(self.resource_id):
            raise InvalidInput(f"{self.resource_id!r} is no id of a resource.")

    def takes(self, owner: str, what: str, resource_id: str, about: About) -> bool:
        own = self.about
        return (
            (not self.owners or owner in self.owners)
            and (not self.whats or what in self.whats)
            and (not self.resource_id or resource_id == self.resource_id)
            and (not own.experiment_id or about.experiment_id == own.experiment_id)
            and (not own.pipeline_id or about.pipeline_id == own.pipeline_id)
            and (not own.job_id or about.job_id == own.job_id)
        )

    @property
    def subjects(self) -> list[str]:
        """What the broker is asked for; it knows nothing of what facts are about."""
        return [
            f"kfp.event.{owner}.{what}.{self.resource_id or '*'}"
            for owner in sorted(self.owners) or ["*"]
            for what in sorted(self.whats) or ["*"]
        ]


class Behind(msgspec.Struct, frozen=True, kw_only=True):
    """From the facts behind these on."""

    cursor: Cursor


class Since(msgspec.Struct, frozen=True, kw_only=True):
    """From a time on."""

    at: datetime


Start = Behind | Since | None
"""Where a stream begins; None is now."""


class Until(StrEnum):
    """What ends a stream, beside its client."""

    NOTHING = ""
    NOW = "now"
    """Everything that had happened when it was opened is told."""
    FINAL = "final"
    """The run that it is about is over."""


_OWN: Final = {"experiment": "experiment_id", "job-scheduler": "job_id", "pipeline-registry": "pipeline_id"}


def about_of(owner: str, what: str, resource_id: str, said: About) -> About:
    """`said` is what the fact's body names; a resource is also about itself."""
    own = _OWN.get(owner)
    if own is None or what.startswith("version-"):
        return said
    return msgspec.structs.replace(said, **{own: resource_id})


def read_cursor(text: str) -> Cursor:
    """Raises InvalidInput."""
    places = [_PLACE.fullmatch(part.strip()) for part in text.split(",")]
    if not all(places) or len(places) > _MOST_PLACES:
        raise InvalidInput(f"{text!r} is no place in the stream of events: run:12,experiment:3 is one.")
    return {place[1]: int(place[2]) for place in places if place}


def write_cursor(cursor: Cursor) -> str:
    return ",".join(f"{owner}:{position}" for owner, position in sorted(cursor.items()))


# Webhooks.

WebhookId = NewType("WebhookId", str)
DeliveryId = NewType("DeliveryId", str)

MOST_WEBHOOKS: Final = 1000
"""Each event is held against all of them."""

DELAYS_SECONDS: Final = (5.0, 30.0, 120.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0, 36000.0)
"""What lies between the attempts of one delivery: twelve of them, over 26 hours."""


class Format(StrEnum):
    CLOUDEVENTS = "cloudevents"
    SLACK = "slack"
    """A text for people, as Slack and those who imitate it take it."""


class DeliveryStatus(StrEnum):
    WAITING = "waiting"
    DELIVERED = "delivered"
    GAVE_UP = "gave-up"


class NewWebhook(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody asks for."""

    name: str
    url: str
    format: Format = Format.CLOUDEVENTS
    wanted: Wanted = Wanted()

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidInput("The webhook's name is empty. Please specify a valid name.")
        check_length("webhook's name", self.name)
        check_length("webhook's URL", self.url)
        about = self.wanted.about
        for what, identity in (
            ("experiment", about.experiment_id),
            ("pipeline", about.pipeline_id),
            ("job", about.job_id),
        ):
            check_length(f"{what}'s id", identity)
        if not is_of_the_web(self.url):
            raise InvalidInput(f"The webhook's URL {self.url!r} is none of http or https.")


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    id: WebhookId
    name: str
    url: str
    format: Format
    wanted: Wanted
    paused_at: datetime | None = None
    pause_reason: str = ""
    failing_since: datetime | None = None
    created_by: str
    created_at: datetime
    updated_at: datetime


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt went."""

    code: int = 0
    """The status that the receiver answered with; 0 where it did not answer."""
    reason: str = ""
    milliseconds: int = 0

    @property
    def is_success(self) -> bool:
        return 200 <= self.code < 300

    @property
    def is_gone(self) -> bool:
        """The receiver wants no more of it, now or later."""
        return self.code == 410


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    at: datetime
    result: Result


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event for one webhook."""

    id: DeliveryId
    webhook_id: WebhookId
    event_id: str
    type: str
    owner: str
    subject: str
    position: int
    event: bytes
    status: DeliveryStatus
    tries: int
    last: Result
    created_at: datetime
    attempted_at: datetime | None = None


def slack_text(event: bytes) -> str:
    """The event as a line for people: `run *nightly* failed: no space left (kfp.run.failed.v1, 4711)`."""
    told = msgspec.json.decode(event)
    said = told["data"] if isinstance(told["data"], dict) else {}
    _, owner, what, *_ = told["type"].split(".")
    name = _for_slack(str(said.get("name") or told["subject"]))
    error = f": {_for_slack(str(said['error']))}" if said.get("error") else ""
    return f"{owner} *{name}* {what}{error} ({told['type']}, {told['subject']})"


def _for_slack(text: str) -> str:
    """Its three control characters are written as entities, so that no name can call everybody."""
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())


def unknown_webhook(webhook_id: str) -> NotFound:
    return NotFound.of("Webhook", webhook_id)


def unknown_delivery(delivery_id: str) -> NotFound:
    return NotFound.of("Delivery", delivery_id)


def too_many_webhooks() -> WrongState:
    return WrongState(f"There are {MOST_WEBHOOKS} webhooks already, which is as many as there may be.")


def not_public(url: str, cause: str) -> InvalidInput:
    return InvalidInput(f"The webhook's URL {url} is not allowed.", cause=cause)
