"""One session cookie for every host below a domain: who gets it, and who never does."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.cookiejar import Cookie
from http.cookies import SimpleCookie

import httpx
import pytest

from gatehouse.cli.demo.certificates import ensure_certificates
from tests.e2e.conftest import ADA
from tests.support.sign_in import follow, sign_in
from tests.support.stack import HOSTS, Stack, running
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

DOMAIN = "staff.localhost"
APP, WIKI, PUBLIC = (f"{name}.{DOMAIN}" for name in ("app", "wiki", "public"))
AUTHENTICATE = f"authenticate.{DOMAIN}"
SHARED = ("_pomerium", "_pomerium_authenticate")


@dataclass
class Site:
    """A product whose hosts share a cookie domain, and the application behind them."""

    stack: Stack
    upstream: EchoUpstream

    def url(self, host: str, path: str = "/") -> str:
        return self.stack.url(host, path)

    def sign_in(self, client: httpx.Client) -> list[httpx.Response]:
        """Every response; the last one is the application's."""
        hops = sign_in(client, self.url(APP), ADA)
        assert hops[-1].status_code == 200, hops[-1].text
        return hops


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, provider: str) -> Iterator[Site]:
    with EchoUpstream().running() as upstream:
        signed_in = {"to": upstream.url, "allow_any_authenticated_user": True}
        stack = Stack(
            directory=tmp_path_factory.mktemp("domain"),
            issuer=provider,
            client_id="gatehouse",
            client_secret="not-a-real-secret",
            routes=[
                {"from": f"https://{APP}", **signed_in},
                {"from": f"https://{WIKI}", **signed_in},
                {
                    "from": f"https://{PUBLIC}",
                    "to": upstream.url,
                    "allow_public_unauthenticated_access": True,
                },
            ],
            extra={"cookie_domain": DOMAIN},
        )
        stack.certificates = ensure_certificates(
            stack.directory / "ca", hosts=(*HOSTS, APP, WIKI, PUBLIC, AUTHENTICATE)
        )
        stack.extra["authenticate_service_url"] = f"https://{AUTHENTICATE}:{stack.port}"
        stack.write_config()
        with running(stack):
            yield Site(stack, upstream)


def cookies_set(hops: list[httpx.Response]) -> dict[str, str]:
    """The domain of every cookie that was given, by name; "" for the host's own."""
    given: dict[str, str] = {}
    for hop in hops:
        for line in hop.headers.get_list("set-cookie"):
            for name, morsel in SimpleCookie(line).items():
                if morsel.value:
                    assert given.setdefault(name, morsel["domain"]) == morsel["domain"], name
    return given


def test_no_upstream_receives_a_credential_where_hosts_share_a_cookie(site: Site) -> None:
    with site.stack.client() as client:
        hops = site.sign_in(client)
        own = [name for name, domain in cookies_set(hops).items() if domain == DOMAIN]
        assert sorted(own) == sorted(SHARED)
        secrets = {cookie.value for cookie in client.cookies.jar if "pomerium" in cookie.name}
        assert len(secrets) >= len(SHARED)
        handle = client.cookies.get("_pomerium", domain=f".{DOMAIN}")
        client.cookies.set("theme", "dark", domain=f".{DOMAIN}")
        answers = [
            client.get(site.url(host, path), headers=headers)
            for host in (APP, WIKI, PUBLIC)
            for path in ("/", f"/?a=1&pomerium_session={handle}&b=2")
            for headers in (
                {},
                {"x-pomerium-authorization": f"{handle}"},
                {"authorization": f"Pomerium {handle}"},
                {"authorization": f"Bearer Pomerium-{handle}"},
            )
        ]
    assert {answer.status_code for answer in answers} == {200}
    seen = [answer.json() for answer in answers]
    for request in seen:
        text = json.dumps(request)
        assert not [secret for secret in secrets if secret and secret in text], request
        assert "pomerium_session" not in text
        headers = dict(request["headers"])
        assert headers["cookie"] == "theme=dark"
        assert "x-pomerium-authorization" not in headers
        assert "authorization" not in headers
    assert site.upstream.requests[-len(seen) :] == seen  # nothing else has reached it


def test_state_cookies_belong_to_their_host_alone(site: Site) -> None:
    with site.stack.client() as client:
        given = cookies_set(site.sign_in(client))
    private = {name: domain for name, domain in given.items() if name not in SHARED}
    kinds = {name.rstrip("0123456789") for name in private if "pomerium" in name}
    assert kinds == {
        "__Host-_pomerium_csrf",
        "__Host-_pomerium_login_binding",
        "_pomerium_pkce_",
    }, given
    assert set(private.values()) == {""}, given


def test_a_sign_in_counts_on_every_host_of_the_domain_and_so_does_a_sign_out(site: Site) -> None:
    with site.stack.client() as client:
        site.sign_in(client)
        assert client.get(site.url(WIKI)).status_code == 200  # without any redirect
        before = len(site.upstream.requests)
        copy = client.cookies.get("_pomerium", domain=f".{DOMAIN}")
        out = follow(client, client.get(site.url(WIKI, "/.pomerium/sign_out")))
        assert out[-1].status_code == 200, out[-1].text
        left = {cookie.name for cookie in client.cookies.jar if cookie.value}
        assert not left & set(SHARED), left
        client.cookies.set("_pomerium", str(copy), domain=f".{DOMAIN}")  # somebody kept it
        for host in (APP, WIKI):
            again = client.get(site.url(host), headers={"accept": "text/html"})
            assert again.status_code == 302, again.text
            assert again.headers["location"].startswith(f"https://{AUTHENTICATE}:")
    assert len(site.upstream.requests) == before


def test_cookies_of_another_scope_keep_nobody_out(site: Site) -> None:
    """After `cookie_domain` was changed a browser holds the old cookie and sends it first."""

    def use(domain: str) -> None:
        site.stack.extra["cookie_domain"] = domain
        site.stack.write_config()
        deadline = time.monotonic() + 30
        with site.stack.client() as nobody:
            while True:
                cleared = nobody.get(site.url(APP, "/.pomerium/sign_out")).headers["set-cookie"]
                if ("Domain=" in cleared) is bool(domain):
                    return
                assert time.monotonic() < deadline
                time.sleep(0.05)

    with site.stack.client() as client:

        def oldest_first(request: httpx.Request) -> None:
            sent = request.headers.get("cookie", "").split("; ")
            age = {f"{one.name}={one.value}": number for number, one in enumerate(given)}
            request.headers["cookie"] = "; ".join(sorted(sent, key=lambda one: age.get(one, -1)))

        def remember(_response: httpx.Response) -> None:
            kept = list(client.cookies.jar)
            given[:] = [one for one in given if one in kept]
            given.extend(one for one in kept if one not in given)

        given: list[Cookie] = []  # browsers send them in the order in which they came
        client.event_hooks = {"request": [oldest_first], "response": [remember]}
        try:
            for domain in ("", DOMAIN):
                site.sign_in(client)
                use(domain)
                out = follow(client, client.get(site.url(APP, "/.pomerium/sign_out")))
                assert out[-1].status_code == 200, out[-1].text
                assert sign_in(client, site.url(APP), ADA)[-1].url.host == APP
                assert client.get(site.url(APP)).status_code == 200
        finally:
            use(DOMAIN)
