"""The error tree.

    GatehouseError
    +-- InvalidArgumentError      input that can never be right
    |   +-- ConfigError           (config/issues.py) every configuration mistake at once
    |   +-- InvalidTokenError     a credential, cookie or signed URL that does not verify
    +-- UnauthenticatedError      no usable credential
    +-- PermissionDeniedError     a good credential that may not do this
    +-- NotFoundError
    +-- AlreadyExistsError        also: a lease that another holds
    +-- AbortedError              the copy belongs to another history; start over
    +-- FailedPreconditionError
    +-- ResourceExhaustedError    over a stated limit
    +-- UnimplementedError
    +-- DeadlineExceededError
    +-- UnavailableError          try again, perhaps elsewhere
    +-- InternalError             a broken promise of ours

Each carries a canonical gRPC code, a stable `reason` token, and a `public_message` that may be
shown to anyone. The exception's own text and `fields` are for logs only. Neither may hold a secret.
Mapping to gRPC is in `rpc/status.py`; mapping to HTTP is with the pages.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Code(enum.Enum):
    """Canonical gRPC status codes (https://grpc.io/docs/guides/status-codes/) by number."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class GatehouseError(Exception):
    """Base of every error raised on purpose."""

    code: ClassVar[Code] = Code.UNKNOWN
    default_reason: ClassVar[str] = "unknown"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        public_message: str | None = None,
        **fields: object,
    ) -> None:
        super().__init__(message)
        self.reason = reason or self.default_reason
        self.public_message = public_message if public_message is not None else message
        self.fields = fields


class InvalidArgumentError(GatehouseError):
    """Input that can never be right."""

    code = Code.INVALID_ARGUMENT
    default_reason = "invalid-argument"


class InvalidTokenError(InvalidArgumentError):
    """A credential, cookie, state or signed URL that does not verify."""

    default_reason = "invalid-token"


class UnauthenticatedError(GatehouseError):
    """No usable credential came with the call."""

    code = Code.UNAUTHENTICATED
    default_reason = "unauthenticated"


class PermissionDeniedError(GatehouseError):
    """The caller is known and may not do this."""

    code = Code.PERMISSION_DENIED
    default_reason = "permission-denied"


class NotFoundError(GatehouseError):
    """What was asked for does not exist."""

    code = Code.NOT_FOUND
    default_reason = "not-found"


class AlreadyExistsError(GatehouseError):
    """Taken: also a lease that another holds."""

    code = Code.ALREADY_EXISTS
    default_reason = "already-exists"


class AbortedError(GatehouseError):
    """The caller's copy belongs to another history or is too old; it must start over."""

    code = Code.ABORTED
    default_reason = "aborted"


class FailedPreconditionError(GatehouseError):
    """Right in itself, but not in the present state."""

    code = Code.FAILED_PRECONDITION
    default_reason = "failed-precondition"


class ResourceExhaustedError(GatehouseError):
    """Over a stated limit."""

    code = Code.RESOURCE_EXHAUSTED
    default_reason = "resource-exhausted"


class UnimplementedError(GatehouseError):
    """Known, and not offered."""

    code = Code.UNIMPLEMENTED
    default_reason = "unimplemented"


class DeadlineExceededError(GatehouseError):
    """No answer in time."""

    code = Code.DEADLINE_EXCEEDED
    default_reason = "deadline-exceeded"


class UnavailableError(GatehouseError):
    """Not now; trying again, perhaps elsewhere, may help."""

    code = Code.UNAVAILABLE
    default_reason = "unavailable"


class InternalError(GatehouseError):
    """One of our own promises is broken."""

    code = Code.INTERNAL
    default_reason = "internal"
