"""The world of the sync simulation: one model broker, some replicas, links that fail, virtual time.

Everything happens in one heap of timed events drawn from one seeded generator, so a seed is a
complete description of a run. The cores are the real ones; only the network is made up.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random  # noqa: TID251 - a simulation must replay from its seed

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
    CopyRecord,
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
from gatehouse.common.errors import AbortedError, Code
from tests.support.model_broker import OTHER, TYPE, UNREADABLE, ModelBroker, text_of

CANARY = "canary"  # never changed, always there: a look-up of it must never miss
IDS = [f"id-{n}" for n in range(12)]
SILENCE_S = 30.0
HEARTBEAT_S = 10.0
KEEPALIVE_S = 80.0  # HTTP/2 pings notice a dead peer, also where no heartbeats come
PAGE = 4
CUTS = [None, Code.UNAVAILABLE, Code.INTERNAL, Code.UNAUTHENTICATED]


class World:
    """Virtual time and what is due in it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now_s = 0.0
        self.broker = ModelBroker()
        self.broker.put(CANARY, "here")
        self.broken = True  # faults happen
        self.heartbeats = self.random.random() < 0.75  # else: a broker that knows none
        self.batches = self.random.random() < 0.75  # else: a broker that knows none of those
        self.resumed = 0  # copies gone on with
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self.nodes = [Node(self) for _ in range(3)]
        self.after(0.0, self._act)

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do `action` that much later."""
        heapq.heappush(self._due, (self.now_s + delay_s, next(self._serial), action))

    def chance(self, probability: float) -> bool:
        """True that often; never once the faults are over."""
        return self.broken and self.random.random() < probability

    def run_until(self, end_s: float, check: Callable[[], None]) -> None:
        """Let time pass; `check` runs after every single event."""
        while self._due and self._due[0][0] <= end_s:
            self.now_s, _, action = heapq.heappop(self._due)
            action()
            check()
        self.now_s = end_s

    def _act(self) -> None:
        """One thing that happens at the broker, then the next some time later."""
        if not self.broken:
            return
        draw = self.random.random()
        broker = self.broker
        if draw < 0.55:
            unreadable = self.random.random() < 0.05
            text = UNREADABLE if unreadable else f"text-{self.random.randrange(10**6)}"
            broker.put(self.random.choice(IDS), text)
        elif draw < 0.75:
            broker.delete(self.random.choice(IDS))
        elif draw < 0.93:
            broker.put(self.random.choice(IDS), "other", OTHER)
        elif draw < 0.98:
            broker.compact(self.random.randrange(1, 30))
        else:
            broker.clear(broker.server_version + self.random.randrange(1, 1000))
            broker.put(CANARY, "here")
        self.after(self.random.expovariate(2.0), self._act)


class Node:
    """One client process: the real core and the real replica behind a link that fails."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.state = SyncState(TYPE)
        self.replica = Replica({TYPE: text_of})
        self.link: Link | None = None
        self.opened = 0
        self.opened_s = 0.0
        world.after(world.random.random(), lambda: self.take(Begin()))

    def take(self, event: Event) -> None:
        """Step the core and perform what it says."""
        self.state, effects = step(self.state, event)
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect) -> None:
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
                    self.world.resumed += 1
                self._open(CopyLink(self, stream, after))
            case OpenChanges(stream, position):
                self._open(
                    ChangesLink(self, stream, position.server_version, position.record_version)
                )
            case CloseStream():
                assert self.link is not None
                self.link.closed = True
                self.link = None
            case Wait(failures):
                spread = self.world.random.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)
                self.world.after(backoff_s(failures) * spread, lambda: self.take(RetryDue()))
            case Report():
                pass

    def _open(self, link: Link) -> None:
        assert self.link is None
        self.link = link
        self.opened += 1
        self.opened_s = self.world.now_s
        link.start()


@dataclass
class Link:
    """A stream: ordered, delayed, and liable to be cut, to hang or to deliver after its end."""

    node: Node
    stream: int
    closed: bool = False  # by the client; what is under way still arrives (late)
    hung: bool = False  # black hole: nothing arrives any more, no error either
    over: bool = False  # the end was sent
    last_arrival_s: float = 0.0
    heard: int = field(default=0)

    def start(self) -> None:
        """Ask the broker for the first message after a round trip."""
        self._watch(0)
        self._later(self._serve)

    def _later(self, action: Callable[[], None]) -> None:
        world = self.node.world
        world.after(world.random.expovariate(20.0), action)

    def send(self, event: Event) -> None:
        """Deliver after what was sent before, unless the link breaks here."""
        world = self.node.world
        if self.over:
            return
        if not self.hung and world.chance(0.01):
            self.hung = True
            world.after(KEEPALIVE_S, self._keepalive_failed)
        if isinstance(event, StreamEnded):
            self.over = True
        elif world.chance(0.01):
            code = world.random.choice(
                [None, Code.UNAVAILABLE, Code.INTERNAL, Code.UNAUTHENTICATED]
            )
            event, self.over = StreamEnded(self.stream, code), True
        arrival_s = max(self.last_arrival_s, world.now_s + world.random.expovariate(20.0))
        self.last_arrival_s = arrival_s
        world.after(arrival_s - world.now_s, lambda: self._arrive(event))

    def _keepalive_failed(self) -> None:
        if self.node.link is self:
            self.node.link = None
            lived_s = self.node.world.now_s - self.node.opened_s
            self.node.take(StreamEnded(self.stream, Code.UNAVAILABLE, lived_s))

    def _arrive(self, event: Event) -> None:
        if self.hung:
            return
        node = self.node
        self.heard += 1
        if isinstance(event, StreamEnded):
            if node.link is self:
                node.link = None
                lived_s = node.world.now_s - node.opened_s
                event = StreamEnded(self.stream, event.code, lived_s)
            node.take(event)
            return
        node.take(event)  # also when closed: the core must know a late message by its number
        if node.link is self:
            self._watch(self.heard)

    def _watch(self, heard: int) -> None:
        def look() -> None:
            node = self.node
            watched = node.state.phase is Phase.COPYING or node.state.heartbeats
            if node.link is self and self.heard == heard and watched:
                node.take(Silence(self.stream))

        self.node.world.after(SILENCE_S, look)

    def _serve(self) -> None:
        """Send something and call again later."""


@dataclass
class CopyLink(Link):
    """SyncLatest: versions are taken first, then pages, each of its own moment."""

    after_id: str = ""
    versions: CopyVersions | None = None

    def __init__(self, node: Node, stream: int, after: CopiedUpTo | None) -> None:
        super().__init__(node, stream)
        if after is not None:
            self.after_id = after.id
            place = after.position
            self.versions = CopyVersions(stream, place.server_version, place.record_version)

    def _serve(self) -> None:
        if self.over:
            return
        world, broker = self.node.world, self.node.world.broker
        if self.versions is None:
            self.versions = CopyVersions(self.stream, broker.server_version, broker.latest)
        elif not self.heard:
            try:
                broker.check_position(self.versions.server_version, self.versions.record_version)
            except AbortedError:
                self.send(StreamEnded(self.stream, Code.ABORTED))
                return
        if self.versions.server_version != broker.server_version:
            # Clear ends this process's open streams.
            self.send(StreamEnded(self.stream, Code.UNAVAILABLE))
            return
        page = broker.page(TYPE, self.after_id, PAGE)
        if world.batches and page:
            position = Position(broker.server_version, broker.latest)
            self.send(CopyBatch(self.stream, tuple(page), position))
        else:
            for made in page:
                self.send(CopyRecord(self.stream, made))
        if page:
            self.after_id = page[-1].id
            world.after(world.random.expovariate(0.7), self._serve)  # writes go on meanwhile
            return
        if not world.chance(0.1):  # else: an end without versions
            self.send(self.versions)
        self.send(StreamEnded(self.stream, None))


@dataclass
class ChangesLink(Link):
    """Sync: pages of changes, heartbeats when there are none."""

    server_version: int = 0
    cursor: int = 0
    beat_s: float = -HEARTBEAT_S

    def __init__(self, node: Node, stream: int, server_version: int, cursor: int) -> None:
        super().__init__(node, stream)
        self.server_version = server_version
        self.cursor = cursor
        self.beat_s = -HEARTBEAT_S

    def _serve(self) -> None:
        if self.over:
            return
        world, broker = self.node.world, self.node.world.broker
        try:
            broker.check_position(self.server_version, self.cursor)
        except AbortedError:
            self.send(StreamEnded(self.stream, Code.ABORTED))
            return
        page = broker.changes(self.cursor, TYPE, PAGE)
        for made in page:
            self.send(ChangeRecord(self.stream, made))
            if world.chance(0.05):  # sent twice
                self.send(ChangeRecord(self.stream, made))
            self.cursor = made.version
        if not page:
            self.cursor = broker.latest
            if world.heartbeats and world.now_s - self.beat_s >= HEARTBEAT_S:
                self.beat_s = world.now_s
                self.send(Heartbeat(self.stream, broker.server_version, broker.latest))
        world.after(world.random.uniform(0.05, 1.0), self._serve)
