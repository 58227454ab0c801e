"""The door to Postgres: what is committed, what is called back, and which errors are outages."""

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from shared.database import ConstraintViolated, Database
from shared.errors import InvalidInput, Unavailable


@pytest.fixture
async def database(database_urls: dict[str, str]) -> AsyncIterator[Database]:
    database = await Database(database_urls["run"], name="run", max_size=3, idle_in_transaction_seconds=0.2).open()
    await database.execute("create table mills (id text constraint mills_id_key unique, wheels int)")
    yield database
    await database.close()


async def test_callbacks_run_once_each_after_the_commit(database: Database) -> None:
    counts = []

    async def count() -> None:
        counts.append(await database.fetchval("select count(*) from mills"))

    async with database.transaction() as tx:
        await tx.execute("insert into mills values ('a', 1)")
        tx.after_commit(count)
        tx.after_commit(count)
        assert counts == []
    assert counts == [1]


async def test_a_failed_body_rolls_back_and_calls_nobody(database: Database) -> None:
    called = []

    async def call() -> None:
        called.append(True)

    with pytest.raises(OSError, match="of the body"):  # noqa: PT012 - the transaction is what is tested
        async with database.transaction() as tx:
            await tx.execute("insert into mills values ('a', 1)")
            tx.after_commit(call)
            raise OSError("of the body")
    assert called == []
    assert await database.fetchval("select count(*) from mills") == 0


async def test_a_constraint_says_its_name(database: Database) -> None:
    await database.execute("insert into mills values ('a', 1)")
    with pytest.raises(ConstraintViolated) as caught:
        await database.execute("insert into mills values ('a', 1)")
    assert caught.value.constraint == "mills_id_key"


async def test_more_than_the_server_can_take_is_for_the_client_to_mend(database: Database) -> None:
    async def in_a_transaction(sql: str, *arguments: object) -> None:
        async with database.transaction() as tx:
            await tx.execute(sql, *arguments)

    # Nothing in it repeats, so that nothing can be stored shorter than it is.
    longer_than_an_index_entry = secrets.token_hex(1_400)
    for execute in (database.execute, in_a_transaction):
        with pytest.raises(InvalidInput) as caught:
            await execute("insert into mills values ($1, 1)", longer_than_an_index_entry)
        assert caught.value.message == "The request holds more than the database can take."
        assert "mills_id_key" in caught.value.error
    assert await database.fetchval("select count(*) from mills") == 0


async def test_wrong_arguments_are_no_outage(database: Database) -> None:
    for sql, arguments in (("insert into mills (wheels) values ($1)", ("closed",)), ("select $1::int", (1, 2))):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - anything but the one below
            await database.execute(sql, *arguments)
        assert not isinstance(caught.value, Unavailable)


async def test_a_session_ended_by_the_server_is_an_outage_and_the_next_one_works(database: Database) -> None:
    with pytest.raises(Unavailable):  # noqa: PT012 - the transaction is what is tested
        async with database.transaction() as tx:
            pid = await tx.fetchval("select pg_backend_pid()")
            await database.fetchval("select pg_terminate_backend($1)", pid)
            await tx.execute("insert into mills values ('a', 1)")
    assert await database.fetchval("select count(*) from mills") == 0


async def test_a_transaction_left_idle_lets_go_of_its_locks(database: Database) -> None:
    await database.execute("insert into mills values ('a', 1)")
    with pytest.raises(Unavailable):  # noqa: PT012 - the transaction is what is tested
        async with database.transaction() as idle:
            await idle.execute("update mills set wheels = 2")
            async with asyncio.timeout(5):
                await database.execute("update mills set wheels = 3")
    assert await database.fetchval("select wheels from mills") == 3


async def test_no_server_is_unavailable_in_time(database_urls: dict[str, str]) -> None:
    nowhere = Database("postgresql://run:secret@127.0.0.1:1/nowhere", name="run")
    with pytest.raises(Unavailable):
        await nowhere.open(patience_seconds=0.3)
    with pytest.raises(Unavailable):
        await nowhere.check()
    await nowhere.close()
