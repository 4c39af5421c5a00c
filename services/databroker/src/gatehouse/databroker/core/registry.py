"""Which parts of a deployment have reported where they are, and for how long that counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from gatehouse.common.errors import InvalidArgumentError, ResourceExhaustedError
from gatehouse.databroker.core.records import check_name
from gatehouse.pb.registry_pb2 import UNDEFINED_DO_NOT_USE, Service, ServiceKind

TTL_S: Final = 30.0
CALL_BACK_S: Final = 10.0  # two reports may be lost before an entry goes
MAX_REPORTED: Final = 100  # in one call
MAX_ENDPOINT_BYTES: Final = 2_048

Entry = tuple[int, str]  # kind, endpoint


def accept_services(services: Sequence[Service]) -> tuple[Entry, ...]:
    """Check what a process reports; each entry once and in order.

    Raises InvalidArgumentError, or ResourceExhaustedError for too many.
    """
    if len(services) > MAX_REPORTED:
        raise ResourceExhaustedError(
            f"services has {len(services)} items; at most {MAX_REPORTED} are taken",
            reason="too-many-services",
        )
    entries = set()
    for index, service in enumerate(services):
        where = f"services[{index}]"
        if service.kind == UNDEFINED_DO_NOT_USE or service.kind not in ServiceKind.values():
            raise InvalidArgumentError(f"{where}.kind is {service.kind}; it must name a kind")
        check_name(service.endpoint, f"{where}.endpoint", MAX_ENDPOINT_BYTES)
        entries.add((int(service.kind), service.endpoint))
    return tuple(sorted(entries))


def of_kinds(entries: Iterable[Entry], kinds: Iterable[int]) -> tuple[Entry, ...]:
    """Return the entries of these kinds; all of them when no kind is named."""
    wanted = frozenset(kinds)
    return tuple(entry for entry in entries if not wanted or entry[0] in wanted)
