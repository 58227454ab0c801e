"""The one door to Postgres: a pool, transactions with after-commit callbacks, and errors in our own words.

It is the only module that knows asyncpg, and it knows no table. SQL lives in each service's `store.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Protocol, Self
from weakref import WeakSet

import asyncpg
from prometheus_client import Gauge
from tenacity import before_sleep_log, retry, retry_if_exception, stop_after_delay, wait_random_exponential

from shared import telemetry
from shared.errors import InvalidInput, Unavailable

Row = asyncpg.Record

_log = logging.getLogger(__name__)
_pools: WeakSet[Database] = WeakSet()
"""Those of this process that are open."""


def _of_all(name: str, about: str, figure: Callable[[Database], int]) -> None:
    gauge = Gauge(name, about, registry=telemetry.metrics)
    gauge.set_function(lambda: sum(figure(database) for database in list(_pools)))


_of_all(
    "headrace_database_connections",
    "Connections to the database that this process has.",
    lambda database: database.connections,
)
_of_all(
    "headrace_database_connections_in_use",
    "Those of them in which a statement or a transaction is open.",
    lambda database: database.connections_in_use,
)
_of_all(
    "headrace_database_connections_limit",
    "The most connections that this process opens.",
    lambda database: database.max_size,
)
_of_all(
    "headrace_database_waiting",
    "Statements and transactions that wait for a connection.",
    lambda database: database.waiting,
)

_OUTAGE = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.PostgresConnectionError,
    # What a statement meets on a connection whose server has just said goodbye.
    asyncpg.exceptions.InternalClientError,
    asyncpg.exceptions.CannotConnectNowError,
    asyncpg.exceptions.AdminShutdownError,
    asyncpg.exceptions.CrashShutdownError,
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.exceptions.ReadOnlySQLTransactionError,
    asyncpg.exceptions.IdleInTransactionSessionTimeoutError,
)


def _is_outage(error: BaseException) -> bool:
    """Whether the same statement may pass later.

    asyncpg says InterfaceError for a connection that is closed, and (in subclasses) for arguments that are wrong;
    the second is a bug of ours, which waiting does not mend. A connection that the server ends goes back to the pool
    by itself; whoever still holds it is told that it was released.
    """
    is_lost = type(error) is asyncpg.InterfaceError and any(word in str(error) for word in ("clos", "released back"))
    return is_lost or isinstance(error, _OUTAGE)


class ConstraintViolated(Exception):
    """A CHECK, unique or foreign key said no. `constraint` is its name, which the service maps to a refusal."""

    def __init__(self, constraint: str) -> None:
        super().__init__(constraint)
        self.constraint = constraint


class Connection(Protocol):
    """What a statement needs: the pool itself (autocommit) and a transaction both offer it."""

    async def fetch(self, sql: str, *arguments: Any) -> list[Row]: ...

    async def fetchrow(self, sql: str, *arguments: Any) -> Row | None: ...

    async def fetchval(self, sql: str, *arguments: Any) -> Any: ...

    async def execute(self, sql: str, *arguments: Any) -> str: ...

    async def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> None: ...


class Transaction:
    """One open transaction. Callbacks registered with `after_commit` run once it is durable, never otherwise."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._after_commit: list[Callable[[], Awaitable[None]]] = []

    def after_commit(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Run `callback` after the commit; asking twice with an equal callback runs it once."""
        if callback not in self._after_commit:
            self._after_commit.append(callback)

    async def fetch(self, sql: str, *arguments: Any) -> list[Row]:
        with _our_words():
            return await self._connection.fetch(sql, *arguments)  # type: ignore[no-any-return]

    async def fetchrow(self, sql: str, *arguments: Any) -> Row | None:
        with _our_words():
            return await self._connection.fetchrow(sql, *arguments)  # type: ignore[no-any-return]

    async def fetchval(self, sql: str, *arguments: Any) -> Any:
        with _our_words():
            return await self._connection.fetchval(sql, *arguments)

    async def execute(self, sql: str, *arguments: Any) -> str:
        with _our_words():
            return await self._connection.execute(sql, *arguments)  # type: ignore[no-any-return]

    async def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        with _our_words():
            await self._connection.executemany(sql, rows)

    async def committed(self) -> None:
        for callback in self._after_commit:
            await callback()


class Database:
    """A pool of connections that log in as one service's role and see its schema alone."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        max_size: int = 10,
        statement_seconds: float | None = 30,
        idle_in_transaction_seconds: float = 5.0,
    ) -> None:
        """`name` is what the server shows of this process. Nothing is connected before `open`.

        `statement_seconds`: how long one may take before it counts as an outage; None: as long as it needs.
        """
        self._url = url
        self._name = name
        self.max_size: int = max_size
        self._calls = 0
        """Statements and transactions that are open or wait to be."""
        self._statement_seconds = statement_seconds
        self._idle_in_transaction_seconds = idle_in_transaction_seconds
        self._opened: Any = None

    async def open(self, *, patience_seconds: float = 60) -> Self:
        """Connect, waiting up to `patience_seconds` for a server that is still starting.

        Raises Unavailable when it does not answer in time.
        """

        @retry(
            retry=retry_if_exception(_is_outage),
            wait=wait_random_exponential(multiplier=0.05, max=1),
            stop=stop_after_delay(patience_seconds),
            before_sleep=before_sleep_log(_log, logging.DEBUG),
            reraise=True,
        )
        async def connect() -> Any:
            pool = await asyncpg.create_pool(
                self._url,
                # A pool with a floor keeps trying to restore it while the server is away, with a stack trace each time.
                min_size=0,
                max_size=self.max_size,
                timeout=5,
                command_timeout=self._statement_seconds,
                reset=_reset,
                server_settings={
                    "application_name": self._name,
                    "jit": "off",
                    # A process that was stopped inside a transaction must not keep its locks, or nobody
                    # could take over its leases.
                    "idle_in_transaction_session_timeout": f"{self._idle_in_transaction_seconds * 1000:.0f}ms",
                },
            )
            try:
                await pool.fetchval("select 1")
            except BaseException:
                pool.terminate()
                raise
            return pool

        with _our_words():
            self._opened = await connect()
        _pools.add(self)
        return self

    @property
    def connections(self) -> int:
        return 0 if self._opened is None else int(self._opened.get_size())

    @property
    def connections_in_use(self) -> int:
        return 0 if self._opened is None else int(self._opened.get_size() - self._opened.get_idle_size())

    @property
    def waiting(self) -> int:
        return max(self._calls - self.connections_in_use, 0)

    @property
    def _pool(self) -> Any:
        if self._opened is None:
            raise Unavailable("The database is not connected yet.")
        return self._opened

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Commit on a clean exit, roll back on an exception; then run the after-commit callbacks."""
        # Only our own statements are put into our words: an OSError of the body is the body's.
        with self._call(), _our_words():
            connection = await self._pool.acquire()
        self._calls += 1
        try:
            transaction = Transaction(connection)
            frame = connection.transaction()
            with _our_words():
                await frame.start()
            try:
                yield transaction
            except BaseException:
                # Without an answer the server rolls back by itself; the body's error is the one to tell.
                with suppress(*_OUTAGE, asyncpg.InterfaceError):
                    await frame.rollback()
                raise
            with _our_words():
                await frame.commit()
        finally:
            self._calls -= 1
            await self._pool.release(connection)
        await transaction.committed()

    @contextmanager
    def _call(self) -> Iterator[None]:
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    async def fetch(self, sql: str, *arguments: Any) -> list[Row]:
        with self._call(), _our_words():
            return await self._pool.fetch(sql, *arguments)  # type: ignore[no-any-return]

    async def fetchrow(self, sql: str, *arguments: Any) -> Row | None:
        with self._call(), _our_words():
            return await self._pool.fetchrow(sql, *arguments)  # type: ignore[no-any-return]

    async def fetchval(self, sql: str, *arguments: Any) -> Any:
        with self._call(), _our_words():
            return await self._pool.fetchval(sql, *arguments)

    async def execute(self, sql: str, *arguments: Any) -> str:
        with self._call(), _our_words():
            return await self._pool.execute(sql, *arguments)  # type: ignore[no-any-return]

    async def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        with self._call(), _our_words():
            await self._pool.executemany(sql, rows)

    async def check(self) -> None:
        """Raise Unavailable when the server does not answer."""
        await self.fetchval("select 1")

    async def close(self) -> None:
        """Let running statements finish, for at most two seconds."""
        if self._opened is None:
            return
        _pools.discard(self)
        try:
            await asyncio.wait_for(self._opened.close(), timeout=2)
        except (*_OUTAGE, asyncpg.InterfaceError):
            self._opened.terminate()


async def _reset(connection: Any) -> None:
    """What a connection needs before somebody else gets it: no open transaction.

    Nothing here changes a session otherwise, and asyncpg's own reset is a second round trip for every statement.
    """
    if connection.is_in_transaction():
        await connection.execute("rollback")


@contextmanager
def _our_words() -> Iterator[None]:
    try:
        yield
    except asyncpg.IntegrityConstraintViolationError as error:
        raise ConstraintViolated(error.constraint_name or "") from error
    except asyncpg.ProgramLimitExceededError as error:
        # A text beyond what an index holds, a pattern beyond the stack: what is allowed to be that large came from
        # outside. Rules that know the text refuse it earlier, and in its own name.
        raise InvalidInput("The request holds more than the database can take.", cause=str(error)) from error
    except (*_OUTAGE, asyncpg.InterfaceError) as error:
        if not _is_outage(error):
            raise
        raise Unavailable("The database does not answer.", cause=f"{type(error).__name__}: {error}") from error
