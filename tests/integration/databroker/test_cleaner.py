"""The cleaner's round. On all three stores."""

from __future__ import annotations

from pathlib import Path

from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.errors import GatehouseError
from gatehouse.databroker.core.options import TypeRules
from gatehouse.databroker.edge.backends.base import running
from gatehouse.databroker.edge.backends.sqlite import SqliteStorage
from gatehouse.databroker.edge.cleaner import Cleaner
from gatehouse.databroker.edge.tasks import background
from gatehouse.pb.user_pb2 import User
from tests.support.databroker_client import until
from tests.support.storage import StorageCase, incoming, secrets


async def test_a_round_deletes_what_is_over_and_forgets_old_changes(case: StorageCase) -> None:
    await case.storage.set_options("ttl", TypeRules(ttl_us=60_000_000))
    for start in range(0, 2500, 500):
        await case.put(
            *(incoming("ttl", f"{number}", User(id="x")) for number in range(start, start + 500))
        )
    await case.put(incoming("kept", "a", User(id="x")))
    await case.age(3600)
    cleaner = Cleaner(case.storage, SystemRng(), retention_s=600)
    await cleaner.clean()
    assert await case.storage.list_types() == ("kept",)
    position = await case.storage.position()
    assert position.latest == 5001
    assert position.pruned == 2501  # the tombstones are new
    tombstones = await case.changes(position.pruned)
    assert len(tombstones) == 2500
    assert all(record.deleted_at_us is not None for record in tombstones)
    await cleaner.clean()
    assert await case.storage.position() == position


async def test_a_long_backlog_of_changes_is_forgotten_in_one_round(case: StorageCase) -> None:
    for start in range(0, 21_000, 1000):
        await case.put(
            *(incoming("t", f"{number}", User(id="x")) for number in range(start, start + 1000))
        )
    await case.age(3600)
    await Cleaner(case.storage, SystemRng(), retention_s=600).clean()
    position = await case.storage.position()
    assert (position.pruned, position.latest) == (20_999, 21_000)
    assert len(await case.changes(20_999)) == 1


async def test_a_failed_round_is_made_up_for_long_before_the_next_one(tmp_path: Path) -> None:
    """Readiness rests on it."""
    storage = SqliteStorage(tmp_path / "store", SystemClock(), SystemRng(), secrets)
    reports: list[GatehouseError | None] = []
    cleaner = Cleaner(storage, SystemRng(), report=reports.append, period_s=3600.0)
    async with background(cleaner.run()):
        await until(lambda: reports, 30.0)
        assert reports[0] is not None  # it is not open yet
        async with running(storage):
            await until(lambda: reports[-1] is None, 30.0)
