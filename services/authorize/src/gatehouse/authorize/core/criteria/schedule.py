"""Criteria about the moment of the request. Each also knows until when its answer stays the same.

`docs/policy.md` has the edges: half-open ranges, ranges over midnight, clocks that jump.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from zoneinfo import ZoneInfo

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.criteria.facts import Compiled, plain
from gatehouse.authorize.core.identity import Identity
from gatehouse.common.policy.ast import Criterion
from gatehouse.common.policy.schedule import (
    EPOCH,
    microseconds_of,
    parse_date_range,
    parse_time_of_day,
    parse_weekdays,
)

_HOUR_US: Final = 3_600_000_000
_SECOND_NS: Final = 1_000_000_000
_DAY: Final = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Span:
    """An answer and the moments, in microseconds of Unix time, between which it holds."""

    value: bool
    from_us: int
    until_us: float  # exclusive; infinity: for ever


class Schedule:
    """Answers for moments, remembering the span that the last one fell in."""

    __slots__ = ("_known", "_span_at")

    def __init__(self, span_at: Callable[[int], Span]) -> None:
        self._span_at = span_at
        self._known = Span(value=False, from_us=1, until_us=0)

    def span(self, now_s: float) -> Span:
        """The span that holds at this moment of Unix time."""
        now_us = math.floor(now_s * 1_000_000)
        known = self._known
        if not known.from_us <= now_us < known.until_us:
            self._known = known = self._span_at(now_us)
        return known

    def value(self, facts: RequestFacts, identity: Identity) -> bool:
        """Whether it holds when the request comes."""
        del identity
        return self.span(facts.now_s).value

    def until_s(self, now_s: float) -> float:
        """Until when the answer of this moment certainly stays the same."""
        return self.span(now_s).until_us / 1_000_000


def date(criterion: Criterion) -> Compiled:
    """Between two moments."""
    wanted = parse_date_range(criterion.data)

    def span_at(now_us: int) -> Span:
        bounds = [bound for bound in (wanted.after_us, wanted.before_us) if bound is not None]
        value = (wanted.after_us is None or now_us >= wanted.after_us) and (
            wanted.before_us is None or now_us < wanted.before_us
        )
        later = (bound for bound in bounds if bound > now_us)
        return Span(value, now_us, min(later, default=math.inf))

    return _compiled("date", span_at)


def day_of_week(criterion: Criterion) -> Compiled:
    """On some days, as a calendar in the zone shows them."""
    wanted = parse_weekdays(criterion.data)

    def span_at(now_us: int) -> Span:
        local = _local(now_us, wanted.zone)
        return Span(
            local.weekday() in wanted.days, now_us, _next_reading(now_us, wanted.zone, (0,))
        )

    return _compiled("day-of-week", span_at)


def time_of_day(criterion: Criterion) -> Compiled:
    """Between two readings of a wall clock in the zone, over midnight when they are so."""
    wanted = parse_time_of_day(criterion.data)
    after = wanted.after_ns or 0
    before = wanted.before_ns
    readings = tuple({0, after} if before is None else {0, after, before})

    def span_at(now_us: int) -> Span:
        local = _local(now_us, wanted.zone)
        reading = (
            local.hour * 3600 + local.minute * 60 + local.second
        ) * _SECOND_NS + local.microsecond * 1000
        if before is None:
            value = reading >= after
        elif after < before:
            value = after <= reading < before
        else:
            value = reading >= after or reading < before
        return Span(value, now_us, _next_reading(now_us, wanted.zone, readings))

    return _compiled("time-of-day", span_at)


def _compiled(name: str, span_at: Callable[[int], Span]) -> Compiled:
    schedule = Schedule(span_at)
    return plain(name, schedule.value, until_s=schedule.until_s)


def _local(now_us: int, zone: ZoneInfo) -> dt.datetime:
    return (EPOCH + dt.timedelta(microseconds=now_us)).astimezone(zone)


def _next_reading(now_us: int, zone: ZoneInfo, readings_ns: tuple[int, ...]) -> int:
    """The first moment after now when the clock may show one of the readings, or jumps."""
    today = _local(now_us, zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    moments: list[int] = []
    for day in (today, today + _DAY, today + 2 * _DAY):
        for reading_ns in readings_ns:
            # Finer than a microsecond: the first one that is past the bound.
            wall = day + dt.timedelta(microseconds=-(-reading_ns // 1000))
            for fold in (0, 1):
                moment = microseconds_of(wall.replace(tzinfo=zone, fold=fold))
                if moment > now_us:
                    moments.append(moment)
    return _before_jump(now_us, min(moments), zone)


def _before_jump(now_us: int, until_us: int, zone: ZoneInfo) -> int:
    """`until_us`, or the moment before it at which the zone's clocks jump."""
    start, offset = now_us, _local(now_us, zone).utcoffset()
    while start < until_us:
        end = min(start + _HOUR_US, until_us)
        if _local(end, zone).utcoffset() != offset:
            while end - start > 1:
                middle = (start + end) // 2
                if _local(middle, zone).utcoffset() == offset:
                    start = middle
                else:
                    end = middle
            return end
        start = end
    return until_us
