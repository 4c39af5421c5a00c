"""The storage contract, leases: the same on memory, file and PostgreSQL."""

from __future__ import annotations

import asyncio

from tests.support.storage import StorageCase

MINUTE_US = 60_000_000


async def test_one_holder_at_a_time(case: StorageCase) -> None:
    assert await case.storage.acquire_lease("job", "a", MINUTE_US)
    assert not await case.storage.acquire_lease("job", "b", MINUTE_US)
    assert await case.storage.acquire_lease("other job", "b", MINUTE_US)
    assert not await case.storage.renew_lease("job", "b", MINUTE_US)
    assert await case.storage.renew_lease("job", "a", MINUTE_US)


async def test_an_expired_lease_is_free(case: StorageCase) -> None:
    assert await case.storage.acquire_lease("job", "a", MINUTE_US)
    await case.age(59)
    assert not await case.storage.acquire_lease("job", "b", MINUTE_US)
    await case.age(2)
    # Nobody has taken it: its old holder may still renew it.
    assert await case.storage.renew_lease("job", "a", MINUTE_US)
    await case.age(61)
    assert await case.storage.acquire_lease("job", "b", MINUTE_US)
    assert not await case.storage.renew_lease("job", "a", MINUTE_US)


async def test_only_the_holder_gives_it_back(case: StorageCase) -> None:
    assert await case.storage.acquire_lease("job", "a", MINUTE_US)
    await case.storage.release_lease("job", "b")
    await case.storage.release_lease("never heard of", "b")
    assert not await case.storage.acquire_lease("job", "b", MINUTE_US)
    await case.storage.release_lease("job", "a")
    assert await case.storage.acquire_lease("job", "b", MINUTE_US)


async def test_of_many_at_once_one_gets_it(case: StorageCase) -> None:
    answers = await asyncio.gather(
        *(case.storage.acquire_lease("job", f"{number}", MINUTE_US) for number in range(20))
    )
    assert sorted(answers) == [False] * 19 + [True]


async def test_long_expired_leases_are_forgotten(case: StorageCase) -> None:
    assert await case.storage.acquire_lease("callback", "a", MINUTE_US)
    await case.age(2 * 3600)
    await case.storage.prune(MINUTE_US, 1 << 40)
    # Renewing is taking, where there is none.
    assert await case.storage.renew_lease("callback", "b", MINUTE_US)
    assert not await case.storage.renew_lease("callback", "a", MINUTE_US)
