"""What the PostgreSQL store keeps beside records and log: leases, services, access times, ..."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gatehouse.common.errors import GatehouseError
from gatehouse.databroker.core import leases
from gatehouse.databroker.core.records import Key
from gatehouse.databroker.core.registry import Entry
from gatehouse.databroker.edge.backends import postgres_sql as sql
from gatehouse.databroker.edge.backends.base import Checkpoint, Figure
from gatehouse.databroker.edge.backends.postgres_connections import Connections


class UnversionedTables:
    """The part of the storage contract that makes no versions."""

    def __init__(self, db: Connections) -> None:
        self._db = db

    def on_listening(self, report: Callable[[GatehouseError | None], None]) -> None:
        """Tell `report` how listening for notifications does."""
        self._db.on_listening(report)

    def figures(self) -> Sequence[Figure]:
        """Return how the pool of connections does."""
        return self._db.figures()

    async def acquire_lease(self, name: str, new_id: str, duration_us: int) -> bool:
        """Take a lease."""
        return await self._change_lease(leases.acquisition(name, new_id, duration_us), name)

    async def renew_lease(self, name: str, lease_id: str, duration_us: int) -> bool:
        """Extend a lease."""
        return await self._change_lease(leases.renewal(name, lease_id, duration_us), name)

    async def release_lease(self, name: str, lease_id: str) -> None:
        """Give a lease back."""
        await self._change_lease(leases.giving_back(lease_id), name)

    async def _change_lease(self, change: leases.Change, name: str) -> bool:
        async with (
            self._db.pooled() as connection,
            connection.pipeline(),
            connection.transaction(),
        ):
            await connection.execute(sql.LEASE_LOCK, (name,))
            cursor = await connection.execute(sql.LEASE, (name,))
            row = await cursor.fetchone()
            assert row is not None
            now_us, *columns = row
            held = None if columns[0] is None else leases.Lease(*columns)
            lease = change(held, now_us)
            if lease is not None:
                await connection.execute(
                    sql.SET_LEASE, (lease.name, lease.id, lease.expires_at_us, lease.fence)
                )
        return lease is not None

    async def register(self, entries: Sequence[Entry], ttl_us: int) -> None:
        """Note where services are; rows are locked in order, as with access times."""
        columns = (ttl_us, [kind for kind, _ in entries], [endpoint for _, endpoint in entries])
        async with self._db.pooled() as connection:
            await connection.execute(sql.REGISTER, columns)

    async def registered(self) -> tuple[Entry, ...]:
        """Return what has not expired."""
        return tuple((kind, endpoint) for kind, endpoint in await self._db.rows(sql.REGISTERED))

    async def checkpoint(self) -> Checkpoint:
        """Return the replication position."""
        row = await self._db.row(sql.CHECKPOINT)
        assert row is not None
        return Checkpoint(int(row[0]), int(row[1]))

    async def set_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Store the replication position."""
        async with self._db.pooled() as connection:
            await connection.execute(
                sql.SET_CHECKPOINT, (checkpoint.server_version, checkpoint.record_version)
            )

    async def put_access_times(self, times: Mapping[Key, int]) -> None:
        """Note when live records were used, in one statement.

        It locks rows in the order of the keys, as any other does, and the deletion of records
        passes over rows that are locked: so nobody waits in a circle.
        """
        columns = ([key[0] for key in times], [key[1] for key in times], list(times.values()))
        async with self._db.pooled() as connection:
            await connection.execute(sql.PUT_ACCESS_TIMES, columns)

    async def access_times(self, type_: str, ids: Sequence[str]) -> Mapping[str, int]:
        """Return when live records were last used."""
        rows = await self._db.rows(sql.ACCESS_TIMES, (type_, list(ids)))
        return dict(rows)
