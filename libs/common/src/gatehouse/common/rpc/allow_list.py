"""Which of our services may call which method (spec: databroker §9, scope).

Applies to callers that say who they are in `gatehouse-jwt`. Each service may do what its part in
the system needs: proxy reads (and takes leases, for callback URLs that work once), authorize reads
and notes access times, authenticate writes sessions and users. Whatever is not listed is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gatehouse.common.errors import PermissionDeniedError
from gatehouse.common.ids import SERVICE_ACCOUNT, SESSION, USER
from gatehouse.pb import databroker_pb2

PROXY: Final = "proxy"
AUTHORIZE: Final = "authorize"
AUTHENTICATE: Final = "authenticate"
DATABROKER: Final = "databroker"
OPERATOR: Final = "operator"  # the command line

_UNLIMITED: Final = frozenset({DATABROKER, OPERATOR})
_EVERYONE: Final = frozenset({PROXY, AUTHORIZE, AUTHENTICATE}) | _UNLIMITED
_WRITERS: Final = frozenset({AUTHENTICATE}) | _UNLIMITED

_BROKER: Final = "/databroker.DataBrokerService/"
_CHECKPOINT: Final = "/databroker.CheckpointService/"

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
    _BROKER + "Put": _WRITERS,
    _BROKER + "Patch": _WRITERS | {AUTHORIZE},
    _BROKER + "Clear": _UNLIMITED,
    _BROKER + "SetOptions": _UNLIMITED,
    _CHECKPOINT + "GetCheckpoint": _EVERYONE,
    _CHECKPOINT + "SetCheckpoint": _UNLIMITED,
    "/envoy.service.auth.v3.Authorization/Check": frozenset({PROXY}) | _UNLIMITED,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _EVERYONE,
}

_AUTHENTICATE_TYPES: Final = frozenset({SESSION, USER})
_ACCESSED_TYPES: Final = frozenset({SESSION, SERVICE_ACCOUNT})
_ACCESSED_PATHS: Final = frozenset({"accessed_at"})


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
        _check_types(subject, {record.type for record in records}, _AUTHENTICATE_TYPES)
    elif isinstance(request, databroker_pb2.PatchRequest):
        types = {record.type for record in request.records}
        if subject == AUTHORIZE:
            _check_types(subject, types, _ACCESSED_TYPES)
            # An empty mask means every field.
            if set(request.field_mask.paths) != _ACCESSED_PATHS:
                raise PermissionDeniedError(
                    f"{subject!r} may patch accessed_at only", reason="field-not-allowed"
                )
        else:
            _check_types(subject, types, _AUTHENTICATE_TYPES)


def _check_types(subject: str, types: set[str], allowed: frozenset[str]) -> None:
    refused = types - allowed
    if refused:
        raise PermissionDeniedError(
            f"{subject!r} may not write records of type {min(refused)[:256]!r}",
            reason="type-not-allowed",
        )
