"""What the user-info page may say about a session: claims, names, groups; never a token (R36)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from google.protobuf.struct_pb2 import ListValue, Value

from gatehouse.common.databroker.person import Person
from gatehouse.common.pages.render import ClaimRow, GroupRow, Link, UserInfoPage
from gatehouse.pb.session_pb2 import Session

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
_TIME_CLAIMS: Final = frozenset({"exp", "iat", "nbf", "auth_time", "updated_at"})
_LATEST_S: Final = 253_402_300_799  # the last second of the year 9999
_ROWS_LIMIT: Final = 200
_VALUES_LIMIT: Final = 200
_TEXT_LIMIT: Final = 500


@dataclass(frozen=True, slots=True)
class Links:
    """Where the page leads."""

    sign_out: Link | None = None
    sign_out_everywhere: Link | None = None
    applications: Link | None = None


NO_LINKS: Final = Links()


def user_info_page(
    session: Session,
    person: Person,
    *,
    host: str,
    links: Links = NO_LINKS,
    impersonated: Session | None = None,
) -> UserInfoPage:
    """The page for a live session; `impersonated` is the session whose place it takes."""
    seen = impersonated if impersonated is not None else session
    user = person.user
    rows = tuple(_rows(seen.claims, _secrets(session, seen)))
    name = (user.name if user else "") or _first(rows, "name")
    email = person.directory_email or (user.email if user else "") or _first(rows, "email")
    return UserInfoPage(
        signed_in=True,
        name=name,
        email=email,
        user_id=seen.user_id,
        session_id=session.id,
        issued_at=_moment(session, "issued_at"),
        expires_at=_moment(session, "expires_at"),
        is_impersonated=impersonated is not None,
        groups=tuple(GroupRow(*group) for group in person.groups),
        more_groups=person.more_groups,
        claims=tuple(map(_readable, rows)),
        sign_out=links.sign_out,
        sign_out_everywhere=links.sign_out_everywhere,
        applications=links.applications,
        host=host,
    )


def user_info_document(
    session: Session, person: Person, *, impersonated: Session | None = None
) -> dict[str, object]:
    """The same as JSON, with the keys that Pomerium's page data has."""
    seen = impersonated if impersonated is not None else session
    secrets = _secrets(session, seen)
    shown: dict[str, object] = {
        "id": session.id,
        "userId": seen.user_id,
        "claims": {row.name: list(row.values) for row in _rows(seen.claims, secrets)},
        "deviceCredentials": [
            {"typeId": device.type_id, "id": device.id} for device in seen.device_credentials
        ],
    }
    for key, name in (("issuedAt", "issued_at"), ("expiresAt", "expires_at")):
        if session.HasField(name):  # type: ignore[arg-type]  # a field chosen by name
            shown[key] = getattr(session, name).ToJsonString()
    document: dict[str, object] = {
        "isImpersonated": impersonated is not None,
        "session": shown,
        "directoryGroups": [{"id": id_, "name": name} for id_, name in person.groups],
    }
    user = person.user
    if user is not None:
        document["user"] = {
            "id": user.id,
            "name": user.name,
            "email": user.email,
            "claims": {row.name: list(row.values) for row in _rows(user.claims, secrets)},
            "deviceCredentialIds": list(user.device_credential_ids),
        }
    if person.in_directory:
        document["directoryUser"] = {
            "email": person.directory_email,
            "groupIds": [id_ for id_, _ in person.groups],
        }
    return document


def shown_claims(session: Session) -> dict[str, tuple[str, ...]]:
    """A session's claims as text, without tokens."""
    return {row.name: row.values for row in _rows(session.claims, _secrets(session))}


def _secrets(*sessions: Session) -> set[str]:
    return {
        secret
        for session in sessions
        for secret in (
            session.id_token.raw,
            session.oauth_token.access_token,
            session.oauth_token.refresh_token,
        )
        if secret
    }


def _moment(session: Session, name: str) -> str:
    if not session.HasField(name):  # type: ignore[arg-type]  # a field chosen by name
        return ""
    return _moment_text(getattr(session, name).seconds)


def _moment_text(seconds: int) -> str:
    moment = datetime.fromtimestamp(seconds, tz=UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _readable(row: ClaimRow) -> ClaimRow:
    """A time as people read it beside the number that it is."""
    if row.name not in _TIME_CLAIMS:
        return row
    return ClaimRow(row.name, tuple(map(_readable_time, row.values)))


def _readable_time(value: str) -> str:
    if not (value.isascii() and value.isdigit() and int(value) <= _LATEST_S):
        return value
    return f"{value} ({_moment_text(int(value))})"


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
