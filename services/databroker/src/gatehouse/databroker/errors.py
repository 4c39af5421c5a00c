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


class WrongSecretError(StorageUnusableError):
    """The store's keys do not open with the shared secrets in force."""

    default_reason = "storage-wrong-secret"


class ClearStoreError(StorageUnusableError):
    """The store is of a version that did not encrypt, so that what it holds cannot be trusted."""

    default_reason = "storage-in-clear"

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where} has records in clear, of a version before encryption at rest; whoever could "
            "write there may have made them, so they are not taken over: begin with an empty "
            "store, and import what 'gatehouse databroker export' of that version wrote"
        )


class SlowSubscriberError(AbortedError):
    """A stream was read so slowly that changes it had not read yet are no longer at hand."""

    default_reason = "slow-subscriber"


class DrainingError(UnavailableError):
    """This databroker is stopping; another one, or a later attempt, will do."""

    default_reason = "draining"
