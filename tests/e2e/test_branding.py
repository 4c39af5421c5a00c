"""The look that an operator chose, on pages of every part."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.conftest import MALLORY, World
from tests.e2e.test_security_failing import wait_for
from tests.e2e.test_security_paths import handle_of, http1
from tests.support.stack import Stack, running
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

Make = Callable[..., tuple[Stack, EchoUpstream]]

LOOK = {
    "primary_color": "#123456",
    "darkmode_primary_color": "#654321",
    "logo_url": "https://assets.example.com/logo.png",
    "favicon_url": "https://assets.example.com/icon.png",
    "error_message_first_paragraph": "Call 100% <b>the desk</b>: extension 42.",
}
SHOWN = ("#123456", "#654321", "https://assets.example.com/logo.png", "icon.png")


def test_every_page_has_the_look_and_a_change_of_it_applies_at_once(
    fresh_stack: Make, provider: str
) -> None:
    stack, upstream = fresh_stack(extra=LOOK)
    with running(stack):
        world = World(stack, upstream, provider)
        cookie = f"Cookie: _pomerium={handle_of(world, MALLORY)}"
        pages = {
            "authorize": http1(world, host="admin.localhost", lines=[cookie]),
            "envoy": http1(world, "/none", host="rewrite.localhost"),
            "proxy": http1(world, "/.pomerium/nothing", host="public.localhost"),
            "authenticate": http1(world, "/.pomerium/callback", host="authenticate.localhost"),
        }
        for part, page in pages.items():
            text = page.body.decode()
            assert page.status >= 400, part
            for mark in SHOWN:
                assert mark in text, (part, mark)
            assert "Call 100% &lt;b&gt;the desk&lt;/b&gt;: extension 42." in text, part
        stack.extra = {"primary_color": "#abcdef"}
        stack.write_config()

        def changed(host: str, path: str) -> bool:
            return b"#abcdef" in http1(world, path, host=host, lines=[cookie]).body

        wait_for(lambda: changed("rewrite.localhost", "/none"))
        wait_for(lambda: changed("admin.localhost", "/"))
        assert changed("public.localhost", "/.pomerium/nothing")
        stack.stop()
