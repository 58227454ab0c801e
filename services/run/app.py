"""The composition root of the run service: the one place that wires its parts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from shared.bearer import AgentToken
from shared.blobs import Blobs
from shared.contracts.events import NODE_STARTED
from shared.idempotency import Answers
from shared.outbox import Outbox
from shared.plumbing import Plumbing
from shared.readers import Readers
from shared.web import Service
from shared.web import create_app as create_service

from . import reading, ticker
from .compose import Rules
from .manifests import Manifests
from .records import Records
from .reports import Reports
from .responders import answer_questions
from .routes import ROUTES
from .settings import Settings
from .step_logs import StepLogs
from .subscribers import handlers
from .usecases import Installation, Runs

_MIGRATIONS = Path(__file__).parent / "migrations"


def create_app(settings: Settings) -> Service:
    plumbing = Plumbing(settings, owner="run")
    blobs = Blobs(
        settings.object_store_url,
        access_key=settings.object_store_access_key,
        secret_key=settings.object_store_secret_key,
        bucket=settings.object_store_bucket,
    )
    rules = Rules(default_service_account=settings.default_service_account, cache_enabled=settings.cache_enabled)
    readers = Readers(reading.WORK, settings.manifest_limits)
    manifests = Manifests(
        plumbing.database,
        blobs,
        rules,
        readers,
        settings.runner,
        cache_bytes=settings.manifest_cache_bytes,
        large_bytes=settings.large_manifest_bytes,
    )
    runs = Runs(
        plumbing.database,
        plumbing.outbox,
        plumbing.bus,
        blobs,
        manifests,
        Installation(
            namespace=settings.namespace,
            engine=settings.engine,
            ask_seconds=settings.ask_seconds,
            applied_wait_seconds=settings.applied_wait_seconds,
        ),
    )

    node_outbox = Outbox(NODE_STARTED.owner, plumbing.bus) if settings.node_facts else None

    async def start() -> None:
        await plumbing.open(migrations=_MIGRATIONS)
        await blobs.ensure_bucket()
        await answer_questions(plumbing.bus, runs)
        plumbing.relay()
        plumbing.relay(
            NODE_STARTED.owner,
            keep_days=settings.node_facts_kept_days,
            gather_seconds=settings.node_facts_gather_seconds,
        )
        plumbing.subscribe(handlers(runs))
        plumbing.show(runs.show)
        plumbing.tasks.spawn(
            "counts",
            partial(ticker.fold_counts, runs, every_seconds=settings.fold_counts_seconds),
        )

    async def stop() -> None:
        await plumbing.close()
        await readers.close()
        blobs.close()

    return create_service(
        service="run",
        routes=ROUTES,
        on_startup=[start],
        on_shutdown=[stop],
        ready=plumbing.checks,
        tasks=plumbing.tasks,
        dependencies={
            "runs": runs,
            "answers": Answers(plumbing.database),
            "reports": Reports(
                plumbing.database,
                plumbing.bus,
                runs,
                Records(plumbing.database, plumbing.outbox, manifests, nodes=node_outbox),
            ),
            "agent": AgentToken(settings.agent_token_sha256),
            "logs": StepLogs(plumbing.database, plumbing.bus, blobs, ask_seconds=settings.ask_seconds),
        },
    )
