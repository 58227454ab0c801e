"""What every service process holds: its schema, its connection to the bus, its outbox, its background work.

Built before anything is connected, opened when the process starts, closed in the opposite order: facts that were
committed still leave, questions that were taken are still answered.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.bus import Bus
from shared.contracts.events import FactKind
from shared.database import Database
from shared.migrate import migrate
from shared.outbox import Outbox, Relay
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
        self.bus = Bus(settings.nats_url, name=name)
        self.outbox = Outbox(owner, self.bus)
        self.tasks = Tasks()

    async def open(self, *, migrations: Path) -> None:
        """Connect, and bring the schema up to date; waits for servers that are still starting."""
        await self.database.open()
        await migrate(self.database, migrations)
        await self.bus.open()

    def relay(self) -> None:
        """Publish the schema's facts in the background."""
        self.tasks.spawn("relay", Relay(self.database, self.bus, self.owner).run)

    def subscribe(self, handlers: Mapping[FactKind[Any], Handler]) -> None:
        """Apply other services' facts in the background, and answer how far they are applied."""
        self.tasks.spawn("subscriber", Subscriber(self.owner, self.database, self.bus, handlers).run)

    async def close(self) -> None:
        await self.tasks.stop()
        await self.bus.close()
        await self.database.close()

    @property
    def checks(self) -> tuple[ReadinessCheck, ...]:
        """Ready means: the database and the broker answer."""
        return (self.database.check, self.bus.check)
