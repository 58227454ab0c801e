"""The composition root of the pipeline registry: the one place that wires its parts."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from shared.blobs import Blobs
from shared.idempotency import Answers
from shared.plumbing import Plumbing
from shared.web import Service
from shared.web import create_app as create_service

from .fetching import Fetcher
from .readers import PackageReaders
from .responders import answer_questions
from .routes import ROUTES
from .settings import Settings
from .ticker import erase_objects
from .usecases import Pipelines

_MIGRATIONS = Path(__file__).parent / "migrations"


def create_app(settings: Settings) -> Service:
    plumbing = Plumbing(settings, owner="pipeline-registry")
    blobs = Blobs(
        settings.object_store_url,
        access_key=settings.object_store_access_key,
        secret_key=settings.object_store_secret_key,
        bucket=settings.object_store_bucket,
    )
    readers = PackageReaders(settings.package_limits, largest_bytes=settings.largest_package_bytes)
    fetcher = Fetcher(
        reach=settings.reach,
        largest_bytes=settings.largest_package_bytes,
        seconds=settings.fetch_seconds,
        at_a_time=settings.fetches,
    )
    objects_doomed = asyncio.Event()

    async def wake_eraser() -> None:
        objects_doomed.set()

    pipelines = Pipelines(
        plumbing.database,
        plumbing.outbox,
        plumbing.bus,
        blobs,
        fetcher,
        readers,
        upload_seconds=settings.upload_seconds,
        applied_wait_seconds=settings.applied_wait_seconds,
        new_versions_become_default=settings.auto_update_pipeline_default_version,
        on_doomed=wake_eraser,
    )

    async def start() -> None:
        await plumbing.open(migrations=_MIGRATIONS)
        await blobs.ensure_bucket()
        await answer_questions(plumbing.bus, pipelines)
        plumbing.relay()
        plumbing.show()
        plumbing.tasks.spawn(
            "eraser", partial(erase_objects, pipelines, objects_doomed, poll_seconds=settings.erase_poll_seconds)
        )

    async def stop() -> None:
        await plumbing.close()
        await readers.close()
        blobs.close()

    return create_service(
        service="pipeline-registry",
        routes=ROUTES,
        on_startup=[start],
        on_shutdown=[stop],
        ready=(*plumbing.checks, blobs.check),
        tasks=plumbing.tasks,
        dependencies={"pipelines": pipelines, "answers": Answers(plumbing.database)},
    )
