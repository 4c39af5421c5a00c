"""Who holds a lease after somebody has asked for it.

A lease is a time-limited exclusive right under a name. Times are Unix microseconds of one clock,
the store's. `fence` grows with each change of holder, so that what an earlier holder still writes
can be told from what the present one writes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Protocol

from gatehouse.common.errors import InvalidArgumentError

MAX_NAME_BYTES: Final = 512
MAX_DURATION_US: Final = 24 * 3600 * 1_000_000


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as stored; expired ones count as free."""

    name: str
    id: str
    expires_at_us: int
    fence: int


def accept_duration(duration_us: int) -> int:
    """Check how long a lease is asked for. Raises InvalidArgumentError."""
    if not 0 < duration_us <= MAX_DURATION_US:
        raise InvalidArgumentError(
            f"a lease of {duration_us / 1e6:g} s is asked for; it must be over 0 s and at most "
            f"{MAX_DURATION_US // 1_000_000} s"
        )
    return duration_us


def acquire(
    held: Lease | None, *, name: str, new_id: str, now_us: int, duration_us: int
) -> Lease | None:
    """Return the lease under its new holder; None when another one holds it."""
    if held is not None and held.expires_at_us > now_us:
        return None
    fence = 1 if held is None else held.fence + 1
    return Lease(name, new_id, now_us + duration_us, fence)


def renew(
    held: Lease | None, *, name: str, lease_id: str, now_us: int, duration_us: int
) -> Lease | None:
    """Return the extended lease; None when another one holds it.

    One that has expired is renewed as long as nobody has taken it meanwhile.
    """
    if held is not None and held.id == lease_id:
        return replace(held, expires_at_us=now_us + duration_us)
    return acquire(held, name=name, new_id=lease_id, now_us=now_us, duration_us=duration_us)


def release(held: Lease | None, *, lease_id: str, now_us: int) -> Lease | None:
    """Return the lease as expired; None when it is not the caller's to release."""
    if held is None or held.id != lease_id or held.expires_at_us <= now_us:
        return None
    return replace(held, expires_at_us=now_us - 1)


class Change(Protocol):
    """What somebody wants of a lease, to be applied to the held one at the store's time."""

    def __call__(self, held: Lease | None, now_us: int) -> Lease | None:
        """Return the lease to store; None when there is nothing to store."""
        ...


def acquisition(name: str, new_id: str, duration_us: int) -> Change:
    """Return `acquire` with everything but the held lease and the time filled in."""
    return lambda held, now_us: acquire(
        held, name=name, new_id=new_id, now_us=now_us, duration_us=duration_us
    )


def renewal(name: str, lease_id: str, duration_us: int) -> Change:
    """Return `renew` likewise."""
    return lambda held, now_us: renew(
        held, name=name, lease_id=lease_id, now_us=now_us, duration_us=duration_us
    )


def giving_back(lease_id: str) -> Change:
    """Return `release` likewise."""
    return lambda held, now_us: release(held, lease_id=lease_id, now_us=now_us)
