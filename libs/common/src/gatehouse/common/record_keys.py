"""Which slot of the change table stands for a record, or for all records of a type.

Authorize names what a decision rests on by these numbers, the proxy notes changes under them. Two
records may share a number: then a change of one costs a needless check of the other, no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import xxhash

from gatehouse.common.ids import TypeUrl

_MOST_KEYS: Final = 32  # of one type


def record_key(type_url: TypeUrl | str, record_id: str) -> int:
    """32 bits for one record, whether it exists or not."""
    text = f"{type_url}\0{record_id}".encode("utf-8", "surrogatepass")
    return int(xxhash.xxh64_intdigest(text)) & 0xFFFFFFFF


def type_key(type_url: TypeUrl | str) -> int:
    """32 bits for a type as a whole: what was found by searching it rests on every record."""
    return int(xxhash.xxh64_intdigest(type_url.encode("utf-8", "surrogatepass"))) & 0xFFFFFFFF


def keys_by_type(lookups: Iterable[tuple[TypeUrl, str]]) -> tuple[tuple[TypeUrl, str], ...]:
    """The keys of what was looked up, by type, with commas between; of many, the whole type's."""
    found: dict[TypeUrl, dict[int, None]] = {}
    for type_url, record_id in lookups:
        found.setdefault(type_url, {})[record_key(type_url, record_id)] = None
    return tuple(
        (
            type_url,
            ",".join(map(str, keys)) if len(keys) <= _MOST_KEYS else str(type_key(type_url)),
        )
        for type_url, keys in found.items()
    )
