"""Time criteria: every edge that docs/policy.md decides, and how long an answer holds."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gatehouse.authorize.core.criteria import compile_criterion
from gatehouse.authorize.core.evaluator import CompiledPolicy
from gatehouse.authorize.core.identity import ANONYMOUS
from gatehouse.common.policy.ast import Criterion, freeze
from tests.support.policy import policy_of, request_facts

BERLIN = "Europe/Berlin"  # clocks jump 02:00 -> 03:00 on 2027-03-28, 03:00 -> 02:00 on 2027-10-31


def at(text: str) -> float:
    return dt.datetime.fromisoformat(text).timestamp()


def holds(name: str, data: object, moment: str | float) -> bool:
    now_s = at(moment) if isinstance(moment, str) else moment
    compiled = compile_criterion(Criterion(name, "", freeze(data)))
    value, reason = compiled.test(request_facts(now_s=now_s), ANONYMOUS)
    ok = f"{name.replace('_', '-')}-ok"
    assert reason == (ok if value else ok.replace("-ok", "-unauthorized"))
    return value


@pytest.mark.parametrize(
    ("data", "inside", "outside"),
    [
        (
            {"after": "2027-01-01", "before": "2028-01-01"},
            ["2027-01-01T00:00:00Z", "2027-12-31T23:59:59.999999Z"],
            ["2026-12-31T23:59:59.999999Z", "2028-01-01T00:00:00Z"],
        ),
        ({"after": "2027-01-01"}, ["2027-01-01T00:00:00Z"], ["2026-12-31T23:59:59Z"]),
        ({"before": "2027-01-01"}, ["2026-12-31T23:59:59Z"], ["2027-01-01T00:00:00Z"]),
        (
            {"after": "2027-01-01", "timezone": BERLIN},
            ["2026-12-31T23:00:00Z"],
            ["2026-12-31T22:59:59Z"],
        ),
        (  # an offset in the text wins over the zone
            {"after": "2027-01-01T00:00:00-05:00", "timezone": BERLIN},
            ["2027-01-01T05:00:00Z"],
            ["2027-01-01T04:59:59Z"],
        ),
        ({"after": "2027-01-01 10:30"}, ["2027-01-01T10:30:00Z"], ["2027-01-01T10:29:59Z"]),
        ({"after": "2027-01-01t10:30:00z"}, ["2027-01-01T10:30:00Z"], ["2027-01-01T10:29:59Z"]),
        (  # shown twice: the first counts
            {"after": "2027-10-31T02:30:00", "timezone": BERLIN},
            ["2027-10-31T00:30:00Z"],
            ["2027-10-31T00:29:59Z"],
        ),
        (  # skipped: as the clocks of before would have it
            {"after": "2027-03-28T02:30:00", "timezone": BERLIN},
            ["2027-03-28T01:30:00Z"],
            ["2027-03-28T01:29:59Z"],
        ),
    ],
)
def test_dates_are_half_open_and_in_utc_unless_they_say_otherwise(data, inside, outside) -> None:
    assert [holds("date", data, moment) for moment in inside] == [True] * len(inside)
    assert [holds("date", data, moment) for moment in outside] == [False] * len(outside)


def days_of(data: object) -> str:
    """Which days of the week match, Monday first."""
    monday = at("2027-01-04T12:00:00Z")
    return "".join(
        name
        for number, name in enumerate("MTWtFSs")
        if holds("day_of_week", data, monday + number * 86_400)
    )


@pytest.mark.parametrize(
    ("data", "days"),
    [
        ("*", "MTWtFSs"),
        ("mon-fri", "MTWtF"),
        ("fri-mon", "MFSs"),  # over the end of the week
        ("sun-mon", "Ms"),
        ("mon-mon", "M"),
        ("mon,wed,fri", "MWF"),
        ("mon-wed,sat", "MTWS"),
        ("Monday - Wednesday, SAT", "MTWS"),
        ("thursday", "t"),
        ("mon-sun", "MTWtFSs"),
        ("tue-mon", "MTWtFSs"),
    ],
)
def test_days_of_the_week(data, days) -> None:
    assert days_of(data) == days


def test_a_day_begins_at_midnight_in_its_zone() -> None:
    friday = {"days": "fri", "timezone": "America/New_York"}
    assert not holds("day_of_week", friday, "2027-01-08T04:59:59Z")
    assert holds("day_of_week", friday, "2027-01-08T05:00:00Z")
    assert holds("day_of_week", friday, "2027-01-09T04:59:59.999999Z")
    assert not holds("day_of_week", friday, "2027-01-09T05:00:00Z")
    assert holds("day_of_week", "fri", "2027-01-08T00:00:00Z")  # without a zone: UTC


def day_time(after: str | None = None, before: str | None = None, zone: str = "UTC"):
    bounds = {"after": after, "before": before}
    return {"timezone": zone, **{name: value for name, value in bounds.items() if value}}


@pytest.mark.parametrize(
    ("data", "inside", "outside"),
    [
        (day_time("09:00", "17:00"), ["09:00:00", "16:59:59.999999"], ["08:59:59", "17:00:00"]),
        (
            day_time("22:00", "06:00"),
            ["22:00:00", "23:59:59", "00:00:00", "05:59:59"],
            ["06:00:00"],
        ),
        (day_time("22:00", "06:00"), [], ["21:59:59.999999", "12:00:00"]),
        (day_time(after="17:30"), ["17:30:00", "23:59:59.999999"], ["00:00:00", "17:29:59"]),
        (day_time(before="8:15"), ["00:00:00", "08:14:59"], ["08:15:00", "23:59:59"]),
        (day_time("12 AM", "12 PM"), ["00:00:00", "11:59:59"], ["12:00:00", "23:00:00"]),
        (day_time("3:04 pm", "3:05PM"), ["15:04:00", "15:04:59"], ["15:03:59", "15:05:00"]),
        (day_time("9AM", "10 am"), ["09:00:00"], ["10:00:00"]),
        (day_time("15:04:05"), ["15:04:05"], ["15:04:04.999999"]),
        (day_time("15:04:05.999999999"), ["15:04:06"], ["15:04:05.999999"]),
        (day_time("17:00", "12 AM"), ["17:00:00", "23:59:59"], ["00:00:00", "16:59:59"]),
    ],
)
def test_times_of_day_are_half_open_and_run_over_midnight(data, inside, outside) -> None:
    for readings, expected in ((inside, True), (outside, False)):
        for reading in readings:
            assert holds("time_of_day", data, f"2027-06-15T{reading}Z") is expected, reading


def test_times_of_day_follow_the_zones_clock_through_the_year() -> None:
    office = day_time("09:00", "17:00", BERLIN)
    assert holds("time_of_day", office, "2027-01-15T08:00:00Z")
    assert not holds("time_of_day", office, "2027-01-15T07:59:59Z")
    assert holds("time_of_day", office, "2027-07-15T07:00:00Z")
    assert not holds("time_of_day", office, "2027-07-15T15:00:00Z")


def test_a_skipped_bound_is_passed_when_the_clock_jumps() -> None:
    early = day_time("02:30", "04:00", BERLIN)
    assert not holds("time_of_day", early, "2027-03-28T00:59:59.999999Z")  # 01:59:59
    assert holds("time_of_day", early, "2027-03-28T01:00:00Z")  # 03:00
    inside_the_gap = day_time("02:10", "02:50", BERLIN)
    assert not any(
        holds("time_of_day", inside_the_gap, at("2027-03-28T00:00:00Z") + 60 * minute)
        for minute in range(240)
    )


@pytest.mark.parametrize(
    ("bounds", "now", "until"),
    [
        (("02:30", "04:00"), "2027-03-28T00:45:00Z", "2027-03-28T01:00:00Z"),  # the jump
        (("02:30", "02:45"), "2027-10-31T00:50:00Z", "2027-10-31T01:00:00Z"),
        (("09:00", "17:00"), "2027-06-15T07:00:00Z", "2027-06-15T15:00:00Z"),
        (("09:00", "17:00"), "2027-06-15T06:59:59Z", "2027-06-15T07:00:00Z"),
        (("22:00", "06:00"), "2027-06-15T20:00:00Z", "2027-06-15T22:00:00Z"),  # midnight
    ],
)
def test_the_next_instant_is_a_bound_midnight_or_a_jump(bounds, now, until) -> None:
    criterion = Criterion("time_of_day", "", freeze(day_time(bounds[0], bounds[1], zone=BERLIN)))
    compiled = compile_criterion(criterion)
    assert compiled.until_s is not None
    assert compiled.until_s(at(now)) == at(until)


def test_what_a_clock_shows_twice_holds_twice() -> None:
    data = day_time("02:30", "02:45", BERLIN)
    assert holds("time_of_day", data, "2027-10-31T00:30:00Z")
    assert not holds("time_of_day", data, "2027-10-31T01:00:00Z")  # 02:00 again
    assert holds("time_of_day", data, "2027-10-31T01:30:00Z")
    assert not holds("time_of_day", data, "2027-10-31T01:45:00Z")


ZONES = st.sampled_from(
    ["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Asia/Beirut"]
)
READINGS = st.integers(0, 1439).map(lambda minute: f"{minute // 60:02}:{minute % 60:02}")
CRITERIA = st.one_of(
    st.tuples(
        st.just("time_of_day"),
        st.builds(day_time, READINGS, READINGS, ZONES).filter(
            lambda data: data.get("after") != data.get("before")
        ),
    ),
    st.tuples(
        st.just("time_of_day"), st.builds(lambda a, z: day_time(after=a, zone=z), READINGS, ZONES)
    ),
    st.tuples(
        st.just("day_of_week"),
        st.builds(
            lambda days, zone: {"days": days, "timezone": zone},
            st.sampled_from(["mon-fri", "sun", "fri-mon", "*"]),
            ZONES,
        ),
    ),
    st.tuples(
        st.just("date"),
        st.builds(
            lambda zone: {"after": "2027-03-28", "before": "2027-10-31", "timezone": zone}, ZONES
        ),
    ),
)
# Around the jumps of 2027 in these zones, and anywhere.
MOMENTS = st.one_of(
    st.sampled_from(
        ["2027-03-13", "2027-03-27", "2027-04-03", "2027-10-02", "2027-10-30", "2027-11-06"]
    ).flatmap(
        lambda day: st.integers(0, 3 * 86_400).map(lambda second: at(f"{day}T00:00:00Z") + second)
    ),
    st.floats(0, 4e9),
)


@given(CRITERIA, MOMENTS)
@example(("time_of_day", day_time("02:30", "02:45", BERLIN)), at("2027-10-31T00:31:00Z"))
@example(("day_of_week", {"days": "sun", "timezone": "Asia/Beirut"}), at("2027-03-27T21:30:00Z"))
@example(("time_of_day", day_time("02:30", "04:00", BERLIN)), at("2027-03-28T00:45:00Z"))
def test_an_answer_holds_until_the_instant_that_comes_with_it(criterion, now_s) -> None:
    name, data = criterion
    compiled = compile_criterion(Criterion(name, "", freeze(data)))
    fresh = compile_criterion(Criterion(name, "", freeze(data)))
    value = compiled.test(request_facts(now_s=now_s), ANONYMOUS)
    assert compiled.until_s is not None
    until_s = compiled.until_s(now_s)
    assert until_s > now_s
    if until_s == float("inf"):
        until_s = now_s + 1e9
    for step in range(1, 100):  # compiled anew: nothing is remembered
        moment = now_s + (until_s - now_s) * step / 100
        again = compile_criterion(Criterion(name, "", freeze(data)))
        assert again.test(request_facts(now_s=moment), ANONYMOUS) == value, moment
    # And it is not forgotten that the clock may be set back.
    fresh.test(request_facts(now_s=until_s + 5), ANONYMOUS)
    assert fresh.test(request_facts(now_s=now_s), ANONYMOUS) == value


@given(ZONES, MOMENTS, READINGS, READINGS)
def test_the_wall_clock_decides(zone, now_s, after, before) -> None:
    """The plain definition: read the clock, compare texts."""
    if after == before:
        return
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=now_s)
    reading = moment.astimezone(ZoneInfo(zone)).strftime("%H:%M")
    expected = after <= reading < before if after < before else reading >= after or reading < before
    assert holds("time_of_day", day_time(after, before, zone), now_s) is expected


def test_an_evaluation_says_when_time_may_change_it() -> None:
    compiled = CompiledPolicy(
        policy_of(
            """
            allow:
              and:
                - time_of_day: {timezone: UTC, after: "09:00", before: "17:00"}
                - date: {before: "2027-06-15T16:00:00Z"}
            deny: {or: [{day_of_week: sun}]}
            """
        )
    )
    facts = request_facts(now_s=at("2027-06-15T12:00:00Z"))
    evaluation = compiled.evaluate(facts, ANONYMOUS)
    assert evaluation.allow.value
    assert evaluation.valid_until_s == at("2027-06-15T16:00:00Z")
    timeless = CompiledPolicy(policy_of("allow: {or: [{accept: true}]}"))
    assert timeless.evaluate(facts, ANONYMOUS).valid_until_s == float("inf")
