"""Which part of the sessions this process looks after, and what it asks of the leases for that.

Work is cut into a fixed number of partitions by hash, each owned by whoever holds its lease. So
that no process takes them all, each first takes one of a few member leases; now and then everyone
counts how many of these are taken, and gives back what it holds over its fair share. Times are
seconds of the process's own monotonic clock. A lease counts from before it was asked for, so that
its holder stops believing in it earlier than the store does.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

import xxhash

PARTITIONS: Final = 32
MEMBERS: Final = 16  # processes that share the work; others stand by
LEASE_S: Final = 30.0
RENEW_S: Final = 10.0
RETRY_S: Final = 3.0  # after the store could not answer
PACE_S: Final = 0.5  # between taking two partitions, so that others starting now get some
SEARCH_S: Final = 0.1  # after one that another holds, which is not asked for again for LEASE_S
CENSUS_S: Final = 30.0
PROBE_S: Final = 2.0  # how long a lease lives that is only taken to see whether it is free

NAME: Final = "identity_manager"
CENSUS: Final = "census"  # who counts, whichever process it is: two that count at once both can


def partition_of(key: str) -> int:
    """Return the partition of a key; the same in every process and version."""
    return xxhash.xxh3_64_intdigest(key.encode()) % PARTITIONS


def share_of(*parts: object) -> float:
    """Return a number in [0, 1) that depends on the parts alone: jitter that repeats."""
    text = "\x00".join(map(str, parts))
    return (xxhash.xxh3_64_intdigest(text.encode(), seed=1) >> 11) / (1 << 53)


@dataclass(frozen=True, slots=True)
class Ask:
    """Something to ask of the lease store. Answer it with `Shares.answer`.

    A probe is a renewal under a common id, given back at once: it succeeds where nobody holds the
    lease.
    """

    verb: str  # acquire, renew, release, probe
    name: str
    lease_id: str
    duration_s: float
    asked_s: float


@dataclass(slots=True)
class _Lease:
    id: str
    until_s: float
    renew_s: float


@dataclass(slots=True)
class _Census:
    """A count under way: probes without an answer yet, and slots found taken."""

    open: int
    taken: int = 0
    is_valid: bool = True


def _partition_name(partition: int) -> str:
    return f"{NAME}/{partition}"


def _member_name(slot: int) -> str:
    return f"{NAME}/member/{slot}"


_PARTITION_OF: Final = {_partition_name(number): number for number in range(PARTITIONS)}


@dataclass(slots=True)
class Shares:
    """One process's leases. `holder` must be unique to it; `alone`: no other can use this store."""

    holder: str
    alone: bool = False
    _leases: dict[str, _Lease] = field(default_factory=dict)
    _open: set[str] = field(default_factory=set)  # asked and not answered
    _leaving: set[int] = field(default_factory=set)
    _slot: int | None = None
    _slot_s: float = 0.0
    _slot_tries: int = 0
    _take_s: float = 0.0
    _candidate: int = 0
    _refused_s: dict[str, float] = field(default_factory=dict)
    _census_s: float = 0.0
    _census: _Census | None = None
    _counts: tuple[int, ...] = ()  # the last two

    def __post_init__(self) -> None:
        self._candidate = int(share_of(self.holder) * PARTITIONS)
        self._slot_tries = int(share_of(self.holder, "slot") * MEMBERS)

    def __repr__(self) -> str:
        return f"Shares({self.count} of {self.fair_share}, members={self._counts})"

    @property
    def count(self) -> int:
        """How many partitions are held."""
        return sum(name in _PARTITION_OF for name in self._leases)

    @property
    def fair_share(self) -> int:
        """How many partitions this process should hold."""
        if self.alone:
            return PARTITIONS
        # A single count may be too high: of a process that has just ended, say.
        return math.ceil(PARTITIONS / min(self._counts)) if self._counts else 0

    def held(self) -> dict[int, float]:
        """Return the partitions to work on, and until when the lease on each is good."""
        return {
            number: lease.until_s
            for name, lease in self._leases.items()
            if (number := _PARTITION_OF.get(name)) is not None and number not in self._leaving
        }

    def asks(self, now_s: float, busy: Collection[int] = ()) -> tuple[Ask, ...]:
        """Return what to ask now. `busy` are partitions with work under way: not given back yet."""
        self._forget_expired(now_s)
        asks: list[Ask] = []
        for name, lease in self._leases.items():
            partition = _PARTITION_OF.get(name, -1)
            if name in self._open:
                continue
            if partition in self._leaving and partition not in busy:
                asks.append(Ask("release", name, lease.id, 0.0, now_s))
            elif lease.renew_s <= now_s:
                asks.append(Ask("renew", name, lease.id, LEASE_S, now_s))
        asks += self._membership(now_s)
        self._shed()
        asks += self._takes(now_s)
        self._open.update(ask.name for ask in asks)
        return tuple(asks)

    def answer(self, ask: Ask, granted: bool | None, now_s: float) -> None:
        """Note an answer: None when the store could not tell."""
        self._open.discard(ask.name)
        match ask.verb:
            case "probe":
                self._counted(granted)
            case "release":
                self._drop(ask.name)
            case "renew":
                self._renewed(ask, granted, now_s)
            case _:
                self._acquired(ask, granted, now_s)

    def wake_s(self, now_s: float) -> float:
        """Return when `asks` should be called next, at the latest."""
        times = [lease.renew_s for name, lease in self._leases.items() if name not in self._open]
        if not self.alone:
            times.append(self._slot_s if self._slot is None else self._census_s)
        if self.count < self.fair_share:
            times.append(self._take_s)
        if self._leaving:
            times.append(now_s + PACE_S)
        return max(now_s + 0.05, min(times, default=now_s + RENEW_S))

    def releases(self, now_s: float) -> tuple[Ask, ...]:
        """Return what gives everything back, for the end."""
        return tuple(
            Ask("release", name, lease.id, 0.0, now_s) for name, lease in self._leases.items()
        )

    def _forget_expired(self, now_s: float) -> None:
        for name in [name for name, lease in self._leases.items() if lease.until_s <= now_s]:
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._leases.pop(name, None)
        if name in _PARTITION_OF:
            self._leaving.discard(_PARTITION_OF[name])
        elif self._slot is not None and name == _member_name(self._slot):
            self._slot, self._counts = None, ()

    def _membership(self, now_s: float) -> list[Ask]:
        if self.alone:
            return []
        if self._slot is None:
            name = _member_name(self._slot_tries % MEMBERS)
            if now_s < self._slot_s or name in self._open:
                return []
            return [Ask("acquire", name, self.holder, LEASE_S, now_s)]
        if now_s < self._census_s or self._census is not None:
            return []
        others = [_member_name(slot) for slot in range(MEMBERS) if slot != self._slot]
        self._census_s = now_s + CENSUS_S
        self._census = _Census(len(others))
        return [Ask("probe", name, CENSUS, PROBE_S, now_s) for name in others]

    def _counted(self, granted: bool | None) -> None:
        census = self._census
        if census is None:
            return
        census.open -= 1
        census.taken += granted is False
        census.is_valid &= granted is not None
        if census.open == 0:
            self._census = None
            if census.is_valid and self._slot is not None:
                self._counts = (*self._counts[-1:], 1 + census.taken)

    def _shed(self) -> None:
        if not self.fair_share:
            return  # not counted yet
        excess = len(self.held()) - self.fair_share
        self._leaving.update(sorted(self.held(), reverse=True)[: max(excess, 0)])

    def _takes(self, now_s: float) -> list[Ask]:
        if now_s < self._take_s or self.count >= self.fair_share:
            return []
        free = [
            number
            for step in range(PARTITIONS)
            if (number := (self._candidate + step) % PARTITIONS) not in self._leaving
            and (name := _partition_name(number)) not in self._leases
            and name not in self._open
            and self._refused_s.get(name, now_s) <= now_s
        ]
        if not free:
            later = [time_s for time_s in self._refused_s.values() if time_s > now_s]
            self._take_s = min(later, default=now_s + RENEW_S)
            return []
        taken = free if self.alone else free[:1]
        self._candidate = taken[-1] + 1
        self._take_s = now_s + (RETRY_S if self.alone else PACE_S)
        return [
            Ask("acquire", _partition_name(number), self.holder, LEASE_S, now_s) for number in taken
        ]

    def _acquired(self, ask: Ask, granted: bool | None, now_s: float) -> None:
        is_member = ask.name not in _PARTITION_OF
        if granted:
            self._refused_s.pop(ask.name, None)
            self._leases[ask.name] = _Lease(
                ask.lease_id, ask.asked_s + LEASE_S, ask.asked_s + RENEW_S
            )
            if is_member:
                self._slot = self._slot_tries % MEMBERS
                self._census_s = now_s
        elif is_member:
            self._slot_tries += 1
            full_round = granted is None or self._slot_tries % MEMBERS == 0
            self._slot_s = now_s + (RENEW_S if full_round else 0.1)
        elif granted is None:
            self._take_s = max(self._take_s, now_s + RETRY_S)
        else:
            self._refused_s[ask.name] = now_s + (RETRY_S if self.alone else LEASE_S)
            self._take_s = now_s + SEARCH_S

    def _renewed(self, ask: Ask, granted: bool | None, now_s: float) -> None:
        lease = self._leases.get(ask.name)
        if lease is None:
            return
        if granted is False:
            self._drop(ask.name)
        elif granted:
            lease.until_s = max(lease.until_s, ask.asked_s + LEASE_S)
            lease.renew_s = ask.asked_s + RENEW_S
        else:
            lease.renew_s = now_s + RETRY_S
