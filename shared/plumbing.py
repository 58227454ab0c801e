"""What every service process holds: its schema, its connection to the bus, its outbox, its background work.

Built before anything is connected, opened when the process starts, closed in the opposite order: facts that were
committed still leave, questions that were taken are still answered.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.bus import Bus, StreamLimits
from shared.contracts.events import FactKind
from shared.database import Database
from shared.figures import Figures, Measure
from shared.migrate import migrate
from shared.outbox import Keep, Outbox, Relay
from shared.settings import ServiceSettings
from shared.subscriptions import Handler, Subscriber
from shared.tasks import Tasks
from shared.web import ReadinessCheck

_log = logging.getLogger(__name__)


class Plumbing:
    """The connections and background work of one process of the service `owner`."""

    def __init__(self, settings: ServiceSettings, *, owner: str, process: str | None = None) -> None:
        name = process or owner
        self.owner = owner
        self.database = Database(settings.database_url, name=name, max_size=settings.database_connections)
        self.keep = Keep(days=settings.facts_kept_days, bytes=settings.facts_kept_bytes)
        self.bus = Bus(
            settings.nats_url,
            name=name,
            limits=StreamLimits.beyond(
                days=settings.facts_kept_days, bytes=settings.stream_kept_bytes, replicas=settings.stream_replicas
            ),
        )
        self.outbox = Outbox(owner, self.bus)
        self.tasks = Tasks()
        self._relayed: list[str] = []
        self._followed: list[str] = []

    async def open(self, *, migrations: Path) -> None:
        """Connect, and bring the schema up to date; waits for servers that are still starting."""
        await self.database.open()
        await migrate(self.database, migrations)
        await self.bus.open()

    def relay(self, owner: str | None = None, *, keep_days: float | None = None, gather_seconds: float = 0) -> None:
        """Publish the facts of the service in the background; or of another owner whose facts are in its schema: they
        have positions and a pace of their own."""
        keep = self.keep if keep_days is None else Keep(days=min(keep_days, self.keep.days), bytes=self.keep.bytes)
        self._relayed.append(owner or self.owner)
        relay = Relay(self.database, self.bus, owner or self.owner, keep=keep, gather_seconds=gather_seconds)
        self.tasks.spawn("relay" if owner is None else f"relay of {owner}", relay.run)

    def subscribe(self, handlers: Mapping[FactKind[Any], Handler]) -> None:
        """Apply other services' facts in the background, and answer how far they are applied."""
        self._followed += sorted({kind.owner for kind in handlers})
        self.tasks.spawn("subscriber", Subscriber(self.owner, self.database, self.bus, handlers).run)

    def show(self, *further: Measure) -> None:
        """Look up in the background what is to be known of the schema, for its metrics; after all that is relayed and
        subscribed to."""
        figures = Figures(
            self.owner,
            self.database,
            self.bus,
            relayed=self._relayed,
            followed=self._followed,
            further=further,
        )
        self.tasks.spawn("figures", figures.run)

    async def close(self) -> None:
        await self.tasks.stop()
        await self.bus.close()
        await self.database.close()

    @property
    def checks(self) -> tuple[ReadinessCheck, ...]:
        """Ready means: the database and the broker answer."""
        return (self.database.check, self.bus.check)
