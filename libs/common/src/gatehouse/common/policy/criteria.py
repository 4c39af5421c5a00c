"""The criteria that exist, and whether the data of one is right.

The names are known here; what they mean when a request comes is authorize's business. Criteria
that are part of the language but whose data this build cannot yet supply are refused at load,
after their data was checked, so that no policy silently means less than it says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from gatehouse.common.policy.ast import Criterion, Data, type_name
from gatehouse.common.policy.errors import PolicyError
from gatehouse.common.policy.matchers import (
    parse_certificate_matcher,
    parse_device_matcher,
    parse_list_matcher,
    parse_networks,
    parse_string_matcher,
)
from gatehouse.common.policy.records import parse_record_matcher
from gatehouse.common.policy.schedule import (
    parse_date_range,
    parse_time_of_day,
    parse_weekdays,
)

_Check = Callable[[Data], object]


def check_criterion(criterion: Criterion) -> None:
    """Raise PolicyError if the name is unknown, the data wrong, or the criterion not built yet."""
    check = _AVAILABLE.get(criterion.name)
    if check is not None:
        check(criterion.data)
        return
    check = _LATER.get(criterion.name)
    if check is None:
        raise PolicyError(
            f"unknown policy criterion: {criterion.name}, expected one of "
            f"{', '.join(sorted(_AVAILABLE))}"
        )
    check(criterion.data)
    raise PolicyError(f"policy criterion {criterion.name} is not available yet; remove it")


def _anything(data: Data) -> None:
    del data


def _domain(data: Data) -> None:
    parse_string_matcher(data, strings_only=True)


def _string(data: Data) -> None:
    if not isinstance(data, str):
        raise PolicyError(f"expected string value, got: {type_name(data)}")


def _string_or_strings(data: Data) -> None:
    items = data if isinstance(data, tuple) else (data,)
    if not all(isinstance(item, str) for item in items):
        raise PolicyError(f"expected string or array of strings, got: {type_name(data)}")


_AVAILABLE: Final[Mapping[str, _Check]] = {
    "accept": _anything,
    "reject": _anything,
    "authenticated_user": _anything,
    "user": parse_string_matcher,
    "email": parse_string_matcher,
    "domain": _domain,
    "groups": parse_list_matcher,
    "claim": parse_list_matcher,
    "http_method": parse_string_matcher,
    "http_path": parse_string_matcher,
    "cors_preflight": _anything,
    "source_ip": parse_networks,
    "client_certificate": parse_certificate_matcher,
    "invalid_client_certificate": _anything,
    "device": parse_device_matcher,
    "date": parse_date_range,
    "day_of_week": parse_weekdays,
    "time_of_day": parse_time_of_day,
    "record": parse_record_matcher,
}

_LATER: Final[Mapping[str, _Check]] = {
    "mcp_tool": parse_string_matcher,
    "ssh_username": parse_string_matcher,
    "ssh_username_matches_email": _anything,
    "ssh_username_matches_claim": _string,
    "ssh_publickey": _string_or_strings,
    "ssh_ca": _string_or_strings,
}

AVAILABLE_CRITERIA: Final = frozenset(_AVAILABLE)
LATER_CRITERIA: Final = frozenset(_LATER)
