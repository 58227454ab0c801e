"""The composition root of the run service: the one place that wires its parts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from shared.bearer import AgentToken
from shared.blobs import Blobs
from shared.idempotency import Answers
from shared.plumbing import Plumbing
from shared.web import Service
from shared.web import create_app as create_service

from . import ticker
from .compose import Rules
from .domain import EngineName
from .manifests import Manifests, Validator
from .records import Records
from .reports import Reports
from .responders import answer_questions
from .routes import ROUTES
from .settings import Settings
from .step_logs import StepLogs
from .subscribers import handlers
from .usecases import Installation, Runs

_MIGRATIONS = Path(__file__).parent / "migrations"


def create_app(settings: Settings, *, validate: Validator | None = None) -> Service:
    """`validate` stands in for the engine's own validation."""
    plumbing = Plumbing(settings, owner="run")
    blobs = Blobs(
        settings.object_store_url,
        access_key=settings.object_store_access_key,
        secret_key=settings.object_store_secret_key,
        bucket=settings.object_store_bucket,
    )
    rules = Rules(default_service_account=settings.default_service_account, cache_enabled=settings.cache_enabled)
    manifests = Manifests(plumbing.database, blobs, rules, cache_bytes=settings.manifest_cache_bytes)
    runs = Runs(
        plumbing.database,
        plumbing.outbox,
        plumbing.bus,
        blobs,
        manifests,
        validate or _validator(settings),
        Installation(
            namespace=settings.namespace,
            engine=settings.engine,
            ask_seconds=settings.ask_seconds,
            applied_wait_seconds=settings.applied_wait_seconds,
        ),
    )

    async def start() -> None:
        await plumbing.open(migrations=_MIGRATIONS)
        await blobs.ensure_bucket()
        await answer_questions(plumbing.bus, runs)
        plumbing.relay()
        plumbing.subscribe(handlers(runs))
        plumbing.tasks.spawn(
            "counts",
            partial(ticker.fold_counts, runs, every_seconds=settings.fold_counts_seconds),
        )

    async def stop() -> None:
        await plumbing.close()
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
                plumbing.database, plumbing.bus, runs, Records(plumbing.database, plumbing.outbox, manifests)
            ),
            "agent": AgentToken(settings.agent_token_sha256),
            "logs": StepLogs(plumbing.database, plumbing.bus, blobs, ask_seconds=settings.ask_seconds),
        },
    )


def _validator(settings: Settings) -> Validator:
    if settings.engine is EngineName.EXTERNAL:
        return validate_for_any_engine
    # Under `auto` nobody knows here what steps will run in, and what is accepted must not depend on the machine.
    return partial(validate_for_embedded_engine, runs_images=settings.runtime in ("docker", "podman"))


def validate_for_embedded_engine(workflow: Mapping[str, object], *, runs_images: bool = False) -> None:
    """Raises the engine's ManifestError, which has a `reason`."""
    # Imported with the first creation: most of the engine is not the service's business.
    from .engine.embedded import manifest, validation

    parsed = manifest.parse(workflow)
    # First what it is called: whoever uses another engine's feature is told so, not what else is missing without it.
    validation.refuse_unsupported(parsed, runs_images=runs_images)
    validation.validate(parsed)


def validate_for_any_engine(workflow: Mapping[str, object]) -> None:
    """What no engine could run is refused, and what this one alone cannot is not. Raises as the other does."""
    from .engine.embedded import manifest, validation

    validation.validate(manifest.parse(workflow))
