"""The shared memory of remembered decisions, as a test wants it, and answers that may be kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gatehouse.authorize.core.envelope import described_headers
from gatehouse.common.extauthz_context import ENVELOPE_FIELD
from gatehouse.common.record_keys import record_key, type_key
from gatehouse.proxy.edge.decision_table import ChangeTable, DecisionCounters
from tests.support.envoy import Proxy, allow

HISTORY = 5_000_000_000_000_000_001  # more than a floating-point number can tell apart
TYPE = "example.com/thing"
BUDGET = 64 << 20


class Memory:
    """The table of a running Envoy. It is current until told otherwise."""

    def __init__(self, running: Proxy, *, budget: int = BUDGET) -> None:
        self.path: Path = running.run_dir / "decision-table"
        self.counters = DecisionCounters(running.run_dir / "decision-counters")
        self.table = ChangeTable(self.path)
        self.table.configure(budget)
        self._guard = running.guard
        running.followed.table = self.table
        self.begin()

    def begin(self, history: int = HISTORY, floor: int = 10) -> None:
        self.table.begin(history, floor)
        self.refresh()

    def refresh(self) -> None:
        """Current for the next three seconds and a half; a slow machine must not decide a test.

        A stamp that is ahead of the clock by less than the bound is taken as it is.
        """
        self.table.stamp(time.monotonic_ns() + 1_500_000_000)

    def change(self, record_id: str, version: int, type_url: str = TYPE) -> None:
        keys = (record_key(type_url, record_id), type_key(type_url))
        for key in keys:
            self.table.raise_slot(key, version)
        self._guard.changed(keys)
        self.refresh()

    def counted(self) -> dict[str, int]:
        return {name: int(value) for name, value in self.counters.read().items() if value}


def kept(
    *,
    headers: Mapping[str, str] | None = None,
    remove: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
    history: int = HISTORY,
    lifetime_ms: int = 60_000,
    version: int = 10,
    records: Sequence[str] = (),
    types: Sequence[str] = (),
) -> Any:
    """An allow that rests on these records, or whole types, as they were at a version."""
    response = allow(headers)
    response.ok_response.headers_to_remove.extend(remove)
    keys = [record_key(TYPE, record) for record in records] + [type_key(one) for one in types]
    rests_on = f"{version}:{','.join(map(str, keys))}" if keys else ""
    described = described_headers(response.ok_response)
    response.dynamic_metadata.update(
        {
            **(metadata or {}),
            ENVELOPE_FIELD: f"{history} {lifetime_ms} {rests_on}\n{described}",
        }
    )
    return response
