from __future__ import annotations

from typing import Any

import pytest

from gatehouse.common.errors import InvalidTokenError
from gatehouse.common.jose.times import check_times, numeric_date

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": NOW + 1},
        {"exp": int(NOW) + 1, "iat": NOW, "nbf": NOW},
        {"exp": NOW + 0.5, "iat": NOW + 60, "nbf": NOW + 60},
        {"exp": NOW - 29},
    ],
)
def test_accepts(claims: dict[str, Any]) -> None:
    check_times(claims, now_s=NOW, exp_leeway_s=30, nbf_leeway_s=60)


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"exp": NOW - 30},
        {"exp": 0},
        {"exp": -1},
        {"exp": None},
        {"exp": "1900000000"},
        {"exp": True},
        {"exp": [NOW + 1]},
        {"exp": 10**30},
        {"exp": NOW + 9, "nbf": NOW + 61},
        {"exp": NOW + 9, "iat": NOW + 61},
        {"exp": NOW + 9, "iat": 10**18},
        {"exp": NOW + 9, "iat": -5},
        {"exp": NOW + 9, "iat": "yesterday"},
        {"exp": NOW + 9, "nbf": None},
    ],
)
def test_r38_refuses(claims: dict[str, Any]) -> None:
    with pytest.raises(InvalidTokenError):
        check_times(claims, now_s=NOW, exp_leeway_s=30, nbf_leeway_s=60)


def test_exp_may_be_optional_but_never_ignored() -> None:
    check_times({}, now_s=NOW, require_exp=False)
    with pytest.raises(InvalidTokenError):
        check_times({"exp": NOW}, now_s=NOW, require_exp=False)


def test_numeric_date() -> None:
    assert numeric_date({}, "iat") is None
    assert numeric_date({"iat": 1.5}, "iat") == 1.5
