"""The HTTP door of the notifier: what happens, and who is told of it, beyond the API of the original."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

from litestar import Request, Response
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.response import Stream

from shared import idempotency, protojson
from shared.clock import now
from shared.errors import layer
from shared.idempotency import Answers
from shared.listing import ListRequest
from shared.web import delete, get, patch, post, reply

from .dead_letters import DeadLetters
from .domain import Behind, Webhook
from .streams import Streams
from .usecases import Webhooks
from .wire import (
    DeadQuery,
    EventsQuery,
    RunEventsQuery,
    WireDeliveries,
    WireNewWebhook,
    WireSecret,
    WireWebhookChange,
    WireWebhooks,
    changed,
    from_dead,
    from_dead_letter,
    from_delivery,
    from_result,
    from_webhook,
    from_whole_delivery,
    to_new_webhook,
    to_start,
    to_until,
    to_wanted,
    to_whats,
)

Req = Request[Any, Any, Any]

_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_LAST_EVENT_ID: Final = "last-event-id"
_WEBHOOKS: Final = "/apis/headrace/v1/webhooks"
_ONE: Final = f"{_WEBHOOKS}/{{webhook_id:str}}"


@get("/apis/headrace/v1/events")
async def follow_events(request: Req, streams: NamedDependency[Streams]) -> Stream:
    asked = protojson.query(EventsQuery, request.scope["query_string"])
    start = to_start(request.headers.get(_LAST_EVENT_ID), asked.after, asked.since, now())
    until = to_until(asked.until, is_about_one_run=False)
    return _stream(await streams.open(to_wanted(asked), start, until=until))


@get("/apis/headrace/v1/runs/{run_id:str}/events")
async def follow_run(request: Req, run_id: FromPath[str], streams: NamedDependency[Streams]) -> Stream:
    """From the run's beginning on, unless something else is asked for."""
    asked = protojson.query(RunEventsQuery, request.scope["query_string"])
    start = to_start(request.headers.get(_LAST_EVENT_ID), asked.after, asked.since, now())
    until = to_until(asked.until, is_about_one_run=True)
    return _stream(await streams.open_run(run_id, start or Behind(cursor={}), whats=to_whats(asked), until=until))


@get("/apis/headrace/v1/dead")
async def list_dead_letters(request: Req, dead_letters: NamedDependency[DeadLetters]) -> Response[bytes]:
    asked = protojson.query(DeadQuery, request.scope["query_string"])
    return reply(from_dead(await dead_letters.list(asked.subscriber, asked.page_size, asked.page_token)))


@get("/apis/headrace/v1/dead/{subscriber:str}/{letter_id:str}")
async def get_dead_letter(
    subscriber: FromPath[str], letter_id: FromPath[str], dead_letters: NamedDependency[DeadLetters]
) -> Response[bytes]:
    return reply(from_dead_letter(subscriber, await dead_letters.get(subscriber, letter_id)))


@delete("/apis/headrace/v1/dead/{subscriber:str}/{letter_id:str}")
async def delete_dead_letter(
    subscriber: FromPath[str], letter_id: FromPath[str], dead_letters: NamedDependency[DeadLetters]
) -> Response[bytes]:
    with layer("Delete dead letter failed"):
        await dead_letters.discard(subscriber, letter_id)
    return reply()


@post("/apis/headrace/v1/dead/{subscriber:str}/{letter_id:str}/:retry")
async def retry_dead_letter(
    subscriber: FromPath[str], letter_id: FromPath[str], dead_letters: NamedDependency[DeadLetters]
) -> Response[bytes]:
    with layer("Retry dead letter failed"):
        await dead_letters.retry(subscriber, letter_id)
    return reply()


def _stream(pieces: AsyncIterator[bytes]) -> Stream:
    return Stream(pieces, media_type="text/event-stream", headers=_HEADERS)


@post(_WEBHOOKS)
async def create_webhook(
    request: Req, webhooks: NamedDependency[Webhooks], answers: NamedDependency[Answers]
) -> Response[bytes]:
    body = await request.body()
    asked = to_new_webhook(protojson.decode(body, WireNewWebhook, is_strict=True))
    keyed = idempotency.keyed("POST /webhooks", request.headers.get(idempotency.HEADER), body)
    return reply(await answers.once(keyed, partial(webhooks.create, asked), _encoded))


@get(_WEBHOOKS)
async def list_webhooks(request: Req, webhooks: NamedDependency[Webhooks]) -> Response[bytes]:
    page = await webhooks.list(protojson.query(ListRequest, request.scope["query_string"]))
    return reply(
        WireWebhooks(
            webhooks=tuple(from_webhook(webhook) for webhook in page.rows),
            total_size=page.total_size,
            next_page_token=page.next_page_token,
        )
    )


@get(_ONE)
async def get_webhook(webhook_id: FromPath[str], webhooks: NamedDependency[Webhooks]) -> Response[bytes]:
    return reply(from_webhook(await webhooks.get(webhook_id)))


@patch(_ONE)
async def change_webhook(
    request: Req, webhook_id: FromPath[str], webhooks: NamedDependency[Webhooks]
) -> Response[bytes]:
    change = protojson.decode(await request.body(), WireWebhookChange, is_strict=True)
    return reply(from_webhook(await webhooks.change(webhook_id, lambda webhook: changed(webhook, change))))


@delete(_ONE)
async def delete_webhook(webhook_id: FromPath[str], webhooks: NamedDependency[Webhooks]) -> Response[bytes]:
    await webhooks.delete(webhook_id)
    return reply()


@post(f"{_ONE}/:pause")
async def pause_webhook(webhook_id: FromPath[str], webhooks: NamedDependency[Webhooks]) -> Response[bytes]:
    await webhooks.pause(webhook_id)
    return reply()


@post(f"{_ONE}/:resume")
async def resume_webhook(webhook_id: FromPath[str], webhooks: NamedDependency[Webhooks]) -> Response[bytes]:
    await webhooks.resume(webhook_id)
    return reply()


@post(f"{_ONE}/:rotate")
async def rotate_secret(webhook_id: FromPath[str], webhooks: NamedDependency[Webhooks]) -> Response[bytes]:
    return reply(WireSecret(secret=await webhooks.rotate(webhook_id)))


@post(f"{_ONE}/:test")
async def test_webhook(webhook_id: FromPath[str], webhooks: NamedDependency[Webhooks]) -> Response[bytes]:
    return reply(from_result(await webhooks.test(webhook_id)))


@get(f"{_ONE}/deliveries")
async def list_deliveries(
    request: Req, webhook_id: FromPath[str], webhooks: NamedDependency[Webhooks]
) -> Response[bytes]:
    asked = protojson.query(ListRequest, request.scope["query_string"])
    page = await webhooks.list_deliveries(webhook_id, asked)
    return reply(
        WireDeliveries(
            deliveries=tuple(from_delivery(delivery) for delivery in page.rows),
            total_size=page.total_size,
            next_page_token=page.next_page_token,
        )
    )


@get(f"{_ONE}/deliveries/{{delivery_id:str}}")
async def get_delivery(
    webhook_id: FromPath[str], delivery_id: FromPath[str], webhooks: NamedDependency[Webhooks]
) -> Response[bytes]:
    return reply(from_whole_delivery(*await webhooks.get_delivery(webhook_id, delivery_id)))


@post(f"{_ONE}/deliveries/{{delivery_id:str}}/:redeliver")
async def redeliver(
    webhook_id: FromPath[str], delivery_id: FromPath[str], webhooks: NamedDependency[Webhooks]
) -> Response[bytes]:
    await webhooks.redeliver(webhook_id, delivery_id)
    return reply()


def _encoded(created: tuple[Webhook, str]) -> bytes:
    webhook, secret = created
    return protojson.encode(from_webhook(webhook, secret=secret))


ROUTES = (
    follow_events,
    follow_run,
    list_dead_letters,
    get_dead_letter,
    delete_dead_letter,
    retry_dead_letter,
    create_webhook,
    list_webhooks,
    get_webhook,
    change_webhook,
    delete_webhook,
    pause_webhook,
    resume_webhook,
    rotate_secret,
    test_webhook,
    list_deliveries,
    get_delivery,
    redeliver,
)
