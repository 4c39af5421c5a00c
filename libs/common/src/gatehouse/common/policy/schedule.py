"""When a policy's time criteria hold: what `date`, `day_of_week` and `time_of_day` may say.

Ranges are half open: `after` is the first moment inside, `before` the first one outside. What a
clock on the wall in the zone shows is what counts; docs/policy.md has every edge.
"""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from gatehouse.common.policy.ast import Data, FrozenObject, type_name
from gatehouse.common.policy.errors import PolicyError

T = TypeVar("T")

EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MICROSECOND: Final = dt.timedelta(microseconds=1)
UTC: Final = zoneinfo.ZoneInfo("UTC")

_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,3}")
_NO_ZONES: Final = frozenset({"localtime", "posixrules", "Factory"})
_NO_ZONE_ROOTS: Final = frozenset({"posix", "right"})  # other spellings, some with leap seconds
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_MOMENT: Final = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?([Zz]|[+-]\d{2}:?\d{2})?"
)
_TIME_24: Final = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,9}))?)?")
_TIME_12: Final = re.compile(r"(\d{1,2})(?::(\d{2}))? ?([AaPp])[Mm]")
_DAY_NAMES: Final = (
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
)
_DAYS: Final = {name: number for number, full in enumerate(_DAY_NAMES) for name in (full, full[:3])}
_MINUTE_NS: Final = 60_000_000_000


@dataclass(frozen=True, slots=True)
class DateRange:
    """Moments in microseconds of Unix time; None: no bound on that side."""

    after_us: int | None
    before_us: int | None


@dataclass(frozen=True, slots=True)
class Weekdays:
    """Days of the week, Monday is 0, as a calendar in the zone shows them."""

    days: frozenset[int]
    zone: zoneinfo.ZoneInfo


@dataclass(frozen=True, slots=True)
class TimeOfDay:
    """Nanoseconds since midnight on a wall clock in the zone; None: no bound on that side.

    `after_ns` above `before_ns`: from the evening into the next morning.
    """

    after_ns: int | None
    before_ns: int | None
    zone: zoneinfo.ZoneInfo


def parse_date_range(data: Data) -> DateRange:
    """`{after, before, timezone}`: ISO 8601 dates or moments; without a zone they are in UTC."""
    fields = _fields(data, "date", {"after", "before", "timezone"})
    zone = _at("timezone", lambda: _zone(fields["timezone"])) if "timezone" in fields else UTC
    after = _at("after", lambda: _moment(fields["after"], zone)) if "after" in fields else None
    before = _at("before", lambda: _moment(fields["before"], zone)) if "before" in fields else None
    _check_bounds("date", after, before)
    if after is not None and before is not None and after >= before:
        raise PolicyError("date is never true: after must be earlier than before")
    return DateRange(after, before)


def parse_weekdays(data: Data) -> Weekdays:
    """`*`, or names and ranges of days joined by commas; or `{days, timezone}`. Else in UTC."""
    if isinstance(data, FrozenObject):
        fields = _fields(data, "day_of_week", {"days", "timezone"})
        if "days" not in fields:
            raise PolicyError("day_of_week needs days, such as mon-fri")
        zone = _at("timezone", lambda: _zone(fields["timezone"])) if "timezone" in fields else UTC
        return Weekdays(_at("days", lambda: _days(fields["days"])), zone)
    return Weekdays(_days(data), UTC)


def parse_time_of_day(data: Data) -> TimeOfDay:
    """`{timezone, after, before}`; the zone is required, and one bound at least."""
    fields = _fields(data, "time_of_day", {"after", "before", "timezone"})
    if "timezone" not in fields:
        raise PolicyError("time_of_day needs timezone, such as Europe/Berlin or UTC")
    zone = _at("timezone", lambda: _zone(fields["timezone"]))
    after = _at("after", lambda: _time(fields["after"])) if "after" in fields else None
    before = _at("before", lambda: _time(fields["before"])) if "before" in fields else None
    _check_bounds("time_of_day", after, before)
    if after == before:
        raise PolicyError(
            "time_of_day with after equal to before says nothing: leave both out for the whole day"
        )
    return TimeOfDay(after, before, zone)


def microseconds_of(moment: dt.datetime) -> int:
    """Unix time of an aware moment, exactly."""
    return (moment - EPOCH) // MICROSECOND


def _fields(data: Data, name: str, known: set[str]) -> FrozenObject:
    if not isinstance(data, FrozenObject):
        raise PolicyError(f"expected object for {name} criterion, got: {type_name(data)}")
    for key in data:
        if key not in known:
            raise PolicyError(
                f"unexpected field in {name} criterion: {key}, "
                f"expected one of {', '.join(sorted(known))}"
            )
    return data


def _at(key: str, parse: Callable[[], T]) -> T:
    try:
        return parse()
    except PolicyError as error:
        raise error.below(key) from None


def _check_bounds(name: str, after: int | None, before: int | None) -> None:
    if after is None and before is None:
        raise PolicyError(f"{name} needs after or before, or both")


def _zone(data: Data) -> zoneinfo.ZoneInfo:
    expected = 'expected a time zone such as "Europe/Berlin" or "UTC"'
    if not isinstance(data, str):
        raise PolicyError(f"{expected}, got: {type_name(data)}")
    if (
        _ZONE.fullmatch(data)
        and data not in _NO_ZONES
        and data.partition("/")[0] not in _NO_ZONE_ROOTS
    ):
        try:
            return zoneinfo.ZoneInfo(data)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            pass
    raise PolicyError(f'unknown time zone: "{data[:64]}", {expected}')


def _moment(data: Data, zone: zoneinfo.ZoneInfo) -> int:
    expected = 'expected an ISO 8601 date such as "2027-01-31" or "2027-01-31T18:00:00+01:00"'
    if not isinstance(data, str):
        raise PolicyError(f"{expected}, got: {type_name(data)}")
    if _DATE.fullmatch(data) or _MOMENT.fullmatch(data):
        try:
            moment = dt.datetime.fromisoformat(data.upper())
            # Of a time that a zone's clocks show twice, the first; one that they skip counts as
            # the moment that the clocks of before would call so.
            aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)
            return microseconds_of(aware)
        except (ValueError, OverflowError):
            pass
    raise PolicyError(f'not a date: "{data[:64]}", {expected}')


def _days(data: Data) -> frozenset[int]:
    expected = 'expected "*", or days such as "mon,wed,fri" or "mon-fri"'
    if not isinstance(data, str):
        raise PolicyError(f"{expected}, got: {type_name(data)}")
    if data.strip() == "*":
        return frozenset(range(7))
    found: set[int] = set()
    for part in data.lower().split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        start, end = _DAYS.get(first), _DAYS.get(last if dash else first)
        if start is None or end is None:
            raise PolicyError(f'not a day of the week: "{part.strip()[:64]}", {expected}')
        found.update((start + step) % 7 for step in range((end - start) % 7 + 1))
    return frozenset(found)


def _time(data: Data) -> int:
    expected = 'expected a time such as "15:04", "15:04:05" or "3:04 PM"'
    if not isinstance(data, str):
        raise PolicyError(f"{expected}, got: {type_name(data)}; put it in quotes")
    if match := _TIME_24.fullmatch(data.strip()):
        hour, minute, second = int(match[1]), int(match[2]), int(match[3] or 0)
        if hour < 24 and minute < 60 and second < 60:
            fraction = int((match[4] or "").ljust(9, "0"))
            return (hour * 60 + minute) * _MINUTE_NS + second * 1_000_000_000 + fraction
    elif match := _TIME_12.fullmatch(data.strip()):
        hour, minute = int(match[1]), int(match[2] or 0)
        if 1 <= hour <= 12 and minute < 60:
            hour = hour % 12 + (12 if match[3] in "Pp" else 0)
            return (hour * 60 + minute) * _MINUTE_NS
    raise PolicyError(f'not a time of day: "{data[:64]}", {expected}')
