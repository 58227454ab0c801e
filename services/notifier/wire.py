"""What the notifier's clients write, to the domain."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from shared.errors import InvalidInput

from .domain import About, Behind, Since, Start, Until, Wanted, read_cursor

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
    since: str = ""
    after: str = ""
    until: str = ""
    """`now`, or `final`: the stream ends behind the event that tells of the run's end."""


def to_wanted(query: EventsQuery) -> Wanted:
    """Raises InvalidInput."""
    return Wanted(
        owners=_words(query.resource),
        whats=_words(query.fact),
        resource_id=query.id,
        about=About(experiment_id=query.experiment_id, pipeline_id=query.pipeline_id, job_id=query.job_id),
    )


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
