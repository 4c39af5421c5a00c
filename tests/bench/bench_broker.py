"""What a databroker commits, how fast many followers hear of it, and what a copy costs.

The databroker is the product's own process. Copies and followers run in others, all on one machine,
so what they take is missing to it. Every figure is taken at 10,000 and 100,000 sessions, and with
FULL=1 at a million. STORES=memory,postgres leaves stores out.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
import time
import traceback
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import grpc.aio
import psycopg

from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.ids import SESSION
from gatehouse.pb.databroker_pb2 import PutRequest
from tests.bench.broker_peers import MARK, credentials
from tests.bench.broker_processes import CALL_S, Broker, Peer, client_of
from tests.bench.figures import Figure, UnfinishedError, percentile
from tests.bench.progress import progress
from tests.support.check import SECRET
from tests.support.policy import session_record
from tests.support.postgres import fresh_database

NAME = "broker"
STORES: Final = ("memory", "file", "postgres")
SIZES: Final = (10_000, 100_000)
FULL_SIZE: Final = 1_000_000
LEAST_FOR_MEMORY: Final = 100_000
PUT_S = 4.0
WARM_UP_S = 1.0
COPIES = 20
WRITERS = 64
MOST_PUTS_PER_S = 6_000
FILLERS = 4
FILL_RECORDS = 500
FOLLOWERS = 100
CHANGES_PER_S = 1_000
FAN_OUT_S = 6.0
IDLE_S = 3.0
MARKS = 200
GROUPS = 200
TOKEN = "t" * 1_000


def claims(id_: str) -> dict[str, list[str]]:
    """As no two people have them: a name and an email of their own, three of so many groups."""
    draw = zlib.crc32(id_.encode())
    return {
        "name": [f"Ada {draw:x} Lovelace"],
        "email": [f"ada.{id_}@example.com"],
        "groups": [f"group-{(draw >> shift) % GROUPS}" for shift in (0, 8, 16)],
        "locale": ["en-GB"],
    }


def session_id(number: int) -> str:
    """As long as real ones."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))


def record(id_: str) -> Any:
    """A session as a sign-in leaves it, tokens of usual length included."""
    return session_record(
        id_,
        f"user-{id_}",
        claims=claims(id_),
        expires_at_s=4_000_000_000,
        token_expires_at_s=4_000_000_000,
        access_token=TOKEN,
        refresh_token=TOKEN,
        id_token=TOKEN,
        idp_id="oidc-1",
    )


# Writing


async def puts_per_s(port: int, prefix: str, seconds: float = PUT_S) -> float:
    """Committed Puts of one new record each, by 64 writers at a time.

    Requests are made beforehand and answers are not read, so that the writers, who share the
    machine with what is measured, take little of it.
    """
    requests = [
        PutRequest(records=[record(f"{prefix}-{number}")]).SerializeToString()
        for number in range(int(seconds * MOST_PUTS_PER_S))
    ]
    waiting = iter(requests)
    metadata = credentials("operator").metadata("databroker")
    done = 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        put: Any = channel.unary_unary("/databroker.DataBrokerService/Put")
        begun_s = time.monotonic()
        end_s = begun_s + seconds

        async def write() -> None:
            nonlocal done
            for request in waiting:
                await put(request, metadata=metadata, timeout=CALL_S)
                done += 1
                if time.monotonic() > end_s:
                    return

        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(write())
        taken_s = time.monotonic() - begun_s
    assert done < len(requests), "there were too few requests to write"
    return done / taken_s


async def fill(client: DatabrokerClient, wanted: int) -> float:
    """Bring the store to so many sessions; records a second."""
    there = (await client.query(SESSION, limit=0)).total_count
    firsts = iter(range(there, wanted, FILL_RECORDS))
    begun_s = time.monotonic()
    with progress(f"{wanted:,} sessions", len(range(there, wanted, FILL_RECORDS))) as advance:

        async def write() -> None:
            for first in firsts:
                ids = range(first, min(first + FILL_RECORDS, wanted))
                await client.put([record(session_id(number)) for number in ids])
                advance()

        async with asyncio.TaskGroup() as group:
            for _ in range(FILLERS):
                group.create_task(write())
    seconds = time.monotonic() - begun_s
    count = (await client.query(SESSION, limit=0)).total_count
    assert count == wanted, f"{count} sessions are there, {wanted} were written"
    return (wanted - there) / seconds


def bare_sqlite_per_s(directory: Path) -> float:
    """One durable insert per transaction, nothing else."""
    payload = record("bare").SerializeToString()
    database = sqlite3.connect(directory / "bare.db", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE records (id TEXT PRIMARY KEY, data BLOB)")

    def insert(number: int) -> None:
        database.execute("INSERT INTO records VALUES (?, ?)", (f"id-{number}", payload))

    try:
        return _rate(insert)
    finally:
        database.close()


def bare_postgres_per_s(dsn: str) -> float:
    """The same over one psycopg connection. Commits must be durable, or no figure counts."""
    payload = record("bare").SerializeToString()
    with psycopg.connect(dsn, autocommit=True) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            row = connection.execute("SELECT current_setting(%s)", (setting,)).fetchone()
            assert row == ("on",), f"PostgreSQL runs with {setting} = {row}"
        connection.execute("CREATE TABLE bare (id TEXT PRIMARY KEY, data BYTEA)")
        return _rate(
            lambda number: connection.execute(
                "INSERT INTO bare VALUES (%s, %s)", (f"id-{number}", payload), prepare=True
            )
        )


def _rate(insert: Callable[[int], object]) -> float:
    count, begun_s = 0, time.monotonic()
    while time.monotonic() < begun_s + PUT_S / 2:
        insert(count)
        count += 1
    return count / (time.monotonic() - begun_s)


# Following


async def fan_out(broker: Broker, client: DatabrokerClient) -> dict[str, float]:
    """How late 100 followers hear of 1,000 changes a second, and what that costs."""
    async with Peer.started("subscribers", broker.port, FOLLOWERS) as peers:
        await peers.line(60)  # all streams are open
        begun_s, cpu_s = time.monotonic(), broker.cpu_s()
        await asyncio.sleep(IDLE_S)
        idle = (broker.cpu_s() - cpu_s) / (time.monotonic() - begun_s)
        written, begun_s, cpu_s = 0, time.monotonic(), broker.cpu_s()
        while time.monotonic() < begun_s + FAN_OUT_S:
            due = int((time.monotonic() - begun_s) * CHANGES_PER_S) - written
            if due > 0:
                await client.put([_marked() for _ in range(min(due, 500))])
                written += min(due, 500)
            await asyncio.sleep(0.01)
        seconds = time.monotonic() - begun_s
        busy = (broker.cpu_s() - cpu_s) / seconds
        peers.tell(str(written))  # how many changes each of them must see
        found = await peers.line(120)
    return {**found, "changes_per_s": written / seconds, "idle": idle, "busy": busy}


def _marked() -> Any:
    id_ = f"{MARK}{time.monotonic_ns()}"
    return session_record(id_, "u", claims=claims(id_))


# Copies


async def copied(broker: Broker, client: DatabrokerClient) -> dict[str, float]:
    """A cold copy of what is there, how soon a change is seen in it, and many copies at once."""
    async with Peer.started("replica", broker.port) as replica:
        found = await replica.line(300)
        late_ms = []
        for _ in range(MARKS):
            await client.put([_marked()])
            late_ms.append((await replica.line(30))["late_ms"])
    async with Peer.started("copies", broker.port, COPIES) as copies:
        at_once = await copies.line(600)
    return {
        "sessions": found["sessions"],
        "ready_s": found["ready_s"],
        "bytes_per_session": found["bytes"] / found["sessions"],
        "seen_p50_ms": percentile(late_ms, 50),
        "seen_p99_ms": percentile(late_ms, 99),
        "copies_s": at_once["seconds"],
        "sent_per_session": at_once["bytes"] / COPIES / found["sessions"],
    }


async def growth(
    storage: str,
    broker: Broker,
    sizes: tuple[int, ...],
    yardstick: tuple[str, float | None],
    figures: list[Figure],
) -> None:
    """Add every figure at every size, and print it as soon as it is there."""
    async with client_of(broker.port) as client:
        await puts_per_s(broker.port, "warm-up", WARM_UP_S)
        empty = broker.resident_bytes()
        for number, size in enumerate(sizes):
            rate = await fill(client, size)
            resident = (broker.resident_bytes() - empty) / size
            copy = await copied(broker, client)
            puts = [await puts_per_s(broker.port, f"put-{number}-{turn}") for turn in range(2)]
            heard = await fan_out(broker, client)
            rows = _figures(storage, f"{size:,} sessions", puts, yardstick, copy, heard)
            rows.append(
                Figure(f"{storage}: bulk writes, to {size:,} sessions", "records/s", (rate,))
            )
            if storage == "memory":
                name = f"{storage}: databroker's memory for each, {size:,} sessions"
                rows.append(Figure(name, "B", (resident,)))
            for row in rows:
                print(f"  {row.line(60)}", flush=True)
            figures += rows


def _figures(
    storage: str,
    size: str,
    puts: list[float],
    yardstick: tuple[str, float | None],
    copy: dict[str, float],
    heard: dict[str, float],
) -> list[Figure]:
    def one(what: str, unit: str, value: float, target: float | None = None) -> Figure:
        return Figure(f"{storage}: {what}, {size}", unit, (value,), target)

    target = 1_500.0 if storage == "postgres" else None
    rate = f"at {CHANGES_PER_S:,} changes/s"
    # What the process itself takes is spread over them, too: of a few it is the most.
    per_session = 1024.0 if copy["sessions"] >= LEAST_FOR_MEMORY else None
    name = f"{storage}: committed Puts, {size}"
    return [
        Figure(name, "/s", tuple(puts), target, *yardstick, at_least=True),
        one(f"{FOLLOWERS} followers behind p50, {rate}", "ms", heard["p50_ms"]),
        one(f"{FOLLOWERS} followers behind p99, {rate}", "ms", heard["p99_ms"], 250.0),
        one("changes written meanwhile", "changes/s", heard["changes_per_s"]),
        one(f"CPU {rate} to {FOLLOWERS} followers", "CPU", heard["busy"]),
        one(f"CPU with {FOLLOWERS} idle followers", "CPU", heard["idle"]),
        one("authorize ready from cold", "s", copy["ready_s"], 60.0),
        one("resident in authorize for each", "B", copy["bytes_per_session"], per_session),
        one("change seen by the copy p50", "ms", copy["seen_p50_ms"]),
        one("change seen by the copy p99", "ms", copy["seen_p99_ms"], 100.0),
        one(f"{COPIES} copies at once, all whole", "s", copy["copies_s"]),
        one("sent for each in a copy", "B", copy["sent_per_session"]),
    ]


def run() -> list[Figure]:
    """Every figure. Raises UnfinishedError with those there are when a store failed."""
    sizes = (*SIZES, *([FULL_SIZE] if os.environ.get("FULL") else []))
    wanted = os.environ.get("STORES", ",".join(STORES)).split(",")
    unknown = set(wanted) - set(STORES)
    assert not unknown, f"no store {sorted(unknown)}; there are: {', '.join(STORES)}"
    figures: list[Figure] = []
    failed = []
    for storage in STORES:
        if storage not in wanted:
            continue
        try:
            _of_store(storage, sizes, figures)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - what there is is worth keeping
            traceback.print_exc()
            failed.append(storage)
            if isinstance(error, SystemExit):
                break
    if failed:
        raise UnfinishedError(f"stores that failed: {', '.join(failed)}", figures)
    return figures


def _of_store(storage: str, sizes: tuple[int, ...], figures: list[Figure]) -> None:
    """Add one store's figures as they come."""
    with tempfile.TemporaryDirectory() as name, fresh_database() as dsn, fresh_database() as bare:
        directory = Path(name)
        connection = {"memory": "", "file": f"file://{directory / 'store'}", "postgres": dsn}
        yardstick: tuple[str, float | None] = ("", None)
        if storage == "file":
            yardstick = ("bare sqlite3 inserts", bare_sqlite_per_s(directory))
        elif storage == "postgres":
            yardstick = ("bare psycopg inserts", bare_postgres_per_s(bare))
        broker = Broker(storage, connection[storage], directory, SECRET)
        with broker.running():
            try:
                asyncio.run(growth(storage, broker, sizes, yardstick, figures))
            except BaseException:
                print(f"the databroker's last lines:\n{broker.last_lines()}", flush=True)
                raise
