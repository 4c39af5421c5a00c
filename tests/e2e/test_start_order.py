"""Whoever starts first waits for what it cannot do without, and says so."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from gatehouse.authenticate.service import HEALTH_CHECK
from tests.support.stack import Stack
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

Fresh = Callable[..., tuple[Stack, EchoUpstream]]


def test_authenticate_is_ready_once_its_databroker_has_answered(fresh_stack: Fresh) -> None:
    stack, _ = fresh_stack(split=True)
    authenticate = stack.spawn("authenticate")
    authenticate.wait_log("the databroker has not answered yet", 40.0)
    probe = authenticate.probe("/readyz")
    assert probe.status_code == 503
    check = probe.json()[HEALTH_CHECK]
    assert check["error"].startswith("the databroker has not answered yet"), check

    def sign_in() -> httpx.Response:
        with stack.client() as browser:
            return browser.get(f"{stack.authenticate_url}/.pomerium/", timeout=30.0)

    early = sign_in()  # it listens already, and sends nobody away for a sign-in it cannot keep
    assert early.status_code == 503, early.text
    assert "location" not in early.headers

    databroker = stack.spawn("databroker")
    databroker.wait_ready()
    authenticate.wait_ready()
    first = sign_in()
    assert first.status_code == 302, first.text
    assert first.headers["location"].startswith(stack.issuer)

    # Every replica has the same databroker: unready ones would only leave nobody to say why.
    databroker.stop()
    assert sign_in().status_code == 503
    assert authenticate.probe("/readyz").status_code == 200
