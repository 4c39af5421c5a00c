from __future__ import annotations

import pytest

from gatehouse.common.session.validity import EXPIRED, TOKEN_EXPIRED, session_problem

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
