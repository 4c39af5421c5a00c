"""Who is told that a certificate ends, and when."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gatehouse.cli.local_authority import LocalAuthority, Scope
from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.runtime.certificate_expiry import Expiry, ending, warn_of_ends
from tests.support.clock import FakeClock

DAY_S = 86_400.0


@pytest.mark.parametrize(
    ("days_left", "is_told"), [(400, False), (14.1, False), (13.9, True), (0, True), (-3, True)]
)
def test_two_weeks_before_the_end(days_left: float, is_told: bool) -> None:
    now_s = 1_800_000_000.0
    one = Expiry("certificate_file", "apps.test", now_s + days_left * DAY_S)
    assert ending([one], now_s) == ((one,) if is_told else ())


async def test_the_log_says_which_certificate_and_how_long(tmp_path: Path) -> None:
    made_s = 1_900_000_000.0
    scope = Scope(("apps.test",))
    authority = LocalAuthority(tmp_path, name="test", scope=scope, now_s=made_s)
    leaf = authority.leaf("external", ["apps.test"], client=False)  # for 180 days
    environment = {
        "CERTIFICATE_FILE": str(leaf.certificate),
        "CERTIFICATE_KEY_FILE": str(leaf.key),
        "AUTHENTICATE_SERVICE_URL": "https://authenticate.apps.test",
        "SHARED_SECRET": "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=",
        "COOKIE_SECRET": "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=",
        "IDP_PROVIDER": "oidc",
        "IDP_PROVIDER_URL": "https://sso.apps.test",
        "IDP_CLIENT_ID": "gatehouse",
        "IDP_CLIENT_SECRET": "not-a-real-secret",
    }
    settings, _ = load_and_resolve(None, environment, random_secret=lambda: b"")
    stop = asyncio.Event()
    stop.set()

    async def said(after_days: float) -> list[tuple[str, int]]:
        clock = FakeClock(made_s + after_days * DAY_S)
        with capture_logs() as lines:
            await warn_of_ends(ConfigHub(settings), clock, stop)
        assert all(str(leaf.certificate) in line["certificate"] for line in lines)
        return [(line["event"], line["days_left"]) for line in lines]

    assert await said(100) == []
    assert await said(170) == [("certificate ends soon", 10)]
    assert await said(181) == [("certificate has ended", -1)]
