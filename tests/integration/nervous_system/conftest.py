"""Two services of a small house: `experiment` tells, `run` listens, each with its own role and bus user."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infra.embedded import binaries
from infra.embedded.nats import NatsServer
from infra.embedded.ports import free_ports
from infra.embedded.postgres import SUPERUSER, Postgres
from infra.nats.permissions import USER_NAMES
from infra.postgres.roles import ROLES, apply_roles
from shared.bus import Bus, declare_streams
from shared.contracts.events import EXPERIMENT_CREATED, FactKind
from shared.database import Database
from shared.leases import Lease
from shared.migrate import migrate
from shared.outbox import Keep, Outbox, Relay
from shared.subscriptions import Handler, Subscriber
from tests.support.eventually import eventually
from tests.support.facts import change, each_once, effects, make_effects, make_things, record_effect
from tests.support.replica_process import Orders

LEASE_SECONDS = 1.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A connection that is dropped during its greeting is forgotten by the client without being closed.

    It is closed as it is forgotten, which Python tells: in tests that stop the broker alone, that is no fault of ours.
    """
    for item in items:
        if "own_nats" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <StreamWriter:ResourceWarning"))


@dataclass(kw_only=True)
class House:
    database_urls: dict[str, str]
    nats_urls: dict[str, str]
    owner: Database
    listener: Database
    owner_bus: Bus
    listener_bus: Bus
    outbox: Outbox
    closing: AsyncExitStack
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def bus(self, user: str) -> Bus:
        bus = await Bus(self.nats_urls[user], name=user).open(patience_seconds=10)
        self.closing.push_async_callback(bus.close)
        return bus

    async def database(self, role: str) -> Database:
        database = await Database(self.database_urls[role], name=role, max_size=6).open(patience_seconds=10)
        self.closing.push_async_callback(database.close)
        return database

    async def change(self, identity: str = "a", *, times: int = 1) -> None:
        for _ in range(times):
            await change(self.owner, self.outbox, identity)

    async def relay(self, *, compare_seconds: float = 30, keep: Keep | None = None) -> asyncio.Task[None]:
        """A replica of the relay, with connections of its own."""
        database = await self.database("experiment")
        lease = Lease(database, "relay:experiment", seconds=LEASE_SECONDS)
        bus = await self.bus("experiment")
        relay = Relay(database, bus, "experiment", lease=lease, compare_seconds=compare_seconds, keep=keep)
        return self.run(relay.run())

    async def subscriber(
        self,
        handlers: Mapping[FactKind[Any], Handler] | None = None,
        *,
        before_commit: Callable[[], Awaitable[None]] | None = None,
        before_acknowledging: Callable[[], Awaitable[None]] | None = None,
        gap_seconds: float = 15,
        ack_wait_seconds: float = 2,
    ) -> asyncio.Task[None]:
        """A replica of the subscriber, with connections of its own."""
        subscriber = Subscriber(
            "run",
            await self.database("run"),
            await self.bus("run"),
            handlers or {EXPERIMENT_CREATED: record_effect},
            lease_seconds=LEASE_SECONDS,
            ack_wait_seconds=ack_wait_seconds,
            retry_seconds=0.1,
            gap_seconds=gap_seconds,
            before_commit=before_commit,
            before_acknowledging=before_acknowledging,
        )
        return self.run(subscriber.run())

    async def two_of_everything(self) -> None:
        for _ in range(2):
            await self.relay()
            await self.subscriber()

    def run(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.tasks.append(task)
        return task

    def orders(self, role: str, **more: Any) -> Orders:
        name = {"relay": "experiment", "subscriber": "run"}[role]
        return Orders(
            role=role,  # type: ignore[arg-type] # one of the two, as just looked up
            database_url=self.database_urls[name],
            nats_url=self.nats_urls[name],
            **more,
        )

    async def applied_each_once(self, last: int, *, within_seconds: float = 15) -> None:
        """Wait until as many effects are there, then see that they are the right ones, in order."""

        async def enough() -> list[int]:
            seen = await effects(self.listener)
            return seen if len(seen) >= last else []

        seen = await eventually(enough, within_seconds=within_seconds)
        assert each_once(seen, last), seen

    async def published(self, position: int, *, within_seconds: float = 15) -> None:
        async def is_published() -> bool:
            return bool(await self.owner.fetchval("select published >= $1 from relay", position))

        await eventually(is_published, within_seconds=within_seconds)


@asynccontextmanager
async def house_on(database_urls: dict[str, str], nats_urls: dict[str, str], nothing: Path) -> AsyncIterator[House]:
    """`nothing` is an empty room of migrations."""
    async with AsyncExitStack() as closing:
        opened = {}
        for role in ("experiment", "run"):
            opened[role] = await Database(database_urls[role], name=role).open(patience_seconds=10)
            closing.push_async_callback(opened[role].close)
            await migrate(opened[role], nothing)
        await make_things(opened["experiment"])
        await make_effects(opened["run"])
        await declare_streams(nats_urls["admin"])
        buses = {}
        for user in ("experiment", "run"):
            buses[user] = await Bus(nats_urls[user], name=user).open(patience_seconds=10)
            closing.push_async_callback(buses[user].close)
        house = House(
            database_urls=database_urls,
            nats_urls=nats_urls,
            owner=opened["experiment"],
            listener=opened["run"],
            owner_bus=buses["experiment"],
            listener_bus=buses["run"],
            outbox=Outbox("experiment", buses["experiment"]),
            closing=closing,
        )
        yield house
        await cancel(*house.tasks)


async def cancel(*tasks: asyncio.Task[None]) -> None:
    """Again and again: `asyncio.wait_for` loses a cancellation that comes together with what is waited for."""

    async def all_done() -> bool:
        for task in tasks:
            task.cancel()
        return all(task.done() for task in tasks)

    await eventually(all_done)
    for task in tasks:
        if not task.cancelled():
            task.result()


@pytest.fixture
async def house(database_urls: dict[str, str], nats_urls: dict[str, str], tmp_path: Path) -> AsyncIterator[House]:
    async with house_on(database_urls, nats_urls, tmp_path) as house:
        yield house


@pytest.fixture
async def own_nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A server that the test may stop and start; its store is `<tmp_path>/nats/store`."""
    (port,) = free_ports(1)
    server = NatsServer(
        data_dir=tmp_path / "nats",
        port=port,
        passwords={user: f"{user}-secret" for user in USER_NAMES},
        program=binaries.nats_server(),
    )
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def own_postgres() -> AsyncIterator[tuple[Postgres, dict[str, str]]]:
    # Not below the test's own folder: that is private, and a server started by root runs as somebody else.
    folder = Path(tempfile.mkdtemp(prefix="headrace-postgres-"))
    os.chmod(folder, 0o711)
    (port,) = free_ports(1)
    server = Postgres(
        data_dir=folder / "data",
        port=port,
        password="secret",
        bin_dir=binaries.postgres_bin(),
        settings={"fsync": "off"},
    )
    await server.start()
    passwords = {role: f"{role}-secret" for role in ROLES}
    await asyncio.to_thread(
        apply_roles,
        psql=binaries.postgres_bin() / "psql",
        host="127.0.0.1",
        port=port,
        superuser=SUPERUSER,
        password="secret",
        role_passwords=passwords,
        database="headrace",
    )
    yield server, {role: server.dsn("headrace", role=role, password=passwords[role]) for role in ROLES}
    await server.stop()
    shutil.rmtree(folder, ignore_errors=True)
