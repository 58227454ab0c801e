"""The three backing servers of one stack: their ports, their secrets, and what a process needs to reach them."""

from __future__ import annotations

import asyncio

from infra.embedded.binaries import Programs
from infra.embedded.data_dir import DataDir
from infra.embedded.failure import StartFailure
from infra.embedded.nats import NatsServer
from infra.embedded.object_store import ObjectStore, ObjectStorePorts
from infra.embedded.ports import LOOPBACK
from infra.embedded.postgres import SUPERUSER, Postgres
from infra.embedded.supervisor import Row
from infra.nats.permissions import USER_NAMES
from infra.postgres.roles import DATABASE, ROLES, RolesRefused, apply_roles

BUCKET = "mlpipeline"
ADMIN = "admin"
"""The user of the bus that declares streams."""

PORT_NAMES = ("postgres", "nats", *(f"object-store.{name}" for name in ObjectStorePorts.__struct_fields__))


class Backing:
    def __init__(self, data_dir: DataDir, ports: dict[str, int], programs: Programs) -> None:
        """`ports` has one for each of PORT_NAMES."""
        self._postgres_bin = programs.postgres_bin
        secrets = data_dir.secrets(
            [
                *(f"postgres.{role}" for role in (SUPERUSER, *ROLES)),
                *(f"nats.{user}" for user in USER_NAMES),
                "object-store.access-key",
                "object-store.secret-key",
            ]
        )
        self._role_passwords = {role: secrets[f"postgres.{role}"] for role in ROLES}
        # They hold the lock as long as they live, should the supervisor be killed.
        lock = (data_dir.lock_descriptor,)
        self._postgres = Postgres(
            data_dir=data_dir.path / "postgres",
            port=ports["postgres"],
            password=secrets[f"postgres.{SUPERUSER}"],
            bin_dir=self._postgres_bin,
            log=data_dir.logs / "postgres.log",
            keep_open=lock,
        )
        self._nats = NatsServer(
            data_dir=data_dir.path / "nats",
            port=ports["nats"],
            passwords={user: secrets[f"nats.{user}"] for user in USER_NAMES},
            program=programs.nats_server,
            log=data_dir.logs / "nats.log",
            keep_open=lock,
        )
        self._object_store = ObjectStore(
            data_dir=data_dir.path / "object-store",
            ports=ObjectStorePorts(
                **{name: ports[f"object-store.{name}"] for name in ObjectStorePorts.__struct_fields__}
            ),
            access_key=secrets["object-store.access-key"],
            secret_key=secrets["object-store.secret-key"],
            program=programs.weed,
            log=data_dir.logs / "object-store.log",
            keep_open=lock,
        )

    def rows(self) -> list[Row]:
        return [*self.keepers(), Row(name="nats", startable=self._nats)]

    def keepers(self) -> list[Row]:
        """Those whose data nothing else can bring back."""
        return [
            Row(name="postgres", startable=self._postgres),
            Row(name="object-store", startable=self._object_store),
        ]

    async def create_roles(self) -> None:
        """Roles, schemas and extensions; harmless where they exist."""
        try:
            await asyncio.to_thread(
                apply_roles,
                psql=self._postgres_bin / "psql",
                host=LOOPBACK,
                port=self._postgres.port,
                superuser=SUPERUSER,
                password=self._postgres.password,
                role_passwords=self._role_passwords,
            )
        except RolesRefused as error:
            reason = " ".join(str(error).split())
            raise StartFailure(f"the database roles could not be created: {reason}") from error

    def superuser(self) -> dict[str, str]:
        """The variables of Postgres's own programs, as the superuser in our database."""
        return {
            "PGHOST": LOOPBACK,
            "PGPORT": str(self._postgres.port),
            "PGUSER": SUPERUSER,
            "PGPASSWORD": self._postgres.password,
            "PGDATABASE": DATABASE,
        }

    def database(self, role: str) -> dict[str, str]:
        """The variables of a process that logs in to the database as `role`."""
        url = self._postgres.dsn(DATABASE, role=role, password=self._role_passwords[role])
        # Our server has no certificate. Clients that are not told look into the home folder for theirs.
        return {"HEADRACE_DATABASE_URL": f"{url}?sslmode=disable"}

    def bus(self, user: str) -> dict[str, str]:
        """The variables of a process that logs in to the bus as `user`."""
        return {"HEADRACE_NATS_URL": self._nats.url(user)}

    def objects(self) -> dict[str, str]:
        """The variables of a process that keeps objects."""
        return {
            "HEADRACE_OBJECT_STORE_URL": self._object_store.url,
            "HEADRACE_OBJECT_STORE_ACCESS_KEY": self._object_store.access_key,
            "HEADRACE_OBJECT_STORE_SECRET_KEY": self._object_store.secret_key,
            "HEADRACE_OBJECT_STORE_BUCKET": BUCKET,
        }
