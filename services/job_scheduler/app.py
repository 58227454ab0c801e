"""The composition root of the job scheduler: the one place that wires its parts."""

from __future__ import annotations

from pathlib import Path

from shared.plumbing import Plumbing
from shared.web import Service
from shared.web import create_app as create_service

from .settings import Settings
from .subscribers import HANDLERS

_MIGRATIONS = Path(__file__).parent / "migrations"


def create_app(settings: Settings) -> Service:
    plumbing = Plumbing(settings, owner="job-scheduler")

    async def start() -> None:
        await plumbing.open(migrations=_MIGRATIONS)
        plumbing.subscribe(HANDLERS)

    return create_service(
        service="job-scheduler",
        routes=(),
        on_startup=[start],
        on_shutdown=[plumbing.close],
        ready=plumbing.checks,
        tasks=plumbing.tasks,
    )
