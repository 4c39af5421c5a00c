"""The session and user records that a sign-in leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.protobuf.struct_pb2 import ListValue

from gatehouse.common.databroker.records import timestamp_of
from gatehouse.common.identity.id_token import is_subject
from gatehouse.common.identity.tokens import Identity
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User

USER_PATHS: Final = ("name", "email", "claims")
"""What a sign-in says of a user."""


def session_record(
    identity: Identity,
    *,
    session_id: str,
    idp_id: str,
    audience: Sequence[str],
    expire_s: float,
    now_s: float,
) -> Session:
    """A session that begins now and ends after `expire_s`, never extended.

    `session_id` is a random value of ours; nothing the provider says becomes an id of ours but the
    user's.
    """
    session = Session(
        id=session_id,
        user_id=identity.user_id,
        issued_at=timestamp_of(now_s),
        accessed_at=timestamp_of(now_s),
        expires_at=timestamp_of(now_s + expire_s),
        audience=audience,
        idp_id=idp_id,
        idp_session_id=_provider_session(identity.claims),
    )
    if identity.id_token is not None:
        session.id_token.raw = identity.id_token.raw
        session.id_token.issuer = identity.id_token.issuer
        session.id_token.subject = identity.id_token.subject
        session.id_token.expires_at.CopyFrom(timestamp_of(identity.id_token.expires_at_s))
        session.id_token.issued_at.CopyFrom(timestamp_of(identity.id_token.issued_at_s))
    session.oauth_token.access_token = identity.tokens.access_token
    session.oauth_token.token_type = identity.tokens.token_type
    session.oauth_token.refresh_token = identity.tokens.refresh_token
    if identity.tokens.expires_at_s is not None:
        session.oauth_token.expires_at.CopyFrom(timestamp_of(identity.tokens.expires_at_s))
    _set_claims(session.claims, identity.claims)
    return session


def user_record(known: User | None, identity: Identity) -> User:
    """What is known of the user after this sign-in; `known` itself says nothing else any more.

    Name, email and claims are replaced by what the provider says now: a claim that it no longer
    makes (the last group taken away) must not go on granting access. A name that is not told again
    stays: some providers tell it once. So does everything that is not the provider's to say.
    """
    user = User()
    if known is not None:
        user.CopyFrom(known)
    user.id = identity.user_id
    user.name = identity.name or user.name
    user.email = identity.email
    user.ClearField("claims")
    _set_claims(user.claims, identity.user_claims)
    return user


def _provider_session(claims: Mapping[str, Sequence[Any]]) -> str:
    """The `sid` claim: the provider's own session (OIDC Front-Channel Logout 1.0 section 3)."""
    values = claims.get("sid", ())
    value = values[0] if len(values) == 1 else None
    return value if isinstance(value, str) and is_subject(value) else ""


def _set_claims(target: Any, claims: Mapping[str, Sequence[Any]]) -> None:
    for name, values in claims.items():
        entry = ListValue()
        entry.extend(list(values))
        target[name].CopyFrom(entry)
