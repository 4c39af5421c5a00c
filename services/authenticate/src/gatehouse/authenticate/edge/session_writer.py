"""How sessions and users reach the databroker and come back.

Any failure of the databroker, whatever its code, is a 503 page: a store that cannot answer must
neither look like "no session" nor let somebody leave for a sign-in that cannot be kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from gatehouse.common.clock import Clock
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.records import record_of, timestamp_of, unpack
from gatehouse.common.errors import GatehouseError
from gatehouse.common.ids import SESSION, USER
from gatehouse.common.pages.refusal import storage_unavailable
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User


@dataclass(frozen=True, slots=True)
class StoredSession:
    """Where a session stands in the databroker's history."""

    server_version: int
    record_version: int


class SessionWriter:
    """Reads and writes the records of a sign-in. Every method may raise a 503 refusal."""

    def __init__(self, databroker: DatabrokerClient, clock: Clock) -> None:
        self._databroker = databroker
        self._clock = clock

    async def check(self) -> None:
        """Return if the databroker answers: asked before anybody leaves for their provider."""
        with _as_unavailable():
            await self._databroker.server_info()

    async def session(self, session_id: str) -> Session | None:
        """The session record, or None if there is none any more."""
        with _as_unavailable():
            record = await self._databroker.get(SESSION, session_id)
            return None if record is None else unpack(record, Session)

    async def user(self, user_id: str) -> User | None:
        """The user record, or None. A read error is an error, never an empty user."""
        with _as_unavailable():
            record = await self._databroker.get(USER, user_id)
            return None if record is None else unpack(record, User)

    async def store(self, session: Session, user: User) -> StoredSession:
        """Write user and session in one transaction."""
        with _as_unavailable():
            response = await self._databroker.put(
                [record_of(user, user.id), record_of(session, session.id)]
            )
        versions = [record.version for record in response.records if record.type == SESSION]
        return StoredSession(response.server_version, max(versions, default=0))

    async def end(self, session_id: str) -> Session | None:
        """Delete the session; the tombstone keeps its data. Returns what it was."""
        with _as_unavailable():
            record = await self._databroker.get(SESSION, session_id)
            if record is None:
                return None
            session = unpack(record, Session)
            record.deleted_at.CopyFrom(timestamp_of(self._clock.now_s()))
            await self._databroker.put([record])
            return session


@contextlib.contextmanager
def _as_unavailable() -> Iterator[None]:
    try:
        yield
    except GatehouseError as error:
        raise storage_unavailable(f"databroker: {error}") from error
