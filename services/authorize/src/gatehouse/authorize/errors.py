"""What stops a decision from being made."""

from __future__ import annotations

from gatehouse.common.errors import InvalidArgumentError, UnavailableError


class CannotKnowError(UnavailableError):
    """The records that a decision rests on cannot be had now: 503, never a sign-in."""

    default_reason = "cannot-know"


class UnreadableRecordError(CannotKnowError):
    """A record exists and cannot be understood, so nothing may be concluded from it."""

    default_reason = "unreadable-record"


class UnreadableCertificateError(InvalidArgumentError):
    """A client certificate that Envoy let through and that cannot be understood here: 503."""

    default_reason = "unreadable-certificate"
