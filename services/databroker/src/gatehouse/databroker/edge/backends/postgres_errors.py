"""What psycopg's errors mean to the callers of a store. Messages carry no statement data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import psycopg
import psycopg_pool
from psycopg import errors as pg

from gatehouse.common.errors import DeadlineExceededError, InternalError
from gatehouse.databroker.errors import StorageUnavailableError, StorageUnusableError

_TOO_SLOW: Final = (pg.QueryCanceled, pg.LockNotAvailable)
# Not connection errors to psycopg, yet they pass: a fail-over, or a stall of ours.
_PASSING: Final = (
    pg.ReadOnlySqlTransaction,
    pg.IdleInTransactionSessionTimeout,
    psycopg_pool.PoolTimeout,
    psycopg_pool.PoolClosed,
    psycopg_pool.TooManyRequests,
    psycopg.OperationalError,
    psycopg.InterfaceError,
    TimeoutError,  # while connecting
)


def message_of(error: psycopg.Error | TimeoutError) -> str:
    """Return the error's first line: no DETAIL, which may quote values."""
    if isinstance(error, TimeoutError):
        return "no answer"
    text = error.diag.message_primary or str(error).strip().partition("\n")[0]
    return text or type(error).__name__


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise psycopg's errors as ours."""
    try:
        yield
    except _TOO_SLOW as error:
        raise DeadlineExceededError(
            f"PostgreSQL: {message_of(error)}",
            reason="storage-timeout",
            public_message="the databroker's storage took too long",
        ) from error
    except pg.InsufficientPrivilege as error:
        raise StorageUnusableError(
            f"PostgreSQL: {message_of(error)}; the databroker's role needs to own the schema "
            "gatehouse, or all rights on its tables"
        ) from error
    except _PASSING as error:
        raise StorageUnavailableError(f"PostgreSQL: {message_of(error)}") from error
    except psycopg.Error as error:
        raise InternalError(
            f"PostgreSQL: {type(error).__name__}: {message_of(error)}",
            reason="storage-error",
            public_message="the databroker's storage refused a statement",
        ) from error
