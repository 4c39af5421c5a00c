"""The criteria that exist, and whether the data of one is right.

The names are known here; what they mean when a request comes is authorize's business.
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
from gatehouse.common.policy.ssh_keys import parse_ssh_keys

_Check = Callable[[Data], object]


def check_criterion(criterion: Criterion) -> None:
    """Raise PolicyError if the name is unknown or the data wrong."""
    check = _CHECKS.get(criterion.name)
    if check is None:
        raise PolicyError(
            f"unknown policy criterion: {criterion.name}, expected one of "
            f"{', '.join(sorted(_CHECKS))}"
        )
    check(criterion.data)


def _anything(data: Data) -> None:
    del data


def _domain(data: Data) -> None:
    parse_string_matcher(data, strings_only=True)


def _string(data: Data) -> None:
    if not isinstance(data, str):
        raise PolicyError(f"expected string value, got: {type_name(data)}")


_CHECKS: Final[Mapping[str, _Check]] = {
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
    "mcp_tool": parse_string_matcher,
    "ssh_username": parse_string_matcher,
    "ssh_username_matches_email": _anything,
    "ssh_username_matches_claim": _string,
    "ssh_publickey": parse_ssh_keys,
    "ssh_ca": parse_ssh_keys,
}

CRITERIA: Final = frozenset(_CHECKS)
