"""How the PostgreSQL store gets at its connections: a pool for work, one more for listening."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import psycopg
import psycopg_pool
from psycopg import errors as pg
from psycopg.rows import TupleRow

from gatehouse.common.clock import Rng
from gatehouse.common.errors import DeadlineExceededError, GatehouseError
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.backoff import Backoff
from gatehouse.databroker.edge.backends import postgres_sql as sql
from gatehouse.databroker.edge.backends.base import Figure
from gatehouse.databroker.edge.backends.connections import PostgresConnection
from gatehouse.databroker.edge.backends.postgres_errors import message_of, translated
from gatehouse.databroker.edge.backends.postgres_schema import Connection
from gatehouse.databroker.errors import StorageUnavailableError

STATEMENT_TIMEOUT_S: Final = 10
IDLE_TRANSACTION_TIMEOUT_S: Final = 5
LOCK_TIMEOUT_S: Final = 8
CONNECTION_TIMEOUT_S: Final = 5.0  # to get one from the pool
# The pool doubles its pauses while nothing can be reached, up to the end of an attempt. Whoever
# needs a connection then begins another one, so that the end of a long outage is noticed at once.
ATTEMPT_S: Final = 1.0
# The server ends statements by itself; this is for one that has fallen silent.
ANSWER_TIMEOUT_S: Final = STATEMENT_TIMEOUT_S + 2.0
MAX_WAITING: Final = 1_000  # callers that wait for a connection
LISTEN_CHECK_S: Final = 30.0
POOL_LINES_S: Final = 30.0  # at most one line of the pool in so long; what it means is ours to say

T = TypeVar("T")

_log = get_logger("databroker")


class _Seldom(logging.Filter):
    """Lets a line through now and then."""

    def __init__(self, interval_s: float) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._next_s = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        if record.created < self._next_s:
            return False
        self._next_s = record.created + self._interval_s
        return True


_SELDOM: Final = _Seldom(POOL_LINES_S)


class Connections:
    """A pool that is made at `open`; `run` keeps it in health. Errors are ours throughout."""

    def __init__(
        self, target: PostgresConnection, rng: Rng, answer_timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        self._target = target
        self._answer_timeout_s = answer_timeout_s
        self._rng = rng
        self._pool: psycopg_pool.AsyncConnectionPool[Connection] | None = None
        self._suspect = asyncio.Event()
        self._report: Callable[[GatehouseError | None], None] = lambda _error: None

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
            reconnect_timeout=ATTEMPT_S,
            configure=_configure,
            name="databroker",
            open=False,
        )
        logging.getLogger("psycopg.pool").addFilter(_SELDOM)
        await pool.open(wait=False)
        self._pool = pool

    async def close(self) -> None:
        """Close every connection of the pool."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close(timeout=CONNECTION_TIMEOUT_S)

    async def run(self) -> None:
        """Weed out dead connections as soon as one was met, and now and then, until cancelled."""
        cancellations = _cancellations()
        while _cancellations() == cancellations:  # the pool may drop one, see `pooled`
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._target.health_check_s):
                    await self._suspect.wait()
            self._suspect.clear()
            if self._pool is not None:
                with contextlib.suppress(psycopg.Error, TimeoutError):
                    async with asyncio.timeout(ANSWER_TIMEOUT_S):
                        await self._pool.check()
        raise asyncio.CancelledError

    def on_listening(self, report: Callable[[GatehouseError | None], None]) -> None:
        """Tell `report` how `listen` does: None when it has begun."""
        self._report = report

    def figures(self) -> Sequence[Figure]:
        """Return how the pool does, under the names that dashboards know."""
        pool = self._pool
        stats = {} if pool is None else pool.get_stats()

        def of(key: str) -> int:
            return stats.get(key, 0)  # psycopg leaves out what has not happened yet

        wait_ns = of("requests_wait_ms") * 1_000_000
        counters = (
            ("acquires", "Connections asked of the pool.", of("requests_num")),
            ("empty_acquire", "Of these, how many had to wait.", of("requests_queued")),
            ("canceled_acquires", "Of these, how many got none.", of("requests_errors")),
            ("acquire_duration_nanoseconds", "How long they waited.", wait_ns),
            ("new_connections", "Connections opened.", of("connections_num")),
        )
        free, size = of("pool_available"), of("pool_size")
        gauges = (
            ("idle_connections", "Connections that nobody uses now.", free),
            ("acquired_connections", "Connections in use or being opened.", max(0, size - free)),
            ("total_connections", "Connections of the pool.", size),
            ("max_connections", "The most that it may have.", self._target.max_connections),
        )
        return tuple(
            Figure(f"pgxpool_{name}", meaning, value, is_counter=figures is counters)
            for figures in (counters, gauges)
            for name, meaning, value in figures
        )

    @contextlib.asynccontextmanager
    async def single(self) -> AsyncIterator[Connection]:
        """Connect outside the pool, for the length of the block."""
        with translated():
            async with await self._connect() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def pooled(self, limit_s: float | None = None) -> AsyncIterator[Connection]:
        """Take a connection from the pool for the length of the block, `limit_s` at the most.

        Raises DeadlineExceededError when that (or the usual limit) has passed; the connection is
        closed then, if it was waiting for the server.
        """
        limit_s = self._answer_timeout_s if limit_s is None else limit_s
        pool = self._pool
        if pool is None:
            raise StorageUnavailableError("the store is not open")
        with translated():
            cancellations = _cancellations()
            async with pool.connection() as connection:
                if _cancellations() > cancellations:
                    # The pool waits with asyncio.wait_for, which before Python 3.12 drops a
                    # cancellation that comes together with the connection.
                    raise asyncio.CancelledError
                try:
                    async with asyncio.timeout(limit_s) as limit:
                        yield connection
                except TimeoutError:
                    if not limit.expired():
                        raise
                    raise DeadlineExceededError(
                        f"PostgreSQL: no answer within {limit_s:g} s",
                        reason="storage-timeout",
                        public_message="the databroker's storage took too long",
                    ) from None
                except pg.ReadOnlySqlTransaction:
                    # Demoted under us: the next connection is made to the server that is primary.
                    await connection.close()
                    raise
                finally:
                    if connection.closed:
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
                        broken = connection.closed
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
                    async with asyncio.timeout(CONNECTION_TIMEOUT_S):
                        await connection.execute(sql.LISTEN)
                    backoff.reset()
                    is_failing = False
                    self._report(None)
                    # Nothing was queued for us while we were not listening.
                    wake()
                    while True:
                        async for _ in connection.notifies(timeout=LISTEN_CHECK_S):
                            wake()
                        async with asyncio.timeout(CONNECTION_TIMEOUT_S):
                            await connection.execute("SELECT 1")
            except (psycopg.Error, TimeoutError) as error:
                if not is_failing:
                    _log.warning("storage notifications interrupted", error=message_of(error))
                is_failing = True
                self._report(StorageUnavailableError(f"PostgreSQL: {message_of(error)}"))
            await asyncio.sleep(backoff.next_s(self._rng))

    async def _connect(self) -> Connection:
        connection = await psycopg.AsyncConnection.connect(self._target.conninfo, autocommit=True)
        try:
            await _configure(connection)
        except BaseException:
            await connection.close()
            raise
        return connection


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


async def _configure(connection: Connection) -> None:
    limits = (STATEMENT_TIMEOUT_S, IDLE_TRANSACTION_TIMEOUT_S, LOCK_TIMEOUT_S)
    async with asyncio.timeout(CONNECTION_TIMEOUT_S):
        await connection.execute(sql.SESSION, [f"{limit}s" for limit in limits])


async def allow(connection: Connection, timeout_s: int) -> None:
    """Let the statements of the present transaction take longer than usual."""
    await connection.execute(sql.LOCAL_TIMEOUT, (f"{timeout_s}s",))
