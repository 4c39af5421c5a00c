"""Which ports a test may give to a server that it is about to start.

Asking the system for "any free port" and handing its number on is a race: connections that other
tests open in between get their own end from the same range. So ports come from below that range,
from a block that no other test process on this machine uses.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from functools import cache
from pathlib import Path

_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000
_BLOCK = 500


@cache
def _block() -> tuple[itertools.cycle[int], socket.socket]:
    """The ports of this process, and what keeps them: an abstract socket name, gone with it."""
    highest = int(_EPHEMERAL_RANGE.read_text().split()[0])
    for first in range(_LOWEST, highest - _BLOCK, _BLOCK):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0gatehouse-test-ports-{first}")
        except OSError:
            claim.close()
        else:
            return itertools.cycle(range(first, first + _BLOCK)), claim
    raise AssertionError("too many test processes run at once: no block of ports is left")


def _is_free(port: int) -> bool:
    with contextlib.ExitStack() as stack:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            probe = stack.enter_context(socket.socket(socket.AF_INET, kind))
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def free_ports(count: int) -> list[int]:
    """Distinct loopback ports, for TCP and UDP, that nothing else is going to take."""
    ports = _block()[0]
    found = itertools.islice(filter(_is_free, itertools.islice(ports, _BLOCK)), count)
    chosen = list(found)
    assert len(chosen) == count, "this process has used up its block of ports"
    return chosen
