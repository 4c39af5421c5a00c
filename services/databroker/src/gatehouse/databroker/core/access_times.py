"""When records were last used, as callers report it: which reports are taken in.

These times change far more often than the records themselves. They are kept beside them, have no
version and are not streamed; of two for a record the later one stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gatehouse.common.errors import InvalidArgumentError, ResourceExhaustedError
from gatehouse.databroker.core.records import MAX_ID_BYTES, MAX_TYPE_BYTES, Key, check_name
from gatehouse.pb.access_times_pb2 import AccessTime

MAX_ACCESS_TIMES: Final = 10_000  # in one call


def accept_access_times(items: Sequence[AccessTime], now_us: int) -> dict[Key, int]:
    """Return the latest time for each key, in Unix microseconds and in the order of the keys.

    A time in the future counts as now: a fast clock must not shut out what is reported later.
    Raises InvalidArgumentError, or ResourceExhaustedError for too many.
    """
    _check_number(len(items), "access_time")
    latest: dict[Key, int] = {}
    for index, item in enumerate(items):
        where = f"access_time[{index}]"
        check_name(item.type, f"{where}.type", MAX_TYPE_BYTES)
        check_name(item.id, f"{where}.id", MAX_ID_BYTES)
        accessed_at_us = item.accessed_at.seconds * 1_000_000 + item.accessed_at.nanos // 1_000
        if accessed_at_us <= 0:
            raise InvalidArgumentError(f"{where}.accessed_at is not set; it must name a time")
        key = item.type, item.id
        latest[key] = max(latest.get(key, 0), min(accessed_at_us, now_us))
    return dict(sorted(latest.items()))


def accept_ids(type_: str, ids: Sequence[str]) -> tuple[str, ...]:
    """Return the ids that are asked for, each once. Raises like `accept_access_times`."""
    check_name(type_, "type", MAX_TYPE_BYTES)
    _check_number(len(ids), "id")
    for index, id_ in enumerate(ids):
        check_name(id_, f"id[{index}]", MAX_ID_BYTES)
    return tuple(dict.fromkeys(ids))


def _check_number(number: int, where: str) -> None:
    """Refuse more than is taken in one call."""
    if number > MAX_ACCESS_TIMES:
        raise ResourceExhaustedError(
            f"{where} has {number} items; at most {MAX_ACCESS_TIMES} are taken",
            reason="too-many-access-times",
        )
