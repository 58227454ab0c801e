"""Migrations: each file once, whoever comes first, and none twice with another text."""

import asyncio
from pathlib import Path

import pytest

import shared
from shared.database import Database
from shared.migrate import MigrationError, migrate

# The shared tables' files, and the one of the room below.
EVERY_FILE = len(list((Path(shared.__file__).parent / "migrations").glob("*.sql"))) + 1


@pytest.fixture
def room(tmp_path: Path) -> Path:
    (tmp_path / "0001_mill.sql").write_text("create table mills (id text primary key); insert into mills values ('a');")
    return tmp_path


async def test_replicas_that_start_together_apply_each_file_once(database_urls: dict[str, str], room: Path) -> None:
    replicas = [await Database(database_urls["run"], name=f"replica {nth}").open() for nth in range(4)]
    try:
        applied = await asyncio.gather(*(migrate(database, room) for database in replicas))
        assert sorted(applied) == [0, 0, 0, EVERY_FILE]
        assert await replicas[0].fetchval("select count(*) from mills") == 1
    finally:
        for database in replicas:
            await database.close()


async def test_services_migrate_side_by_side(database_urls: dict[str, str], room: Path) -> None:
    run, metrics = [await Database(database_urls[role], name=role).open() for role in ("run", "metrics")]
    try:
        assert list(await asyncio.gather(migrate(run, room), migrate(metrics, room))) == [EVERY_FILE, EVERY_FILE]
    finally:
        await run.close()
        await metrics.close()


async def test_an_edited_file_is_refused_and_a_failing_one_leaves_nothing(
    database_urls: dict[str, str], room: Path
) -> None:
    database = await Database(database_urls["run"], name="run").open()
    try:
        await migrate(database, room)
        (room / "0002_wheel.sql").write_text("create table wheels (id text); select 1 / 0;")
        with pytest.raises(Exception, match="division by zero"):
            await migrate(database, room)
        assert await database.fetchval("select to_regclass('wheels')") is None
        (room / "0002_wheel.sql").write_text("create table wheels (id text);")
        assert await migrate(database, room) == 1
        (room / "0001_mill.sql").write_text("create table mills (id int);")
        with pytest.raises(MigrationError, match="0001_mill"):
            await migrate(database, room)
    finally:
        await database.close()


async def test_an_older_replica_starts_on_a_newer_schema(database_urls: dict[str, str], room: Path) -> None:
    database = await Database(database_urls["run"], name="run").open()
    try:
        await migrate(database, room)
        (room / "0001_mill.sql").unlink()
        assert await migrate(database, room) == 0
    finally:
        await database.close()
