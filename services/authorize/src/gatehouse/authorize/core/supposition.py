"""A request and who sends it, as somebody describes them to ask what a policy would do.

Records are made of the description, and the identity follows from them as it does from real ones.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from gatehouse.authorize.core.check_request import RecordKey, RequestFacts, decode_path
from gatehouse.authorize.core.claims import Claims
from gatehouse.authorize.core.identity import (
    ANONYMOUS,
    Identity,
    Subject,
    SubjectDevice,
    resolve_identity,
)
from gatehouse.authorize.core.records import (
    DeviceCredentialFacts,
    DeviceEnrollmentFacts,
    DirectoryUserFacts,
    SessionFacts,
    UserFacts,
)
from gatehouse.common.ids import TypeUrl
from gatehouse.common.policy.ast import Data, FrozenObject, Policy, freeze, type_name
from gatehouse.common.policy.errors import PolicyError
from gatehouse.common.policy.records import parse_record_matcher

T = TypeVar("T")

SESSION_ID: Final = "supposed-session"
FACTS: Final = (
    *("session", "user", "email", "name", "groups", "claims", "devices", "records"),
    *("method", "path", "host", "ip", "headers", "time", "certificate"),
)
_SIGNED_IN_BY: Final = frozenset({"user", "email", "name", "groups", "claims", "devices"})
_CERTIFICATES: Final = ("none", "missing", "invalid", "valid")


@dataclass(frozen=True, slots=True)
class Supposition:
    """A request and an identity. `has_time`: the moment was given, not taken from a clock."""

    request: RequestFacts
    identity: Identity
    has_time: bool


def suppose(facts: Mapping[str, object], policy: Policy, *, now_s: float) -> Supposition:
    """Read a description. PolicyError says which fact is wrong and what would be right.

    Facts: session (true or false), user, email, name, groups (ids), claims (name to value or
    list), devices (type to {id, approved_by}), records (type to fields, of this user), method,
    path (with query), host, ip, headers, time (ISO 8601), certificate (none, missing, invalid,
    valid). Any fact about a person means that there is a session.
    """
    unknown = sorted(str(key) for key in facts if key not in FACTS)
    if unknown:
        raise PolicyError(
            f"unknown fact: {', '.join(unknown)}, expected some of {', '.join(FACTS)}"
        )
    reader = _Reader(facts)
    identity = _identity(reader, now_s)
    moment_s = reader.read("time", _moment, None)
    request = _request(reader, now_s if moment_s is None else moment_s)
    request.records = _records(reader, policy, identity)
    return Supposition(request, identity, moment_s is not None)


class _Reader:
    def __init__(self, facts: Mapping[str, object]) -> None:
        self.facts = facts

    def read(self, key: str, parse: Callable[[object], T], default: T) -> T:
        if key not in self.facts:
            return default
        try:
            return parse(self.facts[key])
        except PolicyError as error:
            raise error.below(key) from None


def _request(reader: _Reader, now_s: float) -> RequestFacts:
    raw_path, _, query = reader.read("path", _path, "/").partition("?")
    path = decode_path(raw_path)
    if path is None:
        raise PolicyError("not correctly percent-encoded", ("path",))
    host = reader.read("host", _text, "app.example.com")
    certificate = reader.read("certificate", _certificate, "none")
    headers: dict[str, str] = reader.read("headers", _texts, {})
    return RequestFacts(
        internal=False,
        route_id="",
        route_checksum="",
        method=reader.read("method", _text, "GET"),
        scheme="https",
        host=host,
        hostname=host.partition(":")[0],
        raw_path=raw_path,
        path=path,
        query=query,
        ip=reader.read("ip", _text, ""),
        headers={name.lower(): value for name, value in headers.items()},
        cookie_lines=(),
        request_id="",
        now_s=now_s,
        certificate_presented=certificate in {"invalid", "valid"},
        certificate_valid=certificate in {"none", "valid"},
    )


def _identity(reader: _Reader, now_s: float) -> Identity:
    signed_in = reader.read("session", _flag, bool(_SIGNED_IN_BY & reader.facts.keys()))
    if not signed_in:
        return ANONYMOUS
    email = reader.read("email", _text, "")
    has_person = bool(_SIGNED_IN_BY & reader.facts.keys())
    user_id = reader.read("user", _text, (email or "supposed-user") if has_person else "")
    claims: dict[str, tuple[Data, ...]] = reader.read("claims", _claims, {})
    groups = reader.read("groups", _groups, None)
    session = SessionFacts(
        id=SESSION_ID,
        user_id=user_id,
        idp_id="",
        expires_at_s=None,
        token_expires_at_s=None,
        refreshable=True,
        impersonate_session_id="",
        claims=Claims(tuple(claims), tuple(claims.values())),
    )
    subject = Subject(
        session=session,
        user=UserFacts(user_id, reader.read("name", _text, ""), email, Claims((), ())),
        directory_user=(DirectoryUserFacts(user_id, None, groups) if groups is not None else None),
        groups=(None,) * len(groups or ()),
        devices=reader.read("devices", _devices, ()),
    )
    return resolve_identity(subject, now_s)


def _records(
    reader: _Reader, policy: Policy, identity: Identity
) -> dict[RecordKey, FrozenObject | None]:
    given: dict[str, FrozenObject] = reader.read("records", _objects, {})
    found: dict[RecordKey, FrozenObject | None] = {}
    for criterion in policy.criteria():
        if criterion.name == "record":
            wanted = parse_record_matcher(criterion.data)
            for record_id in (identity.user_id, identity.email):
                found[TypeUrl(wanted.type), record_id] = given.get(wanted.type)
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise PolicyError(f"expected a string, got: {type_name(value)}")
    return value


def _path(value: object) -> str:
    text = _text(value)
    if not text.startswith("/"):
        raise PolicyError("expected a path that begins with /")
    return text


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise PolicyError(f"expected true or false, got: {type_name(value)}")
    return value


def _certificate(value: object) -> str:
    if value not in _CERTIFICATES:
        raise PolicyError(f"expected one of {', '.join(_CERTIFICATES)}")
    return str(value)


def _object(value: object) -> FrozenObject:
    frozen = freeze(value)
    if not isinstance(frozen, FrozenObject):
        raise PolicyError(f"expected an object, got: {type_name(value)}")
    return frozen


def _texts(value: object) -> dict[str, str]:
    return {key: _text(item) for key, item in _object(value).items()}


def _objects(value: object) -> dict[str, FrozenObject]:
    return {key: _object(item) for key, item in _object(value).items()}


def _groups(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise PolicyError(f"expected a list of group ids, got: {type_name(value)}")
    return tuple(_text(item) for item in value)


def _claims(value: object) -> dict[str, tuple[Data, ...]]:
    """As a session keeps them: nested objects join names with a dot, scalars become lists."""
    found: dict[str, tuple[Data, ...]] = {}

    def add(prefix: str, items: FrozenObject) -> None:
        for name, item in items.items():
            if isinstance(item, FrozenObject):
                add(f"{prefix}{name}.", item)
            else:
                found[f"{prefix}{name}"] = item if isinstance(item, tuple) else (item,)

    add("", _object(value))
    return found


def _devices(value: object) -> tuple[SubjectDevice, ...]:
    found: list[SubjectDevice] = []
    for type_id, fields in _objects(value).items():
        if not fields.keys() <= {"id", "approved_by"}:
            raise PolicyError("expected id and approved_by", (type_id,))
        credential_id = _text(fields.get("id", "device"))
        approved_by = _text(fields.get("approved_by", ""))
        found.append(
            SubjectDevice(
                type_id,
                DeviceCredentialFacts(credential_id, "enrollment"),
                DeviceEnrollmentFacts("enrollment", approved_by),
            )
        )
    return tuple(found)


def _moment(value: object) -> float | None:
    text = _text(value)
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise PolicyError(
            'expected a moment with its zone such as "2027-01-31T18:00:00+01:00" or "...Z"'
        )
    seconds = moment.timestamp()
    assert math.isfinite(seconds)
    return seconds
