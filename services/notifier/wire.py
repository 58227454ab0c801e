"""What the notifier's clients write and read, to and from the domain."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from shared import protojson
from shared.contracts.questions import DeadLetter, DeadLetterAnswer
from shared.errors import InvalidInput
from shared.listing import Page

from .domain import (
    About,
    Attempt,
    Behind,
    Delivery,
    Format,
    NewWebhook,
    Result,
    Since,
    Start,
    Until,
    Wanted,
    Webhook,
    read_cursor,
)

_BEFORE_ALL = datetime(1970, 1, 1, tzinfo=UTC)
"""The broker counts nanoseconds in 64 bits, and not back to everything that can be written."""


class EventsQuery(msgspec.Struct, frozen=True, kw_only=True):
    resource: str = ""
    """Owners of facts, separated by commas: `run,job-scheduler`."""
    fact: str = ""
    """What has happened, likewise: `failed,error`."""
    id: str = ""
    experiment_id: str = ""
    pipeline_id: str = ""
    job_id: str = ""
    since: str = ""
    """An RFC 3339 time, or seconds back from now: `600s`."""
    after: str = ""
    """The id of the last event seen, where the header `Last-Event-ID` cannot be sent."""
    until: str = ""
    """`now`: the stream ends where it would wait."""


class RunEventsQuery(msgspec.Struct, frozen=True, kw_only=True):
    fact: str = ""
    """What has happened, separated by commas: `started,succeeded`."""
    since: str = ""
    after: str = ""
    until: str = ""
    """`now`, or `final`: the stream ends behind the event that tells of the run's end."""


class WireNewWebhook(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""
    url: str = ""
    format: str = ""
    """`cloudevents`, or `slack`: a text for people."""
    resources: tuple[str, ...] = ()
    """Owners of facts: run, job-scheduler, experiment, pipeline-registry, metrics. None is any, here and below."""
    facts: tuple[str, ...] = ()
    """What has happened: succeeded, failed, error and so on."""
    experiment_id: str = ""
    pipeline_id: str = ""
    job_id: str = ""


class WireWebhookChange(msgspec.Struct, frozen=True, kw_only=True):
    """What is absent stays as it is."""

    name: str | None = None
    url: str | None = None
    format: str | None = None
    resources: tuple[str, ...] | None = None
    facts: tuple[str, ...] | None = None
    experiment_id: str | None = None
    pipeline_id: str | None = None
    job_id: str | None = None


class WireWebhook(msgspec.Struct, frozen=True, kw_only=True):
    id: str = ""
    name: str = ""
    url: str = ""
    format: str = ""
    resources: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    experiment_id: str = ""
    pipeline_id: str = ""
    job_id: str = ""
    status: str = ""
    """`active` or `paused`."""
    pause_reason: str = ""
    paused_at: datetime | None = None
    failing_since: datetime | None = None
    """Nothing that was sent since then was taken."""
    created_by: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    secret: str = ""
    """In the answer to its creation alone."""


class WireWebhooks(msgspec.Struct, frozen=True, kw_only=True):
    webhooks: tuple[WireWebhook, ...] = ()
    total_size: int = 0
    next_page_token: str = ""


class WireSecret(msgspec.Struct, frozen=True, kw_only=True):
    secret: str = ""


class WireResult(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt went."""

    is_delivered: bool = False
    code: int = 0
    """The status that the receiver answered with; absent where it did not answer."""
    reason: str = ""
    milliseconds: int = 0


class WireAttempt(msgspec.Struct, frozen=True, kw_only=True):
    at: datetime | None = None
    code: int = 0
    reason: str = ""
    milliseconds: int = 0


class WireDelivery(msgspec.Struct, frozen=True, kw_only=True):
    id: str = ""
    event_id: str = ""
    """Also its `webhook-id`."""
    type: str = ""
    subject: str = ""
    resource: str = ""
    position: protojson.Int64 = 0
    status: str = ""
    """`waiting`, `delivered` or `gave-up`."""
    tries: int = 0
    code: int = 0
    reason: str = ""
    created_at: datetime | None = None
    attempted_at: datetime | None = None
    event: str = ""
    """The CloudEvent in JSON; where one delivery is shown."""
    attempts: tuple[WireAttempt, ...] = ()
    """The latest; where one delivery is shown."""


class WireDeliveries(msgspec.Struct, frozen=True, kw_only=True):
    deliveries: tuple[WireDelivery, ...] = ()
    total_size: int = 0
    next_page_token: str = ""


def to_new_webhook(wire: WireNewWebhook) -> NewWebhook:
    """Raises InvalidInput."""
    return NewWebhook(
        name=wire.name,
        url=wire.url,
        format=_format(wire.format or Format.CLOUDEVENTS),
        wanted=Wanted(
            owners=frozenset(wire.resources),
            whats=frozenset(wire.facts),
            about=About(experiment_id=wire.experiment_id, pipeline_id=wire.pipeline_id, job_id=wire.job_id),
        ),
    )


def changed(webhook: Webhook, change: WireWebhookChange) -> NewWebhook:
    """What the webhook is to be. Raises InvalidInput."""
    as_it_is = from_webhook(webhook)
    fields = [field.name for field in msgspec.structs.fields(WireNewWebhook)]
    given = {name: value for name in fields if (value := getattr(change, name)) is not None}
    return to_new_webhook(WireNewWebhook(**{name: getattr(as_it_is, name) for name in fields} | given))


def from_webhook(webhook: Webhook, *, secret: str = "") -> WireWebhook:
    wanted = webhook.wanted
    return WireWebhook(
        id=webhook.id,
        name=webhook.name,
        url=webhook.url,
        format=webhook.format.value,
        resources=tuple(sorted(wanted.owners)),
        facts=tuple(sorted(wanted.whats)),
        experiment_id=wanted.about.experiment_id,
        pipeline_id=wanted.about.pipeline_id,
        job_id=wanted.about.job_id,
        status="active" if webhook.paused_at is None else "paused",
        pause_reason=webhook.pause_reason,
        paused_at=webhook.paused_at,
        failing_since=webhook.failing_since,
        created_by=webhook.created_by,
        created_at=webhook.created_at,
        updated_at=webhook.updated_at,
        secret=secret,
    )


def from_result(result: Result) -> WireResult:
    return WireResult(
        is_delivered=result.is_success, code=result.code, reason=result.reason, milliseconds=result.milliseconds
    )


def from_delivery(delivery: Delivery) -> WireDelivery:
    return WireDelivery(
        id=delivery.id,
        event_id=delivery.event_id,
        type=delivery.type,
        subject=delivery.subject,
        resource=delivery.owner,
        position=delivery.position,
        status=delivery.status.value,
        tries=delivery.tries,
        code=delivery.last.code,
        reason=delivery.last.reason,
        created_at=delivery.created_at,
        attempted_at=delivery.attempted_at,
    )


def from_whole_delivery(delivery: Delivery, attempts: tuple[Attempt, ...]) -> WireDelivery:
    return msgspec.structs.replace(
        from_delivery(delivery),
        event=delivery.event.decode(),
        attempts=tuple(
            WireAttempt(
                at=each.at,
                code=each.result.code,
                reason=each.result.reason,
                milliseconds=each.result.milliseconds,
            )
            for each in attempts
        ),
    )


def _format(text: str) -> Format:
    try:
        return Format(text)
    except ValueError as error:
        raise InvalidInput(f"format: {text!r} is not known; there are {', '.join(Format)}.") from error


class DeadQuery(msgspec.Struct, frozen=True, kw_only=True):
    page_token: str = ""
    page_size: int = 0
    subscriber: str = ""
    """Of one; else of all."""


class WireDeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A fact that a subscriber gave up on. `id` is the fact's."""

    subscriber: str
    id: str
    type: str
    subject: str
    position: int
    time: datetime
    reason: str
    tries: int
    put_aside_at: datetime
    data: str = ""
    """The fact's body as it came; left out of lists."""


class WireDeadLetters(msgspec.Struct, frozen=True, kw_only=True):
    dead_letters: tuple[WireDeadLetter, ...] = ()
    total_size: int = 0
    next_page_token: str = ""


def from_dead(page: Page[tuple[str, DeadLetter]]) -> WireDeadLetters:
    return WireDeadLetters(
        dead_letters=tuple(_from_letter(subscriber, letter) for subscriber, letter in page.rows),
        total_size=page.total_size,
        next_page_token=page.next_page_token,
    )


def from_dead_letter(subscriber: str, answer: DeadLetterAnswer) -> WireDeadLetter:
    return _from_letter(subscriber, answer.letter, data=answer.body.decode(errors="replace"))


def _from_letter(subscriber: str, letter: DeadLetter, *, data: str = "") -> WireDeadLetter:
    return WireDeadLetter(
        subscriber=subscriber,
        id=letter.id,
        type=letter.type,
        subject=letter.resource_id,
        position=letter.position,
        time=letter.time,
        reason=letter.reason,
        tries=letter.tries,
        put_aside_at=letter.put_aside_at,
        data=data,
    )


def to_wanted(query: EventsQuery) -> Wanted:
    """Raises InvalidInput."""
    return Wanted(
        owners=_words(query.resource),
        whats=_words(query.fact),
        resource_id=query.id,
        about=About(experiment_id=query.experiment_id, pipeline_id=query.pipeline_id, job_id=query.job_id),
    )


def to_whats(query: RunEventsQuery) -> frozenset[str]:
    return _words(query.fact)


def to_start(last_event_id: str | None, after: str, since: str, now: datetime) -> Start:
    """Raises InvalidInput. Who comes back goes on where the connection broke, whatever the address says."""
    if place := last_event_id or after:
        return Behind(cursor=read_cursor(place))
    at = _time(since, now) if since else now
    return Since(at=max(at, _BEFORE_ALL)) if at < now else None


def to_until(text: str, *, is_about_one_run: bool) -> Until:
    """Raises InvalidInput."""
    known = [Until.NOW, Until.FINAL] if is_about_one_run else [Until.NOW]
    if text and text not in known:
        raise InvalidInput(f"until: {text!r} is not known here; {' and '.join(known)} would be.")
    return Until(text)


def _words(text: str) -> frozenset[str]:
    return frozenset(word.strip() for word in text.split(",") if word.strip())


def _time(text: str, now: datetime) -> datetime:
    try:
        if text.endswith("s"):
            return now - timedelta(seconds=float(text[:-1]))
        at = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"since: {text!r} is neither a time like 2024-05-06T07:08:09Z nor seconds: 600s.") from error
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
