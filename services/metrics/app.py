"""The composition root of the metrics service: the one place that wires its parts."""

from __future__ import annotations

from pathlib import Path

from shared.plumbing import Plumbing
from shared.web import Service
from shared.web import create_app as create_service

from .responders import answer_questions
from .routes import ROUTES
from .settings import Settings
from .subscribers import HANDLERS
from .usecases import Metrics

_MIGRATIONS = Path(__file__).parent / "migrations"


def create_app(settings: Settings) -> Service:
    plumbing = Plumbing(settings, owner="metrics")
    metrics = Metrics(
        plumbing.database,
        plumbing.outbox,
        plumbing.bus,
        ask_seconds=settings.ask_seconds,
        applied_wait_seconds=settings.applied_wait_seconds,
    )

    async def start() -> None:
        await plumbing.open(migrations=_MIGRATIONS)
        await answer_questions(plumbing.bus, metrics)
        plumbing.relay()
        plumbing.subscribe(HANDLERS)
        plumbing.show()

    return create_service(
        service="metrics",
        routes=ROUTES,
        on_startup=[start],
        on_shutdown=[plumbing.close],
        ready=plumbing.checks,
        tasks=plumbing.tasks,
        dependencies={"metrics": metrics},
    )
