"""What the notifier is told by its environment."""

from __future__ import annotations

from shared.settings import ServiceSettings


class Settings(ServiceSettings, frozen=True, kw_only=True):
    ask_seconds: float = 2.0
    """How long whoever follows one run waits for the run service to say whether there is such a run."""
    heartbeat_seconds: float = 15.0
    """How long a stream of events is silent at most: proxies close connections on which nothing moves."""
    most_unsent_events: int = 1000
    """How many events a client may be behind before its stream ends; it comes back for them when it can."""
