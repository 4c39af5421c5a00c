"""Who is asking: a session or service account with everything known about its user.

An Identity is made once and reused while the records behind it are the same objects and no time
limit has passed; see `IdentityCache`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

from gatehouse.authorize.core.claims import NO_CLAIMS, Claims
from gatehouse.authorize.core.lru import LruCache
from gatehouse.authorize.core.records import (
    DEVICE_CREDENTIAL,
    DEVICE_ENROLLMENT,
    DeviceCredentialFacts,
    DeviceEnrollmentFacts,
    DirectoryGroupFacts,
    DirectoryUserFacts,
    ServiceAccountFacts,
    SessionFacts,
    UserFacts,
)
from gatehouse.authorize.errors import UnreadableRecordError
from gatehouse.common.ids import (
    DIRECTORY_GROUP,
    DIRECTORY_USER,
    SERVICE_ACCOUNT,
    SESSION,
    USER,
    TypeUrl,
)
from gatehouse.common.policy.ast import Data
from gatehouse.common.record_keys import keys_by_type
from gatehouse.common.session.validity import session_problem

T = TypeVar("T")

Lookup: TypeAlias = tuple[TypeUrl, str]
Lookups: TypeAlias = "Generator[Lookup, object, Subject]"

_FIRST_REAL_SECOND: Final = 31_536_000  # earlier expiry times are unset ones


@dataclass(frozen=True, slots=True, eq=False)
class SubjectDevice:
    """The records behind one device credential of a session."""

    type_id: str
    credential: DeviceCredentialFacts
    enrollment: DeviceEnrollmentFacts | None


@dataclass(frozen=True, slots=True)
class Device:
    """A device as policy sees it."""

    credential_id: str
    is_enrolled: bool
    approved_by: str


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """The records behind an identity, as looked up. Compared by object."""

    session: SessionFacts | None = None
    service_account: ServiceAccountFacts | None = None
    impersonated: SessionFacts | None = None
    user: UserFacts | None = None
    directory_user: DirectoryUserFacts | None = None
    groups: tuple[DirectoryGroupFacts | None, ...] = ()
    devices: tuple[SubjectDevice, ...] = ()
    own_user: UserFacts | None = None  # with impersonation: the user who does it

    def is_same(self, other: Subject) -> bool:
        """True when every record is the very same object."""
        return (
            self.session is other.session
            and self.user is other.user
            and self.directory_user is other.directory_user
            and self.service_account is other.service_account
            and self.impersonated is other.impersonated
            and self.own_user is other.own_user
            and len(self.groups) == len(other.groups)
            and all(a is b for a, b in zip(self.groups, other.groups, strict=True))
            and len(self.devices) == len(other.devices)
            and all(
                a.credential is b.credential and a.enrollment is b.enrollment
                for a, b in zip(self.devices, other.devices, strict=True)
            )
        )


@dataclass(frozen=True, slots=True, eq=False)
class Impersonation:
    """Whose place somebody took, for the log."""

    session_id: str
    user_id: str
    email: str


@dataclass(frozen=True, slots=True, eq=False)
class Identity:
    """What policy and headers see. Hashed and compared by object."""

    has_session: bool  # what "with a session" means in policy
    session_id: str  # "" for anonymous requests; the real one under impersonation
    user_id: str
    email: str  # for policy: the directory's if not empty, else the user's
    claims: Mapping[str, tuple[Data, ...]]  # for policy: user over session
    group_ids: tuple[str, ...] | None  # None: the directory does not know the user
    devices: Mapping[str, Device] = field(default_factory=dict)  # by device type

    is_service_account: bool = False
    log_user_id: str = ""  # of the loaded record, never the impersonated one
    log_email: str = ""
    impersonation: Impersonation | None = None
    assertion_email: str = ""
    header_groups: tuple[str, ...] = ()
    session_claims: Claims = NO_CLAIMS
    user_claims: Claims = NO_CLAIMS
    good_until_s: float = math.inf  # Unix seconds; look again from then on
    rests_on: tuple[tuple[TypeUrl, str], ...] = ()  # keys of the records it was made of, by type
    subject: Subject = field(default_factory=Subject)

    def header_claim(self, name: str) -> tuple[Data, ...] | None:
        """A claim as headers see it: session over user. None when neither has it."""
        if name in self.session_claims:
            return self.session_claims.get(name)
        if name in self.user_claims:
            return self.user_claims.get(name)
        return None


ANONYMOUS: Final = Identity(
    has_session=False, session_id="", user_id="", email="", claims={}, group_ids=None
)


class IdentityCache:
    """Identities by the session id that a credential named. Bounded."""

    def __init__(self, capacity: int = 50_000) -> None:
        self._identities: LruCache[str, Identity] = LruCache(capacity)

    def resolve(
        self, handle_id: str, subject: Subject, now_s: float, lookups: Sequence[Lookup] = ()
    ) -> Identity:
        """The identity of a subject; the same object while nothing about it has changed.

        `lookups`: all that was asked for to find the subject. It follows from handle and subject.
        """
        known = self._identities.get(handle_id)
        if known is not None and now_s < known.good_until_s and known.subject.is_same(subject):
            return known
        identity = resolve_identity(subject, now_s, lookups)
        if identity is ANONYMOUS:
            self._identities.drop(handle_id)
        else:
            self._identities.put(handle_id, identity)
        return identity


def readable(value: object, kind: type[T]) -> T | None:
    """A looked-up value as what it must be. UnreadableRecordError when it is something else."""
    if value is None or isinstance(value, kind):
        return value
    raise UnreadableRecordError(
        f"a {kind.__name__} record cannot be read",
        public_message="A stored record cannot be read.",
    )


def subject_lookups(handle_id: str) -> Lookups:
    """Yields each record that is needed, is sent its decoded value or None, returns the subject.

    The caller may answer from memory or wait for a network: the order is the same. Raises
    UnreadableRecordError.
    """
    session = readable((yield SESSION, handle_id), SessionFacts)
    account: ServiceAccountFacts | None = None
    impersonated: SessionFacts | None = None
    own_user: UserFacts | None = None
    user_id = ""
    if session is None:
        account = readable((yield SERVICE_ACCOUNT, handle_id), ServiceAccountFacts)
        user_id = account.user_id if account is not None else ""
    elif session.impersonate_session_id:
        impersonated = readable((yield SESSION, session.impersonate_session_id), SessionFacts)
        user_id = impersonated.user_id if impersonated is not None else ""
        if session.user_id:
            own_user = readable((yield USER, session.user_id), UserFacts)
    else:
        user_id = session.user_id
    devices: tuple[SubjectDevice, ...] = ()
    for type_id, credential_id in _seen(session, impersonated).devices if session else ():
        credential = (
            readable((yield DEVICE_CREDENTIAL, credential_id), DeviceCredentialFacts)
            if credential_id
            else None
        )
        if credential is not None:
            enrollment = (
                readable((yield DEVICE_ENROLLMENT, credential.enrollment_id), DeviceEnrollmentFacts)
                if credential.enrollment_id
                else None
            )
            devices = (*devices, SubjectDevice(type_id, credential, enrollment))
    if not user_id:
        return Subject(session, account, impersonated, devices=devices, own_user=own_user)
    user = readable((yield USER, user_id), UserFacts)
    directory_user = readable((yield DIRECTORY_USER, user_id), DirectoryUserFacts)
    groups: tuple[DirectoryGroupFacts | None, ...] = ()
    for group_id in directory_user.group_ids if directory_user is not None else ():
        groups = (*groups, readable((yield DIRECTORY_GROUP, group_id), DirectoryGroupFacts))
    return Subject(session, account, impersonated, user, directory_user, groups, devices, own_user)


def _seen(session: SessionFacts, impersonated: SessionFacts | None) -> SessionFacts:
    """The session that policy sees."""
    return impersonated if impersonated is not None else session


def usable(session: SessionFacts, now_s: float) -> bool:
    """True when the session may be used at this moment."""
    return (
        session_problem(
            session.expires_at_s, session.token_expires_at_s, session.refreshable, now_s
        )
        is None
    )


def unexpired(expires_at_s: float | None, now_s: float) -> bool:
    """True when a record without OAuth tokens may be used at this moment."""
    return session_problem(expires_at_s, None, True, now_s) is None  # noqa: FBT003


def resolve_identity(subject: Subject, now_s: float, lookups: Sequence[Lookup] = ()) -> Identity:
    """From records to an identity; ANONYMOUS when none of them makes a usable session."""
    if subject.session is not None:
        if not usable(subject.session, now_s):
            return ANONYMOUS
        return _from_session(subject, subject.session, now_s, lookups)
    account = subject.service_account
    if account is None or not unexpired(account.expires_at_s, now_s):
        return ANONYMOUS
    return _identity(
        subject,
        lookups,
        session_id=account.id,
        user_id=account.user_id,
        session_claims=NO_CLAIMS,
        is_service_account=True,
        good_until_s=_limit(account.expires_at_s),
    )


def _from_session(
    subject: Subject, session: SessionFacts, now_s: float, lookups: Sequence[Lookup]
) -> Identity:
    good_until_s = min(
        _limit(session.expires_at_s),
        math.inf if session.refreshable else _limit(session.token_expires_at_s),
    )
    if not session.impersonate_session_id:
        return _identity(
            subject,
            lookups,
            session_id=session.id,
            user_id=session.user_id,
            session_claims=session.claims,
            good_until_s=good_until_s,
        )
    other = subject.impersonated
    own_email = subject.own_user.email if subject.own_user is not None else ""
    if other is None or not unexpired(other.expires_at_s, now_s):
        # The session is real and stands for nobody: sign-in, and the log says whose it is.
        return Identity(
            has_session=False,
            session_id=session.id,
            user_id="",
            email="",
            claims={},
            group_ids=None,
            log_user_id=session.user_id,
            log_email=own_email,
            impersonation=Impersonation(session.impersonate_session_id, "", ""),
            good_until_s=good_until_s,
            subject=subject,
        )
    return _identity(
        subject,
        lookups,
        session_id=session.id,
        user_id=other.user_id,
        session_claims=other.claims,
        good_until_s=min(good_until_s, _limit(other.expires_at_s)),
        log_user_id=session.user_id,
        log_email=own_email,
        impersonation=Impersonation(
            other.id, other.user_id, subject.user.email if subject.user is not None else ""
        ),
    )


def _identity(
    subject: Subject,
    lookups: Sequence[Lookup],
    *,
    session_id: str,
    user_id: str,
    session_claims: Claims,
    good_until_s: float,
    is_service_account: bool = False,
    log_user_id: str | None = None,
    log_email: str | None = None,
    impersonation: Impersonation | None = None,
) -> Identity:
    user, directory = subject.user, subject.directory_user
    user_email = user.email if user is not None else ""
    user_claims = user.claims if user is not None else NO_CLAIMS
    directory_email = directory.email if directory is not None else None
    return Identity(
        has_session=bool(session_id),
        session_id=session_id,
        user_id=user_id,
        email=directory_email or user_email,
        claims={**dict(session_claims.items()), **dict(user_claims.items())},
        group_ids=directory.group_ids if directory is not None else None,
        devices=_devices(subject),
        is_service_account=is_service_account,
        log_user_id=user_id if log_user_id is None else log_user_id,
        log_email=user_email if log_email is None else log_email,
        impersonation=impersonation,
        assertion_email=user_email if directory_email is None else directory_email,
        header_groups=_header_groups(subject, session_claims),
        session_claims=session_claims,
        user_claims=user_claims,
        good_until_s=good_until_s,
        rests_on=keys_by_type(lookups),
        subject=subject,
    )


def _devices(subject: Subject) -> dict[str, Device]:
    return {
        device.type_id: Device(
            device.credential.id,
            device.enrollment is not None,
            device.enrollment.approved_by if device.enrollment is not None else "",
        )
        for device in subject.devices
    }


def _header_groups(subject: Subject, session_claims: Claims) -> tuple[str, ...]:
    ids = subject.directory_user.group_ids if subject.directory_user is not None else ()
    if ids:
        names = (group.name for group in subject.groups if group is not None and group.name)
        return (*ids, *names)
    return tuple(item for item in session_claims.get("groups") if isinstance(item, str))


def _limit(moment_s: float | None) -> float:
    return moment_s if moment_s is not None and moment_s >= _FIRST_REAL_SECOND else math.inf
