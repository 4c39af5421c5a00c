"""What attackers try on our own pages: forced sign-outs, odd hosts, unknown paths."""

from __future__ import annotations

import html
import re

import pytest

from tests.e2e.conftest import GRACE, World
from tests.e2e.test_security_paths import http1
from tests.support.sign_in import follow, sign_in

pytestmark = pytest.mark.e2e

HTML = {"accept": "text/html"}
CROSS_SITE = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "accept": "text/html"}


def _signed_sign_out_from_route(world: World) -> str:
    with world.client() as attacker:
        answer = attacker.get(world.stack.url("app.localhost", "/.pomerium/sign_out"))
        return str(answer.headers["location"])


def _signed_sign_out_from_page(world: World) -> str:
    with world.client() as attacker:
        page = attacker.get(f"{world.stack.authenticate_url}/.pomerium/sign_out").text
    [link] = re.findall(r'href="([^"]*/\.pomerium/sign_out[^"]*)"', page)
    return html.unescape(link)


@pytest.mark.parametrize("source", [_signed_sign_out_from_route, _signed_sign_out_from_page])
def test_r34_a_signed_sign_out_link_of_somebody_else_signs_nobody_out(world: World, source) -> None:
    """Anybody gets a signed link without a session; it must not work in every browser."""
    link = source(world)
    with world.client() as victim:
        sign_in(victim, world.stack.url("app.localhost"), GRACE)
        answer = victim.get(link, headers=CROSS_SITE)
        assert answer.status_code == 200  # asks
        assert victim.get(world.stack.url("app.localhost")).status_code == 200


def test_r34_naming_the_provider_is_no_proof_of_being_it(world: World) -> None:
    """`iss` is public. A front-channel logout that ends a session must also name it (`sid`)."""
    with world.client() as victim:
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


def every_page(world: World) -> dict[str, tuple[str, int]]:
    """What a signed-in person may come to see, with the status."""
    at, app = world.stack.authenticate_url, world.stack.url("app.localhost", "")
    return {
        "who am I": (f"{app}/.pomerium/", 200),
        "who am I, at authenticate": (f"{at}/.pomerium/", 200),
        "applications": (f"{app}/.pomerium/routes", 200),
        "sign out?": (f"{at}/.pomerium/sign_out", 200),
        "signed out": (f"{at}/.pomerium/signed_out", 200),
        "a bad link": (f"{at}/.pomerium/sign_in", 400),
        "a bad callback": (f"{app}/.pomerium/callback/", 400),
        "denied by the provider": (f"{at}/oauth2/callback?error=access_denied", 401),
        "nothing there": (f"{app}/.pomerium/nothing", 404),
        "refused": (world.stack.url("admin.localhost"), 403),
        "no such path": (world.stack.url("rewrite.localhost", "/none"), 404),
    }


def test_every_page_has_a_json_twin_and_neither_is_framed_stored_or_scripted(world: World) -> None:
    with world.client() as client:
        sign_in(client, world.stack.url("app.localhost"), GRACE)
        follow(client, client.get(world.stack.url("admin.localhost"), headers=HTML))
        for name, (url, status) in every_page(world).items():
            page = client.get(url, headers=HTML)
            twin = client.get(url, headers={"accept": "application/json"})
            assert (page.status_code, twin.status_code) == (status, status), name
            assert page.headers["content-type"].startswith("text/html"), name
            assert twin.headers["content-type"].startswith("application/json"), name
            assert isinstance(twin.json(), dict), name
            policy = page.headers.get("content-security-policy", "")
            assert "frame-ancestors 'none'" in policy, name
            assert "default-src 'none'" in policy, name
            script = re.search(r"script-src ([^;]*)", policy)
            assert script is None or "unsafe" not in script[1], name
            assert "<script>" not in page.text, name
            for answer in (page, twin):
                assert "no-store" in answer.headers["cache-control"], name


def test_r36_no_answer_holds_a_secret_of_ours_or_a_token_of_the_providers(world: World) -> None:
    stack = world.stack
    secrets = [stack.shared_secret, stack.cookie_secret, stack.client_secret]
    with stack.client() as client:
        sign_in(client, stack.url("app.localhost"), GRACE)
        follow(client, client.get(stack.url("admin.localhost"), headers=HTML))
        held = [cookie.value for cookie in client.cookies.jar if cookie.value]
        urls = [url for url, _ in every_page(world).values()]
        for path in (
            *("/.pomerium/user", "/.pomerium/jwt", "/.pomerium/api/v1/routes"),
            *("/.well-known/pomerium", "/.well-known/pomerium/jwks.json"),
        ):
            urls += [stack.url("app.localhost", path)]
        texts = [
            client.get(url, headers={"accept": kind}).text
            for url in urls
            for kind in ("text/html", "application/json")
        ]
    for process in stack.processes.values():
        texts += [process.probe(path).text for path in ("/status", "/readyz", "/healthz")]
    for text in texts:
        for secret in (*secrets, *held):
            assert secret not in text
        for name in ("client_secret", "refresh_token", "access_token", "id_token"):
            assert name not in text
