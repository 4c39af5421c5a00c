"""When each session is refreshed, checked at the provider, or swept away.

`Schedule.step` takes what has happened and returns what to do now; `refresh_runner` does it. The
schedule knows times and versions only, never a token. What it knows may be old: whoever acts on an
effect reads the record again first.

Two time bases. Expiry times are Unix time; pauses and back-off are monotonic, so that a clock that
is set neither holds refreshes up nor makes them storm. After such a jump nothing is swept until
both bases have gone together for a while.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from gatehouse.databroker.core.partitions import partition_of, share_of
from gatehouse.databroker.core.provider_gate import BURST, IN_FLIGHT, RATE, Gate

JUMP_S: Final = 5.0  # more than this between the two time bases is a jump of the clock
SWEEP_BATCH: Final = 100
PUT_OFF_S: Final = 5.0
MAX_WAIT_S: Final = 30.0  # between two ticks, so that jumps are seen


@dataclass(frozen=True, slots=True)
class Rules:
    """The numbers, in seconds. Spread ones are multiplied by a share of the session id's hash."""

    lead_s: float = 60.0  # a token is renewed so long before it expires, or up to
    lead_spread_s: float = 60.0  # so much earlier, but
    least_s: float = 10.0  # not sooner after the last contact
    userinfo_s: float = 600.0  # between looks at userinfo while nothing else brings it
    backoff_s: float = 30.0
    backoff_cap_s: float = 900.0
    quiet_s: float = 30.0  # after taking a partition over: its last owner may still be busy
    quiet_spread_s: float = 60.0
    doubt_s: float = 120.0  # after that, too, a first refusal may stem from its last owner's work
    margin_s: float = 10.0  # a lease must be good for so long when a call begins
    sweep_s: float = 300.0  # from expiry to removal
    steady_s: float = 300.0  # without a jump of the clock before anything is swept
    rate: float = RATE
    burst: float = BURST
    in_flight: int = IN_FLIGHT
    at_id_token_expiry: bool = True


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant in both time bases, in seconds."""

    unix_s: float
    monotonic_s: float


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What the schedule needs of one version of a session."""

    id: str
    user_id: str
    idp_id: str
    version: int
    expires_at_s: float | None  # None: never
    renew_by_s: float | None  # when its tokens expire; None: it cannot or need not be refreshed
    is_checkable: bool  # there is an access token to ask userinfo with

    @property
    def partition(self) -> int:
        """All sessions of a user are in one partition: one writer for the user's record."""
        return partition_of(self.user_id or self.id)


class Kind(Enum):
    """What is done with a session."""

    REFRESH = "refresh"
    CHECK = "userinfo"
    SWEEP = "sweep"


_COST: Final = {Kind.REFRESH: 2.0, Kind.CHECK: 1.0}  # requests; a refresh asks userinfo too


# Events


@dataclass(frozen=True, slots=True)
class Owned:
    """The partitions held, and until when (monotonic) their leases are good."""

    until_s: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Providers:
    """The providers configured, by idp id."""

    ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Seen:
    """A session as it stands; `loaded` when it was found by looking, not by a change."""

    facts: SessionFacts
    loaded: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """A session is no more."""

    id: str


class Result(Enum):
    """How an attempt ended."""

    DONE = "done"  # the provider has confirmed the session
    NOT_DUE = "not-due"  # nothing had to be asked: the record was newer than the schedule
    FAILED = "failed"  # nothing is known; try again later
    UNCLEAR = "unclear"  # the answer makes no sense; a refresh will tell more
    DOUBTED = "doubted"  # refused, too soon after a take-over to be believed at once
    VANISHED = "vanished"  # the session is gone


@dataclass(frozen=True, slots=True)
class Finished:
    """An attempt, or a sweep of one session, has ended. `facts`: the newest known, if any."""

    id: str
    result: Result
    facts: SessionFacts | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Owned | Providers | Seen | Gone | Finished | Tick


# Effects


@dataclass(frozen=True, slots=True)
class Attempt:
    """Ask the provider about a session.

    `doubt`: a refusal is not believed this time. `early`: refresh although nothing expires yet.
    """

    id: str
    idp_id: str
    kind: Kind
    doubt: bool = False
    early: bool = False


@dataclass(frozen=True, slots=True)
class Sweep:
    """Remove these sessions, if they are as long expired as it seems."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """Look for the sessions of these partitions."""

    partitions: frozenset[int]


Effect = Attempt | Sweep | Load


class _Phase(Enum):
    IDLE = 0
    WAITING = 1  # for the provider's gate
    BUSY = 2


@dataclass(slots=True)
class _Entry:
    facts: SessionFacts
    partition: int
    share: float
    contact_s: float  # monotonic: the provider's last word, or a substitute for it
    not_before_s: float  # monotonic
    failures: int = 0
    refused: bool = False  # once, and doubted
    early: bool = False  # refresh as soon as may be
    phase: _Phase = _Phase.IDLE
    kind: Kind = Kind.SWEEP
    idp_id: str = ""  # whose gate it waits at or has passed
    ticket: int = 0  # of its one valid place in the heap


@dataclass(slots=True)
class _Queues:
    gate: Gate
    refreshes: deque[str] = field(default_factory=deque)
    checks: deque[str] = field(default_factory=deque)

    def __iter__(self) -> Iterator[tuple[Kind, deque[str]]]:
        yield Kind.REFRESH, self.refreshes
        yield Kind.CHECK, self.checks


class Schedule:
    """Every session of the partitions held, each with what comes next for it."""

    def __init__(self, rules: Rules, now: Moment) -> None:
        self.rules = rules
        self._offset_s = now.unix_s - now.monotonic_s
        self._steady_since_s = now.monotonic_s
        self._owned: dict[int, float] = {}  # partition -> lease good until
        self._gained_s: dict[int, float] = {}
        self._providers: frozenset[str] = frozenset()
        self._entries: dict[str, _Entry] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._tickets = itertools.count(1)
        self._queues: dict[str, _Queues] = {}
        self._busy: dict[str, tuple[int, str, Kind]] = {}  # id -> partition, idp id, kind

    def __repr__(self) -> str:
        return f"Schedule({len(self._entries)} sessions, {len(self._busy)} busy)"

    @property
    def count(self) -> int:
        """How many sessions are scheduled."""
        return len(self._entries)

    @property
    def busy_partitions(self) -> frozenset[int]:
        """The partitions with an attempt under way."""
        return frozenset(partition for partition, _, _ in self._busy.values())

    def step(self, event: Event, now: Moment) -> tuple[Effect, ...]:
        """Take an event; return what to do now."""
        self._watch_clock(now)
        effects: list[Effect] = []
        match event:
            case Owned(until_s):
                effects += self._own(until_s, now)
            case Providers(ids):
                self._configure(ids)
            case Seen(facts, loaded):
                self._see(facts, now, loaded=loaded)
            case Gone(id_):
                self._entries.pop(id_, None)
            case Finished():
                self._finish(event, now)
            case Tick():
                pass
        effects += self._due(now)
        effects += self._admit(now)
        return tuple(effects)

    def wake_s(self, now: Moment) -> float:
        """Return when (monotonic) `Tick` should come next."""
        wake_s = now.monotonic_s + MAX_WAIT_S
        if self._heap:
            wake_s = min(wake_s, self._heap[0][0])
        for queues in self._queues.values():
            for kind, waiting in queues:
                if waiting:
                    wait_s = queues.gate.wait_s(now.monotonic_s, _COST[kind])
                    wake_s = min(wake_s, now.monotonic_s + wait_s)
                    break
        return wake_s

    # Events

    def _watch_clock(self, now: Moment) -> None:
        offset_s = now.unix_s - now.monotonic_s
        jumped = abs(offset_s - self._offset_s) > JUMP_S
        self._offset_s = offset_s  # slow drift is followed without more ado
        if jumped:
            self._steady_since_s = now.monotonic_s
            self._rebuild()

    def _configure(self, ids: frozenset[str]) -> None:
        if ids == self._providers:
            return
        self._providers = ids
        for entry in self._entries.values():
            if entry.phase is _Phase.WAITING and entry.idp_id not in ids:
                entry.phase = _Phase.IDLE
        for idp_id in [idp_id for idp_id in self._queues if idp_id not in ids]:
            if self._queues[idp_id].gate.calls == 0:
                del self._queues[idp_id]
        self._rebuild()

    def _own(self, until_s: Mapping[int, float], now: Moment) -> Iterable[Effect]:
        gained = until_s.keys() - self._owned.keys()
        lost = self._owned.keys() - until_s.keys()
        self._owned = dict(until_s)
        for partition in gained:
            self._gained_s[partition] = now.monotonic_s
        if lost:
            for id_ in [id_ for id_, entry in self._entries.items() if entry.partition in lost]:
                del self._entries[id_]
        if gained:
            yield Load(frozenset(gained))

    def _see(self, facts: SessionFacts, now: Moment, *, loaded: bool) -> None:
        partition = facts.partition
        if partition not in self._owned:
            return
        entry = self._entries.get(facts.id)
        if entry is None:
            share = share_of(facts.id)
            now_s = now.monotonic_s
            quiet_s = self._gained_s[partition] + self.rules.quiet_s
            quiet_s += self.rules.quiet_spread_s * share
            # What is found by looking may have been asked about long ago.
            contact_s = now_s - self.rules.userinfo_s * share if loaded else now_s
            least_s = now_s if loaded else now_s + self.rules.least_s
            entry = _Entry(facts, partition, share, contact_s, max(quiet_s, least_s))
            self._entries[facts.id] = entry
        elif facts.version <= entry.facts.version:
            return
        entry.facts = facts
        self._place(entry)

    def _finish(self, event: Finished, now: Moment) -> None:
        now_s = now.monotonic_s
        if (busy := self._busy.pop(event.id, None)) is not None:
            _, idp_id, kind = busy
            gate = self._gate(idp_id).gate
            gate.leave()
            if event.result is Result.FAILED and event.retry_after_s is not None:
                gate.pause(now_s, event.retry_after_s)
        entry = self._entries.get(event.id)
        if entry is None:
            return
        if event.result is Result.VANISHED:
            del self._entries[event.id]
            return
        entry.phase = _Phase.IDLE
        if event.facts is not None and event.facts.version >= entry.facts.version:
            entry.facts = event.facts
        rules = self.rules
        if event.result in {Result.DONE, Result.NOT_DUE}:
            entry.not_before_s = now_s + rules.least_s
            entry.refused = entry.early = False
            if event.result is Result.DONE:
                entry.failures = 0
            if event.result is Result.DONE or (busy is not None and kind is Kind.CHECK):
                entry.contact_s = now_s
        else:
            entry.failures += 1
            # Once only: a provider whose answers never make sense is not asked twice each time.
            entry.early = event.result is Result.UNCLEAR and entry.failures == 1
            entry.refused = event.result is Result.DOUBTED
            entry.not_before_s = now_s + (
                rules.doubt_s / 2 if entry.refused else self._backoff_s(entry, event.retry_after_s)
            )
        self._place(entry)

    def _backoff_s(self, entry: _Entry, retry_after_s: float | None) -> float:
        rules = self.rules
        doubled_s = rules.backoff_s * 2.0 ** min(entry.failures - 1, 30)
        spread = 0.75 + 0.5 * share_of(entry.facts.id, entry.failures)
        backoff_s = min(max(rules.backoff_s, doubled_s * spread), rules.backoff_cap_s)
        if retry_after_s is None:
            return backoff_s
        return max(backoff_s, retry_after_s + rules.backoff_s * entry.share)

    # What is due

    def _next(self, entry: _Entry) -> tuple[float, Kind] | None:
        """Return what comes next for a session, and when (monotonic)."""
        facts, rules = entry.facts, self.rules
        found: list[tuple[float, Kind]] = []
        expires_s = None
        if facts.expires_at_s is not None:
            expires_s = facts.expires_at_s - self._offset_s
            sweep_s = max(expires_s + rules.sweep_s, self._steady_since_s + rules.steady_s)
            # Only trouble with the store makes `not_before_s` later than that.
            found.append((max(sweep_s, entry.not_before_s), Kind.SWEEP))
        if facts.idp_id in self._providers:
            if facts.renew_by_s is not None:
                lead_s = rules.lead_s + rules.lead_spread_s * entry.share
                renew_s = facts.renew_by_s - self._offset_s - lead_s
                if entry.early:
                    renew_s = entry.not_before_s
                found.append((max(renew_s, entry.not_before_s), Kind.REFRESH))
            if facts.is_checkable:
                check_s = entry.contact_s + rules.userinfo_s
                found.append((max(check_s, entry.not_before_s), Kind.CHECK))
        if expires_s is not None:
            found = [item for item in found if item[1] is Kind.SWEEP or item[0] < expires_s]
        return min(found, key=lambda item: item[0], default=None)

    def _place(self, entry: _Entry) -> None:
        """Put a session where it belongs in the order of time, unless it is being dealt with."""
        entry.ticket = next(self._tickets)
        if entry.phase is not _Phase.IDLE:
            return
        following = self._next(entry)
        if following is not None:
            heapq.heappush(self._heap, (following[0], entry.ticket, entry.facts.id))
        if len(self._heap) > 64 + 4 * len(self._entries):
            self._rebuild()

    def _rebuild(self) -> None:
        self._heap = []
        for entry in self._entries.values():
            following = self._next(entry) if entry.phase is _Phase.IDLE else None
            entry.ticket = next(self._tickets)
            if following is not None:
                self._heap.append((following[0], entry.ticket, entry.facts.id))
        heapq.heapify(self._heap)

    def _due(self, now: Moment) -> Iterable[Effect]:
        swept: list[str] = []
        while self._heap and self._heap[0][0] <= now.monotonic_s:
            _, ticket, id_ = heapq.heappop(self._heap)
            entry = self._entries.get(id_)
            if entry is None or entry.ticket != ticket:
                continue
            following = self._next(entry)
            if following is None or following[0] > now.monotonic_s:
                self._place(entry)
                continue
            entry.kind = following[1]
            if entry.kind is Kind.SWEEP:
                entry.phase = _Phase.BUSY
                swept.append(id_)
                continue
            entry.phase = _Phase.WAITING
            entry.idp_id = entry.facts.idp_id
            queues = self._gate(entry.idp_id)
            (queues.refreshes if entry.kind is Kind.REFRESH else queues.checks).append(id_)
        for first in range(0, len(swept), SWEEP_BATCH):
            yield Sweep(tuple(swept[first : first + SWEEP_BATCH]))

    def _admit(self, now: Moment) -> Iterable[Effect]:
        """Let through the providers' gates what fits, refreshes before checks."""
        for idp_id, queues in self._queues.items():
            for kind, waiting in queues:
                while waiting:
                    entry = self._entries.get(waiting[0])
                    is_here = entry is not None and (entry.phase, entry.kind, entry.idp_id) == (
                        _Phase.WAITING,
                        kind,
                        idp_id,
                    )
                    if entry is None or not is_here:
                        waiting.popleft()
                        continue
                    good_s = self._owned[entry.partition] - now.monotonic_s
                    if good_s < self.rules.margin_s or entry.facts.id in self._busy:
                        waiting.popleft()
                        self._put_off(entry, now)
                        continue
                    if not queues.gate.enter(now.monotonic_s, _COST[kind]):
                        break
                    waiting.popleft()
                    yield self._begin(entry, now)
                if waiting:
                    break  # checks must not take what refreshes wait for

    def _put_off(self, entry: _Entry, now: Moment) -> None:
        """Wait for the lease to be renewed, or for an attempt from before it was lost to end."""
        entry.phase = _Phase.IDLE
        entry.not_before_s = now.monotonic_s + PUT_OFF_S
        self._place(entry)

    def _begin(self, entry: _Entry, now: Moment) -> Attempt:
        facts = entry.facts
        entry.phase = _Phase.BUSY
        self._busy[facts.id] = (entry.partition, entry.idp_id, entry.kind)
        age_s = now.monotonic_s - self._gained_s[entry.partition]
        doubt = not entry.refused and age_s < self.rules.quiet_s + self.rules.doubt_s
        return Attempt(facts.id, entry.idp_id, entry.kind, doubt, entry.early)

    def _gate(self, idp_id: str) -> _Queues:
        rules = self.rules
        if idp_id not in self._queues:
            gate = Gate(rules.rate, rules.burst, rules.in_flight)
            self._queues[idp_id] = _Queues(gate)
        return self._queues[idp_id]
