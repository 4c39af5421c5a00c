"""How the PostgreSQL store gets at its connections: a pool for work, one more for listening."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

import psycopg
import psycopg_pool
from psycopg.rows import TupleRow

from gatehouse.common.clock import Rng
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.backoff import Backoff
from gatehouse.databroker.edge.backends import postgres_sql as sql
from gatehouse.databroker.edge.backends.connections import PostgresConnection
from gatehouse.databroker.edge.backends.postgres_errors import message_of, translated
from gatehouse.databroker.edge.backends.postgres_schema import Connection
from gatehouse.databroker.errors import StorageUnavailableError

STATEMENT_TIMEOUT_S: Final = 10
IDLE_TRANSACTION_TIMEOUT_S: Final = 5
LOCK_TIMEOUT_S: Final = 8
CONNECTION_TIMEOUT_S: Final = 5.0  # to get one from the pool
MAX_WAITING: Final = 1_000  # callers that wait for a connection
LISTEN_CHECK_S: Final = 30.0

T = TypeVar("T")

_log = get_logger("databroker")


class Connections:
    """A pool that is made at `open`; `run` keeps it in health. Errors are ours throughout."""

    def __init__(self, target: PostgresConnection, rng: Rng) -> None:
        self._target = target
        self._rng = rng
        self._pool: psycopg_pool.AsyncConnectionPool[Connection] | None = None
        self._suspect = asyncio.Event()

    async def open(self) -> None:
        """Make the pool; connections are made as they are needed."""
        for warning in self._target.warnings:
            _log.warning("storage connection", issue=warning)
        pool = psycopg_pool.AsyncConnectionPool(
            self._target.conninfo,
            kwargs={"autocommit": True},
            min_size=self._target.min_connections,
            max_size=self._target.max_connections,
            max_lifetime=self._target.max_lifetime_s,
            max_idle=self._target.max_idle_s,
            max_waiting=MAX_WAITING,
            timeout=CONNECTION_TIMEOUT_S,
            configure=_configure,
            name="databroker",
            open=False,
        )
        await pool.open(wait=False)
        self._pool = pool

    async def close(self) -> None:
        """Close every connection of the pool."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close(timeout=CONNECTION_TIMEOUT_S)

    async def run(self) -> None:
        """Weed out dead connections as soon as one was met, and now and then, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._target.health_check_s):
                    await self._suspect.wait()
            self._suspect.clear()
            if self._pool is not None:
                with contextlib.suppress(psycopg.Error):
                    await self._pool.check()

    @contextlib.asynccontextmanager
    async def single(self) -> AsyncIterator[Connection]:
        """Connect outside the pool, for the length of the block."""
        with translated():
            async with await self._connect() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def pooled(self) -> AsyncIterator[Connection]:
        """Take a connection from the pool for the length of the block."""
        pool = self._pool
        if pool is None:
            raise StorageUnavailableError("the store is not open")
        with translated():
            async with pool.connection() as connection:
                try:
                    yield connection
                finally:
                    if connection.broken:
                        self._suspect.set()

    async def use(
        self,
        work: Callable[[Connection], Awaitable[T]],
        may_repeat: Callable[[], bool] = lambda: True,
    ) -> T:
        """Return what `work` returns; it is done again as long as it meets dead connections.

        Work that writes says by `may_repeat` whether it has not got that far yet.
        """
        left = self._target.max_connections
        while True:
            broken = False
            try:
                async with self.pooled() as connection:
                    try:
                        return await work(connection)
                    finally:
                        broken = connection.broken
            except StorageUnavailableError:
                left -= 1
                if not broken or left < 0 or not may_repeat():
                    raise

    async def row(self, statement: str, *args: Any) -> TupleRow | None:
        """Return the first row of a reading statement."""

        async def fetch(connection: Connection) -> TupleRow | None:
            cursor = await connection.execute(statement.encode(), args, binary=True)
            return await cursor.fetchone()

        return await self.use(fetch)

    async def rows(self, statement: str, args: Any = ()) -> list[TupleRow]:
        """Return the rows of a reading statement."""

        async def fetch(connection: Connection) -> list[TupleRow]:
            cursor = await connection.execute(statement.encode(), args, binary=True)
            return await cursor.fetchall()

        return await self.use(fetch)

    async def listen(self, wake: Callable[[], None]) -> None:
        """Call `wake` at each notification, and whenever listening begins anew, until cancelled."""
        backoff = Backoff(0.1, 1.5, 5.0, 0.5)
        is_failing = False
        while True:
            try:
                async with await self._connect() as connection:
                    await connection.execute(sql.LISTEN)
                    backoff.reset()
                    is_failing = False
                    # Nothing was queued for us while we were not listening.
                    wake()
                    while True:
                        async for _ in connection.notifies(timeout=LISTEN_CHECK_S):
                            wake()
                        await connection.execute("SELECT 1")
            except psycopg.Error as error:
                if not is_failing:
                    _log.warning("storage notifications interrupted", error=message_of(error))
                is_failing = True
            await asyncio.sleep(backoff.next_s(self._rng))

    async def _connect(self) -> Connection:
        connection = await psycopg.AsyncConnection.connect(self._target.conninfo, autocommit=True)
        try:
            await _configure(connection)
        except BaseException:
            await connection.close()
            raise
        return connection


async def _configure(connection: Connection) -> None:
    limits = (STATEMENT_TIMEOUT_S, IDLE_TRANSACTION_TIMEOUT_S, LOCK_TIMEOUT_S)
    await connection.execute(sql.SESSION, [f"{limit}s" for limit in limits])


async def allow(connection: Connection, timeout_s: int) -> None:
    """Let the statements of the present transaction take longer than usual."""
    await connection.execute(sql.LOCAL_TIMEOUT, (f"{timeout_s}s",))
