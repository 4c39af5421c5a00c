"""The table never looks newer than it is, whatever the stream and the answers do."""

from __future__ import annotations

import random  # noqa: TID251 - repeatable by its seed
from dataclasses import dataclass, field

import pytest

from gatehouse.common.record_keys import record_key, type_key
from gatehouse.proxy.core.change_cursor import (
    Changed,
    Close,
    CursorState,
    Effect,
    Ended,
    Follow,
    Fresh,
    NewTable,
    Raise,
    Retire,
    Told,
    Vouched,
    step,
)
from gatehouse.proxy.core.decision_table import MOST_EXACT

KEYS = (record_key("t", "a"), type_key("t"))
BEGUN = CursorState(server_version=7, applied=10, stream=1, is_following=True)


def changed(version: int, stream: int = 1) -> Changed:
    return Changed(stream, "t", "a", version)


def test_the_first_answer_begins_a_table_where_it_stands():
    state, effects = step(CursorState(), Told(100, 7, 10))
    assert state == BEGUN
    assert effects == (NewTable(7, 10), Fresh(100), Follow(1, 7, 10))


CASES = [
    ("nothing new", BEGUN, [Told(200, 7, 10)], [Fresh(200)]),
    ("the stream is behind", BEGUN, [Told(200, 7, 12)], []),
    (
        "and catches up",
        BEGUN,
        [Told(200, 7, 12), changed(11), changed(12)],
        [Raise(KEYS, 11), Raise(KEYS, 12), Fresh(200)],
    ),
    (
        "one of two answers is met",
        BEGUN,
        [Told(200, 7, 11), Told(300, 7, 12), changed(11)],
        [Raise(KEYS, 11), Fresh(200)],
    ),
    ("without a record", BEGUN, [Told(200, 7, 12), Vouched(1, 7, 12)], [Fresh(200)]),
    ("an old voucher", BEGUN, [Vouched(1, 7, 3), Told(200, 7, 10)], [Fresh(200)]),
    ("a voucher that says nothing", BEGUN, [Vouched(1, 0, 99)], []),
    ("of a stream that is closed", BEGUN, [changed(11, 0), Vouched(0, 7, 99)], []),
    ("an answer that says nothing", BEGUN, [Told(200, 0, 99)], []),
    ("the stream ends", BEGUN, [Ended(1, is_aborted=False)], []),
    (
        "and goes on where it was",
        BEGUN,
        [changed(11), Ended(1, is_aborted=False), Told(300, 7, 12), changed(12, 2)],
        [Raise(KEYS, 11), Follow(2, 7, 11), Raise(KEYS, 12), Fresh(300)],
    ),
    (
        "it says which version it means",
        BEGUN,
        [Vouched(1, 7, 10, 5), Ended(1, is_aborted=False), Told(300, 7, 10)],
        [Follow(2, 7, 10, 5), Fresh(300)],
    ),
    (
        "and of a version that came without a stamp says none",
        BEGUN,
        [Vouched(1, 7, 10, 5), changed(11), Ended(1, is_aborted=False), Told(300, 7, 11)],
        [Raise(KEYS, 11), Follow(2, 7, 11), Fresh(300)],
    ),
    (
        "it cannot go on",
        BEGUN,
        [Ended(1, is_aborted=True), Told(300, 7, 20)],
        [Retire(), NewTable(7, 20), Fresh(300), Follow(2, 7, 20)],
    ),
    (
        "another history by the answer",
        BEGUN,
        [Told(300, 8, 2), changed(11)],
        [Close(), Retire(), NewTable(8, 2), Fresh(300), Follow(2, 8, 2)],
    ),
    ("another history by the stream", BEGUN, [Vouched(1, 8, 2)], [Close(), Retire()]),
    ("versions beyond what scripts can compare", BEGUN, [changed(MOST_EXACT)], [Close(), Retire()]),
    ("from the beginning on", CursorState(), [Told(1, 7, MOST_EXACT)], []),
]


@pytest.mark.parametrize(("what", "state", "events", "expected"), CASES, ids=[c[0] for c in CASES])
def test_conversations(what, state, events, expected):
    found: list[Effect] = []
    for event in events:
        state, effects = step(state, event)
        found += effects
    assert found == expected, what


def test_answers_that_wait_are_bounded():
    state = BEGUN
    for number in range(1000):
        state, effects = step(state, Told(number, 7, 11 + number))
        assert not effects
    assert len(state.pending) <= 16
    _, effects = step(state, changed(11))
    assert Fresh(0) in effects


@dataclass
class Broker:
    """Commits, restarts, and streams that lag, break and are cut, by seed."""

    random: random.Random
    history: int = 1
    log: list[tuple[int, str]] = field(default_factory=list)
    committed_at: dict[tuple[int, int], int] = field(default_factory=dict)
    latest: int = 0
    pruned: int = 0

    def commit(self, now: int) -> None:
        self.latest += 1
        self.log.append((self.latest, f"r{self.random.randrange(8)}"))
        self.committed_at[self.history, self.latest] = now

    def restart(self) -> None:
        self.history += 1
        self.log.clear()
        self.latest = self.pruned = 0


@dataclass
class Table:
    """What readers would see."""

    history: int = 0
    floor: int = 0
    fresh_at: int = -1
    slots: dict[int, int] = field(default_factory=dict)

    def slot(self, key: int) -> int:
        return max(self.floor, self.slots.get(key, 0))


@pytest.mark.parametrize("seed", range(60))
def test_case_h_whatever_happens_what_is_fresh_is_complete(seed: int):
    """For all that was committed by the stamp, the slot says so: a decision from before is out."""
    rng = random.Random(seed)
    broker, table, state = Broker(rng), Table(), CursorState()
    stream: tuple[int, int, int] | None = None  # number, history, cursor
    questions: list[Told] = []  # answered by the broker, not yet received

    def take(event) -> None:
        nonlocal state, stream
        state, effects = step(state, event)
        for effect in effects:
            match effect:
                case NewTable(history, floor):
                    table.history, table.floor, table.slots = history, floor, {}
                    table.fresh_at = -1
                case Retire():
                    table.history = 0
                case Raise(keys, version):
                    for key in keys:
                        table.slots[key] = max(version, table.slots.get(key, 0))
                case Fresh(at):
                    table.fresh_at = max(table.fresh_at, at)
                case Follow(number, history, version):
                    stream = (number, history, version)
                case Close():
                    stream = None

    stamps = 0
    for now in range(1, 600):
        match rng.choices(
            ["commit", "ask", "answer", "stream", "break", "abort", "restart"],
            [30, 20, 20, 40, 3, 1, 1],
        )[0]:
            case "commit":
                broker.commit(now)
            case "ask":  # the answer may be made later than the question, and come later still
                questions.append(Told(now - rng.randrange(3), broker.history, broker.latest))
            case "answer" if questions:
                take(questions.pop(rng.randrange(len(questions))))
            case "stream" if stream is not None:
                number, history, cursor = stream
                if history != broker.history or cursor < broker.pruned:
                    stream = None
                    take(Ended(number, is_aborted=True))
                elif cursor < broker.latest:
                    version, record = next(one for one in broker.log if one[0] > cursor)
                    stream = (number, history, version)
                    take(Changed(number, "t", record, version))
                else:
                    take(Vouched(number, history, cursor))
            case "break" if stream is not None:
                number, stream = stream[0], None
                take(Ended(number, is_aborted=False))
            case "abort":
                broker.pruned = broker.latest
            case "restart":
                broker.restart()
        stamps = max(stamps, table.fresh_at)
        if table.history == broker.history:
            for version, record in broker.log:
                if broker.committed_at[broker.history, version] <= table.fresh_at:
                    assert table.slot(record_key("t", record)) >= version, (seed, now)
                    assert table.slot(type_key("t")) >= version
    assert stamps > 0
