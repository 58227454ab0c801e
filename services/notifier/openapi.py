"""What the notifier publishes about its operations."""

from __future__ import annotations

from typing import Final

from shared.openapi import A_RUN, HOST, Operation

from .wire import EventsQuery, RunEventsQuery

NAMES: Final[dict[type, str]] = {}

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
)
