"""The world of the log simulation: one store, databrokers before it, replicas behind bad links.

The store's plan, the databroker's reader and its streams, the pages of copies and the client's
machine are the product's own; made up are time, the network, and when a transaction commits. All is
one heap of timed events drawn from one seeded generator, so a seed describes a run.
"""

from __future__ import annotations

import abc
import contextlib
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from random import Random  # noqa: TID251 - a simulation must replay from its seed
from typing import Any, TypeVar

from gatehouse.common.databroker.replica import Replica
from gatehouse.common.databroker.sync_core import (
    BACKOFF_JITTER,
    Advance,
    Apply,
    Begin,
    ChangeRecord,
    CloseStream,
    CopiedUpTo,
    CopyBatch,
    CopyVersions,
    DropStaged,
    Event,
    Heartbeat,
    OpenChanges,
    OpenCopy,
    Phase,
    Position,
    Report,
    RetryDue,
    Silence,
    Stage,
    StreamEnded,
    SwapIn,
    SyncState,
    Wait,
    backoff_s,
    step,
)
from gatehouse.common.errors import AbortedError, Code, UnavailableError
from gatehouse.databroker.core import feed
from gatehouse.databroker.edge.change_hub import VOUCHED_S, ChangeHub, Follower
from gatehouse.databroker.edge.snapshot_pages import SnapshotPages
from gatehouse.pb.databroker_pb2 import FULL
from tests.sim.log_store import Entry, Store, View, drive
from tests.support.clock import FakeClock, SeededRng
from tests.support.model_broker import OTHER, TYPE, UNREADABLE, text_of

T = TypeVar("T")

CANARY = "canary"  # never changed, always there: a look-up of it must never miss
IDS = [f"id-{n}" for n in range(8)]
ACTS_PER_S = 6.0
DELAY_S = 0.03  # of one message, on average
HEARTBEAT_S = 0.5
SILENCE_S = 4.0
KEEPALIVE_S = 6.0  # pings notice a dead peer, also where no heartbeats come
PAGE = 3
CUTS = [None, Code.UNAVAILABLE, Code.INTERNAL, Code.UNAUTHENTICATED]


async def at_once(work: Callable[..., Any], *given: Any) -> Any:
    """Virtual time stands still while anybody works."""
    return work(*given)


class Broker:
    """A databroker process: the real reader, the real pages, over a view of the store."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.view = View(world.store)
        self.is_up = True
        rng = SeededRng(world.random.randrange(1 << 30))
        size = world.random.choice([4, 16, 256])
        self.hub = ChangeHub(self.view, world.clock, rng, ring_changes=size)
        self.pages = SnapshotPages(self.view, world.clock, page_records=PAGE, work=at_once)
        self._due = 0
        self._look()

    def _look(self) -> None:
        self._due += 1
        due = self._due
        drive(self.hub.look())
        self.world.after(self.world.random.uniform(0.8, 1.2), lambda: self._poll(due))

    def _poll(self, due: int) -> None:
        if self.is_up and due == self._due:
            self._look()

    def notify(self) -> None:
        """Hear of a change, a moment later."""
        self.view.wake()
        due = self._due
        self.world.after(self.world.random.uniform(0.0, 0.05), lambda: self._poll(due))


class World:
    """Virtual time and what is due in it."""

    def __init__(self, seed: int, *, skips: bool = False) -> None:
        self.random = Random(seed)
        self.clock = FakeClock()
        self.clock.monotonic = 0.0
        self.broken = True  # faults happen
        self.seen: set[str] = set()  # kinds of trouble
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self.store = Store(self.clock, seed, skips=skips)
        self.store.commit(TYPE, CANARY, "here")
        self._waiting: deque[Callable[[], None]] = deque()  # for the sequencer
        self._is_locked = False
        self._restore: Callable[[], None] | None = None
        self.brokers = [Broker(self) for _ in range(2)]
        self.nodes = [Node(self) for _ in range(2)]
        self.after(0.0, self._act)

    @property
    def now_s(self) -> float:
        return self.clock.monotonic

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do `action` that much later."""
        heapq.heappush(self._due, (self.now_s + delay_s, next(self._serial), action))

    def chance(self, probability: float) -> bool:
        """True that often; never once the faults are over."""
        return self.broken and self.random.random() < probability

    def run_until(self, end_s: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, until then or until it is done."""
        while self._due and self._due[0][0] <= end_s and not done():
            due_s, _, action = heapq.heappop(self._due)
            self.clock.advance(max(0.0, due_s - self.now_s))
            action()

    def heal(self) -> None:
        """End all trouble."""
        self.broken = False
        for broker in self.brokers:
            broker.view.away = False

    # Writing

    def _write(self, type_: str, id_: str, text: str | None) -> None:
        """Take the sequencer when it is free, and commit some time later, or not at all."""

        def begin() -> None:
            self._is_locked = True
            self.after(self.random.expovariate(20.0), end)

        def end() -> None:
            if self.chance(0.05):  # the connection broke: rolled back, never acknowledged
                self.seen.add("rolled back")
            else:
                record = self.store.commit(type_, id_, text)
                if self.chance(0.05):
                    self.seen.add("answer lost")
                elif type_ == TYPE and record.version:
                    self.store.acknowledged[id_] = record.version
                self._announce()
            self._is_locked = False
            if self._waiting:
                self.seen.add("writers waited")
                self._waiting.popleft()()

        if self._is_locked:
            self._waiting.append(begin)
        else:
            begin()

    def _announce(self) -> None:
        for broker in self.brokers:
            if not self.chance(0.3):  # else: the notification is lost
                broker.notify()

    # Trouble

    def _act(self) -> None:
        """One thing that happens, then the next some time later."""
        if not self.broken:
            return
        draw, random = self.random.random(), self.random
        if draw < 0.50:
            text = UNREADABLE if random.random() < 0.05 else f"text-{random.randrange(10**6)}"
            self._write(TYPE, random.choice(IDS), text)
        elif draw < 0.68:
            self._write(TYPE, random.choice(IDS), None)
        elif draw < 0.78:
            self._write(OTHER, random.choice(IDS), f"other-{random.randrange(10**6)}")
        elif draw < 0.83:
            drive(self.store.prune(1 << 50, random.randrange(1, 2_000)))
        elif draw < 0.85:
            self._begin_anew()
        elif draw < 0.88:
            self._go_back()
        elif draw < 0.91:
            self._restart(random.randrange(len(self.brokers)))
        elif draw < 0.94:
            self._part(random.choice(self.brokers))
        elif draw < 0.97:
            self.seen.add("clock jump")
            self.clock.now += random.choice([-3_600.0, -1.0, 1.0, 3_600.0])
        else:
            self.seen.add("cold replica")
            random.choice(self.nodes).begin_cold()
        self.after(random.expovariate(ACTS_PER_S), self._act)

    def _begin_anew(self) -> None:
        if self.random.random() < 0.5:
            self.seen.add("clear")
            drive(self.store.clear())
            self.store.commit(TYPE, CANARY, "here")
        else:
            self.seen.add("version reset")
            drive(self.store.change_history())
        self._announce()

    def _go_back(self) -> None:
        if self._restore is None:
            self._restore = self.store.backup()
            return
        self.seen.add("restore")
        self._restore()
        self._restore = None

    def _restart(self, number: int) -> None:
        self.seen.add("broker restart")
        self.brokers[number].is_up = False
        self.brokers[number] = Broker(self)

    def _part(self, broker: Broker) -> None:
        self.seen.add("store away")
        broker.view.away = True

        def back() -> None:
            broker.view.away = False

        self.after(self.random.uniform(0.2, 4.0), back)


class Node:
    """One client process: the real machine and the real replica behind a link that fails."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.link: Link | None = None
        self.stream = 0
        self.begin_cold()

    def begin_cold(self) -> None:
        """Start, or start again with nothing."""
        if self.link is not None:
            self.link.closed = True
            self.link = None
        # Late messages of the streams before must not be taken for those of the new ones.
        self.state = SyncState(TYPE, stream=self.stream)
        self.replica = Replica({TYPE: text_of})
        self.versions: dict[str, int] = {}
        self.history = 0
        self.opened_s = 0.0
        self.world.after(self.world.random.random(), self._begin_of(self.replica))

    def _begin_of(self, replica: Replica) -> Callable[[], None]:
        return lambda: self.take(Begin()) if self.replica is replica else None

    def take(self, event: Event) -> None:
        """Step the machine, perform what it says, and check what shows."""
        self.state, effects = step(self.state, event)
        self.stream = self.state.stream
        for effect in effects:
            self._perform(effect)
        self._check()

    def _perform(self, effect: object) -> None:
        now_s = self.world.now_s
        match effect:
            case Apply(record):
                self.replica.apply(record)
            case Stage(records):
                for record in records:
                    self.replica.stage(record)
            case Advance(position, current):
                self.replica.advance(TYPE, position, heard_s=now_s if current else None)
            case DropStaged():
                self.replica.drop_copy(TYPE)
            case SwapIn(position):
                self.replica.swap(TYPE, position, now_s=now_s)
            case OpenCopy(stream, after):
                if after is None:
                    self.replica.begin_copy(TYPE)
                else:
                    self.world.seen.add("copy gone on with")
                self._open(CopyLink(self, stream, after))
            case OpenChanges(stream, position):
                self._open(ChangesLink(self, stream, position))
            case CloseStream():
                assert self.link is not None
                self.link.closed = True
                self.link = None
            case Wait(failures):
                spread = self.world.random.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)
                replica = self.replica
                self.world.after(
                    backoff_s(failures) * spread,
                    lambda: self.take(RetryDue()) if self.replica is replica else None,
                )
            case Report():
                pass

    def _open(self, link: Link) -> None:
        assert self.link is None
        self.link = link
        self.opened_s = self.world.now_s
        link.start()

    def shown(self) -> dict[str, tuple[int, str]]:
        """What this replica answers."""
        live = self.replica.live(TYPE)
        return {id_: (held.version, str(held.value)) for id_, held in live.items()}

    def _check(self) -> None:
        """Nothing goes back, nothing is missing for a moment."""
        state = self.replica.state(TYPE)
        if not state.ready:
            return
        shown = self.shown()
        assert CANARY in shown, "a look-up missed during a resync"
        # A store that was put back goes back itself, until that is noticed.
        if state.server_version == self.history not in self.world.store.tainted:
            for id_, (version, _) in shown.items():
                assert version >= self.versions.get(id_, 0), "a record went back"
        self.history = state.server_version
        self.versions = {id_: version for id_, (version, _) in shown.items()}


class Link(abc.ABC):
    """A stream: ordered, delayed, and liable to be cut, to hang or to deliver after its end."""

    def __init__(self, node: Node, stream: int) -> None:
        self.node = node
        self.stream = stream
        self.world = node.world
        self.broker = self.world.random.choice(self.world.brokers)
        self.replica = node.replica
        self.closed: bool = False  # by the client; what is under way still arrives (late)
        self.hung = False  # black hole: nothing arrives any more, no error either
        self.over = False  # the end was sent
        self.heard = 0
        self._last_s = 0.0

    def start(self) -> None:
        """Ask for the first message after a round trip."""
        self._watch(0)
        self.world.after(self.world.random.expovariate(1 / DELAY_S), self._served)

    def _served(self) -> None:
        """Serve once, and turn what the databroker raises into the end of the stream."""
        if self.over or (self.closed and self.world.random.random() < 0.5):
            self.leave()
            return
        if not self.broker.is_up:
            self.send(StreamEnded(self.stream, Code.UNAVAILABLE))
            return
        try:
            pause_s = self.serve()
        except AbortedError:
            self.send(StreamEnded(self.stream, Code.ABORTED))
        except UnavailableError:
            self.send(StreamEnded(self.stream, Code.UNAVAILABLE))
        else:
            self.world.after(pause_s, self._served)

    @abc.abstractmethod
    def serve(self) -> float:
        """Send something; how long until the next time, in seconds."""

    @abc.abstractmethod
    def leave(self) -> None:
        """Give back what the stream held at the databroker."""

    def admitted(self, position: Position) -> feed.Position:
        """As the servicer begins a stream."""
        held = drive(self.broker.view.position())
        try:
            feed.admit(held, position.server_version, position.record_version)
            if position.stamp:
                page = drive(self.broker.view.changes(position.record_version, limit=1))
                stamp = page.before
                if not stamp and position.record_version == page.position.latest:
                    stamp = page.position.stamp
                feed.check_stamp(position.record_version, position.stamp, stamp)
        except AbortedError as error:
            if error.reason in feed.GONE_BACK:
                self.world.seen.add("shown by a reader")
                seen = feed.Position(
                    held.server_version, position.record_version, held.pruned, position.stamp
                )
                drive(self.broker.view.renew_history(seen))
            raise
        return held

    def send(self, event: Event, check: Callable[[], None] = lambda: None) -> None:
        """Deliver after what was sent before, unless the link breaks here."""
        world = self.world
        if self.over:
            return
        if not self.hung and world.chance(0.01):
            world.seen.add("black hole")
            self.hung = True
            world.after(KEEPALIVE_S, self._keepalive_failed)
        if isinstance(event, StreamEnded):
            self.over = True
        elif world.chance(0.01):
            event, self.over = StreamEnded(self.stream, world.random.choice(CUTS)), True
        if self.over:
            self.leave()
        self._last_s = max(self._last_s, world.now_s + world.random.expovariate(1 / DELAY_S))
        world.after(self._last_s - world.now_s, lambda: self._arrive(event, check))

    def _keepalive_failed(self) -> None:
        if self.node.link is self:
            self._end(Code.UNAVAILABLE)

    def _end(self, code: Code | None) -> None:
        node = self.node
        node.link = None
        node.take(StreamEnded(self.stream, code, self.world.now_s - node.opened_s))

    def _arrive(self, event: Event, check: Callable[[], None]) -> None:
        node = self.node
        if self.hung or node.replica is not self.replica:
            return
        self.heard += 1
        if node.link is not self:
            node.take(event)  # the machine must know a late message by its number
        elif isinstance(event, StreamEnded):
            self._end(event.code)
        else:
            node.take(event)
            if node.link is self:
                check()
                self._watch(self.heard)

    def _watch(self, heard: int) -> None:
        def look() -> None:
            node = self.node
            watched = node.state.phase is Phase.COPYING or node.state.heartbeats
            if node.link is self and self.heard == heard and watched:
                node.take(Silence(self.stream))

        self.world.after(SILENCE_S, look)


class CopyLink(Link):
    """SyncLatest, as the servicer sends it in batches."""

    def __init__(self, node: Node, stream: int, after: CopiedUpTo | None) -> None:
        super().__init__(node, stream)
        self._after = None if after is None else (str(TYPE), after.id)
        self._begun = None if after is None else after.position
        self._earliest: feed.Position | None = None
        self._copy = contextlib.ExitStack()
        self._is_last = False

    def serve(self) -> float:
        if self._begun is not None:
            held = self.admitted(self._begun)
            self._earliest = feed.Position(
                held.server_version, self._begun.record_version, held.pruned, self._begun.stamp
            )
            self._begun = None
        self._copy.close()
        self._copy.enter_context(self.broker.pages.copy())
        if self._is_last:
            assert self._earliest is not None
            self._check_history(drive(self.broker.view.position()))
            place = _place(self._earliest)
            if not self.world.chance(0.1):  # else: an end without versions
                self.send(
                    CopyVersions(
                        self.stream, place.server_version, place.record_version, place.stamp
                    )
                )
            self.send(StreamEnded(self.stream, None))
            return 1.0
        page = drive(self.broker.pages.page(TYPE, self._after, FULL))
        self._earliest = self._earliest or page.position
        self._check_history(page.position)
        self._earliest = min(self._earliest, page.position, key=lambda one: one.latest)
        self._is_last = page.is_last
        if page.end is not None:
            self._after = page.end
            self.send(CopyBatch(self.stream, page.records, _place(page.position)))
        return self.world.random.expovariate(4.0)  # writes go on meanwhile

    def _check_history(self, found: feed.Position) -> None:
        assert self._earliest is not None
        if found.server_version != self._earliest.server_version:
            raise AbortedError("the history changed meanwhile")

    def leave(self) -> None:
        self._copy.close()


class ChangesLink(Link):
    """Sync: changes, and heartbeats when there are none."""

    def __init__(self, node: Node, stream: int, position: Position) -> None:
        super().__init__(node, stream)
        self._position = position
        self._follower: Follower | None = None
        self._beat_s = -HEARTBEAT_S

    def serve(self) -> float:
        world = self.world
        if self._follower is None:
            follower = self.broker.hub.follow(
                self._position.server_version, self._position.record_version, TYPE
            )
            self.admitted(self._position)
            self._follower = follower
        changes = drive(self._follower.take())
        for change in changes:
            event = ChangeRecord(self.stream, change.response(FULL).record)
            self.send(event)
            if world.chance(0.05):
                self.send(event)
        if not changes and world.now_s - self._beat_s >= HEARTBEAT_S:
            versions = self._follower.heartbeat()
            if versions is not None:
                self._beat_s = world.now_s
                self._vouch(versions)
        if world.chance(0.02):
            world.seen.add("slow stream")
            return world.random.uniform(0.5, 3.0)
        return world.random.uniform(0.02, 0.3)

    def leave(self) -> None:
        """It held nothing."""

    def _vouch(self, versions: Any) -> None:
        """Send a heartbeat; what it promises is held against what was committed."""
        server_version = versions.server_version
        version = versions.latest_record_version
        store = self.world.store
        if server_version not in store.tainted:
            self._check_vouched(server_version, version)
        self.send(
            Heartbeat(self.stream, server_version, version, versions.stamp),
            lambda: _check_complete(self.node, store, server_version, version),
        )

    def _check_vouched(self, server_version: int, version: int) -> None:
        """What was committed a second ago is covered, also the end of a history."""
        before_s = self.world.now_s - VOUCHED_S
        for at_s, history, committed in reversed(self.world.store.committed):
            if at_s < before_s:
                assert history == server_version, "vouched for a history that was over"
                assert committed <= version, "vouched without having read"
                return
            if history == server_version and committed <= version:
                return


def _place(position: feed.Position) -> Position:
    return Position(position.server_version, position.latest, position.stamp)


def _check_complete(node: Node, store: Store, server_version: int, version: int) -> None:
    """After a heartbeat the replica lacks nothing of what it vouches for, and holds no ghost."""
    if server_version in store.tainted or node.state.position is None:
        return
    shown = node.shown()
    for id_, entries in store.histories[server_version].items():
        due = next((one for one in reversed(entries) if one.version <= version), None)
        held = shown.get(id_)
        if held is not None:
            assert Entry(*held) in entries, "a replica holds what nobody wrote"
            assert due is None or held[0] >= due.version, "a replica has skipped a version"
        elif due is not None and due.text is not None and due.text != UNREADABLE:
            later = [one for one in entries if one.version > version]
            assert any(one.text in {None, UNREADABLE} for one in later), "a replica lost a record"
    for id_ in shown:
        assert id_ in store.histories[server_version], "a record of another history is held"
