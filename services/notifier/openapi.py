"""What the notifier publishes about its operations."""

from __future__ import annotations

from typing import Final

from shared.listing import ListRequest
from shared.openapi import A_RUN, HOST, Operation, captured

from . import store
from .wire import (
    DeadQuery,
    EventsQuery,
    RunEventsQuery,
    WireDeadLetter,
    WireDeadLetters,
    WireDeliveries,
    WireDelivery,
    WireNewWebhook,
    WireResult,
    WireSecret,
    WireWebhook,
    WireWebhookChange,
    WireWebhooks,
)

NAMES: Final[dict[type, str]] = {
    WireResult: "apiWebhookTestResult",
    WireSecret: "apiWebhookSecret",
    WireDeadLetter: "headraceDeadLetter",
    WireDeadLetters: "headraceDeadLetters",
}

_TAG: Final = "WebhookService"
_WEBHOOKS: Final = "/apis/headrace/v1/webhooks"
_ONE: Final = f"{_WEBHOOKS}/{{webhook_id}}"
_CREATE: Final = (
    f"""curl -sS {HOST}{_WEBHOOKS} """
    """-d '{"name":"on-call","url":"https://hooks.example/headrace","resources":["run"],"facts":["failed","error"]}'"""
)
_NEW: Final = captured("WEBHOOK", _CREATE) + "\n"
_URL: Final = f"{HOST}{_WEBHOOKS}/$WEBHOOK"

_NOTES: Final = (
    "Server-sent events; the data of each is one CloudEvent in JSON. The id of an event says up to where its client "
    "has read: sent back as `Last-Event-ID`, or as `after`, the stream goes on behind it. An event of the type `gap` "
    "says that some in between are kept no longer. The type `end` says that a "
    "stream with an `until` is over. A client that does not keep up is cut off."
)

OPERATIONS: Final = (
    Operation(
        id="FollowEvents",
        method="GET",
        path="/apis/headrace/v1/events",
        tag="EventService",
        summary="Streams what happens to runs, jobs, experiments and pipelines.",
        notes=f"{_NOTES} Without `since` or a place to go on from, the stream begins now.",
        query=EventsQuery,
        answers_events=True,
        example=f"curl -sS -N '{HOST}/apis/headrace/v1/events?resource=run&since=600s&until=now'",
    ),
    Operation(
        id="FollowRun",
        method="GET",
        path="/apis/headrace/v1/runs/{run_id}/events",
        tag="EventService",
        summary="Streams what happens to one run, from its beginning.",
        notes=f"{_NOTES} With `until=final`, the stream ends with the run.",
        query=RunEventsQuery,
        answers_events=True,
        example=f"{A_RUN}\ncurl -sS -N '{HOST}/apis/headrace/v1/runs/'$RUN'/events?until=final'",
    ),
    Operation(
        id="CreateWebhook",
        method="POST",
        path=_WEBHOOKS,
        tag=_TAG,
        summary="Has events sent to a URL, from now on.",
        notes=(
            "Each event that passes the filters is a POST of one CloudEvent in JSON, signed by the Standard Webhooks "
            "scheme. It is tried twelve times over 26 hours until the receiver answers 2xx; what happens to one "
            "resource comes in order. Receivers may get an event twice, with the same `webhook-id`. With the format "
            "`slack`, it is a text for people instead. The `secret` is told in this answer and never again."
        ),
        may_be_repeated=True,
        body=WireNewWebhook,
        body_example={
            "name": "on-call",
            "url": "https://hooks.example/headrace",
            "resources": ["run"],
            "facts": ["failed", "error"],
        },
        answer=WireWebhook,
        example=_CREATE,
    ),
    Operation(
        id="ListWebhooks",
        method="GET",
        path=_WEBHOOKS,
        tag=_TAG,
        summary="Lists webhooks.",
        query=ListRequest,
        query_without=frozenset({"resource_key", "resource_reference_key"}),
        lists=store.WEBHOOKS,
        answer=WireWebhooks,
        example=f"curl -sS '{HOST}{_WEBHOOKS}?page_size=5'",
    ),
    Operation(
        id="GetWebhook",
        method="GET",
        path=_ONE,
        tag=_TAG,
        summary="Shows a webhook, and whether it is paused and why.",
        answer=WireWebhook,
        example=f"{_NEW}curl -sS {_URL}",
    ),
    Operation(
        id="ChangeWebhook",
        method="PATCH",
        path=_ONE,
        tag=_TAG,
        summary="Changes what a webhook wants, or where it leads; what is absent stays.",
        notes="What waits already is sent to the new URL.",
        body=WireWebhookChange,
        body_example={"facts": ["failed", "error", "succeeded"]},
        answer=WireWebhook,
        example=f'{_NEW}curl -sS -X PATCH {_URL} -d \'{{"facts":["succeeded"]}}\'',
    ),
    Operation(
        id="DeleteWebhook",
        method="DELETE",
        path=_ONE,
        tag=_TAG,
        summary="Deletes a webhook and its deliveries.",
        example=f"{_NEW}curl -sS -X DELETE {_URL}",
    ),
    Operation(
        id="PauseWebhook",
        method="POST",
        path=f"{_ONE}:pause",
        tag=_TAG,
        summary="Sends nothing until it is resumed; what happens meanwhile waits, as long as deliveries are kept.",
        example=f"{_NEW}curl -sS -X POST {_URL}:pause",
    ),
    Operation(
        id="ResumeWebhook",
        method="POST",
        path=f"{_ONE}:resume",
        tag=_TAG,
        summary="Sends what waits, and what happens from now on.",
        example=f"{_NEW}curl -sS -X POST {_URL}:resume",
    ),
    Operation(
        id="RotateWebhookSecret",
        method="POST",
        path=f"{_ONE}:rotate",
        tag=_TAG,
        summary="Gives a webhook a new secret; for 24 hours the former one signs as well.",
        answer=WireSecret,
        example=f"{_NEW}curl -sS -X POST {_URL}:rotate",
    ),
    Operation(
        id="TestWebhook",
        method="POST",
        path=f"{_ONE}:test",
        tag=_TAG,
        summary="Sends one event of the type kfp.webhook.test.v1 now, and tells how that went.",
        answer=WireResult,
        example=f"{_NEW}curl -sS -X POST {_URL}:test",
    ),
    Operation(
        id="ListDeliveries",
        method="GET",
        path=f"{_ONE}/deliveries",
        tag=_TAG,
        summary="Lists what was sent to a webhook and what waits for it.",
        query=ListRequest,
        query_without=frozenset({"resource_key", "resource_reference_key"}),
        lists=store.DELIVERIES,
        answer=WireDeliveries,
        example=f'{_NEW}curl -sS "{_URL}/deliveries?sort_by=created_at%20desc"',
    ),
    Operation(
        id="GetDelivery",
        method="GET",
        path=f"{_ONE}/deliveries/{{delivery_id}}",
        tag=_TAG,
        summary="Shows a delivery, with its event and its latest attempts.",
        answer=WireDelivery,
    ),
    Operation(
        id="Redeliver",
        method="POST",
        path=f"{_ONE}/deliveries/{{delivery_id}}:redeliver",
        tag=_TAG,
        summary="Sends it again, or now where it waits.",
    ),
    Operation(
        id="ListDeadLetters",
        method="GET",
        path="/apis/headrace/v1/dead",
        tag="EventService",
        summary="Lists the facts that services gave up on, the oldest first.",
        notes="A fact that a service cannot apply is put aside after its last try, and what follows goes on.",
        query=DeadQuery,
        answer=WireDeadLetters,
        example=f"curl -sS {HOST}/apis/headrace/v1/dead",
    ),
    Operation(
        id="GetDeadLetter",
        method="GET",
        path="/apis/headrace/v1/dead/{subscriber}/{letter_id}",
        tag="EventService",
        summary="Shows one of them, with the body of the fact.",
        answer=WireDeadLetter,
    ),
    Operation(
        id="DeleteDeadLetter",
        method="DELETE",
        path="/apis/headrace/v1/dead/{subscriber}/{letter_id}",
        tag="EventService",
        summary="Discards one of them: its service goes on without that fact, for good.",
    ),
    Operation(
        id="RetryDeadLetter",
        method="POST",
        path="/apis/headrace/v1/dead/{subscriber}/{letter_id}:retry",
        tag="EventService",
        summary="Has its service apply one of them after all; it is gone then.",
        notes="It comes behind facts that followed it. Where the service gives up again, the answer (409) says why, "
        "and it stays.",
    ),
)
