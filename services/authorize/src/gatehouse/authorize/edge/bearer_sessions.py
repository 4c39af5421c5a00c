"""Sessions that bearer tokens stand for: found in the copy, or made once and written down.

Concurrent requests with one token make one session; a token that does not hold is remembered for
moments only, because a provider may come to know it. Whatever cannot be found out is
CannotKnowError: a token is refused by knowledge alone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from gatehouse.authorize.core.bearer import (
    BearerRequest,
    CheckedToken,
    is_for,
    session_id_of,
    session_of,
    user_of,
)
from gatehouse.authorize.core.identity import readable, unexpired
from gatehouse.authorize.core.lru import LruCache
from gatehouse.authorize.core.records import SessionFacts
from gatehouse.authorize.edge.replica_feed import IdentitySource
from gatehouse.authorize.edge.single_flight import SingleFlight
from gatehouse.authorize.edge.token_verifiers import VERIFY_TIMEOUT_S, TokenVerifiers
from gatehouse.authorize.errors import CannotKnowError
from gatehouse.common.clock import Clock
from gatehouse.common.config.model import BearerTokenFormat
from gatehouse.common.databroker.records import record_of, unpack
from gatehouse.common.errors import GatehouseError, InvalidTokenError
from gatehouse.common.identity.token_check import is_bearer_token
from gatehouse.common.ids import SESSION, USER
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.observability.metrics import (
    ACCESS_TOKEN_SESSIONS,
    IDENTITY_TOKEN_SESSIONS,
    JWT_SESSIONS,
    TokenSessions,
)
from gatehouse.common.session.handle import Handle
from gatehouse.pb.databroker_pb2 import PutResponse, Record
from gatehouse.pb.user_pb2 import User

REFUSED_FOR_S: Final = 10.0
CATCH_UP_S: Final = 1.0  # the copy gets this long to receive what was written
_REFUSED_KEPT: Final = 10_000
_FLIGHTS: Final = 4096
_AT_ONCE: Final = 64
_COUNTED: Final[Mapping[BearerTokenFormat, TokenSessions]] = {
    BearerTokenFormat.IDP_ACCESS_TOKEN: ACCESS_TOKEN_SESSIONS,
    BearerTokenFormat.IDP_IDENTITY_TOKEN: IDENTITY_TOKEN_SESSIONS,
    BearerTokenFormat.JWT: JWT_SESSIONS,
}

# Format, who issued it, and the token: all that a session depends on.
_Key = tuple[BearerTokenFormat, str, str]

_log = get_logger("authorize")


class RecordWriter(Protocol):
    """What is needed of DatabrokerClient."""

    async def put(self, records: Sequence[Record]) -> PutResponse:
        """Write all of them or none."""
        ...


@dataclass(frozen=True, slots=True)
class _Found:
    """A live session, and from which version of the copy on it is there."""

    user_id: str
    idp_id: str
    audience: tuple[object, ...]
    server_version: int | None = None
    record_version: int | None = None


class BearerSessions:
    """One per process: it outlives configurations. Belongs to one event loop."""

    def __init__(
        self, source: IdentitySource, writer: Callable[[], RecordWriter], clock: Clock
    ) -> None:
        self._source = source
        self._writer = writer
        self._clock = clock
        self._flights: SingleFlight[_Key, _Found | None] = SingleFlight(_FLIGHTS)
        self._refused: LruCache[bytes, float] = LruCache(_REFUSED_KEPT)  # until (monotonic)
        self._verifying = asyncio.Semaphore(_AT_ONCE)

    async def handle(
        self,
        request: BearerRequest,
        verifiers: TokenVerifiers,
        *,
        expire_s: float,
        max_staleness_s: float,
    ) -> Handle | None:
        """A handle of the session that a token stands for; None when the token is refused.

        Raises CannotKnowError.
        """
        if request.is_ours or not is_bearer_token(request.token):
            return None
        plan = request.plan
        checked: CheckedToken | None = None
        if plan.format is BearerTokenFormat.JWT:
            try:
                async with asyncio.timeout(VERIFY_TIMEOUT_S):
                    checked = await verifiers.by_issuer(request)
            except InvalidTokenError as error:
                _log_refusal(request, error)
                return None
            except TimeoutError as error:
                raise CannotKnowError("the token's issuer did not answer in time") from error
        issued_by = checked.issued_by if checked is not None else plan.idp_id
        session_id = session_id_of(plan.format, issued_by, request.token)
        found = self._held(session_id, max_staleness_s)
        if found is not None:
            _COUNTED[plan.format].cached.inc()
        else:
            key = (plan.format, issued_by, request.token)
            found = await self._flights.run(
                key, lambda: self._make(session_id, request, verifiers, checked, expire_s)
            )
        if found is None or not is_for(plan, found.audience) or found.idp_id != plan.idp_id:
            return None
        return Handle(
            session_id=session_id,
            user_id=found.user_id,
            idp_id=found.idp_id,
            server_version=found.server_version,
            record_version=found.record_version,
            issuer="",
            audience=(),
            issued_at=0,
            use="api",
        )

    def _held(self, session_id: str, max_staleness_s: float) -> _Found | None:
        known, session = self._source.held_session(session_id, max_staleness_s)
        return self._live(session) if known else None

    def _live(self, session: SessionFacts | None) -> _Found | None:
        if session is None or not unexpired(session.expires_at_s, self._clock.now_s()):
            return None
        return _Found(session.user_id, session.idp_id, session.claims.get("aud"))

    async def _make(
        self,
        session_id: str,
        request: BearerRequest,
        verifiers: TokenVerifiers,
        checked: CheckedToken | None,
        expire_s: float,
    ) -> _Found | None:
        """Find the session in the databroker, or verify the token and write one."""
        digest = hashlib.sha256(session_id.encode()).digest()
        until_s = self._refused.get(digest)
        if until_s is not None and self._clock.monotonic_s() < until_s:
            return None
        try:
            async with asyncio.timeout(VERIFY_TIMEOUT_S), self._verifying:
                counted, started_s = _COUNTED[request.plan.format], self._clock.monotonic_s()
                there = await self._stored(session_id)
                if there is not None:
                    counted.cached.inc()
                    return there
                if checked is None:
                    checked = await verifiers.by_authenticate(request)
                made = await self._write(checked, expire_s)
                counted.created.inc()
                counted.create_s.observe(self._clock.monotonic_s() - started_s)
                return made
        except InvalidTokenError as error:
            self._refused.put(digest, self._clock.monotonic_s() + REFUSED_FOR_S)
            _log_refusal(request, error)
            return None
        except TimeoutError as error:
            raise CannotKnowError("a bearer token could not be verified in time") from error

    async def _stored(self, session_id: str) -> _Found | None:
        record = await self._source.record(SESSION, session_id)
        if record is None:
            return None
        found = self._live(readable(self._source.decode(record), SessionFacts))
        if found is None:
            return None
        server_version = self._source.versions()[0]
        return _Found(found.user_id, found.idp_id, found.audience, server_version, record.version)

    async def _write(self, checked: CheckedToken, expire_s: float) -> _Found:
        known = await self._source.record(USER, checked.user_id)
        try:
            user = user_of(checked, unpack(known, User) if known is not None else None)
            session = session_of(checked, now_s=self._clock.now_s(), expire_s=expire_s)
            records = [record_of(user, user.id), record_of(session, session.id)]
            put = await self._writer().put(records)
        except (GatehouseError, ValueError) as error:
            raise CannotKnowError(
                f"the session of a bearer token cannot be stored: {error}"
            ) from error
        version = max(record.version for record in put.records)
        await self._source.caught_up(put, CATCH_UP_S)
        _log.info(
            "session made of a bearer token",
            session_id=session.id,
            user=user.id,
            format=str(checked.format),
            issued_by=checked.issued_by,
        )
        stored = self._source.decode(records[1])
        facts = readable(stored, SessionFacts)
        assert facts is not None
        return _Found(
            facts.user_id, facts.idp_id, facts.claims.get("aud"), put.server_version, version
        )


def _log_refusal(request: BearerRequest, error: InvalidTokenError) -> None:
    _log.info(
        "bearer token refused",
        format=str(request.plan.format),
        reason=error.reason,
        error=str(error),
    )
