"""How one session is refreshed or checked: read it, ask the provider, store what came of it.

A session ends only by a definitive answer about the very tokens that are stored: every write says
which version of the record it rests on, and one that has changed meanwhile is looked at again. New
tokens are never given up while the stored ones are those they replace, for these may be spent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from google.protobuf.any_pb2 import Any as ProtoAny
from google.protobuf.message import DecodeError, Message

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.errors import GatehouseError
from gatehouse.common.identity.errors import IdentityProviderError, IdentityRefusedError
from gatehouse.common.ids import SESSION, USER, TypeUrl
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.backoff import Backoff
from gatehouse.databroker.core.records import Incoming, Patch, Reap, StoredRecord, Write
from gatehouse.databroker.core.refresh import (
    Attempt,
    Finished,
    Kind,
    Result,
    Rules,
    SessionFacts,
)
from gatehouse.databroker.core.refreshed_records import (
    USER_PATHS,
    access_token_is_good,
    after_check,
    after_refresh,
    facts_of,
    is_past,
    subject_of,
    user_after,
)
from gatehouse.databroker.edge.backends.base import WriteResult
from gatehouse.databroker.edge.refresh_providers import Refresher
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User

STORE_S: Final = 5.0  # for one call of the store
CALL_S: Final = 60.0  # the provider's client bounds each request itself; this is the backstop
KEEP_TRYING_S: Final = 600.0  # to store new tokens while the store is away
USER_TRIES: Final = 3

T = TypeVar("T")

_log = get_logger("databroker")


class Records(Protocol):
    """What an attempt needs of the store."""

    async def get(self, type_: str, id_: str) -> StoredRecord | None:
        """Return a live record."""
        ...

    async def write(self, write: Write) -> WriteResult:
        """Apply a write as a whole."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """A session record as read."""

    record: StoredRecord
    session: Session
    facts: SessionFacts

    def finished(self, result: Result, *, retry_after_s: float | None = None) -> Finished:
        """The end of an attempt that leaves the session as it is here."""
        return Finished(self.record.id, result, self.facts, retry_after_s)


class RefreshAttempts:
    """Does what the schedule says with single sessions. Methods raise GatehouseError only."""

    def __init__(
        self,
        records: Records,
        provider_of: Callable[[str], Refresher | None],
        rules: Rules,
        clock: Clock,
        rng: Rng,
        *,
        report: Callable[[str, IdentityProviderError | None], None],
    ) -> None:
        """`report` hears of each provider how asking it went, by idp id."""
        self._report = report
        self._records = records
        self._provider_of = provider_of
        self._rules = rules
        self._clock = clock
        self._rng = rng

    def facts(self, record: StoredRecord) -> SessionFacts | None:
        """What the schedule needs of a record; None for one that is no readable session."""
        held = self._held(record)
        return None if held is None else held.facts

    async def attempt(self, attempt: Attempt) -> Finished:
        """Refresh a session or check it at its provider."""
        held = await self._read(attempt.id)
        if held is None:
            return Finished(attempt.id, Result.VANISHED)
        provider = self._provider_of(attempt.idp_id)
        now_s = self._clock.now_s()
        if provider is None or attempt.idp_id != held.session.idp_id:
            return held.finished(Result.NOT_DUE)
        if is_past(held.session.expires_at, now_s):
            return held.finished(Result.NOT_DUE)
        rules = self._rules
        if attempt.kind is Kind.REFRESH:
            soon_s = now_s + rules.lead_s + rules.lead_spread_s
            renew_by_s = held.facts.renew_by_s
            if renew_by_s is None or (renew_by_s > soon_s and not attempt.early):
                return held.finished(Result.NOT_DUE)  # somebody else has refreshed it
        elif not held.facts.is_checkable or not access_token_is_good(held.session, now_s):
            return held.finished(Result.NOT_DUE)
        try:
            if attempt.kind is Kind.REFRESH:
                finished = await self._refresh(held, provider)
            else:
                finished = await self._check(held, provider)
        except IdentityProviderError as error:
            self._report(attempt.idp_id, error)
            is_away = error.reason == IdentityProviderError.default_reason
            result = Result.FAILED if is_away or attempt.kind is Kind.REFRESH else Result.UNCLEAR
            return held.finished(result, retry_after_s=error.retry_after_s)
        except IdentityRefusedError as error:
            if not error.ends_session:
                return held.finished(Result.FAILED)
            if attempt.doubt:
                _log.info("refusal doubted", session_id=attempt.id, reason=error.reason)
                return held.finished(Result.DOUBTED)
            return await self._end(held, error)
        if finished.result is Result.DONE:
            self._report(attempt.idp_id, None)
        return finished

    async def sweep(self, ids: tuple[str, ...]) -> list[Finished]:
        """Delete those of the sessions that have been expired for long."""
        rules = self._rules
        ends: list[Finished] = []
        victims: list[StoredRecord] = []
        for id_ in ids:
            held = await self._read(id_)
            if held is None:
                ends.append(Finished(id_, Result.VANISHED))
            elif is_past(held.session.expires_at, self._clock.now_s() - rules.sweep_s):
                victims.append(held.record)
            else:
                ends.append(held.finished(Result.NOT_DUE))
        if victims:
            gone = {record.id for record in (await self._write(Reap(tuple(victims)))).records}
            ends += (
                Finished(victim.id, Result.VANISHED if victim.id in gone else Result.NOT_DUE)
                for victim in victims
            )
            _log.info("expired sessions removed", count=len(gone))
        return ends

    # Refresh

    async def _refresh(self, held: Held, provider: Refresher) -> Finished:
        spent = held.session.oauth_token.refresh_token
        refreshed = await _bounded(provider.refresh(spent, subject=subject_of(held.session)))
        at_id_token_expiry = self._rules.at_id_token_expiry
        # From here on nothing but a newer token in the store may keep these from being stored.
        deadline_s = self._clock.monotonic_s() + KEEP_TRYING_S
        backoff = Backoff(0.5, 2.0, 15.0, 0.5)
        base: Held | None = held
        stored: Held | None = None
        while stored is None:
            try:
                if base is None:
                    base = await self._read(held.record.id)
                if base is None:
                    return Finished(held.record.id, Result.VANISHED)
                changed, paths = after_refresh(
                    base.session, refreshed, at_id_token_expiry=at_id_token_expiry
                )
                if base is not held and base.session.oauth_token == changed.oauth_token:
                    stored = base  # an earlier write has been done although its answer was lost
                elif base.session.oauth_token.refresh_token != spent:
                    return base.finished(Result.NOT_DUE)  # ours are not what comes next any more
                else:
                    stored = await self._patch(base, changed, paths)
                base = None
            except GatehouseError as error:
                if self._clock.monotonic_s() > deadline_s:
                    raise
                _log.warning(
                    "refreshed session cannot be stored yet",
                    session_id=held.record.id,
                    reason=error.reason,
                )
                base = None
                await asyncio.sleep(backoff.next_s(self._rng))
        if refreshed.problem is not None:
            return stored.finished(
                Result.FAILED, retry_after_s=getattr(refreshed.problem, "retry_after_s", None)
            )
        await self._store_user(stored.session)
        return stored.finished(Result.DONE)

    async def _check(self, held: Held, provider: Refresher) -> Finished:
        token = held.session.oauth_token.access_token
        userinfo = await _bounded(provider.userinfo(token, subject=subject_of(held.session)))
        changed, paths = after_check(held.session, userinfo)
        stored: Held | None = held
        if paths:
            stored = await self._patch(held, changed, paths)
            if stored is None:  # changed meanwhile; what was read is not about that version
                return Finished(held.record.id, Result.NOT_DUE)
        assert stored is not None
        if userinfo:
            await self._store_user(stored.session)
        return stored.finished(Result.DONE)

    async def _end(self, held: Held, error: IdentityRefusedError) -> Finished:
        """Delete the session, unless it is not the one any more that was asked about."""
        result = await self._write(Reap((held.record,)))
        if not result.records:
            current = await self._read(held.record.id)
            if current is None:
                return Finished(held.record.id, Result.VANISHED)
            return current.finished(Result.NOT_DUE)
        _log.info(
            "session ended by the identity provider",
            session_id=held.record.id,
            user_id=held.session.user_id,
            reason=error.reason,
            error=str(error),
        )
        return Finished(held.record.id, Result.VANISHED)

    async def _store_user(self, session: Session) -> None:
        """Bring the user's record up to date. A user that is not there is not made."""
        if not session.user_id:
            return
        for _ in range(USER_TRIES):
            record = await self._get(USER, session.user_id)
            user = None if record is None else _unpack(record, User())
            if record is None or user is None:
                return
            changed = user_after(user, session)
            if changed is user:
                return
            write = _patch_of(record, changed, USER_PATHS)
            if (await self._write(write)).records:
                return

    # The store

    async def _read(self, id_: str) -> Held | None:
        record = await self._get(SESSION, id_)
        return None if record is None else self._held(record)

    def _held(self, record: StoredRecord) -> Held | None:
        session = _unpack(record, Session())
        if session is None:
            return None
        facts = facts_of(
            session,
            record.id,
            record.version,
            at_id_token_expiry=self._rules.at_id_token_expiry,
        )
        return Held(record, session, facts)

    async def _patch(self, base: Held, changed: Session, paths: tuple[str, ...]) -> Held | None:
        """Write the fields on top of the version they rest on; None if that has changed."""
        if changed == base.session:
            return base
        result = await self._write(_patch_of(base.record, changed, paths))
        return self._held(result.records[0]) if result.records else None

    async def _get(self, type_: TypeUrl, id_: str) -> StoredRecord | None:
        try:
            async with asyncio.timeout(STORE_S):
                return await self._records.get(type_, id_)
        except TimeoutError as error:
            raise _too_slow() from error

    async def _write(self, write: Write) -> WriteResult:
        try:
            async with asyncio.timeout(STORE_S):
                return await self._records.write(write)
        except TimeoutError as error:
            raise _too_slow() from error


async def _bounded(call: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(CALL_S):
            return await call
    except TimeoutError:
        raise IdentityProviderError(f"no complete answer in {CALL_S:g} s") from None


def _too_slow() -> GatehouseError:
    return GatehouseError(f"the store took longer than {STORE_S:g} s", reason="storage-slow")


def _unpack(record: StoredRecord, message: Any) -> Any:
    try:
        return message if ProtoAny.FromString(record.data).Unpack(message) else None
    except DecodeError:
        return None


def _patch_of(base: StoredRecord, changed: Message, paths: tuple[str, ...]) -> Patch:
    value = changed.SerializeToString(deterministic=True)
    type_url = ProtoAny.FromString(base.data).type_url
    data = ProtoAny(type_url=type_url, value=value).SerializeToString()
    return Patch((Incoming(base.type, base.id, data, expected_version=base.version),), paths)
