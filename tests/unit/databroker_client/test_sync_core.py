from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.databroker.sync_core import (
    BACKOFF_CAP_S,
    STEADY_S,
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
    Heartbeat,
    OpenChanges,
    OpenCopy,
    Phase,
    Position,
    Problem,
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
from gatehouse.common.errors import Code
from tests.support.model_broker import OTHER, TYPE, record

SERVER = 7
COPYING = SyncState(TYPE, Phase.COPYING, stream=3)
FOLLOWING = SyncState(TYPE, Phase.FOLLOWING, Position(SERVER, 10), stream=3)
WAITING = SyncState(TYPE, Phase.WAITING, Position(SERVER, 10), stream=3, failures=1)
IDLE = SyncState(TYPE)

FAILURES = [None, *(code for code in Code if code not in {Code.OK, Code.ABORTED})]


def play(state: SyncState, *events):
    """Feed the events; return the state and the effects of each."""
    seen = []
    for event in events:
        state, effects = step(state, event)
        seen.append(list(effects))
    return state, seen


def test_a_whole_conversation():
    first, second = record("a", 4), record("b", 5)
    change = record("a", 6, "new")
    state, seen = play(
        IDLE,
        Begin(),
        CopyRecord(1, first),
        CopyRecord(1, second),
        CopyVersions(1, SERVER, 5),
        ChangeRecord(2, change),
        Heartbeat(2, SERVER, 9),
        StreamEnded(2, Code.UNAVAILABLE),
        RetryDue(),
    )
    assert seen == [
        [OpenCopy(1)],
        [Stage((first,))],
        [Stage((second,))],
        [SwapIn(Position(SERVER, 5)), CloseStream(), OpenChanges(2, Position(SERVER, 5))],
        [Apply(change), Advance(Position(SERVER, 6), current=True)],
        [Advance(Position(SERVER, 9), current=True)],
        [Report(Problem.SYNC_ENDED, Code.UNAVAILABLE), Wait(1)],
        [OpenChanges(3, Position(SERVER, 9))],
    ]
    assert state == SyncState(
        TYPE, Phase.FOLLOWING, Position(SERVER, 9), stream=3, failures=1, heartbeats=True
    )


# Specification section 5, "Client sees / Must do", row by row.


def test_row_aborted_forgets_versions_and_copies_at_once_keeping_the_copy():
    state, effects = step(FOLLOWING, StreamEnded(3, Code.ABORTED))
    assert state.position is None
    assert list(effects) == [Report(Problem.HISTORY_CHANGED), OpenCopy(4)]
    state, effects = step(state, CopyVersions(4, 8, 2))  # and then replaces it, then follows
    assert list(effects) == [SwapIn(Position(8, 2)), CloseStream(), OpenChanges(5, Position(8, 2))]


@pytest.mark.parametrize("code", FAILURES)
def test_row_other_error_or_eof_keeps_the_copy_and_resumes_from_the_last_version(code):
    state, effects = step(FOLLOWING, StreamEnded(3, code))
    assert list(effects) == [Report(Problem.SYNC_ENDED, code), Wait(1)]
    assert step(state, RetryDue())[1] == (OpenChanges(4, Position(SERVER, 10)),)


@pytest.mark.parametrize("code", [*FAILURES[1:], Code.ABORTED])
def test_row_broken_copy_is_discarded(code):
    state, effects = step(COPYING, StreamEnded(3, code))
    assert list(effects) == [DropStaged(), Report(Problem.COPY_FAILED, code), Wait(1)]
    assert step(state, RetryDue())[1] == (OpenCopy(4),)


def test_row_copy_ending_without_versions_is_an_error_and_waits():
    state, effects = step(COPYING, StreamEnded(3, None))
    assert list(effects) == [DropStaged(), Report(Problem.COPY_INCOMPLETE), Wait(1)]
    assert state.phase is Phase.WAITING


# Section 2: server version 0 means unknown.


def test_a_copy_of_an_unknown_history_is_refused():
    state, effects = step(COPYING, CopyVersions(3, 0, 12))
    assert list(effects) == [
        CloseStream(),
        DropStaged(),
        Report(Problem.UNKNOWN_SERVER_VERSION),
        Wait(1),
    ]
    assert state.position is None


def test_a_heartbeat_of_an_unknown_history_says_nothing():
    assert step(FOLLOWING, Heartbeat(3, 0, 99)) == (FOLLOWING, ())


def test_an_empty_store_has_record_version_0_and_can_be_followed():
    state, _ = step(COPYING, CopyVersions(3, SERVER, 0))
    assert state.position == Position(SERVER, 0)
    assert state.phase is Phase.FOLLOWING


# Idempotence and order.


@pytest.mark.parametrize("version", [1, 9, 10])
def test_a_change_at_or_below_the_position_is_ignored(version):
    assert step(FOLLOWING, ChangeRecord(3, record("a", version))) == (FOLLOWING, ())


@pytest.mark.parametrize(
    "bad", [record("a", 11, type_url=OTHER), record("a", 0)], ids=["other type", "no version"]
)
@pytest.mark.parametrize(
    ("state", "kind"), [(COPYING, CopyRecord), (FOLLOWING, ChangeRecord)], ids=["copy", "changes"]
)
def test_a_misplaced_record_is_reported_and_ignored(state, kind, bad):
    assert step(state, kind(3, bad)) == (state, (Report(Problem.MISPLACED_RECORD),))


def test_a_heartbeat_never_takes_the_position_back():
    state, effects = step(FOLLOWING, Heartbeat(3, SERVER, 9))
    assert state.position == Position(SERVER, 10)
    assert effects == (Report(Problem.BEHIND),)


def test_a_heartbeat_of_another_history_starts_over():
    state, effects = step(FOLLOWING, Heartbeat(3, SERVER + 1, 99))
    assert state.position is None
    assert list(effects) == [CloseStream(), Report(Problem.HISTORY_CHANGED), OpenCopy(4)]


def test_records_vouch_for_freshness_only_while_the_broker_sends_no_heartbeats():
    _, effects = step(FOLLOWING, ChangeRecord(3, record("a", 11)))
    assert effects[-1] == Advance(Position(SERVER, 11), current=True)
    beating = replace(FOLLOWING, heartbeats=True)
    _, effects = step(beating, ChangeRecord(3, record("a", 11)))
    assert effects[-1] == Advance(Position(SERVER, 11), current=False)


# Late deliveries, silence, back-off.


@pytest.mark.parametrize("state", [COPYING, FOLLOWING, WAITING])
@pytest.mark.parametrize(
    "event",
    [
        CopyRecord(2, record()),
        CopyVersions(2, SERVER, 99),
        ChangeRecord(2, record(version=99)),
        Heartbeat(2, SERVER, 99),
        StreamEnded(2, Code.ABORTED),
        Silence(2),
    ],
)
def test_a_closed_stream_has_no_say(state, event):
    assert step(state, event) == (state, ())


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (IDLE, RetryDue()),
        (IDLE, Silence(0)),
        (IDLE, StreamEnded(0, None)),
        (COPYING, Begin()),
        (COPYING, RetryDue()),
        (COPYING, ChangeRecord(3, record(version=99))),
        (COPYING, Heartbeat(3, SERVER, 99)),
        (FOLLOWING, Begin()),
        (FOLLOWING, RetryDue()),
        (FOLLOWING, CopyRecord(3, record())),
        (FOLLOWING, CopyVersions(3, SERVER, 99)),
        (WAITING, Begin()),
        (WAITING, CopyRecord(3, record())),
        (WAITING, CopyVersions(3, SERVER, 99)),
        (WAITING, ChangeRecord(3, record(version=99))),
        (WAITING, Heartbeat(3, SERVER, 99)),
        (WAITING, StreamEnded(3, Code.ABORTED)),
        (WAITING, Silence(3)),
    ],
)
def test_what_makes_no_sense_in_a_state_changes_nothing(state, event):
    assert step(state, event) == (state, ())


def test_silence_gives_the_stream_up():
    state, effects = step(FOLLOWING, Silence(3))
    assert list(effects) == [CloseStream(), Report(Problem.SILENT), Wait(1)]
    assert state.position == Position(SERVER, 10)
    state, effects = step(COPYING, Silence(3))
    assert list(effects) == [CloseStream(), DropStaged(), Report(Problem.SILENT), Wait(1)]


def test_aborted_again_and_again_is_not_a_busy_loop():
    state, delays = FOLLOWING, []
    for _ in range(30):
        state, effects = step(state, StreamEnded(state.stream, Code.ABORTED))
        delays += [effect.failures for effect in effects if isinstance(effect, Wait)]
        if state.phase is Phase.WAITING:
            state, _ = step(state, RetryDue())
        state, _ = step(state, CopyVersions(state.stream, SERVER, 10))
        assert state.phase is Phase.FOLLOWING
    assert delays == list(range(1, 30))


@pytest.mark.parametrize(
    "sign", [Heartbeat(3, SERVER, 10), ChangeRecord(3, record(version=11))], ids=["beat", "change"]
)
def test_a_sign_of_life_ends_the_run_of_failures(sign):
    state, _ = step(replace(FOLLOWING, failures=9, restarted=True), sign)
    assert (state.failures, state.restarted) == (0, False)


def test_a_long_silent_stream_ends_the_run_of_failures():
    tired = replace(FOLLOWING, failures=9)
    assert step(tired, StreamEnded(3, None, STEADY_S))[0].failures == 1
    assert step(tired, StreamEnded(3, None, STEADY_S - 1))[0].failures == 10


def test_backoff_grows_by_half_from_half_a_second_to_a_minute():
    assert [backoff_s(n) for n in range(5)] == [0.0, 0.5, 0.75, 1.125, 1.6875]
    assert backoff_s(20) == backoff_s(10**9) == BACKOFF_CAP_S == 60.0


# Copies in batches, which can be gone on with.


def test_a_copy_that_breaks_off_is_gone_on_with():
    first, second, third = record("a", 4), record("b", 5), record("c", 12)
    state, seen = play(
        COPYING,
        CopyBatch(3, (first, second), Position(SERVER, 10, 77)),
        StreamEnded(3, Code.UNAVAILABLE),
        RetryDue(),
        CopyBatch(4, (third,), Position(SERVER, 12, 88)),
        CopyVersions(4, SERVER, 10, 77),
    )
    place = CopiedUpTo(Position(SERVER, 10, 77), "b")
    assert seen == [
        [Stage((first, second))],
        [Report(Problem.COPY_FAILED, Code.UNAVAILABLE), Wait(1)],
        [OpenCopy(4, place)],
        [Stage((third,))],
        [
            SwapIn(Position(SERVER, 10, 77)),
            CloseStream(),
            OpenChanges(5, Position(SERVER, 10, 77)),
        ],
    ]
    assert state.copied is None


def test_a_copy_is_followed_from_its_earliest_batch():
    batches = [
        CopyBatch(3, (record(id_, 1),), Position(SERVER, version))
        for id_, version in (("a", 8), ("b", 6), ("c", 9))
    ]
    _, seen = play(COPYING, *batches, CopyVersions(3, SERVER, 8))
    assert seen[-1][0] == SwapIn(Position(SERVER, 6))


def test_silence_keeps_what_was_copied():
    _, seen = play(COPYING, CopyBatch(3, (record(),), Position(SERVER, 9)), Silence(3), RetryDue())
    assert seen[1] == [CloseStream(), Report(Problem.SILENT), Wait(1)]
    assert seen[2] == [OpenCopy(4, CopiedUpTo(Position(SERVER, 9), "a"))]


def test_a_copy_that_is_too_old_to_go_on_with_begins_anew_once_at_once():
    batch = CopyBatch(3, (record(),), Position(SERVER, 9))
    state, seen = play(COPYING, batch, StreamEnded(3, Code.ABORTED))
    assert seen[1] == [DropStaged(), Report(Problem.HISTORY_CHANGED), OpenCopy(4)]
    state, seen = play(state, replace(batch, stream=4), StreamEnded(4, Code.ABORTED))
    assert seen[1] == [DropStaged(), Report(Problem.HISTORY_CHANGED), Wait(1)]
    assert play(state, RetryDue())[1] == [[OpenCopy(5)]]


@pytest.mark.parametrize(
    "event",
    [CopyBatch(3, (record("b"),), Position(8, 9)), CopyVersions(3, 8, 9)],
    ids=["batch", "versions"],
)
def test_histories_are_not_mixed_in_a_copy(event):
    _, seen = play(COPYING, CopyBatch(3, (record(),), Position(SERVER, 9)), event)
    assert seen[1] == [
        CloseStream(),
        DropStaged(),
        Report(Problem.HISTORY_CHANGED),
        OpenCopy(4),
    ]


def test_positions_carry_the_stamp_of_what_was_seen():
    made = record("a", 11)
    made.modified_at.FromMicroseconds(1_234_567)
    state, _ = play(FOLLOWING, ChangeRecord(3, made))
    assert state.position == Position(SERVER, 11, 1_234_567)
    state, _ = play(state, Heartbeat(3, SERVER, 15, 99))
    assert state.position == Position(SERVER, 15, 99)


# Properties over every conversation.

streams = st.integers(-1, 1)  # the stream's number, relative to the one that counts
versions = st.integers(0, 12)
records = st.builds(
    record,
    st.sampled_from("abc"),
    versions,
    type_url=st.sampled_from([TYPE, TYPE, TYPE, OTHER]),
    deleted=st.booleans(),
)
inputs = st.one_of(
    st.builds(Begin),
    st.builds(RetryDue),
    st.builds(CopyRecord, streams, records),
    st.builds(
        CopyBatch,
        streams,
        st.lists(records, max_size=3).map(tuple),
        st.builds(Position, st.integers(1, 2), versions),
    ),
    st.builds(CopyVersions, streams, st.integers(0, 2), versions),
    st.builds(ChangeRecord, streams, records),
    st.builds(Heartbeat, streams, st.integers(0, 2), versions),
    st.builds(
        StreamEnded,
        streams,
        st.sampled_from([None, Code.ABORTED, Code.UNAVAILABLE]),
        st.sampled_from([0.0, STEADY_S]),
    ),
    st.builds(Silence, streams),
)


@given(st.lists(inputs, max_size=60))
def test_effects_keep_their_promises(events):
    state = IDLE
    stream_open = staging = waiting = False
    in_use: Position | None = None
    earliest: Position | None = None  # of what is staged
    for relative in [Begin(), *events]:
        event = relative
        if hasattr(event, "stream"):
            event = replace(event, stream=state.stream + event.stream)
            if isinstance(event, StreamEnded) and event.stream == state.stream:
                stream_open = False  # the caller's stream is gone before it says so
        before = state
        state, effects = step(state, event)
        assert state.stream >= before.stream
        for effect in effects:
            match effect:
                case OpenCopy(stream, after):
                    assert not stream_open
                    # What was staged is gone on with, or there is none.
                    assert staging == (after is not None)
                    if after is None:
                        earliest = None
                    stream_open, staging, waiting = True, True, False
                    assert stream == state.stream
                case OpenChanges(stream, position):
                    assert not stream_open
                    assert position.server_version != 0
                    assert position == in_use
                    stream_open, waiting = True, False
                    assert stream == state.stream
                case CloseStream():
                    stream_open = False
                case Stage(staged):
                    assert staging
                    assert {made.type for made in staged} == {TYPE}
                    if isinstance(event, CopyBatch):
                        found = event.position
                        assert earliest is None or earliest.server_version == found.server_version
                        if earliest is None or found.record_version < earliest.record_version:
                            earliest = found
                case DropStaged():
                    assert staging
                    staging = False
                case SwapIn(position):
                    assert staging
                    if earliest is not None:
                        assert position.server_version == earliest.server_version
                        assert position.record_version <= earliest.record_version
                    staging, in_use = False, position
                case Apply():
                    assert in_use is not None
                    assert effect.record.version > in_use.record_version
                case Advance(position):
                    assert in_use is not None
                    assert position.server_version == in_use.server_version
                    assert position.record_version >= in_use.record_version
                    in_use = position
                case Wait(failures):
                    assert not stream_open
                    assert failures >= 1
                    waiting = True
        assert waiting == (state.phase is Phase.WAITING)
        assert stream_open == (state.phase in {Phase.COPYING, Phase.FOLLOWING}) or (
            isinstance(event, StreamEnded) and event.stream == state.stream
        )
        if state.phase is Phase.FOLLOWING:
            assert state.position == in_use
