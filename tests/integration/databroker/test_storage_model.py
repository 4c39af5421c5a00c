"""Any history of operations comes out the same on SQLite and PostgreSQL as in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatehouse.common.errors import GatehouseError
from gatehouse.databroker.core.options import TypeRules
from gatehouse.databroker.core.query import accept_query
from gatehouse.databroker.core.records import Patch, Put, Reap, StoredRecord
from gatehouse.pb.user_pb2 import User
from tests.support.storage import StorageCase, incoming, storage_case

TYPES = ("a", "b")
IDS = ("1", "2", "3", "10.0.0.1")


def network(cidr: str) -> Struct:
    made = Struct()
    made.update({"name": "ann", "$index": {"cidr": cidr}})
    return made


PAYLOADS = (
    User(id="x", name="ann"),
    User(id="x", name="bob", email="e"),
    User(),
    network("10.0.0.0/8"),
    network("10.0.0.0/16"),
)
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"name": "ann"},
    {"email": "e"},
    {"$index": "10.0.0.1"},
    {"$or": [{"id": "10.0.0.1"}, {"$index": "10.0.0.1"}]},
    {"$not": {"name": "ann"}},
    {"name": ["ann", "bob"], "id": ["1", "2"]},
)

Operation = Callable[[StorageCase], Any]


def put(items: list[tuple[str, str, int | None]]) -> Operation:
    records = tuple(
        incoming(type_, id_, None if number is None else PAYLOADS[number])
        for type_, id_, number in items
    )
    return lambda case: case.write(Put(records))


def patch(keys: list[tuple[str, str]], number: int, path: str) -> Operation:
    records = tuple(incoming(type_, id_, PAYLOADS[number]) for type_, id_ in keys)
    return lambda case: case.write(Patch(records, (path,)))


def set_options(type_: str, rules: TypeRules | None) -> Operation:
    return lambda case: case.storage.set_options(type_, rules)


def age(seconds: int) -> Operation:
    return lambda case: case.age(seconds)


async def reap(case: StorageCase) -> tuple[StoredRecord, ...]:
    return await case.write(Reap(await case.storage.reapable()))


async def prune(case: StorageCase) -> int:
    return await case.storage.prune(150_000_000, 1 << 40)


def query(type_: str, filter_: int, text: str, offset: int, limit: int) -> Operation:
    struct = Struct()
    struct.update(FILTERS[filter_])
    asked = accept_query(type_=type_, filter_=struct, text=text, offset=offset, limit=limit)

    async def ask(case: StorageCase) -> tuple[int, tuple[StoredRecord, ...]]:
        answer = await case.storage.query(asked)
        return answer.total, answer.records

    return ask


def lease(kind: str, holder: str) -> Operation:
    async def change(case: StorageCase) -> object:
        match kind:
            case "acquire":
                return await case.storage.acquire_lease("job", holder, 150_000_000)
            case "renew":
                return await case.storage.renew_lease("job", holder, 150_000_000)
            case _:
                await case.storage.release_lease("job", holder)
                return None

    return change


types = st.sampled_from(TYPES)
keys = st.tuples(types, st.sampled_from(IDS))
numbers = st.sampled_from(range(len(PAYLOADS)))
operations = st.one_of(
    st.lists(st.tuples(types, st.sampled_from(IDS), st.one_of(st.none(), numbers)), max_size=4).map(
        put
    ),
    st.builds(
        patch,
        st.lists(keys, max_size=3),
        numbers,
        st.sampled_from(["name", "email", "id.x", "fields", "nope"]),
    ),
    st.builds(
        set_options,
        types,
        st.one_of(
            st.none(),
            st.builds(
                TypeRules,
                st.sampled_from([None, 0, 1, 2]),
                st.sampled_from([None, 150_000_000]),
                st.sampled_from([(), ("name",), ("email", "name")]),
            ),
        ),
    ),
    st.just(age(100)),
    st.just(reap),
    st.just(prune),
    st.builds(
        query,
        st.sampled_from([*TYPES, ""]),
        st.sampled_from(range(len(FILTERS))),
        st.sampled_from(["", "nn", "zz"]),
        st.integers(0, 2),
        st.integers(0, 3),
    ),
    st.builds(lease, st.sampled_from(["acquire", "renew", "release"]), st.sampled_from("xy")),
)


def shown(value: Any, base: int) -> Any:
    """Leave out what differs by nature: clocks, and where versions began."""
    if isinstance(value, StoredRecord):
        version = value.version - base if value.version else 0
        return version, value.key, value.data, value.deleted_at_us is not None
    if isinstance(value, tuple):
        return tuple(shown(item, base) for item in value)
    return value


async def replay(case: StorageCase, history: list[Operation]) -> list[Any]:
    await case.storage.clear()
    await case.storage.release_lease("job", "x")
    await case.storage.release_lease("job", "y")
    base = (await case.storage.position()).latest
    seen: list[Any] = []
    for operation in history:
        try:
            seen.append(shown(await operation(case), base))
        except GatehouseError as error:
            seen.append(type(error))
        position = await case.storage.position()
        seen.append((position.latest - base, position.pruned - base))
    for type_ in ("", *TYPES):
        head = await case.storage.head(type_, None, limit=100)
        seen.append(shown(head.records, base))
        changes = await case.changes((await case.storage.position()).pruned, type_)
        seen.append(shown(tuple(changes), base))
    seen += (await case.storage.list_types(), dict(await case.storage.all_options()))
    return seen


@pytest.mark.parametrize("backend", ["file", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_histories_come_out_as_in_memory(backend: str, tmp_path: Path) -> None:
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:

        def opened(name: str) -> StorageCase:
            case = storage_case(name, tmp_path)
            stack.callback(lambda: runner.run(case.__aexit__(None, None, None)))
            return runner.run(case.__aenter__())

        model, subject = opened("memory"), opened(backend)

        @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(operations, min_size=1, max_size=25))
        def check(history: list[Operation]) -> None:
            assert runner.run(replay(subject, history)) == runner.run(replay(model, history))

        check()
