"""What a session and its user become after the provider was asked about them.

Claims of a session are those of its last ID token overlaid with userinfo, as at sign-in. What the
provider no longer says is dropped, so that a group taken away does not go on granting access.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import ListValue
from google.protobuf.timestamp_pb2 import Timestamp

from gatehouse.common.databroker.records import seconds_of, timestamp_of
from gatehouse.common.identity.claims import (
    REFRESH_FILTERED,
    TOKEN_CLAIMS,
    FlatClaims,
    display_name,
    email_address,
    flatten_claims,
    without,
)
from gatehouse.common.identity.tokens import RefreshedIdentity
from gatehouse.common.jose.compact import base64url_decode, parse_json_object
from gatehouse.databroker.core.refresh import SessionFacts
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User

USER_PATHS: Final = ("name", "email", "claims")
MAX_CLAIMS_BYTES: Final = 512 << 10  # well under what a record may have

# Times before 1971 are unset: protobuf's zero, and the year 1 that other software writes.
_FIRST_REAL_SECOND: Final = 31_536_000
_OF_THE_ID_TOKEN: Final = TOKEN_CLAIMS | {"sub", "oid"}  # userinfo never replaces these


def facts_of(session: Session, id_: str, version: int, *, at_id_token_expiry: bool) -> SessionFacts:
    """Return what the schedule needs of a session record."""
    oauth = session.oauth_token
    renew_by_s = None
    if oauth.refresh_token and not session.refresh_disabled:
        expiries = [_real_seconds(oauth.expires_at)]
        if at_id_token_expiry:
            expiries.append(_real_seconds(session.id_token.expires_at))
        renew_by_s = min((expiry for expiry in expiries if expiry is not None), default=None)
    return SessionFacts(
        id=id_,
        user_id=session.user_id,
        idp_id=session.idp_id,
        version=version,
        expires_at_s=_real_seconds(session.expires_at),
        renew_by_s=renew_by_s,
        is_checkable=bool(oauth.access_token) and not session.refresh_disabled,
    )


def subject_of(session: Session) -> str:
    """Return the provider's name for who signed in; "" when the record does not say."""
    if session.id_token.subject:
        return session.id_token.subject
    values = session.claims["sub"].values if "sub" in session.claims else ()
    return values[0].string_value if values else ""


def access_token_is_good(session: Session, now_s: float) -> bool:
    """Tell whether the access token has not expired, as far as is known."""
    expires_s = _real_seconds(session.oauth_token.expires_at)
    return expires_s is None or expires_s > now_s


def after_refresh(
    session: Session, refreshed: RefreshedIdentity, *, at_id_token_expiry: bool
) -> tuple[Session, tuple[str, ...]]:
    """Return the session after a refresh, and which of its fields that concerns.

    The new tokens are taken in any case: the old refresh token may be spent.
    """
    changed = Session()
    changed.CopyFrom(session)
    _set_tokens(changed, refreshed)
    if refreshed.problem is not None:
        return changed, ("oauth_token",)
    if refreshed.id_token is not None:
        known: FlatClaims = {}
        token = refreshed.id_token
        changed.id_token.Clear()
        changed.id_token.raw = token.raw
        changed.id_token.issuer = token.issuer
        changed.id_token.subject = token.subject
        changed.id_token.expires_at.CopyFrom(timestamp_of(token.expires_at_s))
        changed.id_token.issued_at.CopyFrom(timestamp_of(token.issued_at_s))
        fresh: Mapping[str, Iterable[Any]] = refreshed.claims
    else:
        known = _id_token_claims(session)
        fresh = without(refreshed.claims, _OF_THE_ID_TOKEN)
        if at_id_token_expiry:
            # It will not be renewed. Without an expiry it causes no more refreshes, and is still
            # there as a hint at sign-out and for the claims that only it has.
            changed.id_token.ClearField("expires_at")
    paths = ["oauth_token", "id_token"]
    if _set_session_claims(changed, session, {**known, **fresh}):
        paths.append("claims")
    return changed, tuple(paths)


def after_check(session: Session, userinfo: Mapping[str, Any]) -> tuple[Session, tuple[str, ...]]:
    """Return the session after userinfo was asked, and which of its fields that concerns."""
    changed = Session()
    changed.CopyFrom(session)
    fresh = flatten_claims(without(userinfo, _OF_THE_ID_TOKEN))
    if not userinfo or not _set_session_claims(
        changed, session, {**_id_token_claims(session), **fresh}
    ):
        return session, ()
    return changed, ("claims",) if changed != session else ()


def user_after(user: User, session: Session) -> User:
    """Return the user as the session's claims describe them, as at sign-in; else unchanged."""
    claims = {name: _values(entry) for name, entry in session.claims.items()}
    first = {name: values[0] for name, values in claims.items() if values}
    changed = User()
    changed.CopyFrom(user)
    changed.name = display_name(first) or user.name  # some providers tell it once
    changed.email = email_address(first)
    changed.ClearField("claims")
    for name, entry in session.claims.items():
        if name not in TOKEN_CLAIMS:
            changed.claims[name].CopyFrom(entry)
    return user if changed == user else changed


def is_past(timestamp: Timestamp, now_s: float) -> bool:
    """Tell whether a time is set and lies before `now_s`."""
    expires_s = _real_seconds(timestamp)
    return expires_s is not None and expires_s <= now_s


def _real_seconds(timestamp: Timestamp) -> float | None:
    seconds = seconds_of(timestamp)
    return seconds if seconds >= _FIRST_REAL_SECOND else None


def _set_tokens(session: Session, refreshed: RefreshedIdentity) -> None:
    tokens = refreshed.tokens
    session.oauth_token.Clear()
    session.oauth_token.access_token = tokens.access_token
    session.oauth_token.token_type = tokens.token_type
    session.oauth_token.refresh_token = tokens.refresh_token
    if tokens.expires_at_s is not None:
        session.oauth_token.expires_at.CopyFrom(timestamp_of(tokens.expires_at_s))


def _set_session_claims(
    target: Session, before: Session, claims: Mapping[str, Iterable[Any]]
) -> bool:
    """Set the claims, but for those that stay as they were at sign-in; False if they are too big.

    Those name the token's owner and times.
    """
    made = Session()
    for name, values in claims.items():
        if name not in REFRESH_FILTERED:
            entry = ListValue()
            entry.extend(list(values))
            made.claims[name].CopyFrom(entry)
    for name in REFRESH_FILTERED & before.claims.keys():
        made.claims[name].CopyFrom(before.claims[name])
    if made.ByteSize() > MAX_CLAIMS_BYTES:
        return False
    target.ClearField("claims")
    target.MergeFrom(made)
    return True


def _id_token_claims(session: Session) -> FlatClaims:
    """Return the flattened claims of the stored ID token, which was verified when it was stored.

    Without a readable one, the claims that the session has.
    """
    try:
        _, payload, _ = session.id_token.raw.split(".")
        return flatten_claims(parse_json_object(base64url_decode(payload)))
    except ValueError:
        return {name: _values(entry) for name, entry in session.claims.items()}


def _values(entry: ListValue) -> list[Any]:
    return list(MessageToDict(entry))
