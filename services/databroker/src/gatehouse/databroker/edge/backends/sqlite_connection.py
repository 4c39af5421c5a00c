"""How the SQLite file is held: its directory's lock, its connections, transactions and schema."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from gatehouse.common.errors import InternalError
from gatehouse.databroker.edge.migrations import SEALED_SINCE, SQLITE_VERSION, read_step
from gatehouse.databroker.errors import (
    ClearStoreError,
    StorageUnavailableError,
    StorageUnusableError,
)

FILE_NAME: Final = "databroker.sqlite3"
LOCK_NAME: Final = "LOCK"
EPOCH_NAME: Final = "EPOCH"
_HOLDS_CLEAR: Final = """
    SELECT EXISTS (
        SELECT 1 FROM (SELECT data FROM records UNION ALL SELECT data FROM record_changes)
        WHERE substr(data, 1, 1) <> x'00'
    )"""
_BUSY_TIMEOUT_S: Final = 5.0


@contextlib.contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Hold a store directory for this process; make it if need be (mode 0700).

    Raises StorageUnusableError when another process holds it or it cannot be used.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageUnusableError(
            f"the databroker cannot use the directory {directory}: {error.strerror}; "
            "databroker_storage_connection_string must name one that it may write to"
        ) from error
    with os.fdopen(descriptor, "r+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageUnusableError(
                f"the databroker's directory {directory} is in use by process {_holder(lock)}; "
                "one process at a time may have it (use postgres storage for several)",
                reason="storage-in-use",
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _holder(lock: IO[str]) -> str:
    lock.seek(0)
    return lock.read(32).strip() or "another"


class Epochs:
    """The file beside the store that says which opening of it was the last one.

    The store says so too. A store put back from a backup says something else, unless it was taken
    since, and is told apart by that. Each change is noted here as possible before it is made.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / EPOCH_NAME

    def read(self) -> frozenset[str]:
        """Return the epochs that the store may have."""
        try:
            return frozenset(self._path.read_text(encoding="ascii").split())
        except FileNotFoundError:
            return frozenset()
        except (OSError, ValueError) as error:
            raise StorageUnusableError(f"{self._path} cannot be read: {error}") from error

    def write(self, *epochs: str) -> None:
        """Note the epochs that the store may have, for good."""
        draft = self._path.with_suffix(".new")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write("\n".join(epochs) + "\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
        except OSError as error:
            raise StorageUnavailableError(f"{self._path}: {error.strerror}") from error


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise SQLite's errors as ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StorageUnavailableError(f"SQLite: {error}") from error
    except sqlite3.Error as error:
        raise InternalError(
            f"SQLite: {error}", reason="storage-broken", public_message="the store is broken"
        ) from error


class SqliteConnection:
    """A connection that one thread uses. Errors are ours throughout."""

    def __init__(self, path: Path, *, is_writer: bool) -> None:
        if is_writer:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with translated():
            self._db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
            try:
                _check_format(self._db, path)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                if not is_writer:
                    self._db.execute("PRAGMA query_only = ON")
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the connection; the last one folds the write-ahead log into the file."""
        self._db.close()

    @contextlib.contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        with translated():
            self._db.execute(begin)
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # A full disk may have ended it already, or have kept it from being committed.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _reading(self) -> contextlib.AbstractContextManager[None]:
        return self._transaction("BEGIN DEFERRED")

    def _rows(self, sql: str, *args: Any) -> list[Any]:
        return self._db.execute(sql, args).fetchall()

    def _row(self, sql: str, *args: Any) -> Any:
        return self._db.execute(sql, args).fetchone()

    def _create_tables(self) -> None:
        """Bring the schema up to date; within a transaction."""
        (version,) = self._row("PRAGMA user_version")
        if version > SQLITE_VERSION:
            raise StorageUnusableError(
                f"the databroker's SQLite file has schema version {version}, this release "
                f"knows up to {SQLITE_VERSION}; run the newer release"
            )
        if 0 < version < SEALED_SINCE and self._row(_HOLDS_CLEAR)[0]:
            raise ClearStoreError("the databroker's SQLite file")
        for step in range(version + 1, SQLITE_VERSION + 1):
            for statement in _statements(read_step("sqlite", step)):
                self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version = {SQLITE_VERSION:d}")


def _check_format(db: sqlite3.Connection, path: Path) -> None:
    try:
        db.execute("PRAGMA schema_version").fetchone()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise StorageUnusableError(
            f"{path} is not a SQLite database ({error}); move it away or restore a backup"
        ) from error


def _statements(script: str) -> Iterator[str]:
    """Split a script of ours into statements; `executescript` would commit in between."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
    assert not pending.strip(), pending
