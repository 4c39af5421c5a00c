"""Errors of the databroker that need a reader's help: its own names over the common tree."""

from __future__ import annotations

from gatehouse.common.errors import (
    AbortedError,
    FailedPreconditionError,
    UnavailableError,
)


class StorageUnavailableError(UnavailableError):
    """The store cannot be reached, or is not open."""

    default_reason = "storage-unavailable"

    def __init__(self, message: str) -> None:
        super().__init__(message, public_message="the databroker's storage is unavailable")


class StorageUnusableError(FailedPreconditionError):
    """The store will not work as configured; trying again does not help."""

    default_reason = "storage-unusable"


class SlowSubscriberError(AbortedError):
    """A stream was read so slowly that changes it had not read yet are no longer at hand."""

    default_reason = "slow-subscriber"


class DrainingError(UnavailableError):
    """This databroker is stopping; another one, or a later attempt, will do."""

    default_reason = "draining"
