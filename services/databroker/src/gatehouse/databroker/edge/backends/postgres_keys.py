"""How the PostgreSQL store keeps its data keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.errors import GatehouseError
from gatehouse.common.observability.logging import get_logger
from gatehouse.databroker.core.sealing import UnknownDataKeyError, WrappedKey
from gatehouse.databroker.edge.backends import postgres_sql as sql
from gatehouse.databroker.edge.backends.base import KEYS_CHECKED_S
from gatehouse.databroker.edge.backends.postgres_connections import Connections
from gatehouse.databroker.edge.backends.postgres_schema import Connection
from gatehouse.databroker.edge.backends.sealed_payloads import SealedPayloads

T = TypeVar("T")

_log = get_logger("databroker")


class KeyTable:
    """The data keys of one database, shared by every databroker on it."""

    def __init__(self, db: Connections, codec: SealedPayloads, clock: Clock, rng: Rng) -> None:
        self._db = db
        self._codec = codec
        self._clock = clock
        self._rng = rng

    async def refresh(self, connection: Connection) -> None:
        """Bring the data keys in line with the secrets in force; make a new one when due.

        Raises WrongSecretError.
        """
        now_us = int(self._clock.now_s() * 1e6)
        plan = self._codec.plan(await self._rows(connection), now_us)
        if plan.changed:
            async with connection.transaction():
                await connection.execute(sql.ADVISORY_LOCK, (sql.KEYS_LOCK,))
                # Another databroker may have been here meanwhile.
                plan = self._codec.plan(await self._rows(connection), now_us)
                for row in plan.changed:
                    columns = (row.id, row.created_at_us, row.wrapped_by, row.wrapped)
                    await connection.execute(sql.PUT_DATA_KEY, columns)
        self._codec.install(plan)

    async def _rows(self, connection: Connection) -> list[WrappedKey]:
        cursor = await connection.execute(sql.DATA_KEYS, binary=True)
        return [WrappedKey(*row) for row in await cursor.fetchall()]

    async def having_keys(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what `work` returns; again with fresh keys when it met one it did not know."""
        while True:
            try:
                return await work()
            except UnknownDataKeyError as error:
                async with self._db.pooled() as connection:
                    await self.refresh(connection)
                if not self._codec.knows(error.number):
                    self._codec.give_up(error.number)

    async def run(self) -> None:
        """Keep the keys up to date until cancelled."""
        while True:
            try:
                async with self._db.pooled() as connection:
                    await self.refresh(connection)
            except GatehouseError as error:
                _log.warning("keys of the store not looked after", error=str(error))
            await asyncio.sleep(KEYS_CHECKED_S * self._rng.uniform(0.8, 1.2))
