"""What only the file store promises: one process, and nothing acknowledged is ever lost."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.errors import FailedPreconditionError, UnavailableError
from gatehouse.databroker.core.options import TypeRules
from gatehouse.databroker.core.records import Put
from gatehouse.databroker.edge.backends.base import running
from gatehouse.databroker.edge.backends.sqlite import SqliteStorage
from gatehouse.databroker.edge.backends.sqlite_connection import FILE_NAME, directory_lock
from gatehouse.pb.user_pb2 import User
from tests.support.storage import incoming, secrets

WRITER = """
import asyncio, sys
from pathlib import Path
from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.databroker.core.records import Put
from gatehouse.databroker.edge.backends.base import running
from gatehouse.databroker.edge.backends.sqlite import SqliteStorage
from gatehouse.pb.user_pb2 import User
from tests.support.storage import incoming, secrets

async def main():
    storage = SqliteStorage(Path(sys.argv[1]), SystemClock(), SystemRng(), secrets)
    async with running(storage):
        number = 0
        async def write(number):
            user = User(id=sys.argv[2] * 500)
            result = await storage.write(Put((incoming("t", f"{number}", user),)))
            print(number, result.records[0].version, flush=True)
        while True:
            await asyncio.gather(*(write(number + more) for more in range(5)))
            number += 5

asyncio.run(main())
"""


def store(directory: Path) -> SqliteStorage:
    return SqliteStorage(directory, SystemClock(), SystemRng(), secrets)


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    acknowledged: dict[str, int] = {}
    for round_ in "xyz":  # each writes the same records again, changed, and then more
        with subprocess.Popen(  # noqa: ASYNC220 - it blocks no longer than a pipe
            [sys.executable, "-c", WRITER, str(tmp_path / "store"), round_],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        ) as process:
            assert process.stdout is not None
            for _ in range(40):
                number, version = process.stdout.readline().split()
                acknowledged[number] = int(version)
            process.send_signal(signal.SIGKILL)
            for line in process.stdout:
                if line.endswith("\n"):
                    number, version = line.split()
                    acknowledged[number] = int(version)
        async with running(store(tmp_path / "store")) as storage:
            position = await storage.position()
            page = await storage.changes(0, limit=1_000_000)
            versions = [record.version for record in page.changes]
            assert versions == list(range(1, position.latest + 1))
            for id_, known in acknowledged.items():
                held = await storage.get("t", id_)
                assert held is not None, id_
                assert held.version == known
            assert {record.id for record in page.changes} >= acknowledged.keys()


async def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    async with running(store(tmp_path)) as storage:
        await storage.set_options("t", TypeRules(capacity=7, indexed=("name",)))
        await storage.write(Put((incoming("t", "a", User(name="ann")), incoming("t", "b", User()))))
        await storage.write(Put((incoming("t", "b"),)))
        assert await storage.acquire_lease("job", "me", 60_000_000)
        position = await storage.position()
        page = await storage.changes(0, limit=10)
    async with running(store(tmp_path)) as storage:
        assert await storage.position() == position
        assert await storage.changes(0, limit=10) == page
        assert await storage.options("t") == TypeRules(capacity=7, indexed=("name",))
        assert not await storage.acquire_lease("job", "you", 60_000_000)


async def test_a_second_process_stops_with_a_clear_message(tmp_path: Path) -> None:
    holder = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", WRITER, str(tmp_path), "x"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(FailedPreconditionError) as caught:
            await store(tmp_path).open()
        assert f"in use by process {holder.pid}" in str(caught.value)
        assert str(tmp_path) in str(caught.value)
    finally:
        holder.kill()
        holder.communicate()
    # A lock does not outlive its process.
    async with running(store(tmp_path)) as storage:
        assert (await storage.position()).latest > 0


async def test_the_lock_is_given_back(tmp_path: Path) -> None:
    with directory_lock(tmp_path):
        storage = store(tmp_path)
        with pytest.raises(FailedPreconditionError, match=f"process {os.getpid()}"):
            await storage.open()
        await storage.close()
    async with running(storage):
        await storage.write(Put((incoming("t", "a", User()),)))
    async with running(storage):
        assert (await storage.position()).latest == 1


async def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    async with running(store(tmp_path / "new" / "store")) as storage:
        await storage.write(Put((incoming("t", "a", User()),)))
        assert stat.S_IMODE((tmp_path / "new" / "store").stat().st_mode) == 0o700
        files = [path for path in (tmp_path / "new" / "store").iterdir() if "sqlite" in path.name]
        assert {path.name for path in files} >= {FILE_NAME, f"{FILE_NAME}-wal"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


async def test_commits_are_durable_by_setting(tmp_path: Path) -> None:
    storage = store(tmp_path)
    async with running(storage):
        pragmas = await storage._writer.call(
            lambda db: [
                db._db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous")
            ]
        )
    assert pragmas == ["wal", 2]


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    async with running(store(tmp_path)):
        pass
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(FailedPreconditionError, match="schema version 99"):
        await store(tmp_path).open()


async def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPreconditionError, match="databroker_storage_connection_string"):
        await store(tmp_path / "file" / "store").open()


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"certainly not SQLite" * 100)
    storage = store(tmp_path)
    with pytest.raises(FailedPreconditionError, match=FILE_NAME):
        await storage.open()
    await storage.close()


async def test_a_closed_store_is_unavailable(tmp_path: Path) -> None:
    storage = store(tmp_path)
    for call in (
        storage.position,
        lambda: storage.write(Put((incoming("t", "a", User()),))),
    ):
        with pytest.raises(UnavailableError):
            await call()
    async with running(storage):
        await storage.position()
    with pytest.raises(UnavailableError):
        await storage.write(Put((incoming("t", "a", User()),)))
