"""What the job scheduler is told by its environment."""

from __future__ import annotations

from shared.settings import ServiceSettings


class Settings(ServiceSettings, frozen=True, kw_only=True):
    """Nothing beyond what every service is told."""
