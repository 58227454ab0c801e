"""Every service logs in as a role that sees its own schema and no other."""

import asyncpg
import pytest

from infra.embedded import binaries
from infra.embedded.postgres import SUPERUSER
from infra.postgres.roles import ROLES, apply_roles
from tests.support.servers import TEMPLATE, PostgresAccess


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_lands_in_its_own_schema(database_urls: dict[str, str], role: str) -> None:
    connection = await asyncpg.connect(database_urls[role])
    try:
        await connection.execute("create table things (id text)")
        place = await connection.fetchval("select schemaname from pg_tables where tablename = 'things'")
    finally:
        await connection.close()
    assert place == role


async def test_a_role_cannot_read_or_write_anothers_schema(database_urls: dict[str, str]) -> None:
    owner = await asyncpg.connect(database_urls["run"])
    other = await asyncpg.connect(database_urls["experiment"])
    try:
        await owner.execute("create table runs (id text)")
        for statement in (
            "select * from run.runs",
            "insert into run.runs values ('x')",
            "create table run.mine (id text)",
            "drop table run.runs",
            "grant usage on schema run to experiment",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await other.execute(statement)
        with pytest.raises(asyncpg.UndefinedTableError):
            await other.execute("select * from runs")
    finally:
        await owner.close()
        await other.close()


async def test_a_role_cannot_become_another_or_use_the_public_schema(database_urls: dict[str, str]) -> None:
    connection = await asyncpg.connect(database_urls["metrics"])
    try:
        for statement in ("set role run", "create table public.things (id text)", "create schema mine"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()


async def test_every_role_can_use_trigram_indexes(database_urls: dict[str, str]) -> None:
    for role in ROLES:
        connection = await asyncpg.connect(database_urls[role])
        try:
            await connection.execute("create table names (name text)")
            await connection.execute("create index names_name_idx on names using gin (name gin_trgm_ops)")
            assert await connection.fetchval("select similarity('mill', 'mill')") == 1
        finally:
            await connection.close()


async def test_roles_need_their_password(database_urls: dict[str, str]) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(database_urls["run"].replace("run-secret", "guess"))


def test_the_roles_can_be_applied_again_with_other_passwords(postgres: PostgresAccess) -> None:
    def apply(database: str, suffix: str) -> None:
        apply_roles(
            psql=binaries.postgres_bin() / "psql",
            host=postgres.host,
            port=postgres.port,
            superuser=SUPERUSER,
            password=postgres.password,
            role_passwords={role: f"{role}{suffix}" for role in ROLES},
            database=database,
        )

    try:
        apply("t_again", r" it's a \ trap")
    finally:
        apply(TEMPLATE, "-secret")
    assert postgres.run("select count(*) from pg_database where datname = 't_again'").strip() == "1"
    postgres.run("drop database t_again;")
