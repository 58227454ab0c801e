"""Migrations: each file once, whoever comes first, and none twice with another text."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import shared
from infra.cli import main
from shared.database import Database
from shared.migrate import MigrationError, migrate

PROJECT = Path(shared.__file__).parents[1]

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


async def test_the_command_knows_its_database_alone_and_may_be_started_by_every_replica(
    database_urls: dict[str, str],
) -> None:
    environment = {"PATH": os.environ["PATH"], "HEADRACE_DATABASE_URL": database_urls["metrics"]}

    async def command(name: str) -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "infra.cli", "migrate", name),
            env=environment,
            cwd=PROJECT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complained = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, said.decode().strip(), complained.decode().strip()

    replicas = await asyncio.gather(*(command("metrics") for _ in range(3)))
    assert [code for code, _, _ in replicas] == [0, 0, 0], replicas
    files = len(
        [*(PROJECT / "shared/migrations").glob("*.sql"), *(PROJECT / "services/metrics/migrations").glob("*.sql")]
    )
    assert sorted(said for _, said, _ in replicas) == [f"metrics: applied {files}", *["metrics: nothing to apply"] * 2]


@pytest.mark.parametrize(
    ("url", "code", "complaint"),
    [
        ("", 2, "headrace migrate metrics: HEADRACE_DATABASE_URL is not set\n"),
        ("postgresql://metrics:x@127.0.0.1:1/headrace", 1, "headrace migrate metrics: The database does not answer."),
    ],
)
def test_the_command_says_in_a_line_why_it_cannot(
    monkeypatch: pytest.MonkeyPatch, url: str, code: int, complaint: str
) -> None:
    monkeypatch.setattr("infra.cli.migrate.PATIENCE_SECONDS", 0.1)
    result = CliRunner().invoke(main, ["migrate", "metrics"], env={"HEADRACE_DATABASE_URL": url})
    assert result.exit_code == code
    assert result.stderr.startswith(complaint)
    assert len(result.stderr.splitlines()) == 1
