"""The composition root of the notifier: the one place that wires its parts."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from shared.idempotency import Answers
from shared.plumbing import Plumbing
from shared.web import Service
from shared.web import create_app as create_service

from . import ticker
from .dead_letters import DeadLetters
from .deliveries import Deliveries
from .routes import ROUTES
from .sending import Sender
from .settings import Settings
from .streams import Streams
from .subscribers import handlers
from .usecases import Webhooks

_MIGRATIONS = Path(__file__).parent / "migrations"
_DUE = "kfp.ping.deliveries"


def create_app(settings: Settings) -> Service:
    plumbing = Plumbing(settings, owner="notifier")
    streams = Streams(
        plumbing.bus,
        ask_seconds=settings.ask_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        most_unsent=settings.most_unsent_events,
    )

    sender = Sender(settings.reach, seconds=settings.deliver_seconds, at_a_time=settings.deliveries_at_once)
    deliveries = Deliveries(
        plumbing.database,
        sender,
        most=settings.deliveries_at_once,
        most_each=settings.deliveries_at_once_each,
        send_seconds=settings.deliver_seconds,
        delays_seconds=settings.delivery_delays_seconds,
        pause_after_hours=settings.pause_webhook_hours,
        keep_days=settings.keep_deliveries_days,
    )
    due = asyncio.Event()

    async def wake_tickers() -> None:
        await plumbing.bus.ping(_DUE)

    webhooks = Webhooks(plumbing.database, sender, settings.reach, on_due=wake_tickers)

    async def start() -> None:
        await plumbing.open(migrations=_MIGRATIONS)
        plumbing.relay()
        plumbing.subscribe(handlers(deliveries, wake_tickers))
        plumbing.show(deliveries.show)
        await plumbing.bus.on_ping(_DUE, due.set)
        plumbing.tasks.spawn("streams", streams.run)
        plumbing.tasks.spawn(
            "deliveries", partial(ticker.send, deliveries, due, poll_seconds=settings.delivery_poll_seconds)
        )
        plumbing.tasks.spawn(
            "forget", partial(ticker.forget, deliveries, every_seconds=settings.forget_deliveries_seconds)
        )

    async def stop() -> None:
        await plumbing.close()
        await sender.close()

    service = create_service(
        service="notifier",
        routes=ROUTES,
        on_startup=[start],
        on_shutdown=[stop],
        ready=plumbing.checks,
        tasks=plumbing.tasks,
        dependencies={
            "streams": streams,
            "webhooks": webhooks,
            "answers": Answers(plumbing.database),
            "dead_letters": DeadLetters(plumbing.bus, ask_seconds=settings.retry_seconds),
        },
    )
    service.health.on_drain(streams.end)
    service.health.on_drain(deliveries.end)
    return service
