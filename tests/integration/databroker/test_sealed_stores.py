"""Encryption at rest, on the stores that rest somewhere."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from google.protobuf.struct_pb2 import Struct

from gatehouse.common.clock import Clock, SystemClock, SystemRng
from gatehouse.common.errors import FailedPreconditionError
from gatehouse.databroker.core.query import Query, accept_query
from gatehouse.databroker.core.records import Patch, Put
from gatehouse.databroker.core.sealing import DATA_KEY_LIFE_US
from gatehouse.databroker.edge.backends.base import Storage, running
from gatehouse.databroker.edge.backends.connections import parse_postgres
from gatehouse.databroker.edge.backends.postgres import PostgresStorage
from gatehouse.databroker.edge.backends.sqlite import SqliteStorage
from gatehouse.databroker.edge.backends.sqlite_connection import FILE_NAME
from gatehouse.databroker.edge.migrations import read_step
from gatehouse.pb.session_pb2 import Session
from tests.support.clock import FakeClock
from tests.support.postgres import fresh_database
from tests.support.storage import incoming, packed

SESSION = "type.googleapis.com/session.Session"
OLD, NEW, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))
SECRETS = (b"at-secret", b"rt-secret", b"id-secret")
TABLES = ("records", "record_changes")
PATIENCE_S = 60.0


@dataclass
class Place:
    """Where a store rests. `rows` reads what is stored; `run` changes it."""

    make: Callable[[tuple[bytes, ...], Clock], Storage]
    rows: Callable[[str], list[tuple[Any, ...]]]
    run: Callable[[str], Any]
    raw: Callable[[], bytes]
    literal: str  # of bytes in hexadecimal

    def opened(self, *secrets: bytes, clock: Clock | None = None) -> Any:
        return running(self.make(secrets, clock or SystemClock()))

    def payloads(self) -> list[bytes]:
        return [bytes(data) for name in TABLES for (data,) in self.rows(f"SELECT data FROM {name}")]


@pytest.fixture(params=["file", pytest.param("postgres", marks=pytest.mark.postgres)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with contextlib.ExitStack() as stack:
        yield file_place(tmp_path) if request.param == "file" else postgres_place(stack)


def file_place(directory: Path) -> Place:
    def run(statement: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(directory / FILE_NAME)) as db, db:
            return db.execute(statement).fetchall()

    def raw() -> bytes:
        return b"".join(path.read_bytes() for path in directory.iterdir())

    def make(secrets: tuple[bytes, ...], clock: Clock) -> Storage:
        return SqliteStorage(directory, clock, SystemRng(), lambda: secrets)

    return Place(make, run, run, raw, "x'{}'")


def postgres_place(stack: contextlib.ExitStack) -> Place:
    dsn = stack.enter_context(fresh_database())

    def run(statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(dsn, options="-c search_path=gatehouse") as db:
            cursor = db.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def raw() -> bytes:
        parts = []
        with psycopg.connect(dsn) as db:
            names = db.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'gatehouse'"
            ).fetchall()
            for (name,) in names:
                copy = psycopg.sql.SQL("COPY gatehouse.{} TO STDOUT (FORMAT binary)")
                with db.cursor().copy(copy.format(psycopg.sql.Identifier(name))) as dump:
                    parts += [bytes(item) for item in dump]
        return b"".join(parts)

    def make(secrets: tuple[bytes, ...], clock: Clock) -> Storage:
        return PostgresStorage(parse_postgres(dsn), clock, SystemRng(), lambda: secrets)

    return Place(make, run, run, raw, "'\\x{}'")


def is_sealed(stored: bytes) -> bool:
    return stored.startswith(b"\x00\x01")


def session(id_: str = "s", user_id: str = "ann") -> Session:
    made = Session(id=id_, user_id=user_id)
    made.oauth_token.access_token = "at-secret"
    made.oauth_token.refresh_token = "rt-secret"
    made.id_token.raw = "id-secret"
    return made


def by_user(user_id: str) -> Query:
    filter_ = Struct()
    filter_.update({"user_id": user_id})
    return accept_query(type_=SESSION, filter_=filter_, text="", offset=0, limit=10)


async def test_r63_no_secret_rests_in_clear(place: Place) -> None:
    async with place.opened(OLD) as storage:
        written = await storage.write(Put((incoming(SESSION, "s", session()),)))
        patched = Session()
        patched.oauth_token.access_token = "at-secret-2"
        paths = ("oauth_token.access_token",)
        await storage.write(Patch((incoming(SESSION, "s", patched),), paths))
        await storage.write(Put((incoming(SESSION, "gone", session("gone")),)))
        await storage.write(Put((incoming(SESSION, "gone"),)))
        while_open = place.raw()
        # It is all there for who has the secret, searchable as before.
        held = await storage.get(SESSION, "s")
        assert held.data == packed_with(session(), "at-secret-2")
        changes = await storage.changes(0, limit=10)
        assert changes.changes[0] == written.records[0]
        for text in ("ann", "Nobody"):
            found = await storage.query(by_user(text))
            assert found.total == (text == "ann")
    for raw in (while_open, place.raw()):
        for secret in (*SECRETS, OLD):
            assert secret not in raw
        assert b"ann" in raw  # what is indexed stays in clear
    assert all(map(is_sealed, place.payloads()))


def packed_with(made: Session, access_token: str) -> bytes:
    made.oauth_token.access_token = access_token
    return packed(made)


async def test_an_identical_write_still_makes_no_version(place: Place) -> None:
    async with place.opened(OLD) as storage:
        first = await storage.write(Put((incoming(SESSION, "s", session()),)))
        again = await storage.write(Put((incoming(SESSION, "s", session()),)))
        assert again.records == first.records


async def test_a_swapped_payload_shows_nothing(place: Place) -> None:
    async with place.opened(OLD) as storage:
        await storage.write(
            Put((incoming(SESSION, "a", session("a")), incoming(SESSION, "b", session("b", "bob"))))
        )
        place.run(
            "UPDATE records SET data = (SELECT data FROM records AS other WHERE other.id = 'a')"
            " WHERE id = 'b'"
        )
        held = await storage.get(SESSION, "b")
        assert (held.version, held.data) == (2, b"")
        head = await storage.head(SESSION, None, limit=10)
        assert [bool(record.data) for record in head.records] == [True, False]
        # It can be written anew, and deleted.
        await storage.write(Put((incoming(SESSION, "b", session("b", "bob")),)))
        assert (await storage.get(SESSION, "b")).data == packed(session("b", "bob"))


async def test_secrets_rotate(place: Place) -> None:
    async with place.opened(OLD) as storage:
        await storage.write(Put((incoming(SESSION, "s", session()),)))
    async with place.opened(NEW, OLD) as storage:
        assert (await storage.get(SESSION, "s")).data == packed(session())
        await storage.write(Put((incoming(SESSION, "new", session("new")),)))
    async with place.opened(NEW) as storage:
        assert (await storage.get(SESSION, "s")).data == packed(session())
        assert (await storage.get(SESSION, "new")).data == packed(session("new"))


async def test_a_wrong_secret_is_refused_and_nothing_is_lost(place: Place) -> None:
    async with place.opened(OLD) as storage:
        await storage.write(Put((incoming(SESSION, "s", session()),)))
    before = place.rows("SELECT id, wrapped FROM data_keys")
    with pytest.raises(FailedPreconditionError, match="shared_secret"):
        async with place.opened(OTHER):
            pass
    assert place.rows("SELECT id, wrapped FROM data_keys") == before
    async with place.opened(OLD) as storage:
        assert (await storage.get(SESSION, "s")).data == packed(session())


async def test_a_lost_data_key_closes_what_it_sealed_and_nothing_else(place: Place) -> None:
    async with place.opened(OLD) as storage:
        await storage.write(Put((incoming(SESSION, "s", session()),)))
    place.run("DELETE FROM data_keys")
    async with place.opened(OLD) as storage:
        await storage.write(Put((incoming(SESSION, "t", session("t")),)))
        async with asyncio.timeout(PATIENCE_S):
            assert (await storage.get(SESSION, "s")).data == b""
            page = await storage.changes(0, limit=10)
        assert [bool(record.data) for record in page.changes] == [False, True]
        assert (await storage.get(SESSION, "t")).data == packed(session("t"))


async def test_r63_a_planted_record_in_clear_is_no_session(place: Place) -> None:
    """Who can write into the database but does not have the secret makes no records."""
    async with place.opened(OLD) as storage:
        await storage.write(Put((incoming(SESSION, "s", session()),)))
        clear = place.literal.format(packed(session("s", "mallory")).hex())
        planted = place.literal.format(packed(session("planted", "mallory")).hex())
        place.run(f"UPDATE records SET data = {clear} WHERE id = 's'")
        place.run(f"UPDATE record_changes SET data = {clear} WHERE id = 's'")
        for table in TABLES:
            place.run(
                f"INSERT INTO {table} (version, type, id, data, modified_at_us)"
                f" VALUES (2, '{SESSION}', 'planted', {planted}, 5)"
            )
        place.run("UPDATE sequencer SET latest_version = 2")
        for id_ in ("s", "planted"):
            assert (await storage.get(SESSION, id_)).data == b""
        head = await storage.head(SESSION, None, limit=10)
        page = await storage.changes(0, limit=10)
        assert [record.data for record in (*head.records, *page.changes)] == [b""] * 4
        assert (await storage.query(by_user("mallory"))).total == 0
    async with place.opened(OLD) as storage:
        assert (await storage.get(SESSION, "planted")).data == b""
        await storage.write(Put((incoming(SESSION, "s", session()),)))
        assert (await storage.get(SESSION, "s")).data == packed(session())


async def test_each_day_has_its_key(place: Place) -> None:
    clock = FakeClock()
    async with place.opened(OLD, clock=clock) as storage:
        await storage.write(Put((incoming(SESSION, "a", session("a")),)))
    clock.advance(DATA_KEY_LIFE_US / 1e6)
    async with place.opened(OLD, clock=clock) as storage:
        await storage.write(Put((incoming(SESSION, "b", session("b")),)))
        head = await storage.head(SESSION, None, limit=10)
        assert all(record.data for record in head.records)
    assert len(place.rows("SELECT id FROM data_keys")) == 2
    assert len({data[2:6] for data in place.payloads()}) == 2


@pytest.mark.postgres
async def test_a_databroker_learns_of_the_keys_of_others() -> None:
    with contextlib.ExitStack() as stack:
        place = postgres_place(stack)
        late = FakeClock()
        late.advance(DATA_KEY_LIFE_US / 1e6)
        async with place.opened(OLD, clock=FakeClock()) as one:
            async with place.opened(OLD, clock=late) as other:
                await other.write(Put((incoming(SESSION, "s", session()),)))
            assert (await one.get(SESSION, "s")).data == packed(session())
            written = await one.write(Put((incoming(SESSION, "s", session()),)))
            assert written.records[0].version == 1
            assert (await one.changes(0, limit=9)).changes[0].data == packed(session())


async def test_a_store_of_the_first_schema_is_brought_up_to_date(place: Place) -> None:
    for statement in first_schema("sqlite" if place.literal.startswith("x") else "postgres"):
        place.run(statement)
    place.run(
        "INSERT INTO sequencer (server_version, latest_version, pruned_version) VALUES (7, 1, 1)"
    )
    async with place.opened(OLD) as storage:
        position = await storage.position()
        assert (position.server_version, position.latest) == (7, 1)
        written = await storage.write(Put((incoming(SESSION, "s", session()),)))
        assert written.records[0].version == 2


async def test_r63_a_store_from_before_sealing_is_refused(place: Place) -> None:
    """Else what was planted could come in by making the store look old."""
    for statement in first_schema("sqlite" if place.literal.startswith("x") else "postgres"):
        place.run(statement)
    clear = place.literal.format(packed(session()).hex())
    place.run(
        "INSERT INTO sequencer (server_version, latest_version, pruned_version) VALUES (7, 1, 0)"
    )
    place.run(
        "INSERT INTO records (version, type, id, data, modified_at_us)"
        f" VALUES (1, '{SESSION}', 's', {clear}, 5)"
    )
    with pytest.raises(FailedPreconditionError, match=r"in clear.*empty store.*import"):
        async with place.opened(OLD):
            pass
    assert place.rows("SELECT id FROM records") == [("s",)]


def first_schema(dialect: str) -> list[str]:
    if dialect == "sqlite":
        return [*read_step(dialect, 1).split(";\n"), "PRAGMA user_version = 1"]
    return [
        "CREATE SCHEMA gatehouse",
        "CREATE TABLE gatehouse.schema_version (version INTEGER NOT NULL)",
        read_step(dialect, 1),
        "INSERT INTO gatehouse.schema_version (version) VALUES (1)",
    ]
