"""What attackers try on our own pages: forced sign-outs, odd hosts, unknown paths."""

from __future__ import annotations

import html
import re

import pytest

from tests.e2e.conftest import GRACE, World
from tests.e2e.test_security_paths import http1
from tests.support.sign_in import sign_in

pytestmark = pytest.mark.e2e

CROSS_SITE = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "accept": "text/html"}


def _signed_sign_out_from_route(world: World) -> str:
    with world.stack.client() as attacker:
        answer = attacker.get(world.stack.url("app.localhost", "/.pomerium/sign_out"))
        return str(answer.headers["location"])


def _signed_sign_out_from_page(world: World) -> str:
    with world.stack.client() as attacker:
        page = attacker.get(f"{world.stack.authenticate_url}/.pomerium/sign_out").text
    [link] = re.findall(r'href="([^"]*/\.pomerium/sign_out[^"]*)"', page)
    return html.unescape(link)


@pytest.mark.parametrize("source", [_signed_sign_out_from_route, _signed_sign_out_from_page])
def test_r34_a_signed_sign_out_link_of_somebody_else_signs_nobody_out(world: World, source) -> None:
    """Anybody gets a signed link without a session; it must not work in every browser."""
    link = source(world)
    with world.stack.client() as victim:
        sign_in(victim, world.stack.url("app.localhost"), GRACE)
        answer = victim.get(link, headers=CROSS_SITE)
        assert answer.status_code == 200  # asks
        assert victim.get(world.stack.url("app.localhost")).status_code == 200


def test_r34_naming_the_provider_is_no_proof_of_being_it(world: World) -> None:
    """`iss` is public. A front-channel logout that ends a session must also name it (`sid`)."""
    with world.stack.client() as victim:
        sign_in(victim, world.stack.url("app.localhost"), GRACE)
        url = world.stack.url("app.localhost", f"/.pomerium/sign_out?iss={world.issuer}")
        assert victim.get(url, headers=CROSS_SITE).status_code == 200
        assert victim.cookies.get("_pomerium", domain="app.localhost")


def test_unknown_pages_answer_every_method_with_our_page(world: World) -> None:
    """Starlette itself answered: 405, bare text, none of our headers."""
    answer = http1(
        world,
        "/.pomerium/nothing",
        host="app.localhost",
        method="POST",
        lines=["Content-Length: 0"],
    )
    assert answer.status == 404
    assert dict(answer.headers).get("cache-control") == "no-store"


@pytest.mark.parametrize("host", ["evil@app.localhost", "app.localhost:x", "app.localhost:1:2"])
def test_r08_our_pages_answer_to_plain_hosts_only(world: World, host: str) -> None:
    """The host came back in issuer and jwks_uri, and in a signed callback address."""
    answer = http1(world, "/.well-known/pomerium", host=host)
    assert answer.status in (400, 404)
    login = http1(
        world, "/.pomerium/api/v1/login?pomerium_redirect_uri=http://localhost:1/", host=host
    )
    assert login.status in (400, 404)
