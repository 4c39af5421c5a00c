"""What authorize keeps of each databroker record: the facts decisions need, never a token."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from gatehouse.authorize.core.claims import Claims, ClaimsReader, value_of
from gatehouse.common.databroker.records import seconds_of, unpack
from gatehouse.common.ids import (
    DIRECTORY_GROUP,
    DIRECTORY_USER,
    SERVICE_ACCOUNT,
    SESSION,
    USER,
    TypeUrl,
)
from gatehouse.common.policy.ast import FrozenObject
from gatehouse.pb.databroker_pb2 import Record
from gatehouse.pb.device_pb2 import Credential, Enrollment
from gatehouse.pb.session_pb2 import Session
from gatehouse.pb.user_pb2 import ServiceAccount, User

DEVICE_CREDENTIAL: Final = TypeUrl("type.googleapis.com/pomerium.device.Credential")
DEVICE_ENROLLMENT: Final = TypeUrl("type.googleapis.com/pomerium.device.Enrollment")

_MAX_DEVICES: Final = 16  # of one session, looked at


class Unreadable:
    """Stands for a record that exists and cannot be understood: nothing follows from it."""

    __slots__ = ()


UNREADABLE: Final = Unreadable()


@dataclass(frozen=True, slots=True, eq=False)
class SessionFacts:
    """A session without its tokens. Times are Unix seconds."""

    id: str
    user_id: str
    idp_id: str
    expires_at_s: float | None
    token_expires_at_s: float | None
    refreshable: bool
    impersonate_session_id: str
    claims: Claims
    devices: tuple[tuple[str, str], ...] = ()  # type and credential id; the first of each type


@dataclass(frozen=True, slots=True, eq=False)
class ServiceAccountFacts:
    """A service account."""

    id: str
    user_id: str
    expires_at_s: float | None


@dataclass(frozen=True, slots=True, eq=False)
class UserFacts:
    """A user as the identity provider describes them."""

    id: str
    name: str
    email: str
    claims: Claims


@dataclass(frozen=True, slots=True, eq=False)
class DirectoryUserFacts:
    """A user as the directory describes them. `email` None: the record has no such field."""

    id: str
    email: str | None
    group_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class DirectoryGroupFacts:
    """A directory group."""

    id: str
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class DeviceCredentialFacts:
    """What a device proves itself with."""

    id: str
    enrollment_id: str


@dataclass(frozen=True, slots=True, eq=False)
class DeviceEnrollmentFacts:
    """That a device was enrolled, and who approved it; "": nobody yet."""

    id: str
    approved_by: str


class RecordReader:
    """Decoders for the replica. None of them raises: what cannot be read becomes UNREADABLE."""

    def __init__(self) -> None:
        self._claims = ClaimsReader()
        self.decoders: Mapping[TypeUrl, Callable[[Record], object]] = {
            SESSION: _guarded(self._session),
            USER: _guarded(self._user),
            SERVICE_ACCOUNT: _guarded(_service_account),
            DIRECTORY_USER: _guarded(_directory_user),
            DIRECTORY_GROUP: _guarded(_directory_group),
            DEVICE_CREDENTIAL: _guarded(_device_credential),
            DEVICE_ENROLLMENT: _guarded(_device_enrollment),
        }

    def decode(self, record: Record) -> object:
        """The facts of one record of a known type."""
        return self.decoders[TypeUrl(record.type)](record)

    def _session(self, record: Record) -> SessionFacts:
        session = unpack(record, Session)
        token = session.oauth_token
        return SessionFacts(
            id=session.id or record.id,
            user_id=session.user_id,
            idp_id=session.idp_id,
            expires_at_s=_seconds(session, "expires_at"),
            token_expires_at_s=_seconds(token, "expires_at"),
            # The stream leaves the token out and says whether there is one.
            refreshable=(token.has_refresh_token or bool(token.refresh_token))
            and not session.refresh_disabled,
            impersonate_session_id=session.impersonate_session_id,
            claims=self._claims.read(session.claims),
            devices=_devices(session),
        )

    def _user(self, record: Record) -> UserFacts:
        user = unpack(record, User)
        return UserFacts(
            id=user.id or record.id,
            name=user.name,
            email=user.email,
            claims=self._claims.read(user.claims),
        )


def _service_account(record: Record) -> ServiceAccountFacts:
    account = unpack(record, ServiceAccount)
    return ServiceAccountFacts(
        id=account.id or record.id,
        user_id=account.user_id,
        expires_at_s=_seconds(account, "expires_at"),
    )


def external_record(record: Record) -> object:
    """The fields of a record of an external data source; UNREADABLE when it has none."""
    return _guarded(_external)(record)


def _external(record: Record) -> FrozenObject:
    fields = unpack(record, Struct).fields
    return FrozenObject({name: value_of(fields[name]) for name in fields})


def _devices(session: Session) -> tuple[tuple[str, str], ...]:
    if not session.device_credentials:
        return ()
    found: dict[str, str] = {}
    for credential in session.device_credentials:
        if len(found) == _MAX_DEVICES:
            break
        found.setdefault(sys.intern(credential.type_id), credential.id)
    return tuple(found.items())


def _device_credential(record: Record) -> DeviceCredentialFacts:
    credential = unpack(record, Credential)
    return DeviceCredentialFacts(credential.id or record.id, credential.enrollment_id)


def _device_enrollment(record: Record) -> DeviceEnrollmentFacts:
    enrollment = unpack(record, Enrollment)
    return DeviceEnrollmentFacts(enrollment.id or record.id, enrollment.approved_by)


def _directory_user(record: Record) -> DirectoryUserFacts:
    fields = unpack(record, Struct).fields
    email = fields["email"].string_value if "email" in fields else None
    # A group that is not a string is no group: membership is never guessed (security R42).
    group_ids = (
        tuple(
            item.string_value
            for item in fields["group_ids"].list_value.values
            if item.WhichOneof("kind") == "string_value" and item.string_value
        )
        if "group_ids" in fields
        else ()
    )
    return DirectoryUserFacts(record.id, email, group_ids)


def _directory_group(record: Record) -> DirectoryGroupFacts:
    fields = unpack(record, Struct).fields
    name = fields["name"].string_value if "name" in fields else ""
    return DirectoryGroupFacts(record.id, name)


def _seconds(message: object, name: str) -> float | None:
    if not message.HasField(name):  # type: ignore[attr-defined]  # any message with that field
        return None
    moment: Timestamp = getattr(message, name)
    return seconds_of(moment)


def _guarded(decode: Callable[[Record], object]) -> Callable[[Record], object]:
    def decoder(record: Record) -> object:
        try:
            return decode(record)
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it must not decide
            return UNREADABLE

    return decoder
