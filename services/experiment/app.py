"""The composition root of the experiment service: the one place that wires its parts."""

from __future__ import annotations

from pathlib import Path

from shared.idempotency import Answers
from shared.plumbing import Plumbing
from shared.web import Service
from shared.web import create_app as create_service

from .responders import answer_questions
from .routes import ROUTES
from .settings import Settings
from .usecases import Experiments

_MIGRATIONS = Path(__file__).parent / "migrations"


def create_app(settings: Settings) -> Service:
    plumbing = Plumbing(settings, owner="experiment")
    experiments = Experiments(
        plumbing.database,
        plumbing.outbox,
        plumbing.bus,
        applied_wait_seconds=settings.applied_wait_seconds,
    )

    async def start() -> None:
        await plumbing.open(migrations=_MIGRATIONS)
        await answer_questions(plumbing.bus, experiments)
        plumbing.relay()
        plumbing.show()
        # As upstream does: whoever lists experiments finds the default one, before any run needed it.
        await experiments.get_default()

    return create_service(
        service="experiment",
        routes=ROUTES,
        on_startup=[start],
        on_shutdown=[plumbing.close],
        ready=plumbing.checks,
        tasks=plumbing.tasks,
        dependencies={"experiments": experiments, "answers": Answers(plumbing.database)},
    )
