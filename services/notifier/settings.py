"""What the notifier is told by its environment."""

from __future__ import annotations

from shared.settings import ReachSettings

from .domain import DELAYS_SECONDS


class Settings(ReachSettings, frozen=True, kw_only=True):
    ask_seconds: float = 2.0
    """How long whoever follows one run waits for the run service to say whether there is such a run."""
    heartbeat_seconds: float = 15.0
    """How long a stream of events is silent at most: proxies close connections on which nothing moves."""
    most_unsent_events: int = 1000
    """How many events a client may be behind before its stream ends; it comes back for them when it can."""
    deliver_seconds: float = 15.0
    """The longest that a receiver of a webhook may take to answer."""
    delivery_delays_seconds: tuple[float, ...] = DELAYS_SECONDS
    """What lies between the attempts at one delivery; there is one more of these. Twelve, over 26 hours."""
    deliveries_at_once: int = 100
    """How many deliveries one replica tries at a time, of all webhooks."""
    deliveries_at_once_each: int = 10
    """How many of one webhook: a receiver that is slow must not hold up the others."""
    delivery_poll_seconds: float = 1.0
    """How often deliveries that are due are looked for without being told."""
    pause_webhook_hours: float = 24.0
    """A webhook of which nothing was taken for so long is paused. Less than the attempts at one delivery last."""
    keep_deliveries_days: float = 7.0
    """How long deliveries are kept, whatever became of them."""
    forget_deliveries_seconds: float = 60.0
    """How often those that are older are looked for."""

    def __post_init__(self) -> None:
        self.check_networks()
        if min(self.deliveries_at_once, self.deliveries_at_once_each) <= 0:
            raise ValueError("deliveries_at_once and deliveries_at_once_each must be above 0")

    retry_seconds: float = 10.0
    """How long a subscriber may take to tell of the facts that it gave up on, or to apply one of them after all."""
