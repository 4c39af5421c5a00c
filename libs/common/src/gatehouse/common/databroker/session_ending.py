"""How sessions that end together are found and deleted."""

from __future__ import annotations

from typing import Final

from gatehouse.common.clock import Clock
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.errors import ResourceExhaustedError
from gatehouse.common.ids import SESSION
from gatehouse.common.session.ending import Ending, plan_ending
from gatehouse.pb.session_pb2 import Session

PAGE: Final = 200
MAX_PASSES: Final = 100
"""Pages looked at, at most; a person with more sessions is no person."""


async def end_sessions(
    databroker: DatabrokerClient, ending: Ending, clock: Clock
) -> tuple[Session, ...]:
    """Delete every session that `ending` includes; gives them as they were.

    One that is made meanwhile may or may not be among them. Raises GatehouseError: some may have
    ended then, and doing it again is safe.
    """
    ended: list[Session] = []
    kept = 0  # found by the filter and not to end: they stay in front of the next page
    for _ in range(MAX_PASSES):
        page = await databroker.query(SESSION, ending.query(), limit=PAGE, offset=kept)
        plan = plan_ending(page.records, ending, now_s=clock.now_s())
        if plan.tombstones:
            await databroker.put(plan.tombstones)
        ended += plan.sessions
        kept += len(page.records) - len(plan.tombstones)
        if len(page.records) < PAGE:
            return tuple(ended)
    raise ResourceExhaustedError(
        f"more than {PAGE * MAX_PASSES} sessions to look at; call again for the rest",
        reason="too-many-sessions",
    )
