"""How the PostgreSQL schema is made and brought up to date, by whichever replica comes first."""

from __future__ import annotations

from typing import TypeAlias

import psycopg
from psycopg.rows import TupleRow

from gatehouse.databroker.edge.backends import postgres_sql as sql
from gatehouse.databroker.edge.migrations import POSTGRES_VERSION, SEALED_SINCE, read_step
from gatehouse.databroker.errors import ClearStoreError, StorageUnusableError

Connection: TypeAlias = "psycopg.AsyncConnection[TupleRow]"


async def migrate(connection: Connection, server_version: int) -> None:
    """Bring the schema up to date; a new one begins with that server version.

    Needs the right to create things only when there is something to create. Raises
    StorageUnusableError for a schema of a newer release, or an old one with records in clear.
    """
    if await _version(connection) == POSTGRES_VERSION:
        return
    async with connection.transaction():
        await connection.execute(sql.ADVISORY_LOCK, (sql.MIGRATION_LOCK,))
        await connection.execute(sql.LOCAL_TIMEOUT, ("0",))  # a large table takes its time
        version = await _version(connection)  # another replica may have been here meanwhile
        if version > POSTGRES_VERSION:
            raise StorageUnusableError(
                f"the database has gatehouse schema version {version}, this release knows up to "
                f"{POSTGRES_VERSION}; run the newer release"
            )
        if 0 < version < SEALED_SINCE and await _holds_clear(connection):
            raise ClearStoreError("the database's schema gatehouse")
        has_schema, has_table = await _state(connection)
        if not has_schema:
            await connection.execute("CREATE SCHEMA gatehouse")
        if not has_table:
            await connection.execute(sql.SCHEMA_TABLE)
        for step in range(version + 1, POSTGRES_VERSION + 1):
            await connection.execute(read_step("postgres", step).encode())
            await connection.execute(sql.SCHEMA_STEP, (step,))
        await connection.execute(sql.FIRST_HISTORY, (server_version,))


async def _state(connection: Connection) -> tuple[bool, bool]:
    row = await (await connection.execute(sql.SCHEMA_STATE)).fetchone()
    assert row is not None
    return bool(row[0]), bool(row[1])


async def _holds_clear(connection: Connection) -> bool:
    row = await (await connection.execute(sql.HOLDS_CLEAR)).fetchone()
    return row is not None and bool(row[0])


async def _version(connection: Connection) -> int:
    _, has_table = await _state(connection)
    if not has_table:
        return 0
    row = await (await connection.execute(sql.SCHEMA_VERSION)).fetchone()
    assert row is not None
    return int(row[0])
