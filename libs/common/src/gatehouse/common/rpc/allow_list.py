"""Which of our services may call which method (spec: databroker §9, scope).

Applies to callers that say who they are in `gatehouse-jwt`. Each service may do what its part in
the system needs: proxy reads (and takes leases, for callback URLs that work once), authorize reads,
notes access times and writes the sessions it makes of bearer tokens, authenticate writes sessions
and users. Whatever is not listed is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from gatehouse.common.errors import PermissionDeniedError
from gatehouse.common.ids import SERVICE_ACCOUNT, SESSION, USER
from gatehouse.pb import access_times_pb2, databroker_pb2, session_pb2, user_pb2

PROXY: Final = "proxy"
AUTHORIZE: Final = "authorize"
AUTHENTICATE: Final = "authenticate"
DATABROKER: Final = "databroker"
OPERATOR: Final = "operator"  # the command line

_UNLIMITED: Final = frozenset({DATABROKER, OPERATOR})
_EVERYONE: Final = frozenset({PROXY, AUTHORIZE, AUTHENTICATE}) | _UNLIMITED
_WRITERS: Final = frozenset({AUTHENTICATE}) | _UNLIMITED

_BROKER: Final = "/databroker.DataBrokerService/"
_ACCESS_TIMES: Final = "/gatehouse.databroker.AccessTimes/"
_ADMIN: Final = "/gatehouse.databroker.Admin/"
_CHECKPOINT: Final = "/databroker.CheckpointService/"
_REGISTRY: Final = "/registry.Registry/"

_METHODS: Final[Mapping[str, frozenset[str]]] = {
    _BROKER + "Get": _EVERYONE,
    _BROKER + "GetOptions": _EVERYONE,
    _BROKER + "ListTypes": _EVERYONE,
    _BROKER + "Query": _EVERYONE,
    _BROKER + "ServerInfo": _EVERYONE,
    _BROKER + "Sync": _EVERYONE,
    _BROKER + "SyncLatest": _EVERYONE,
    _BROKER + "AcquireLease": _EVERYONE,
    _BROKER + "RenewLease": _EVERYONE,
    _BROKER + "ReleaseLease": _EVERYONE,
    _BROKER + "Put": _WRITERS | {AUTHORIZE},
    _BROKER + "Patch": _WRITERS,
    _BROKER + "Clear": _UNLIMITED,
    _BROKER + "SetOptions": _UNLIMITED,
    _ACCESS_TIMES + "GetAccessTimes": _EVERYONE,
    _ACCESS_TIMES + "PutAccessTimes": frozenset({AUTHORIZE}) | _UNLIMITED,
    _ADMIN + "Status": _UNLIMITED,
    _ADMIN + "ChangeServerVersion": _UNLIMITED,
    _CHECKPOINT + "GetCheckpoint": _EVERYONE,
    _CHECKPOINT + "SetCheckpoint": _UNLIMITED,
    _REGISTRY + "Report": _EVERYONE,
    _REGISTRY + "List": _UNLIMITED,
    _REGISTRY + "Watch": _UNLIMITED,
    "/envoy.service.auth.v3.Authorization/Check": frozenset({PROXY}) | _UNLIMITED,
    "/gatehouse.authorize.v1.ExplainService/Explain": frozenset({OPERATOR}),
    "/gatehouse.authorize.v1.ExplainService/Answer": frozenset({PROXY}),
    "/gatehouse.authorize.v1.PortalService/OpenRoutes": frozenset({PROXY}),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _EVERYONE,
}

_AUTHENTICATE_TYPES: Final = frozenset({SESSION, USER})
_ACCESSED_TYPES: Final = frozenset({SESSION, SERVICE_ACCOUNT})
_FROM_TOKEN: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
)


_OURS: Final = "/gatehouse."


def check_caller(subject: str | None, method: str) -> None:
    """Raises PermissionDeniedError unless that caller may call `method`.

    Who only shows that it holds the secret may call what other tools know; what is ours is for
    callers who say who they are.
    """
    if subject is not None:
        check_method(subject, method)
    elif method.startswith(_OURS):
        raise PermissionDeniedError(
            f"{method} is for callers that name themselves in gatehouse-jwt",
            reason="caller-not-named",
        )


def check_method(subject: str, method: str) -> None:
    """Raises PermissionDeniedError unless `subject` may call `method` ("/package.Service/Method").

    The services that may do everything may also call what this list does not name.
    """
    if subject in _UNLIMITED or subject in _METHODS.get(method, frozenset()):
        return
    raise PermissionDeniedError(f"{subject!r} may not call {method}", reason="method-not-allowed")


def check_request(subject: str, request: object) -> None:
    """Raises PermissionDeniedError where the method is allowed, but not with this request."""
    if subject in _UNLIMITED:
        return
    if isinstance(request, databroker_pb2.PutRequest):
        records = tuple(request.records)
        if subject == AUTHORIZE:
            _check_bearer_session(records)
        _check_types(subject, {record.type for record in records}, _AUTHENTICATE_TYPES)
    elif isinstance(request, databroker_pb2.PatchRequest):
        _check_types(subject, {record.type for record in request.records}, _AUTHENTICATE_TYPES)
    elif isinstance(request, access_times_pb2.PutAccessTimesRequest):
        _check_types(subject, {item.type for item in request.access_time}, _ACCESSED_TYPES)


def _check_bearer_session(records: Sequence[databroker_pb2.Record]) -> None:
    """Authorize puts what a bearer token makes, and nothing else: a session and its user.

    The session's id follows from the token (a UUID of version 5, where sign-ins get random ones),
    it is never refreshed, stands for nobody else, and the user is its own. Nothing is deleted.
    """
    by_type = {record.type: record for record in records}
    if len(records) != 2 or by_type.keys() != {SESSION, USER}:
        raise _no_bearer_session("one session and one user at a time")
    session, user = session_pb2.Session(), user_pb2.User()
    for record, message in ((by_type[SESSION], session), (by_type[USER], user)):
        if record.HasField("deleted_at"):
            raise _no_bearer_session("and may not delete")
        try:
            readable = record.data.Unpack(message)
        except DecodeError:
            readable = False
        if not readable or not record.id or message.id != record.id:
            raise _no_bearer_session("records that name themselves")
    if not session.refresh_disabled or not _FROM_TOKEN.fullmatch(session.id):
        raise _no_bearer_session("sessions made of bearer tokens")
    if session.user_id != user.id or session.impersonate_session_id:
        raise _no_bearer_session("a session of that user, standing for nobody else")


def _no_bearer_session(what: str) -> PermissionDeniedError:
    return PermissionDeniedError(f"{AUTHORIZE!r} may write {what}", reason="record-not-allowed")


def _check_types(subject: str, types: set[str], allowed: frozenset[str]) -> None:
    refused = types - allowed
    if refused:
        raise PermissionDeniedError(
            f"{subject!r} may not write records of type {min(refused)[:256]!r}",
            reason="type-not-allowed",
        )
