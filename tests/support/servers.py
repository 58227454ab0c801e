"""The real Postgres, NATS and object store for tests, started when first used and stopped with the session.

Embedded servers by default; HEADRACE_TEST_BACKING=containers takes containers instead, and skips with a reason where
no container engine answers. Postgres and the object store live as long as the session, and every test gets a database
and a bucket of its own; NATS starts in milliseconds, so every test gets a server of its own.

The fixtures are synchronous and hold subprocesses, not connections: they belong to no event loop.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import msgspec
import pytest

from infra.embedded import binaries
from infra.embedded.nats import NatsServer
from infra.embedded.object_store import PORT_COUNT, ObjectStore, ObjectStorePorts
from infra.embedded.ports import LOOPBACK, free_ports
from infra.embedded.postgres import SUPERUSER, Postgres
from infra.nats.permissions import USER_NAMES, server_config
from infra.postgres.roles import ROLES, apply_roles, run_psql

TEMPLATE = "headrace_template"
POSTGRES_IMAGE = "postgres:18"
NATS_IMAGE = "nats:2.15-alpine"
MINIO_IMAGE = "minio/minio:RELEASE.2025-09-07T16-13-09Z"

_ROLE_PASSWORDS = {role: f"{role}-secret" for role in ROLES}
_NATS_PASSWORDS = {user: f"{user}-secret" for user in USER_NAMES}
# Nothing here outlives the session: durability would only cost time.
_FORGETFUL = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "300"}


class PostgresAccess(msgspec.Struct, frozen=True, kw_only=True):
    """A server whose template database holds every role and schema, and no table."""

    host: str
    port: int
    password: str

    def superuser_dsn(self, database: str = "postgres") -> str:
        return f"postgresql://{SUPERUSER}:{self.password}@{self.host}:{self.port}/{database}"

    def role_dsn(self, role: str, database: str) -> str:
        return f"postgresql://{role}:{_ROLE_PASSWORDS[role]}@{self.host}:{self.port}/{database}"

    def run(self, script: str) -> str:
        """Run SQL as the superuser through psql; its rows, unaligned."""
        return run_psql(
            script,
            psql=binaries.postgres_bin() / "psql",
            host=self.host,
            port=self.port,
            superuser=SUPERUSER,
            password=self.password,
        )


class NatsUnderTest(Protocol):
    """What a test may ask of its NATS server, embedded or in a container."""

    def urls(self) -> dict[str, str]: ...


class ObjectStoreAccess(msgspec.Struct, frozen=True, kw_only=True):
    """An S3 endpoint, and the name of a bucket that nobody has made yet."""

    endpoint_url: str
    access_key: str
    secret_key: str
    bucket: str = ""


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresAccess]:
    with _postgres() as access:
        apply_roles(
            psql=binaries.postgres_bin() / "psql",
            host=access.host,
            port=access.port,
            superuser=SUPERUSER,
            password=access.password,
            role_passwords=_ROLE_PASSWORDS,
            database=TEMPLATE,
        )
        yield access


@pytest.fixture
def database_urls(postgres: PostgresAccess) -> Iterator[dict[str, str]]:
    """Role name → DSN, on a fresh database with every role and schema and no table."""
    name = f"t_{secrets.token_hex(6)}"
    postgres.run(f"create database {name} template {TEMPLATE} strategy file_copy;")
    yield {role: postgres.role_dsn(role, name) for role in ROLES}
    postgres.run(f"drop database {name} with (force);")


@pytest.fixture
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsUnderTest]:
    """A NATS server of the test's own, without any stream."""
    folder = tmp_path_factory.mktemp("nats")
    if _containers_wanted():
        with _nats_container(folder) as container:
            yield container
        return
    (port,) = free_ports(1)
    server = NatsServer(data_dir=folder, port=port, passwords=_NATS_PASSWORDS, program=binaries.nats_server())
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nats_urls(nats_server: NatsUnderTest) -> dict[str, str]:
    """User name → URL, for every user of `infra.nats.permissions`."""
    return nats_server.urls()


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStoreAccess]:
    if _containers_wanted():
        with _object_store_container() as access:
            yield access
        return
    ports = ObjectStorePorts(**dict(zip(ObjectStorePorts.__struct_fields__, free_ports(PORT_COUNT), strict=True)))
    store = ObjectStore(
        data_dir=tmp_path_factory.mktemp("object-store"),
        ports=ports,
        access_key="headrace-test",
        secret_key=secrets.token_hex(16),
        program=binaries.weed(),
    )
    asyncio.run(store.start())
    yield ObjectStoreAccess(endpoint_url=store.url, access_key=store.access_key, secret_key=store.secret_key)
    asyncio.run(store.stop())


@pytest.fixture
def object_store_access(object_store: ObjectStoreAccess) -> Iterator[ObjectStoreAccess]:
    """The object store, with a bucket name that no other test uses. The bucket goes with the test.

    A store of this size has room for some ninety buckets, and then takes nothing more.
    """
    access = msgspec.structs.replace(object_store, bucket=f"t-{secrets.token_hex(6)}")
    yield access
    _remove_bucket(access)


def _remove_bucket(access: ObjectStoreAccess) -> None:
    from minio import Minio
    from minio.deleteobjects import DeleteObject

    client = Minio(
        endpoint=access.endpoint_url.removeprefix("http://"),
        access_key=access.access_key,
        secret_key=access.secret_key,
        secure=False,
        region="us-east-1",
    )
    if not client.bucket_exists(access.bucket):
        return
    objects = client.list_objects(access.bucket, recursive=True)
    doomed = [DeleteObject(each.object_name) for each in objects if each.object_name]
    assert not list(client.remove_objects(access.bucket, doomed))
    client.remove_bucket(access.bucket)


@contextmanager
def _postgres() -> Iterator[PostgresAccess]:
    if _containers_wanted():
        with _postgres_container() as access:
            yield access
        return
    # Not below pytest's own folder: that is private, and a server started by root runs as somebody else.
    folder = Path(tempfile.mkdtemp(prefix="headrace-postgres-"))
    folder.chmod(0o711)
    (port,) = free_ports(1)
    server = Postgres(
        data_dir=folder / "data",
        port=port,
        password=secrets.token_hex(16),
        bin_dir=binaries.postgres_bin(),
        settings=_FORGETFUL,
    )
    try:
        asyncio.run(server.start())
        yield PostgresAccess(host=LOOPBACK, port=port, password=server.password)
        asyncio.run(server.stop())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _containers_wanted() -> bool:
    """Whether to use containers; skips the test, saying why, when they are wanted and no engine answers."""
    backing = os.environ.get("HEADRACE_TEST_BACKING", "embedded")
    if backing == "embedded":
        return False
    if backing != "containers":
        pytest.exit(f"HEADRACE_TEST_BACKING={backing!r}: expected embedded or containers", returncode=2)
    try:
        probe = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        answers, said = probe.returncode == 0 and bool(probe.stdout.strip()), probe.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        answers, said = False, str(error)
    if not answers:
        pytest.skip(f"HEADRACE_TEST_BACKING=containers, and no container engine answers `docker version`: {said}")
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    return True


@contextmanager
def _postgres_container() -> Iterator[PostgresAccess]:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import ExecWaitStrategy

    password = secrets.token_hex(16)
    container = DockerContainer(POSTGRES_IMAGE).with_env("POSTGRES_PASSWORD", password).with_exposed_ports(5432)
    options = [text for name, value in _FORGETFUL.items() for text in ("-c", f"{name}={value}")]
    # By TCP: the server that initialises a new volume listens on a socket alone.
    serves = ExecWaitStrategy(["pg_isready", "--quiet", "--host=127.0.0.1"])
    with container.with_command(["postgres", *options]).waiting_for(serves) as running:
        yield PostgresAccess(
            host=running.get_container_host_ip(), port=int(running.get_exposed_port(5432)), password=password
        )


class _NatsContainer(msgspec.Struct, frozen=True, kw_only=True):
    host: str
    port: int

    def urls(self) -> dict[str, str]:
        return {user: f"nats://{user}:{secret}@{self.host}:{self.port}" for user, secret in _NATS_PASSWORDS.items()}


@contextmanager
def _nats_container(folder: Path) -> Iterator[_NatsContainer]:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    config = folder / "nats.conf"
    config.write_text(server_config(host="0.0.0.0", port=4222, store_dir="/tmp/store", passwords=_NATS_PASSWORDS))
    config.chmod(0o644)
    container = (
        DockerContainer(NATS_IMAGE)
        .with_volume_mapping(str(config), "/etc/headrace-nats.conf", "ro")
        .with_command(["--config", "/etc/headrace-nats.conf"])
        .with_exposed_ports(4222)
        .waiting_for(LogMessageWaitStrategy("Server is ready"))
    )
    with container as running:
        yield _NatsContainer(host=running.get_container_host_ip(), port=int(running.get_exposed_port(4222)))


@contextmanager
def _object_store_container() -> Iterator[ObjectStoreAccess]:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import HttpWaitStrategy

    secret = secrets.token_hex(16)
    container = (
        DockerContainer(MINIO_IMAGE)
        .with_env("MINIO_ROOT_USER", "headrace-test")
        .with_env("MINIO_ROOT_PASSWORD", secret)
        .with_command(["server", "/data"])
        .with_exposed_ports(9000)
        # Any S3 server is up once it refuses who shows no credentials.
        .waiting_for(HttpWaitStrategy(9000).for_status_code_matching(lambda status: status < 500))
    )
    with container as running:
        url = f"http://{running.get_container_host_ip()}:{running.get_exposed_port(9000)}"
        yield ObjectStoreAccess(endpoint_url=url, access_key="headrace-test", secret_key=secret)
