"""What the user-info page may say about a session: claims and names, never a token (R36)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

from google.protobuf.struct_pb2 import ListValue, Value

from gatehouse.common.pages.render import ClaimRow, Link, UserInfoPage
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import User

_SECRET_CLAIMS: Final = frozenset(
    {
        "access_token",
        "id_token",
        "refresh_token",
        "client_secret",
        "token",
        "nonce",
        "at_hash",
        "c_hash",
        "s_hash",
    }
)
_ROWS_LIMIT: Final = 200
_VALUES_LIMIT: Final = 200
_TEXT_LIMIT: Final = 500


def user_info_page(
    session: Session, user: User | None, *, host: str, sign_out: Link | None
) -> UserInfoPage:
    """The page for a live session."""
    secrets = {
        secret
        for secret in (
            session.id_token.raw,
            session.oauth_token.access_token,
            session.oauth_token.refresh_token,
        )
        if secret
    }
    rows = tuple(_rows(session.claims, secrets))
    name = (user.name if user else "") or _first(rows, "name")
    email = (user.email if user else "") or _first(rows, "email")
    expires_at = ""
    if session.HasField("expires_at"):
        moment = datetime.fromtimestamp(session.expires_at.seconds, tz=UTC)
        expires_at = f"{moment.day} {moment:%B %Y, %H:%M} UTC"
    return UserInfoPage(
        signed_in=True,
        name=name,
        email=email,
        user_id=session.user_id,
        session_id=session.id,
        expires_at=expires_at,
        claims=rows,
        sign_out=sign_out,
        host=host,
    )


def _rows(claims: Mapping[str, ListValue], secrets: set[str]) -> Iterable[ClaimRow]:
    for name in sorted(claims)[:_ROWS_LIMIT]:
        if name.rpartition(".")[2].lower() in _SECRET_CLAIMS:
            continue
        values = tuple(
            text[:_TEXT_LIMIT]
            for text in (_text(value) for value in claims[name].values[:_VALUES_LIMIT])
            if not any(secret in text for secret in secrets)
        )
        if values:
            yield ClaimRow(name, values)


def _text(value: Value) -> str:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        number = value.number_value
        return str(int(number)) if number.is_integer() else str(number)
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    if kind == "list_value":
        return ", ".join(_text(item) for item in value.list_value.values)
    if kind == "struct_value":
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.struct_value.fields.items())
    return ""


def _first(rows: Iterable[ClaimRow], name: str) -> str:
    return next((row.values[0] for row in rows if row.name == name), "")
