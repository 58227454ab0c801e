"""What the metrics service is told by its environment."""

from __future__ import annotations

from shared.settings import ServiceSettings


class Settings(ServiceSettings, frozen=True, kw_only=True):
    ask_seconds: float = 2.0
    """How long a report waits for the run service to say whether a run exists before it is a 503."""
