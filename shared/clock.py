"""Where a process reads the time, so that tests can decide what time it is.

Only rules that compute with time take a `Clock`. What is written into rows is dated by the database (`now()` in SQL):
replicas disagree about the time, their one database does not.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol


def now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


class Clock(Protocol):
    def now(self) -> datetime:
        """The current time, aware, in UTC."""


class SystemClock:
    def now(self) -> datetime:
        return now()


class FixedClock:
    """Stands still until it is moved."""

    def __init__(self, at: datetime) -> None:
        if at.tzinfo is None:
            raise ValueError("a clock shows an aware time")
        self._at = at.astimezone(UTC)

    def now(self) -> datetime:
        return self._at

    def advance(self, by: timedelta) -> datetime:
        """Move the hands, forward or back; the new time is returned."""
        self._at += by
        return self._at
