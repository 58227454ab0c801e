"""The HTTP door of the notifier: what happens, beyond the API of the original."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from litestar import Request
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.response import Stream

from shared import protojson
from shared.clock import now
from shared.web import get

from .domain import Behind
from .streams import Streams
from .wire import EventsQuery, RunEventsQuery, to_start, to_until, to_wanted

Req = Request[Any, Any, Any]

_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_LAST_EVENT_ID: Final = "last-event-id"


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
    return _stream(await streams.open_run(run_id, start or Behind(cursor={}), until=until))


def _stream(pieces: AsyncIterator[bytes]) -> Stream:
    return Stream(pieces, media_type="text/event-stream", headers=_HEADERS)


ROUTES = (follow_events, follow_run)
