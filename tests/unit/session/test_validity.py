from __future__ import annotations

from typing import Any

import pytest

from gatehouse.common.session.validity import (
    EXPIRED,
    TOKEN_EXPIRED,
    has_expired,
    record_problem,
    session_problem,
)
from gatehouse.pb.session_pb2 import Session

NOW = 1_700_000_000.0
YEAR_1 = -62135596800.0


@pytest.mark.parametrize(
    ("expires_at_s", "token_expires_at_s", "refreshable", "problem"),
    [
        (NOW + 1, NOW + 1, False, None),
        (NOW + 1, NOW + 1, True, None),
        (NOW + 1, None, False, None),
        (None, None, False, None),
        (0, 0, False, None),
        (YEAR_1, YEAR_1, False, None),
        (31_535_999, 31_535_999, False, None),
        (31_536_000, None, True, EXPIRED),
        (NOW, None, True, EXPIRED),
        (NOW - 1, NOW + 1, True, EXPIRED),
        (NOW - 1, NOW - 1, False, EXPIRED),
        (NOW + 1, NOW, False, TOKEN_EXPIRED),
        (NOW + 1, NOW - 1, False, TOKEN_EXPIRED),
        (NOW + 1, NOW - 1, True, None),
        (None, NOW - 1, False, TOKEN_EXPIRED),
        (NOW + 0.001, None, False, None),
    ],
)
def test_r45_expiry_is_judged_when_read(
    expires_at_s: float | None,
    token_expires_at_s: float | None,
    refreshable: bool,
    problem: str | None,
) -> None:
    assert session_problem(expires_at_s, token_expires_at_s, refreshable, NOW) == problem


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, None),
        ({"expires_at": {"seconds": int(NOW)}}, EXPIRED),
        ({"oauth_token": {"expires_at": {"seconds": int(NOW)}}}, TOKEN_EXPIRED),
        ({"oauth_token": {"expires_at": {"seconds": int(NOW)}, "refresh_token": "r"}}, None),
        (
            {
                "oauth_token": {"expires_at": {"seconds": int(NOW)}, "refresh_token": "r"},
                "refresh_disabled": True,
            },
            TOKEN_EXPIRED,
        ),
        ({"oauth_token": {"access_token": "a"}}, None),  # of unknown age
    ],
)
def test_r45_a_record_is_judged_by_its_own_times(
    fields: dict[str, Any], problem: str | None
) -> None:
    assert record_problem(Session(**fields), NOW) == problem


@pytest.mark.parametrize(
    ("fields", "expired"),
    [
        ({}, False),
        ({"expires_at": {"seconds": int(NOW)}}, True),
        ({"expires_at": {"seconds": int(NOW) + 1}}, False),
        ({"expires_at": {"seconds": 0}}, False),  # unset
        ({"oauth_token": {"expires_at": {"seconds": int(NOW)}}}, False),
    ],
)
def test_r45_a_session_that_others_stand_for_is_judged_by_its_own_end(
    fields: dict[str, Any], expired: bool
) -> None:
    assert has_expired(Session(**fields), NOW) is expired
