"""Edits of one record that come at the same time happen one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.databroker.core.payload import decode
from gatehouse.databroker.core.records import Incoming, Patch, Put, StoredRecord
from gatehouse.databroker.edge.backends.base import Storage, running
from gatehouse.databroker.edge.backends.connections import parse_postgres
from gatehouse.databroker.edge.backends.postgres import PostgresStorage
from gatehouse.pb.session_pb2 import OAuthToken, Session
from gatehouse.pb.user_pb2 import User
from tests.support.storage import StorageCase, incoming, packed, secrets

SESSION = "type.googleapis.com/session.Session"
USER = "type.googleapis.com/user.User"
EDITS = 40


@pytest.fixture
async def brokers(case: StorageCase) -> AsyncIterator[tuple[Storage, Storage]]:
    """Where two databrokers may share a store, the second one is another one."""
    if not case.dsn:
        yield case.storage, case.storage
        return
    other = PostgresStorage(parse_postgres(case.dsn), SystemClock(), SystemRng(), secrets)
    async with running(other):
        yield case.storage, other


def user_of(record: StoredRecord) -> User:
    user = decode(record.data)
    assert isinstance(user, User)
    return user


async def test_r47_edits_of_different_fields_lose_nothing(
    case: StorageCase, brokers: tuple[Storage, Storage]
) -> None:
    await case.put(incoming(USER, "u", User(id="u", name="first", email="first")))

    async def edit(number: int) -> tuple[StoredRecord, ...]:
        field = ("name", "email")[number // 2 % 2]
        user = User(name=f"{number}", email=f"{number}")
        change = Incoming(USER, "u", packed(user))
        return (await brokers[number % 2].write(Patch((change,), (field,)))).records

    answers = await asyncio.gather(*map(edit, range(EDITS)))
    made = sorted((record for answer in answers for record in answer), key=lambda one: one.version)
    assert [record.version for record in made] == list(range(2, EDITS + 2))
    # Each one rests on the one before it: of two fields exactly one has changed.
    before = User(id="u", name="first", email="first")
    for record in made:
        user = user_of(record)
        assert (user.name == before.name) != (user.email == before.email)
        before = user
    held = await case.storage.get(USER, "u")
    assert held is not None
    assert user_of(held) == before


async def test_r47_a_session_that_is_ended_amid_refreshes_stays_ended(
    case: StorageCase, brokers: tuple[Storage, Storage]
) -> None:
    session = Session(id="s", user_id="u", oauth_token=OAuthToken(refresh_token="0"))
    await case.put(incoming(SESSION, "s", session))
    begun = asyncio.Event()

    async def refresh(number: int) -> tuple[StoredRecord, ...]:
        made: tuple[StoredRecord, ...] = ()
        for attempt in range(EDITS):
            token = OAuthToken(refresh_token=f"{number}-{attempt}")
            change = Incoming(SESSION, "s", packed(Session(oauth_token=token)))
            written = await brokers[number % 2].write(Patch((change,), ("oauth_token",)))
            begun.set()
            made += written.records
        return made

    async def end() -> StoredRecord:
        await begun.wait()
        (tombstone,) = (await brokers[1].write(Put((incoming(SESSION, "s"),)))).records
        return tombstone

    refreshed, also, tombstone = await asyncio.gather(refresh(0), refresh(1), end())
    assert tombstone.version > 1
    assert all(record.version < tombstone.version for record in refreshed + also)
    assert await case.storage.get(SESSION, "s") is None
    changes = await case.changes()
    assert changes[-1].version == tombstone.version
    assert changes[-1].deleted_at_us is not None
