"""How our errors travel over gRPC, and back.

The status code is the error's `code`, the message its `public_message`, and the stable `reason`
token rides in the trailing metadata. Nothing else of an error leaves the process.
"""

from __future__ import annotations

from typing import Final

import grpc
import grpc.aio

from gatehouse.common.errors import (
    AbortedError,
    AlreadyExistsError,
    Code,
    DeadlineExceededError,
    FailedPreconditionError,
    GatehouseError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)

REASON_KEY: Final = "gatehouse-reason"

MESSAGE_LIMIT: Final = 1024  # characters; a status message is an HTTP/2 header

_STATUS_BY_NUMBER: Final = {status.value[0]: status for status in grpc.StatusCode}

_ERROR_BY_STATUS: Final[dict[grpc.StatusCode, type[GatehouseError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.ABORTED: AbortedError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    # The peer or the way to it gave up; asking again is right, and nothing is known to be wrong.
    grpc.StatusCode.CANCELLED: UnavailableError,
}


def status_of(code: Code) -> grpc.StatusCode:
    """The gRPC status of one of our codes."""
    return _STATUS_BY_NUMBER[code.value]


def to_grpc(error: GatehouseError) -> tuple[grpc.StatusCode, str]:
    """Status and message for the peer: only the error's public part."""
    message = error.public_message
    if len(message) > MESSAGE_LIMIT:
        message = message[: MESSAGE_LIMIT - 1] + "…"
    return status_of(error.code), message


def trailing_metadata(error: GatehouseError) -> tuple[tuple[str, str], ...]:
    """Metadata that carries the reason token beside the status."""
    return ((REASON_KEY, error.reason),)


def from_rpc_error(error: grpc.aio.AioRpcError) -> GatehouseError:
    """The error a failed call stands for, with the peer's reason where it gave one.

    Unknown, data-loss and internal statuses become InternalError.
    """
    status = error.code()
    details = error.details() or "no details were given"
    message = f"the peer answered {status.name}: {details}"
    cls = _ERROR_BY_STATUS.get(status, InternalError)
    return cls(message, reason=_reason(error), public_message=cls.default_reason)


def _reason(error: grpc.aio.AioRpcError) -> str | None:
    metadata = error.trailing_metadata()
    if metadata is None:
        return None
    for key, value in metadata:
        if key == REASON_KEY:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return None
