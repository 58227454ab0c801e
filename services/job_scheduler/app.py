"""The composition root of the job scheduler: the one place that wires its parts."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from shared.bearer import AgentToken
from shared.blobs import Blobs
from shared.idempotency import Answers
from shared.plumbing import Plumbing
from shared.web import Service
from shared.web import create_app as create_service

from . import ticker
from .extensions import Extensions
from .manifests import Manifests
from .reactions import Reactions
from .responders import answer_questions
from .routes import ROUTES
from .settings import Settings
from .slots import Slots
from .subscribers import handlers
from .usecases import Installation, Jobs, on_wake

_MIGRATIONS = Path(__file__).parent / "migrations"


def create_app(settings: Settings) -> Service:
    plumbing = Plumbing(settings, owner="job-scheduler")
    blobs = Blobs(
        settings.object_store_url,
        access_key=settings.object_store_access_key,
        secret_key=settings.object_store_secret_key,
        bucket=settings.object_store_bucket,
    )
    jobs = Jobs(
        plumbing.database,
        plumbing.outbox,
        plumbing.bus,
        Manifests(plumbing.database, blobs),
        Installation(
            namespace=settings.namespace,
            engine=settings.engine,
            time_zone=settings.cron_schedule_timezone,
            shortest_interval_seconds=settings.shortest_interval_seconds,
            ask_seconds=settings.ask_seconds,
            check_seconds=settings.check_seconds,
            applied_wait_seconds=settings.applied_wait_seconds,
        ),
    )

    extensions = Extensions(
        plumbing.database,
        plumbing.outbox,
        plumbing.bus,
        jobs,
        shortest_interval_seconds=settings.shortest_interval_seconds,
    )
    slots = Slots(plumbing.database, plumbing.outbox, plumbing.bus, ask_seconds=settings.ask_seconds)
    reactions = Reactions(
        plumbing.database,
        plumbing.bus,
        slots,
        longest_chain=settings.longest_chain,
        ask_seconds=settings.ask_seconds,
    )
    woken = asyncio.Event()

    async def start() -> None:
        await plumbing.open(migrations=_MIGRATIONS)
        await blobs.ensure_bucket()
        await answer_questions(plumbing.bus, jobs)
        plumbing.relay()
        plumbing.subscribe(handlers(jobs, slots, reactions))
        plumbing.show(slots.show)
        await on_wake(plumbing.bus, woken.set)
        plumbing.tasks.spawn("slots", partial(ticker.fire, slots, reactions, woken, poll_seconds=settings.poll_seconds))
        plumbing.tasks.spawn("check", partial(ticker.check, slots, every_seconds=settings.check_slots_seconds))

    async def stop() -> None:
        await plumbing.close()
        blobs.close()

    return create_service(
        service="job-scheduler",
        routes=ROUTES,
        on_startup=[start],
        on_shutdown=[stop],
        ready=plumbing.checks,
        tasks=plumbing.tasks,
        dependencies={
            "jobs": jobs,
            "extensions": extensions,
            "answers": Answers(plumbing.database),
            "agent": AgentToken(settings.agent_token_sha256),
        },
    )
