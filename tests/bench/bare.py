"""The least that recording something costs: its row in the same Postgres, alone or behind a bare endpoint."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from infra.embedded.ports import LOOPBACK, free_ports, is_free

CONNECTIONS = 10
"""As many as a process of the services opens."""

_STARTS_WITHIN_SECONDS = 15


class BareTable:
    """A table like one of a service's, indexes and checks included, and a row like its newest one."""

    def __init__(self, pool: asyncpg.Pool, insert: str, row: Sequence[Any], unique: frozenset[int]) -> None:
        self._pool = pool
        self._insert = insert
        self._row = row
        self._unique = unique

    @classmethod
    async def open(cls, pool: asyncpg.Pool, table: str, unique: Sequence[str]) -> BareTable:
        """`table` is `schema.table` and holds a row; the columns `unique` are texts that differ from row to row."""
        schema, _, name = table.partition(".")
        bare = f"bench_{schema}.{name}"
        await pool.execute(f"create schema if not exists bench_{schema}")
        await pool.execute(f"create table if not exists {bare} (like {table} including all)")
        row = await pool.fetchrow(f"select * from {table} order by created_at desc limit 1")
        assert row is not None, f"{table} is empty"
        # What the database fills in by itself, it fills in here.
        columns = [column for column in row.keys() if column != "created_at"]  # noqa: SIM118 - a record is no mapping
        places = ", ".join(f"${n}" for n, _ in enumerate(columns, 1))
        insert = f"insert into {bare} ({', '.join(columns)}) values ({places}) returning created_at"
        return cls(
            pool, insert, [row[column] for column in columns], frozenset(columns.index(column) for column in unique)
        )

    async def insert(self, _number: int = 0) -> str:
        own = str(uuid.uuid4())
        await self._pool.fetchval(
            self._insert, *(own if n in self._unique else value for n, value in enumerate(self._row))
        )
        return own


@asynccontextmanager
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(database_url, min_size=CONNECTIONS, max_size=CONNECTIONS) as opened:
        yield opened


@asynccontextmanager
async def endpoint(database_url: str, table: str, unique: Sequence[str]) -> AsyncIterator[str]:
    """The endpoint as a process; its URL."""
    (port,) = free_ports(1)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.bare_endpoint", database_url, table, *unique, str(port))
    )
    try:
        async with asyncio.timeout(_STARTS_WITHIN_SECONDS):
            while is_free(port):
                assert process.returncode is None, "the bare endpoint did not start"
                await asyncio.sleep(0.02)
        yield f"http://{LOOPBACK}:{port}/"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
