"""The composition root of the notifier: the one place that wires its parts."""

from __future__ import annotations

from pathlib import Path

from shared.plumbing import Plumbing
from shared.web import Service
from shared.web import create_app as create_service

from .routes import ROUTES
from .settings import Settings
from .streams import Streams

_MIGRATIONS = Path(__file__).parent / "migrations"


def create_app(settings: Settings) -> Service:
    plumbing = Plumbing(settings, owner="notifier")
    streams = Streams(
        plumbing.bus,
        ask_seconds=settings.ask_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        most_unsent=settings.most_unsent_events,
    )

    async def start() -> None:
        await plumbing.open(migrations=_MIGRATIONS)
        plumbing.relay()
        plumbing.tasks.spawn("streams", streams.run)

    service = create_service(
        service="notifier",
        routes=ROUTES,
        on_startup=[start],
        on_shutdown=[plumbing.close],
        ready=plumbing.checks,
        tasks=plumbing.tasks,
        dependencies={"streams": streams},
    )
    service.health.on_drain(streams.end)
    return service
