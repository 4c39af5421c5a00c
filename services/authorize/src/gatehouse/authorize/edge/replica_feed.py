"""Identities from this process's copy of the records, and from the databroker where it cannot say.

The copy answers without waiting. One round of Gets is made only while the copy of a type is not
ready or too stale, or when a handle is newer than the copy (a user who has just signed in). If that
fails nobody knows, and the request is answered 503.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeAlias

from gatehouse.authorize.core.check_request import RecordKey
from gatehouse.authorize.core.criteria.facts import RecordNeed
from gatehouse.authorize.core.envelope import Basis
from gatehouse.authorize.core.identity import (
    Identity,
    IdentityCache,
    Lookup,
    Subject,
    readable,
    subject_lookups,
    usable,
)
from gatehouse.authorize.core.identity_headers import NO_TOKENS, Tokens
from gatehouse.authorize.core.lru import LruCache
from gatehouse.authorize.core.records import (
    DirectoryUserFacts,
    RecordReader,
    SessionFacts,
    UserFacts,
    external_record,
)
from gatehouse.authorize.errors import CannotKnowError
from gatehouse.common.clock import Clock
from gatehouse.common.databroker.records import unpack
from gatehouse.common.databroker.replica import Held, Replica
from gatehouse.common.databroker.sync_core import Position
from gatehouse.common.errors import GatehouseError
from gatehouse.common.ids import DIRECTORY_USER, SESSION, USER, TypeUrl
from gatehouse.common.policy.ast import FrozenObject
from gatehouse.common.session.handle import Handle
from gatehouse.pb.databroker_pb2 import PutResponse, Record
from gatehouse.pb.session_pb2 import Session

Positions: TypeAlias = Mapping[TypeUrl, Position]

FETCH_TIMEOUT_S: Final = 4.0  # leaves Envoy time to ask another replica
_FETCHES_AT_ONCE: Final = 64
_WRITTEN_AT_SIGN_IN: Final = frozenset({SESSION, USER})
_TOKENS_KEPT: Final = 1000
_BETWEEN_TURNS: Final = 1000  # records looked at before requests get their turn again


class RecordGetter(Protocol):
    """What is needed of DatabrokerClient."""

    async def get(self, type_url: TypeUrl, id: str) -> Record | None:  # noqa: A002
        """The live record, or None."""
        ...


class IdentitySource:
    """Looks identities up. One per process: it outlives configurations."""

    def __init__(
        self,
        replica: Replica,
        reader: RecordReader,
        client: Callable[[], RecordGetter],
        clock: Clock,
    ) -> None:
        self._replica = replica
        self._reader = reader
        self._client = client
        self._clock = clock
        self._cache = IdentityCache()
        self._tokens: LruCache[SessionFacts, Tokens] = LruCache(_TOKENS_KEPT)
        self._fetches = asyncio.Semaphore(_FETCHES_AT_ONCE)
        self._external = Replica({})
        # What the last answer of `basis` was worked out of, and that answer.
        self._basis: tuple[tuple[Positions, ...], Basis | None] = ((), None)

    def versions(self) -> tuple[int, int]:
        """Server and record version of the copy of sessions, for the log."""
        state = self._replica.state(SESSION)
        return state.server_version, state.record_version

    def basis(self, max_staleness_s: float) -> Basis | None:
        """How far the copy is, for decisions that are remembered; None when it cannot be relied on.

        To be asked for before anything is looked up: a change after that ends what is remembered.
        """
        positions = tuple(
            [
                replica.positions()
                for replica in (self._replica, self._external)
                if not self._is_stale(max_staleness_s, replica)
            ]
        )
        of, basis = self._basis
        if len(of) != len(positions) or any(map(operator.is_not, of, positions)):
            basis = _basis(positions)
            self._basis = (positions, basis)
        return basis

    def held(self, handle: Handle, now_s: float, max_staleness_s: float) -> Identity | None:
        """The identity by the copy; None when the copy cannot say.

        Raises UnreadableRecordError when a record that matters cannot be understood.
        """
        replica = self._replica
        if not replica.ready or self._is_stale(max_staleness_s):
            return None
        if handle.record_version and not replica.has_reached(
            SESSION, handle.server_version, handle.record_version
        ):
            session = replica.get(SESSION, handle.session_id)
            if session is None or session.version < handle.record_version:
                return None
        lookups = subject_lookups(handle.session_id)
        asked: list[Lookup] = []
        try:
            wanted = next(lookups)
            while True:
                asked.append(wanted)
                found = replica.get(*wanted)
                wanted = lookups.send(found.value if found is not None else None)
        except StopIteration as end:
            subject: Subject = end.value
        return self._cache.resolve(handle.session_id, subject, now_s, asked)

    def held_session(
        self, session_id: str, max_staleness_s: float
    ) -> tuple[bool, SessionFacts | None]:
        """Whether the copy can say, and the session it has. Raises UnreadableRecordError."""
        if not self._replica.ready or self._is_stale(max_staleness_s):
            return False, None
        found = self._replica.get(SESSION, session_id)
        return True, readable(found.value if found is not None else None, SessionFacts)

    async def sessions_of(self, who: str, now_s: float) -> list[str]:
        """Live sessions of a user, by the user's id or email address, the latest first.

        By the copy alone, and by looking at all of it: for people who ask, never for requests.
        """
        users = {who}
        address = who.casefold()
        for type_url in (USER, DIRECTORY_USER) if "@" in who else ():
            async for record_id, held in self._all(type_url):
                person = held.value
                if (
                    isinstance(person, UserFacts | DirectoryUserFacts)
                    and (person.email or "").casefold() == address
                ):
                    users.add(record_id)
        found = [
            (held.version, record_id)
            async for record_id, held in self._all(SESSION)
            if isinstance(held.value, SessionFacts)
            and held.value.user_id in users
            and usable(held.value, now_s)
        ]
        return [record_id for _, record_id in sorted(found, reverse=True)]

    async def _all(self, type_url: TypeUrl) -> AsyncIterator[tuple[str, Held]]:
        """Every record of a type, with turns for requests in between."""
        for number, item in enumerate(self._replica.live(type_url).items(), start=1):
            yield item
            if number % _BETWEEN_TURNS == 0:
                await asyncio.sleep(0)

    def decode(self, record: Record) -> object:
        """The facts of a record, as the copy would hold them."""
        return self._reader.decode(record)

    async def caught_up(self, put: PutResponse, limit_s: float) -> None:
        """Return once the copy has received what was written, or after `limit_s` without."""
        changed = asyncio.Event()
        unsubscribe = self._replica.subscribe(lambda _change: changed.set())
        try:
            async with asyncio.timeout(limit_s):
                while not all(
                    self._replica.has_reached(
                        TypeUrl(record.type), put.server_version, record.version
                    )
                    for record in put.records
                ):
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            return  # whoever reads the session asks the databroker
        finally:
            unsubscribe()

    async def fetch(self, handle: Handle, now_s: float, max_staleness_s: float) -> Identity:
        """The identity by asking the databroker for what the copy cannot say.

        Raises CannotKnowError when it cannot be asked or gives no clear answer.
        """
        behind = not self._replica.has_reached(
            SESSION, handle.server_version, handle.record_version
        )
        stale = self._is_stale(max_staleness_s)
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S), self._fetches:
                subject, asked = await self._ask(handle.session_id, ask_all=stale, ask_new=behind)
        except TimeoutError as error:
            raise _cannot_know("the databroker did not answer in time") from error
        return self._cache.resolve(handle.session_id, subject, now_s, asked)

    async def tokens(self, identity: Identity) -> Tokens:
        """The identity provider's tokens of the session in force, never kept in the copy.

        Raises CannotKnowError.
        """
        session = identity.subject.impersonated or identity.subject.session
        if session is None or not identity.has_session:
            return NO_TOKENS
        known = self._tokens.get(session)
        if known is not None:
            return known
        record = await self.record(SESSION, session.id)
        if record is None:
            return NO_TOKENS
        message = unpack(record, Session)
        tokens = Tokens(message.oauth_token.access_token, message.id_token.raw)
        self._tokens.put(session, tokens)
        return tokens

    def hold(self, types: frozenset[TypeUrl]) -> Replica | None:
        """Keep records of these external data sources from now on; a new replica to be fed.

        None when the types are those already held. Until it is fed, records are asked for.
        """
        if types == frozenset(self._external.types):
            return None
        self._external = Replica(dict.fromkeys(types, external_record))
        return self._external

    async def external(
        self, needs: Iterable[RecordNeed], identity: Identity, max_staleness_s: float
    ) -> Mapping[RecordKey, FrozenObject | None]:
        """The records that a policy asks about whoever asks.

        Raises CannotKnowError when one of them cannot be had or read.
        """
        found: dict[RecordKey, FrozenObject | None] = {}
        replica = self._external
        for need in needs:
            key = need.key(identity)
            if key is None or key in found:
                continue
            type_url, record_id = key
            if (
                type_url in replica.types
                and replica.state(type_url).ready
                and not self._is_stale(max_staleness_s, replica)
            ):
                held = replica.get(type_url, record_id)
                value = held.value if held is not None else None
            else:
                value = await self._fetched(type_url, record_id)
            found[key] = readable(value, FrozenObject)
        return found

    async def _fetched(self, type_url: TypeUrl, record_id: str) -> object:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S), self._fetches:
                record = await self.record(type_url, record_id)
        except TimeoutError as error:
            raise _cannot_know("the databroker did not answer in time") from error
        return external_record(record) if record is not None else None

    async def record(self, type_url: TypeUrl, record_id: str) -> Record | None:
        """Ask the databroker. Anything but a clear answer is CannotKnowError."""
        try:
            return await self._client().get(type_url, record_id)
        except GatehouseError as error:
            raise _cannot_know(f"the databroker cannot be asked: {error}") from error

    async def _ask(
        self, handle_id: str, *, ask_all: bool, ask_new: bool
    ) -> tuple[Subject, Sequence[Lookup]]:
        lookups = subject_lookups(handle_id)
        asked: list[Lookup] = []
        try:
            type_url, record_id = next(lookups)
            while True:
                asked.append((type_url, record_id))
                ask = (
                    ask_all
                    or (ask_new and type_url in _WRITTEN_AT_SIGN_IN)
                    or not self._replica.state(type_url).ready
                )
                value = await self._asked(type_url, record_id) if ask else None
                if not ask:
                    held = self._replica.get(type_url, record_id)
                    value = held.value if held is not None else None
                type_url, record_id = lookups.send(value)
        except StopIteration as end:
            subject: Subject = end.value
            return subject, asked

    async def _asked(self, type_url: TypeUrl, record_id: str) -> object:
        record = await self.record(type_url, record_id)
        return self._reader.decode(record) if record is not None else None

    def _is_stale(self, max_staleness_s: float, replica: Replica | None = None) -> bool:
        if not max_staleness_s:
            return False
        staleness_s = (replica or self._replica).staleness_s(self._clock.monotonic_s())
        return staleness_s is None or staleness_s > max_staleness_s


def _basis(positions: Iterable[Positions]) -> Basis | None:
    versions: dict[TypeUrl, int] = {}
    server_version = 0
    for of_replica in positions:
        for type_url, position in of_replica.items():
            if server_version not in {0, position.server_version}:
                return None  # one of the copies is of a history that has ended
            server_version = position.server_version
            versions[type_url] = position.record_version
    return Basis(server_version, versions) if server_version else None


def _cannot_know(message: str) -> CannotKnowError:
    return CannotKnowError(message, public_message="Identity data is not available now.")
