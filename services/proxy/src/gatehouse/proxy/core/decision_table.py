"""How the change table and the counters of remembered decisions lie in shared memory.

The change table: eight words of header, then one word for each slot. A word is an aligned unsigned
integer of 64 bits in the machine's order, always stored whole. A slot holds the newest record
version that concerns it and is only ever raised. One table belongs to one history of the
databroker: another history, or a position that does not follow from this one, is another table,
and the old one says that it is retired. The proxy process writes, Envoy reads.

The counters: one block for each interpreter in Envoy, of 64-bit floating-point numbers, which that
interpreter alone writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MAGIC: Final = 0x4754_4448_5741_4C4C
LAYOUT: Final = 1

WORD_BYTES: Final = 8
HEADER_WORDS: Final = 8
SLOTS: Final = 1 << 16  # a power of two

# The words of the header.
WORDS: Final[Mapping[str, int]] = {
    "magic": 0,
    "layout": 1,
    "server_version": 2,
    "slots": 3,
    "configuration": 4,  # raised with each configuration that is put in force
    "fresh_at": 5,  # CLOCK_MONOTONIC, ns: all that was committed by then is in the slots
    "retired": 6,  # not 0: there is another table, or none
    "budget": 7,  # bytes that each interpreter may use for decisions
}

# Numbers that scripts keep as floating point, which is exact up to here.
MOST_EXACT: Final = 1 << 53

BLOCK_BYTES: Final = 512
BLOCKS: Final = 4096  # interpreters that are counted, in the life of one file

BYPASSES: Final = (
    "route",  # its decisions are never remembered
    "upgrade",  # an upgrade or a tunnel: decided each time
    "credential",  # one in the query, or an assertion of the client's own
    "path",  # one that authorize would not read
    "size",  # what the decision is found by is too long
    "off",  # there is no change table
    "stale",  # the table is not known to be current
    "failure",  # the script failed
)
# In the order of their place in a block.
COUNTERS: Final = (
    *("hits", "misses", "outdated", "insertions", "evictions", "decisions", "bytes", "heap"),
    *(f"bypass_{reason}" for reason in BYPASSES),
)


def table_bytes(slots: int = SLOTS) -> int:
    """The size of a table."""
    return (HEADER_WORDS + slots) * WORD_BYTES


def slot_of(key: int, slots: int = SLOTS) -> int:
    """The slot that stands for a record key."""
    return key & (slots - 1)
