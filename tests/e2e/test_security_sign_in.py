"""Sign-in, sign-out and the pages under /.pomerium, as an attacker would use them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import httpx
import jwt
import pytest

from gatehouse.common.clock import SystemClock
from gatehouse.common.jose.signed_url import sign_url
from tests.e2e.conftest import ADA, GRACE, MALLORY, World
from tests.e2e.test_security_paths import handle_of, http1, http2, pseudo
from tests.support.sign_in import follow, mock_provider_form, query_of, sign_in
from tests.support.stack import Stack
from tests.support.upstream import EchoUpstream, headers_of

pytestmark = pytest.mark.e2e

HTML = {"accept": "text/html"}
Make = Callable[..., tuple[Stack, EchoUpstream]]


def key_of(world: World) -> bytes:
    """The shared secret: what an attacker does not have, to reach what lies behind signatures."""
    return base64.b64decode(world.stack.shared_secret)


def hops_until(client: httpx.Client, url: str, part: str, user: str = GRACE) -> str:
    """Sign in, but stop before the URL that contains `part` is opened; that URL."""
    page = follow(client, client.get(url, headers=HTML))[-1]
    answer = mock_provider_form(client, page, user)
    for _ in range(10):
        location = answer.headers["location"]
        if part in location:
            return str(location)
        request = answer.next_request
        assert request is not None
        answer = client.send(request)
    raise AssertionError(f"no {part} on the way")


def changed(url: str, **values: str | None) -> str:
    """The URL with query parameters replaced; None takes one away."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    query = {name: value for name, value in (query | values).items() if value is not None}
    return urlunsplit(parts._replace(query=urlencode(query)))


@contextmanager
def browsers(world: World, count: int) -> Iterator[list[httpx.Client]]:
    clients = [world.client() for _ in range(count)]
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


# -- redirects


def evil_targets(own: str) -> list[str]:
    """Spellings of "somewhere else", and of "our host" that some parser reads otherwise."""
    return [
        "https://evil.example/",
        f"https://{own}@evil.example/",
        f"https://{own}:x@evil.example/",
        f"https://evil.example\\@{own}/",
        f"https://evil.example#@{own}/",
        f"https://evil.example?@{own}/",
        f"https://{own}.evil.example/",
        f"https://evil{own}/",
        f"https://{own}%2eevil.example/",
        f"https://{own}%00.evil.example/",
        f"https://{own}\t.evil.example/",
        f"https:/\\{own}/",
        f"https:///{own}/",
        f"https:{own}",
        f"//{own}/",
        "//evil.example/",
        "/\\evil.example",
        "/%09/evil.example",
        f"http://{own}/",
        f"ftp://{own}/",
        "javascript:alert(1)",
        "data:text/html,x",
        f"https://{own}/\\evil.example",
        f"https://{own}//evil.example/%2f..",
        f"https://{own}/%0d%0aset-cookie:a=b",
        f"https://{own}:99999/",
        f"https://{own}:0x50/",
        f"https://[{own}]/",
        "https://2130706433/",
        "https://",
        "",
        " ",
    ]


def test_r26_a_signed_sign_in_leads_to_no_foreign_host(world: World) -> None:
    """Even with a good signature: whoever could make one must not gain an open redirect."""
    now_s = SystemClock().now_s()
    with world.client() as client:
        for target in evil_targets("app.localhost"):
            query = urlencode({"pomerium_redirect_uri": target, "gatehouse_login": "0" * 64})
            url = f"{world.stack.authenticate_url}/.pomerium/sign_in?{query}"
            answer = client.get(sign_url(url, key_of(world), now_s=now_s), headers=HTML)
            assert answer.status_code == 400, (target, answer.status_code)


def test_r26_a_signed_callback_leads_to_no_foreign_host(world: World) -> None:
    with world.client() as client:
        genuine = hops_until(client, world.stack.url("app.localhost"), "/.pomerium/callback")
        for target in evil_targets("app.localhost"):
            url = changed(genuine, pomerium_redirect_uri=target)
            resigned = sign_url(url, key_of(world), now_s=SystemClock().now_s())
            answer = client.get(resigned, headers=HTML)
            assert answer.status_code == 400, (target, answer.status_code)
            assert "set-cookie" not in answer.headers
        assert client.get(genuine).status_code == 302


def test_r26_programmatic_and_sign_out_targets(world: World) -> None:
    with world.client() as client:
        for target in evil_targets("localhost")[:-3]:
            if target in ("http://localhost/", "https://localhost//evil.example/%2f.."):
                continue
            login = world.stack.url("app.localhost", "/.pomerium/api/v1/login")
            answer = client.get(f"{login}?pomerium_redirect_uri={quote(target, safe='')}")
            assert answer.status_code in (400, 404), (target, answer.text)
            for host in (world.stack.url("app.localhost", ""), world.stack.authenticate_url):
                url = f"{host}/.pomerium/sign_out?pomerium_redirect_uri={quote(target, safe='')}"
                answer = client.get(url, headers=HTML)
                assert "evil.example" not in answer.headers.get("location", "")
                assert "evil.example" not in answer.text


# -- signatures


def test_r27_every_signed_handler_refuses_a_spoiled_signature(world: World) -> None:
    app = world.stack.url("app.localhost", "")
    signed = [
        f"{world.stack.authenticate_url}/.pomerium/sign_in?pomerium_redirect_uri={app}/",
        f"{app}/.pomerium/callback/?pomerium_redirect_uri={app}/&pomerium_session_encrypted=x",
    ]
    # Unsigned, this one asks; with any part of a signature it must hold.
    marked = f"{world.stack.authenticate_url}/.pomerium/sign_out"
    with world.client() as client:
        for url in [*signed, marked]:
            now_s = SystemClock().now_s()
            good = sign_url(url, key_of(world), now_s=now_s)
            query = query_of(good)
            spoiled = [
                changed(good, pomerium_signature=None),
                changed(good, pomerium_issued=None),
                changed(good, pomerium_expiry=None),
                changed(good, pomerium_signature=""),
                changed(good, pomerium_signature=query["pomerium_signature"].swapcase()),
                changed(good, pomerium_expiry=str(int(query["pomerium_expiry"]) + 1)),
                changed(good, pomerium_issued=str(int(query["pomerium_issued"]) - 1)),
                changed(good, more="1"),
                good.replace("/.pomerium/", "//.pomerium/./") + "&more=1",
                f"{good}&pomerium_signature={query['pomerium_signature']}",
                f"{good}&pomerium_redirect_uri=https://evil.example/",
                f"{good};x=1",
                sign_url(url, b"k" * 32, now_s=now_s),
                sign_url(url, key_of(world), now_s=now_s - 900),
                sign_url(url, key_of(world), now_s=now_s + 900),
            ]
            for bad in spoiled:
                answer = client.get(bad, headers=HTML)
                assert answer.status_code == 400 or ("/./" in bad and answer.status_code == 404), (
                    bad
                )
                assert "set-cookie" not in answer.headers


def test_r27_a_signature_is_for_one_host_and_path(world: World) -> None:
    with world.client() as client:
        genuine = hops_until(client, world.stack.url("app.localhost"), "/.pomerium/callback")
        for other in (
            genuine.replace("//app.localhost", "//admin.localhost"),
            genuine.replace("//app.localhost", "//public.localhost"),
            genuine.replace("/.pomerium/callback/", "/.pomerium/sign_in"),
            genuine.replace("/.pomerium/callback/", "/.pomerium/callback"),
        ):
            answer = client.get(other, headers=HTML)
            assert answer.status_code in (400, 404), other
            assert "set-cookie" not in answer.headers


# -- fixation, replay, and the binding to one browser


def test_r30_of_two_simultaneous_uses_of_a_callback_one_is_honoured(world: World) -> None:
    with world.client() as client:
        callback = hops_until(client, world.stack.url("app.localhost"), "/.pomerium/callback")
        cookies = "; ".join(
            f"{cookie.name}={cookie.value}"
            for cookie in client.cookies.jar
            if cookie.domain.startswith("app.localhost") and "_login_" in cookie.name
        )
        assert cookies
    parts = urlsplit(callback)
    target = f"{parts.path}?{parts.query}"
    host = parts.netloc
    answers = [http1(world, target, host=host, lines=[f"Cookie: {cookies}"]) for _ in range(4)]
    assert sorted(answer.status for answer in answers) == [302, 400, 400, 400]


def test_r30_reordering_a_used_callback_does_not_make_it_new(world: World) -> None:
    with world.client() as client:
        start = world.stack.url("app.localhost")
        callback = hops_until(client, start, "/.pomerium/callback")
        binding = {c.name: c.value or "" for c in client.cookies.jar if "_login_" in c.name}
        assert client.get(callback).status_code == 302
        header = "; ".join(f"{name}={value}" for name, value in binding.items())
        parts = urlsplit(callback)
        pairs = parts.query.split("&")
        for query in (
            "&".join(reversed(pairs)),
            parts.query.replace("%3A", "%3a"),
            f"&{parts.query}&&",
            parts.query.replace("pomerium_signature=", "pomerium%5Fsignature="),
            parts.query.replace("%3D", "="),
        ):
            url = urlunsplit(parts._replace(query=query))
            answer = client.get(url, headers={**HTML, "cookie": header})
            assert answer.status_code == 400, query
            assert not any(
                line.startswith("_pomerium=") for line in answer.headers.get_list("set-cookie")
            )


def test_r31_planted_cookies_do_not_survive_a_sign_in(world: World) -> None:
    """The session after a sign-in is a new one, and what was planted before is gone."""
    planted = handle_of(world, MALLORY)
    with world.client() as client:
        client.cookies.set("_pomerium_authenticate", planted, domain="authenticate.localhost")
        leaving = follow(client, client.get(world.stack.url("app.localhost"), headers=HTML))
        cleared = [
            line
            for hop in leaving
            for line in hop.headers.get_list("set-cookie")
            if line.startswith("_pomerium_authenticate=;")
        ]
        assert cleared
        assert "Max-Age=0" in cleared[0]
        answer = follow(client, mock_provider_form(client, leaving[-1], GRACE))[-1]
        assert headers_of(answer.json())["x-pomerium-claim-email"] == GRACE
        mine = client.cookies.get("_pomerium", domain="app.localhost")
    assert mine
    assert _claims(mine)["jti"] != _claims(planted)["jti"]


def test_r31_each_sign_in_is_a_new_session(world: World) -> None:
    ids = {str(_claims(handle_of(world, GRACE))["jti"]) for _ in range(3)}
    assert len(ids) == 3


def test_r31_a_handle_planted_in_a_victims_browser_is_replaced_at_the_next_sign_in(
    world: World,
) -> None:
    """The signed sign-in URL of one browser leads no other browser into a session."""
    with browsers(world, 2) as [attacker, victim]:
        start = attacker.get(world.stack.url("app.localhost"), headers=HTML)
        sign_in(victim, world.stack.url("app.localhost"), GRACE)
        before = victim.cookies.get("_pomerium", domain="app.localhost")
        last = follow(victim, victim.get(start.headers["location"], headers=HTML))[-1]
        assert (last.status_code, last.url.path) == (200, "/")  # sent to the page, as themselves
        assert headers_of(last.json())["x-pomerium-claim-email"] == GRACE
        assert victim.cookies.get("_pomerium", domain="app.localhost") == before


def test_r32_an_answer_of_the_provider_works_once_and_only_with_its_state(world: World) -> None:
    with browsers(world, 2) as [one, two]:
        url = world.stack.url("app.localhost")
        first = hops_until(one, url, "/oauth2/callback")
        second = hops_until(two, url, "/oauth2/callback")
        mixed = changed(first, code=query_of(second)["code"])
        assert one.get(mixed, headers=HTML).status_code in (400, 500)
        swapped = changed(first, state=query_of(second)["state"])
        assert one.get(swapped, headers=HTML).status_code == 400
    with world.client() as client:
        good = hops_until(client, url, "/oauth2/callback")
        for bad in (
            changed(good, state=None),
            changed(good, state=""),
            changed(good, state=query_of(good)["state"][:-1]),
            changed(good, state=query_of(good)["state"].swapcase()),
            changed(good, code=None),
            f"{good}&state=x",
            f"{good}&code=x",
        ):
            assert client.get(bad, headers=HTML).status_code == 400, bad
        assert client.get(good).status_code == 302
        assert client.get(good, headers=HTML).status_code == 400


def test_r33_two_tabs_sign_in_side_by_side(world: World) -> None:
    with world.client() as client:
        pages = [
            follow(client, client.get(world.stack.url("app.localhost", path), headers=HTML))[-1]
            for path in ("/one", "/two")
        ]
        for page, path in zip(reversed(pages), ("/two", "/one"), strict=True):
            last = follow(client, mock_provider_form(client, page, GRACE))[-1]
            assert last.status_code == 200
            assert last.json()["path"] == path


def test_r33_two_tabs_sent_to_sign_in_at_once_both_arrive(world: World) -> None:
    """Neither had a cookie yet: each is given one, and the second replaces the first."""
    with world.client() as client:
        first = client.get(world.stack.url("app.localhost", "/one"), headers=HTML)
        client.cookies.clear()
        second = client.get(world.stack.url("app.localhost", "/two"), headers=HTML)
        pages = [
            follow(client, client.get(answer.headers["location"], headers=HTML))[-1]
            for answer in (first, second)
        ]
        for page, path in zip(pages, ("/one", "/two"), strict=True):
            last = follow(client, mock_provider_form(client, page, GRACE))[-1]
            assert last.status_code == 200, last.text
            assert last.json()["path"] == path


# -- sign-out


def test_r34_a_cross_site_sign_out_asks_first(world: World) -> None:
    with world.client() as client:
        sign_in(client, world.stack.url("app.localhost"), GRACE)
        for headers in (
            {"sec-fetch-site": "cross-site"},
            {"origin": "https://evil.example"},
            {"origin": "null"},
        ):
            for method in ("GET", "POST"):
                url = world.stack.url("app.localhost", "/.pomerium/sign_out")
                answer = client.request(method, url, headers={**HTML, **headers})
                assert answer.status_code == 200, (method, headers)
                assert "set-cookie" not in answer.headers
        assert client.get(world.stack.url("app.localhost")).status_code == 200


def test_r35_r44_sign_out_deletes_cookie_and_session_everywhere(world: World) -> None:
    with world.client() as client:
        sign_in(client, world.stack.url("app.localhost"), GRACE)
        handle = client.cookies.get("_pomerium", domain="app.localhost")
        answer = client.get(world.stack.url("app.localhost", "/.pomerium/sign_out"))
        [line] = answer.headers.get_list("set-cookie")
        assert line.startswith("_pomerium=;")
        assert "Max-Age=0" in line
        assert "Secure" in line
        assert "Path=/" in line
        assert client.cookies.get("_pomerium", domain="app.localhost") is None
        follow(client, answer)
    deadline = time.monotonic() + 5
    lines = [f"Cookie: _pomerium={handle}"]
    while http1(world, host="app.localhost", lines=lines).status != 302:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = len(world.upstream.requests)
    for form in (
        lines,
        [f"X-Pomerium-Authorization: {handle}"],
        [f"Authorization: Pomerium {handle}"],
    ):
        assert http1(world, host="app.localhost", lines=form).status in (302, 401)
    info = http1(world, "/.pomerium/", host="app.localhost", lines=lines)
    assert GRACE.encode() not in info.body
    assert len(world.upstream.requests) == before


# -- pages


def test_r36_user_pages_show_no_token(world: World) -> None:
    with world.client() as client:
        sign_in(client, world.stack.url("app.localhost"), GRACE)
        handle = client.cookies.get("_pomerium", domain="app.localhost") or ""
        pages = [
            client.get(world.stack.url("app.localhost", path), headers={"accept": accept})
            for path in ("/.pomerium/", "/.pomerium/user", "/.well-known/pomerium")
            for accept in ("text/html", "application/json")
        ]
        pages.append(client.get(f"{world.stack.authenticate_url}/.pomerium/", headers=HTML))
        assert GRACE in pages[0].text
        for page in pages:
            assert page.status_code == 200, page.url
            assert handle not in page.text
            assert "eyJ" not in page.text  # how every JWT begins
            for word in ("access_token", "refresh_token", "id_token", "client_secret", "at_hash"):
                assert word not in page.text
            assert world.stack.client_secret not in page.text
        assert client.get(world.stack.url("app.localhost", "/.pomerium/jwt")).status_code == 404


@pytest.mark.parametrize("path", ["/.pomerium/user", "/.pomerium/%75ser", "/.pomerium/./user"])
def test_r36_the_user_endpoint_wants_a_session(world: World, path: str) -> None:
    forged = jwt.encode({"email": ADA}, "k" * 32, algorithm="HS256")
    lines = [f"X-Pomerium-Jwt-Assertion: {forged}"]
    answer = http1(world, path, host="app.localhost", lines=lines, accept="application/json")
    assert answer.status in (401, 404), answer.status
    assert ADA.encode() not in answer.body


def test_r59_nothing_internal_is_served_on_public_hosts(world: World) -> None:
    before = len(world.upstream.requests)
    paths = (
        "/debug/pprof/",
        "/debug/vars",
        "/metrics",
        "/stats",
        "/config_dump",
        "/quitquitquit",
        "/ready",
        "/server_info",
        "/status",
        "/readyz",
        "/.pomerium/debug",
        "/.pomerium/admin",
        "/.pomerium/metrics",
        "/databroker.DataBrokerService/Get",
        "/envoy.service.auth.v3.Authorization/Check",
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
    )
    for host in ("app.localhost", "admin.localhost", "unknown.example", "localhost", "127.0.0.1"):
        for path in paths:
            status = http1(world, path, host=host).status
            assert status in (302, 403, 404), (host, path, status)
    for path in paths:
        answer = http2(
            world,
            [
                *pseudo(path, host="unknown.example", method="POST"),
                ("content-type", "application/grpc"),
            ],
        )
        # gRPC answers a missing route with a trailers-only status, never with a served call.
        grpc_status = dict(answer.headers).get("grpc-status")
        assert answer.status in (404, 405) or grpc_status not in (None, "0"), (path, answer)
    assert len(world.upstream.requests) == before


# -- policy


def test_r41_r42_r45_r52_deny_beside_public_allow_and_who_is_refused_for_good(
    fresh_stack: Make, provider: str
) -> None:
    stack, upstream = fresh_stack(
        routes=[],
        extra={"cookie_expire": "3s"},
    )
    stack.routes = [
        {
            "from": "https://app.localhost",
            "to": upstream.url,
            "pass_identity_headers": True,
            "policy": [
                {
                    "allow": {"or": [{"accept": True}]},
                    "deny": {"or": [{"email": {"is": MALLORY}}]},
                }
            ],
        },
        {
            "from": "https://admin.localhost",
            "to": upstream.url,
            "policy": [{"allow": {"and": [{"domain": "example.com"}]}}],
        },
        {
            "from": "https://methods.localhost",
            "to": upstream.url,
            "policy": [{"allow": {"and": [{"groups": {"has": "admins"}}]}}],
        },
        {"from": "https://nobody.localhost", "to": upstream.url},
    ]
    stack.write_config()
    stack.start()
    world = World(stack, upstream, provider)
    assert http1(world, host="app.localhost").status == 302
    assert http1(world, host="nobody.localhost").status in (302, 403)
    assert upstream.requests == []
    refused = handle_of_status(world, MALLORY, "app.localhost")
    assert refused == 403
    handle = handle_of(world, GRACE)
    cookie = [f"Cookie: _pomerium={handle}"]
    assert http1(world, host="app.localhost", lines=cookie).status == 200
    # R42: a rule on groups, and a provider that tells none.
    assert http1(world, host="methods.localhost", lines=cookie).status == 403
    assert http1(world, host="nobody.localhost", lines=cookie).status == 403
    before = len(upstream.requests)
    # R41: what merely contains the domain is not of it.
    for user in (
        "a@evil.test@example.com",
        "a@example.com.evil.test",
        "a@evilexample.com",
        "a@example.com ",
        "example.com",
    ):
        assert handle_of_status(world, user, "admin.localhost") == 403, user
    assert len(upstream.requests) == before
    # R45: an expired session is refused when it is read; the cookie alone does not help.
    deadline = time.monotonic() + 10
    while http1(world, host="app.localhost", lines=cookie).status != 302:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def handle_of_status(world: World, user: str, host: str) -> int:
    """The status of the page that `user` arrives at after signing in."""
    with world.client() as client:
        url = world.stack.url(host)
        page = follow(client, client.get(url, headers=HTML))[-1]
        return follow(client, mock_provider_form(client, page, user))[-1].status_code


def _claims(handle: str) -> dict[str, object]:
    payload = handle.split(".")[1]
    claims: dict[str, object] = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return claims
