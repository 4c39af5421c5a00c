"""How sessions and users reach the databroker and come back.

Any failure of the databroker, whatever its code, is a 503 page: a store that cannot answer must
neither look like "no session" nor let somebody leave for a sign-in that cannot be kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from gatehouse.authenticate.core.records import USER_PATHS
from gatehouse.common.clock import Clock
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.person import Person, read_person
from gatehouse.common.databroker.records import record_of, timestamp_of, unpack
from gatehouse.common.databroker.session_ending import end_sessions
from gatehouse.common.errors import GatehouseError
from gatehouse.common.ids import SESSION, USER
from gatehouse.common.pages.refusal import storage_unavailable
from gatehouse.common.session.ending import Ending
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

    async def person(self, user_id: str) -> Person:
        """What is known about a person, for the page that shows it to them."""
        with _as_unavailable():
            return await read_person(self._databroker, user_id)

    async def store(self, session: Session, user: User, known: User | None) -> StoredSession:
        """Write the session and what is new of its user; `known` is the user as it was read.

        Of a known user only the fields of a sign-in are written: what others write meanwhile (an
        enrolled device) stays. A new user comes with the session, in one transaction.
        """
        with _as_unavailable():
            records = [record_of(session, session.id)]
            if known is None or not await self._update(user, known):
                user.ClearField("device_credential_ids")  # those of a user who was deleted
                records.insert(0, record_of(user, user.id))
            response = await self._databroker.put(records)
        versions = [record.version for record in response.records if record.type == SESSION]
        return StoredSession(response.server_version, max(versions, default=0))

    async def _update(self, user: User, known: User) -> bool:
        """Bring the record of a known user up to date; False if there is none any more."""
        if user == known:
            return True
        response = await self._databroker.patch([record_of(user, user.id)], USER_PATHS)
        return bool(response.records)

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

    async def end_all(self, ending: Ending) -> tuple[Session, ...]:
        """Delete every session that `ending` includes. Returns what they were."""
        with _as_unavailable():
            return await end_sessions(self._databroker, ending, self._clock)

    async def end_once(
        self, name: str, remember_s: float, ending: Ending
    ) -> tuple[Session, ...] | None:
        """Do it, unless it was done under this name within the time: then None.

        What failed half-way may be tried again under the same name.
        """
        with _as_unavailable():
            lease = await self._databroker.acquire_lease(name, remember_s)
            if lease is None:
                return None
            try:
                return await end_sessions(self._databroker, ending, self._clock)
            except GatehouseError:
                with contextlib.suppress(GatehouseError):
                    await self._databroker.release_lease(name, lease)
                raise


@contextlib.contextmanager
def _as_unavailable() -> Iterator[None]:
    try:
        yield
    except GatehouseError as error:
        raise storage_unavailable(f"databroker: {error}") from error
