"""The criteria that exist, and whether the data of one is right.

The names are known here; what they mean when a request comes is authorize's business. Criteria
that are part of the language but whose data this build cannot yet supply are refused at load,
after their data was checked, so that no policy silently means less than it says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from gatehouse.common.policy.ast import Criterion, Data, FrozenObject, type_name
from gatehouse.common.policy.errors import PolicyError
from gatehouse.common.policy.matchers import (
    parse_certificate_matcher,
    parse_list_matcher,
    parse_networks,
    parse_string_matcher,
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


def _device(data: Data) -> None:
    if not isinstance(data, FrozenObject):
        raise PolicyError(f"expected object for device criterion, got: {type_name(data)}")
    for key, operand in data.items():
        if key not in {"approved", "is", "type"}:
            raise PolicyError(
                f"unexpected field in device criterion: {key}, expected approved, is or type"
            )
        if key != "approved" and not isinstance(operand, str):
            raise PolicyError(
                f"expected string for device criterion {key} operator, got: {type_name(operand)}",
                (key,),
            )


def _string(data: Data) -> None:
    if not isinstance(data, str):
        raise PolicyError(f"expected string value, got: {type_name(data)}")


def _string_or_strings(data: Data) -> None:
    items = data if isinstance(data, tuple) else (data,)
    if not all(isinstance(item, str) for item in items):
        raise PolicyError(f"expected string or array of strings, got: {type_name(data)}")


def _object(required: frozenset[str], allowed: frozenset[str] | None) -> _Check:
    def check(data: Data) -> None:
        if not isinstance(data, FrozenObject):
            raise PolicyError(f"expected object, got: {type_name(data)}")
        missing = sorted(required - data.keys())
        if missing:
            raise PolicyError(f"missing field: {', '.join(missing)}")
        unknown = sorted(data.keys() - allowed) if allowed is not None else []
        if unknown:
            raise PolicyError(f"unexpected field: {', '.join(unknown)}")

    return check


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
}

_LATER: Final[Mapping[str, _Check]] = {
    "device": _device,
    "mcp_tool": parse_string_matcher,
    "ssh_username": parse_string_matcher,
    "ssh_username_matches_email": _anything,
    "ssh_username_matches_claim": _string,
    "ssh_publickey": _string_or_strings,
    "ssh_ca": _string_or_strings,
    "date": _object(frozenset(), frozenset({"after", "before"})),
    "day_of_week": _string,
    "time_of_day": _object(frozenset({"timezone"}), frozenset({"timezone", "after", "before"})),
    "record": _object(frozenset({"type", "field"}), None),
}

AVAILABLE_CRITERIA: Final = frozenset(_AVAILABLE)
LATER_CRITERIA: Final = frozenset(_LATER)
