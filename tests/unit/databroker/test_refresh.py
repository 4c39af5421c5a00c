"""The schedule of refreshes: when, how often, in which order, and what each ending leads to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.databroker.core.partitions import PARTITIONS, partition_of
from gatehouse.databroker.core.refresh import (
    Attempt,
    Effect,
    Event,
    Finished,
    Gone,
    Kind,
    Load,
    Moment,
    Owned,
    Providers,
    Result,
    Rules,
    Schedule,
    Seen,
    SessionFacts,
    Sweep,
    Tick,
)

NOW_S = 1_800_000_000.0
RULES = Rules(quiet_s=0.0, quiet_spread_s=0.0, doubt_s=0.0, steady_s=0.0)
ALL = dict.fromkeys(range(PARTITIONS), float("inf"))


def facts(id_: str = "s", **changes: Any) -> SessionFacts:
    made = SessionFacts(
        id=id_,
        user_id=f"user-of-{id_}",
        idp_id="idp",
        version=1,
        expires_at_s=NOW_S + 50_000,
        renew_by_s=NOW_S + 3_600,
        is_checkable=False,
    )
    return replace(made, **changes)


class Bench:
    """A schedule with its own time."""

    def __init__(self, rules: Rules = RULES, owned: dict[int, float] | None = None) -> None:
        self.now = Moment(NOW_S, 100.0)
        self.schedule = Schedule(rules, self.now)
        self.tell(Providers(frozenset({"idp", "other"})))
        self.tell(Owned(ALL if owned is None else owned))

    def tell(self, event: Event) -> list[Effect]:
        return list(self.schedule.step(event, self.now))

    def skip(self, seconds: float, *, unix_s: float | None = None) -> None:
        unix_s = self.now.unix_s + (seconds if unix_s is None else unix_s)
        self.now = Moment(unix_s, self.now.monotonic_s + seconds)

    def wait(self, most_s: float = 1e6) -> tuple[float, list[Effect]]:
        """Sleep as told until something is to be done; return how long that took."""
        begin_s = self.now.monotonic_s
        while self.now.monotonic_s - begin_s < most_s:
            self.skip(max(1e-6, self.schedule.wake_s(self.now) - self.now.monotonic_s))
            effects = self.tell(Tick())
            if effects:
                return self.now.monotonic_s - begin_s, effects
        return most_s, []

    def attempt(self, most_s: float = 1e6) -> tuple[float, Attempt]:
        waited_s, (effect,) = self.wait(most_s)
        assert isinstance(effect, Attempt)
        return waited_s, effect


def test_a_token_is_renewed_before_it_expires() -> None:
    bench = Bench()
    assert bench.tell(Seen(facts())) == []
    waited_s, attempt = bench.attempt()
    assert attempt == Attempt("s", "idp", Kind.REFRESH)
    assert 3_600 - 120 <= waited_s <= 3_600 - 60


def test_refreshes_of_tokens_that_expire_together_are_spread() -> None:
    bench = Bench(replace(RULES, rate=1e6, burst=1e6, in_flight=10_000))
    for number in range(1_000):
        bench.tell(Seen(facts(f"s{number}")))
    times: list[float] = []
    while len(times) < 1_000:
        _, effects = bench.wait()
        times += [bench.now.unix_s] * len(effects)
    begin_s = NOW_S + 3_600 - 120
    counts = [sum(1 for at_s in times if at_s // 10 == begin_s // 10 + n) for n in range(6)]
    assert min(counts) > 100


def test_a_short_lived_token_is_not_renewed_all_the_time() -> None:
    bench = Bench()
    bench.tell(Seen(facts(renew_by_s=NOW_S + 5)))
    for version in range(2, 7):
        waited_s, _ = bench.attempt()
        assert waited_s == pytest.approx(10, abs=0.1)
        renewed = facts(renew_by_s=bench.now.unix_s + 5, version=version)
        bench.tell(Finished("s", Result.DONE, renewed))


def test_after_a_take_over_overdue_sessions_are_quiet_first_and_then_spread() -> None:
    bench = Bench(replace(RULES, quiet_s=30.0, quiet_spread_s=60.0, rate=1e6, burst=1e6))
    for number in range(20):
        bench.tell(Seen(facts(f"s{number}", renew_by_s=NOW_S - 10), loaded=True))
    first_s, effects = bench.wait()
    assert first_s >= 30
    total = len(effects)
    while total < 20:
        _, effects = bench.wait(200)
        total += len(effects)
    assert 60 < bench.now.monotonic_s - 100 <= 90.1


def test_the_rate_and_the_number_at_once_are_limited() -> None:
    bench = Bench(replace(RULES, rate=2.0, burst=4.0, in_flight=3))
    begun: list[str] = []
    for number in range(10):
        effects = bench.tell(Seen(facts(f"s{number}", renew_by_s=NOW_S), loaded=True))
        begun += [effect.id for effect in effects if isinstance(effect, Attempt)]
    assert len(begun) == 2  # 4 requests: two each
    bench.skip(10)
    begun += [effect.id for effect in bench.tell(Tick()) if isinstance(effect, Attempt)]
    assert len(begun) == 3
    assert bench.wait(60)[1] == []  # all places are taken
    (effect,) = bench.tell(Finished(begun[0], Result.DONE, facts(begun[0], version=2)))
    assert isinstance(effect, Attempt)


def test_providers_do_not_wait_for_each_other() -> None:
    bench = Bench(replace(RULES, rate=1.0, burst=2.0, in_flight=1))
    bench.tell(Seen(facts("a", renew_by_s=NOW_S), loaded=True))
    assert bench.tell(Seen(facts("b", renew_by_s=NOW_S), loaded=True)) == []
    (effect,) = bench.tell(Seen(facts("c", idp_id="other", renew_by_s=NOW_S), loaded=True))
    assert effect == Attempt("c", "other", Kind.REFRESH)


def test_refreshes_go_before_checks() -> None:
    bench = Bench(replace(RULES, in_flight=1))
    (first,) = bench.tell(Seen(facts("a", renew_by_s=NOW_S), loaded=True))
    bench.tell(Seen(facts("b", renew_by_s=NOW_S + 700, is_checkable=True), loaded=True))
    bench.skip(605)  # now the check of b is due
    bench.tell(Tick())
    bench.tell(Seen(facts("c", renew_by_s=NOW_S), loaded=True))
    assert isinstance(first, Attempt)
    (second,) = bench.tell(Finished("a", Result.DONE, facts("a", version=2)))
    assert second == Attempt("c", "idp", Kind.REFRESH)
    (third,) = bench.tell(Finished("c", Result.DONE, facts("c", version=2)))
    assert isinstance(third, Attempt)
    assert third.id == "b"


def test_userinfo_is_asked_in_its_interval_from_a_point_that_is_spread() -> None:
    bench = Bench(replace(RULES, rate=1e6, burst=1e6, in_flight=10_000))
    for number in range(300):
        bench.tell(Seen(facts(f"s{number}", renew_by_s=None, is_checkable=True), loaded=True))
    times: list[float] = []
    while len(times) < 300:
        _, effects = bench.wait()
        times += [bench.now.monotonic_s - 100] * len(effects)
    assert max(times) <= 600.1
    assert all(sum(1 for at_s in times if n * 100 <= at_s < (n + 1) * 100) > 20 for n in range(6))


def test_a_refresh_resets_the_timer_of_userinfo() -> None:
    bench = Bench()
    bench.tell(Seen(facts(renew_by_s=NOW_S + 500, is_checkable=True)))
    _, attempt = bench.attempt()
    assert attempt.kind is Kind.REFRESH
    later = facts(renew_by_s=NOW_S + 5_000, is_checkable=True, version=2)
    bench.tell(Finished("s", Result.DONE, later))
    waited_s, attempt = bench.attempt()
    assert waited_s == pytest.approx(600, abs=0.1)
    assert attempt.kind is Kind.CHECK


def test_failures_back_off_and_success_starts_anew() -> None:
    bench = Bench()
    bench.tell(Seen(facts(renew_by_s=NOW_S)))
    bench.attempt()
    waits = []
    for _ in range(10):
        bench.tell(Finished("s", Result.FAILED, facts(renew_by_s=NOW_S)))
        waits.append(bench.attempt()[0])
    assert 29 <= waits[0] <= 40
    assert waits[1] > waits[0] * 1.15
    assert max(waits) <= 900.1
    assert waits[-1] > 650
    bench.tell(Finished("s", Result.DONE, facts(renew_by_s=bench.now.unix_s, version=2)))
    bench.attempt()
    bench.tell(Finished("s", Result.FAILED, facts(renew_by_s=NOW_S, version=2)))
    assert bench.attempt()[0] <= 40


def test_retry_after_is_kept_by_the_session_and_by_its_provider() -> None:
    bench = Bench()
    bench.tell(Seen(facts("a", renew_by_s=NOW_S), loaded=True))
    bench.tell(Finished("a", Result.FAILED, facts("a", renew_by_s=NOW_S), retry_after_s=300.0))
    assert bench.tell(Seen(facts("b", renew_by_s=NOW_S), loaded=True)) == []
    (other,) = bench.tell(Seen(facts("c", idp_id="other", renew_by_s=NOW_S), loaded=True))
    assert isinstance(other, Attempt)
    waited_s, attempt = bench.attempt()
    assert waited_s == pytest.approx(300, abs=0.1)
    assert attempt.id == "b"
    bench.tell(Finished("b", Result.DONE, facts("b", version=2)))
    waited_s, attempt = bench.attempt()
    assert attempt.id == "a"
    assert waited_s <= 30.1


def test_a_refusal_soon_after_a_take_over_is_believed_the_second_time() -> None:
    bench = Bench(replace(RULES, quiet_s=30.0, doubt_s=120.0))
    bench.tell(Seen(facts(renew_by_s=NOW_S), loaded=True))
    _, attempt = bench.attempt()
    assert attempt.doubt
    bench.tell(Finished("s", Result.DOUBTED, facts(renew_by_s=NOW_S)))
    waited_s, attempt = bench.attempt()
    assert waited_s == pytest.approx(60, abs=0.1)
    assert not attempt.doubt


def test_long_after_a_take_over_a_refusal_is_believed_at_once() -> None:
    bench = Bench(replace(RULES, quiet_s=30.0, doubt_s=120.0))
    bench.tell(Seen(facts()))
    assert not bench.attempt()[1].doubt


def test_an_answer_without_sense_brings_one_early_refresh() -> None:
    bench = Bench()
    known = facts(is_checkable=True, renew_by_s=NOW_S + 40_000)
    bench.tell(Seen(known))
    assert bench.attempt()[1].kind is Kind.CHECK
    bench.tell(Finished("s", Result.UNCLEAR, known))
    waited_s, attempt = bench.attempt()
    assert attempt == Attempt("s", "idp", Kind.REFRESH, early=True)
    assert waited_s < 40
    bench.tell(Finished("s", Result.FAILED, known))
    assert bench.attempt()[1].kind is Kind.CHECK
    bench.tell(Finished("s", Result.UNCLEAR, known))
    assert bench.attempt()[1].kind is Kind.CHECK


@pytest.mark.parametrize(
    "changes",
    [
        {"renew_by_s": None},  # nothing to refresh with, refresh_disabled, no token
        {"idp_id": "not-ours"},  # no provider for it: described behaviour would delete it
        {"idp_id": "not-ours", "is_checkable": True},
    ],
)
def test_expired_sessions_of_every_kind_are_swept_and_nothing_else_happens(
    changes: dict[str, Any],
) -> None:
    bench = Bench()
    bench.tell(Seen(facts(**changes)))
    waited_s, effects = bench.wait()
    assert effects == [Sweep(("s",))]
    assert waited_s == pytest.approx(50_000 + 300, abs=0.1)
    bench.tell(Finished("s", Result.VANISHED))
    assert bench.schedule.count == 0


def test_a_session_without_an_end_is_never_swept() -> None:
    bench = Bench()
    bench.tell(Seen(facts(expires_at_s=None, renew_by_s=None)))
    assert bench.wait(1e5)[1] == []


def test_an_expired_session_is_not_refreshed() -> None:
    bench = Bench()
    bench.tell(Seen(facts(expires_at_s=NOW_S - 10, renew_by_s=NOW_S, is_checkable=True)))
    _, effects = bench.wait()
    assert effects == [Sweep(("s",))]


def test_a_sweep_that_failed_is_tried_again() -> None:
    bench = Bench()
    (effect,) = bench.tell(Seen(facts(expires_at_s=NOW_S - 1_000), loaded=True))
    assert effect == Sweep(("s",))
    bench.tell(Finished("s", Result.FAILED))
    waited_s, effects = bench.wait()
    assert effects == [Sweep(("s",))]
    assert waited_s > 20


def test_sweeps_come_in_batches() -> None:
    bench = Bench(replace(RULES, steady_s=10.0))
    for number in range(250):
        bench.tell(Seen(facts(f"s{number}", expires_at_s=NOW_S - 1_000), loaded=True))
    bench.skip(10)
    effects = bench.tell(Tick())
    assert [len(effect.ids) for effect in effects if isinstance(effect, Sweep)] == [100, 100, 50]


def test_nothing_is_swept_while_the_clock_is_jumping() -> None:
    bench = Bench(replace(RULES, steady_s=300.0))
    bench.tell(Seen(facts(renew_by_s=None)))
    bench.skip(1, unix_s=86_400 * 7)  # set forward by a week, by mistake
    assert bench.tell(Tick()) == []
    waited_s, effects = bench.wait(250)
    assert effects == []
    bench.skip(1, unix_s=-86_400 * 7)
    assert bench.tell(Tick()) == []
    waited_s, effects = bench.wait()
    assert effects == [Sweep(("s",))]
    assert waited_s > 45_000
    assert bench.now.unix_s > NOW_S + 50_000 - 86_400 * 7


def test_a_clock_that_is_set_back_delays_no_back_off() -> None:
    bench = Bench()
    bench.tell(Seen(facts(renew_by_s=NOW_S - 1e6)))
    bench.attempt()
    bench.tell(Finished("s", Result.FAILED, facts(renew_by_s=NOW_S - 1e6)))
    bench.skip(1, unix_s=-3_600)
    assert bench.attempt()[0] < 40


def test_only_owned_partitions_are_scheduled() -> None:
    mine = partition_of("user-of-s")
    bench = Bench(owned={mine: float("inf")})
    other = next(n for n in range(1_000) if partition_of(f"user-of-s{n}") != mine)
    bench.tell(Seen(facts()))
    bench.tell(Seen(facts(f"s{other}")))
    assert bench.schedule.count == 1
    bench.tell(Owned({}))
    assert bench.schedule.count == 0
    assert bench.tell(Owned({mine: float("inf")})) == [Load(frozenset({mine}))]


def test_no_call_begins_under_a_lease_that_is_about_to_end() -> None:
    mine = partition_of("user-of-s")
    bench = Bench(owned={mine: 105.0})
    assert bench.tell(Seen(facts(renew_by_s=NOW_S), loaded=True)) == []
    bench.tell(Owned({mine: 1e9}))
    _, attempt = bench.attempt(30)
    assert attempt.id == "s"


def test_a_session_is_not_asked_about_twice_at_once_after_a_lost_lease_came_back() -> None:
    mine = partition_of("user-of-s")
    bench = Bench()
    (first,) = bench.tell(Seen(facts(renew_by_s=NOW_S), loaded=True))
    assert isinstance(first, Attempt)
    bench.tell(Owned({}))
    assert bench.schedule.busy_partitions == {mine}
    bench.tell(Owned(ALL))
    bench.tell(Seen(facts(renew_by_s=NOW_S), loaded=True))
    assert bench.wait(60)[1] == []
    bench.tell(Finished("s", Result.DONE, facts(version=2)))
    assert bench.attempt()[0] > 3_000


def test_changes_are_followed_and_old_versions_are_not() -> None:
    bench = Bench()
    bench.tell(Seen(facts(version=5)))
    bench.tell(Seen(facts(version=7, renew_by_s=NOW_S + 40_000)))
    bench.tell(Seen(facts(version=6, renew_by_s=NOW_S), loaded=True))
    assert bench.attempt()[0] > 39_000
    bench.tell(Finished("s", Result.DONE, facts(version=7, renew_by_s=NOW_S + 49_000)))
    bench.tell(Gone("s"))
    assert bench.schedule.count == 0


def test_a_provider_that_is_configured_later_gets_its_sessions_refreshed() -> None:
    bench = Bench()
    bench.tell(Seen(facts(idp_id="new", renew_by_s=NOW_S), loaded=True))
    effects = bench.tell(Providers(frozenset({"new"})))
    assert effects == [Attempt("s", "new", Kind.REFRESH)]
    bench.tell(Providers(frozenset()))
    bench.tell(Finished("s", Result.NOT_DUE, facts(idp_id="new", renew_by_s=NOW_S)))
    assert bench.wait(1_000)[1] == []


EVENTS = st.one_of(
    st.builds(
        lambda n, v, due, end: Seen(
            facts(f"s{n}", version=v, renew_by_s=NOW_S + due, expires_at_s=NOW_S + end)
        ),
        st.integers(0, 5),
        st.integers(1, 9),
        st.integers(-100, 1_000),
        st.integers(-1_000, 2_000),
    ),
    st.builds(lambda n: Gone(f"s{n}"), st.integers(0, 5)),
    st.builds(
        lambda numbers: Owned(dict.fromkeys(numbers, 1e9)),
        st.sets(st.integers(0, PARTITIONS - 1), max_size=PARTITIONS),
    ),
    st.just(Owned(ALL)),
    st.builds(Providers, st.sampled_from([frozenset(), frozenset({"idp"})])),
    st.builds(lambda s: ("skip", s), st.floats(0, 400)),
    st.builds(lambda r: ("finish", r), st.sampled_from(list(Result))),
)


@given(st.lists(EVENTS, max_size=60))
def test_whatever_happens_at_most_one_attempt_per_session_and_never_too_many(
    events: list[Event | tuple[str, object]],
) -> None:
    bench = Bench(replace(RULES, in_flight=2))
    busy: list[str] = []
    for event in events:
        if isinstance(event, tuple):
            what, value = event
            if what == "skip":
                assert isinstance(value, float)
                bench.skip(value)
                effects = bench.tell(Tick())
            elif busy:
                assert isinstance(value, Result)
                effects = bench.tell(Finished(busy.pop(0), value))
            else:
                continue
        else:
            effects = bench.tell(event)
        busy += [effect.id for effect in effects if isinstance(effect, Attempt)]
        assert len(set(busy)) == len(busy) <= 2
        assert bench.schedule.wake_s(bench.now) > bench.now.monotonic_s - 1e-9
