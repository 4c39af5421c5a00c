"""Every endpoint of both services, attacked from outside. A new endpoint fails here by default."""

from __future__ import annotations

import dataclasses
import json
from urllib.parse import urlencode

import pytest

from gatehouse.authenticate.edge.http import AuthenticateEndpoints
from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.jose.keys import derive_signing_key, sign_jwt
from gatehouse.common.jose.signed_url import sign_url
from gatehouse.common.pages.endpoints import Guard
from gatehouse.proxy.edge.http_endpoints import ProxyEndpoints
from tests.support.redirect_corpus import hostile_targets
from tests.support.web_settings import APP, AUTHENTICATE, SHARED, settings

SIGNED = {
    f"{AUTHENTICATE}/.pomerium/sign_in",
    f"https://{APP}/.pomerium/callback/",
}
SIGNED_IF_MARKED = {
    f"{AUTHENTICATE}/.pomerium/sign_out",
    f"{AUTHENTICATE}/.pomerium/",
}
OPEN = {  # what each of these does without a signature is harmless; see its `why`
    *(
        f"{AUTHENTICATE}{path}"
        for path in (
            "/", "/robots.txt", "/ping", "/healthz", "/oauth2/callback",
            "/.pomerium/signed_out", "/.pomerium", "/.pomerium/verify-access-token",
            "/.pomerium/verify-identity-token", "/.pomerium/backchannel_logout",
        )
    ),
    *(
        f"https://{APP}{path}"
        for path in (
            "/ping", "/healthz", "/.well-known/pomerium", "/.well-known/pomerium/",
            "/.well-known/pomerium/jwks.json", "/.well-known/pomerium/hpke-public-key",
            "/.pomerium", "/.pomerium/", "/.pomerium/user",
            "/.pomerium/jwt", "/.pomerium/sign_out", "/.pomerium/api/v1/login",
            "/.pomerium/routes", "/.pomerium/api/v1/routes", "/.pomerium/index.js",
            "/.pomerium/explain",
        )
    ),
}  # fmt: skip
CONSTANT = {
    *(f"{AUTHENTICATE}{path}" for path in ("/robots.txt", "/ping", "/healthz")),
    # Answered for the body alone.
    f"{AUTHENTICATE}/.pomerium/backchannel_logout",
    *(f"{AUTHENTICATE}/.pomerium/verify-{kind}-token" for kind in ("access", "identity")),
    *(
        f"https://{APP}{path}"
        for path in (
            "/ping", "/healthz", "/.well-known/pomerium", "/.well-known/pomerium/",
            "/.well-known/pomerium/jwks.json", "/.well-known/pomerium/hpke-public-key",
            "/.pomerium/index.js",
        )
    ),
}  # fmt: skip


def all_endpoints():
    """Endpoints by URL, straight from the services."""
    nothing = None
    made = settings()
    authenticate = AuthenticateEndpoints(
        settings_of=lambda: made,
        sessions=nothing,  # type: ignore[arg-type]
        providers=nothing,  # type: ignore[arg-type]
        clock=SystemClock(),
        rng=SystemRng(),
        log=nothing,  # type: ignore[arg-type]
    )
    proxy = ProxyEndpoints(
        lambda: made,
        nothing,  # type: ignore[arg-type]
        nothing,  # type: ignore[arg-type]
        SystemClock(),
        SystemRng(),
    )
    found = {f"{AUTHENTICATE}{one.path}": one for one in authenticate.endpoints()}
    return found | {f"https://{APP}{one.path}": one for one in proxy.endpoints()}


ENDPOINTS = all_endpoints()


def test_r27_every_endpoint_is_known_here_with_its_guard():
    guards = {Guard.SIGNED: SIGNED, Guard.SIGNED_IF_MARKED: SIGNED_IF_MARKED, Guard.OPEN: OPEN}
    for guard, expected in guards.items():
        found = {url for url, endpoint in ENDPOINTS.items() if endpoint.guard is guard}
        assert found == expected


def spoiled(url, world):
    """A validly signed URL, and every way to strip or alter its signature."""
    query = urlencode(
        {"pomerium_redirect_uri": f"https://{APP}/", "pomerium_session_encrypted": "AAAA"}
    )
    now_s = world.clock.now_s()
    good = sign_url(f"{url}?{query}", SHARED, now_s=now_s)
    pairs = dict(pair.split("=", 1) for pair in good.partition("?")[2].split("&"))

    def joined(changed):
        return f"{url}?" + "&".join(f"{name}={value}" for name, value in changed.items())

    for name in ("pomerium_signature", "pomerium_issued", "pomerium_expiry"):
        yield joined({key: value for key, value in pairs.items() if key != name})
        yield joined(pairs | {name: ""})
        yield joined(pairs | {name: "0"})
        yield joined(pairs | {name: pairs[name][:-1]})
        yield joined(pairs | {name: pairs[name] + "0"})
        yield f"{good}&{name}={pairs[name]}"
    yield joined(pairs | {"pomerium_expiry": str(int(pairs["pomerium_expiry"]) + 1)})
    yield joined(pairs | {"pomerium_redirect_uri": "https%3A%2F%2Fevil.example.net%2F"})
    yield joined(pairs | {"extra": "1"})
    yield sign_url(f"{url}?{query}", b"x" * 32, now_s=now_s)
    yield sign_url(f"{url}?{query}", SHARED, now_s=now_s - 400)
    yield sign_url(f"{url}?{query}", SHARED, now_s=now_s + 400)
    yield sign_url(
        f"https://other.example.com/.pomerium/sign_in?{query}", SHARED, now_s=now_s
    ).replace("https://other.example.com/.pomerium/sign_in", url)


async def test_r27_a_spoiled_signature_is_a_400_everywhere(world):
    browser = world.browser()
    for url in sorted(SIGNED | SIGNED_IF_MARKED):
        for bad in spoiled(url, world):
            answer = await browser.get(bad)
            assert answer.status_code == 400, bad
            assert "set-cookie" not in answer.headers
            assert "location" not in answer.headers


@pytest.mark.parametrize("url", sorted(ENDPOINTS))
async def test_ambiguous_and_oversized_queries_are_a_400_everywhere(world, url):
    if url in CONSTANT:
        return  # the query is not looked at
    browser = world.browser()
    for query in ("a=1&a=2", "a=%ff", "a=" + "x" * 17_000):
        assert (await browser.get(f"{url}?{query}")).status_code == 400, query


@pytest.mark.parametrize("url", sorted(ENDPOINTS))
async def test_r34_unsafe_methods_from_elsewhere_change_nothing(world, url):
    browser = world.browser()
    headers = {"origin": "https://evil.example.net", "sec-fetch-site": "cross-site"}
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = await browser.request(method, url, headers=headers)
        asks = url == f"https://{APP}/.pomerium/sign_out" and method == "POST"
        assert answer.status_code in ({200} if asks else {400, 405}), method
        assert "set-cookie" not in answer.headers
    posted = await browser.post(f"{AUTHENTICATE}/.pomerium/sign_out", headers=headers)
    assert posted.status_code == 400


MALFORMED = [
    "", "x", "a.b", "a.b.c", "..", "." * 5000, "A" * 3900, "%00", "eyJhbGciOiJub25lIn0.e30.",
    '"quoted"', "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.e30.AAAA", "é".encode().decode("latin-1"),
]  # fmt: skip


@pytest.mark.parametrize("value", MALFORMED)
async def test_r49_a_malformed_cookie_is_a_sign_in_and_never_a_session(world, value):
    browser = world.browser()
    url = world.ask_to_sign_in(browser)
    header = f"_pomerium={value}; _pomerium_authenticate={value}; __Host-_pomerium_csrf={value}"
    headers = {"cookie": header.encode("latin-1")}
    leave = await browser.get(url, headers=headers)
    assert leave.status_code == 302
    assert leave.headers["location"].startswith("http://localhost:")
    info = await browser.get(f"https://{APP}/.pomerium/", headers=headers)
    assert info.status_code == 200
    assert "not signed in" in info.text


async def test_r34_what_a_stranger_sends_is_never_markup(world):
    browser = world.browser()
    attack = '"><script>alert(1)</script>'
    query = urlencode({"error": attack, "state": attack, "error_description": attack})
    for url in (
        f"{AUTHENTICATE}/oauth2/callback?{query}",
        f"{AUTHENTICATE}/.pomerium/sign_in?{query}",
        f"https://{APP}/.pomerium/sign_out?{urlencode({'pomerium_redirect_uri': attack})}",
        f"https://{APP}/{attack}",
    ):
        answer = await browser.get(
            url, headers={"x-request-id": attack, "sec-fetch-site": "cross-site"}
        )
        assert "<script" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe-inline" not in answer.headers["content-security-policy"]


async def test_r26_no_endpoint_redirects_to_a_foreign_host(world):
    browser = world.browser()
    now_s = world.clock.now_s()
    for target in hostile_targets(APP)[::7]:
        query = urlencode({"pomerium_redirect_uri": target})
        for url in (
            sign_url(f"{AUTHENTICATE}/.pomerium/sign_in?{query}", SHARED, now_s=now_s),
            sign_url(f"https://{APP}/.pomerium/callback/?{query}", SHARED, now_s=now_s),
        ):
            answer = await browser.get(url)
            assert answer.status_code == 400, target
            assert "location" not in answer.headers
        unsigned = await browser.get(f"{AUTHENTICATE}/.pomerium/sign_out?{query}")
        assert unsigned.status_code == 200
        assert "redirect_uri" not in unsigned.text
        away = await browser.get(f"https://{APP}/.pomerium/sign_out?{query}")
        assert away.headers["location"].startswith(f"{AUTHENTICATE}/.pomerium/sign_out?")
        assert "redirect_uri" not in away.headers["location"]


async def test_r35_a_form_post_from_the_provider_is_taken(world):
    """From another site by design; bound to the browser by state, CSRF and PKCE cookies."""
    browser = world.browser()
    leave = await browser.get(world.ask_to_sign_in(browser))
    back = await world.choose(browser, leave.headers["location"])
    url, _, query = back.partition("?")
    answer = await browser.post(
        url,
        content=query,
        headers={
            "content-type": "application/x-www-form-urlencoded",
            "origin": "https://appleid.apple.com",
            "sec-fetch-site": "cross-site",
        },
    )
    assert answer.status_code == 302
    assert answer.headers["location"].startswith(f"https://{APP}/.pomerium/callback/")


async def test_r36_the_identity_endpoint_shows_only_what_carries_our_signature(world):
    browser = world.browser()
    url = f"https://{APP}/.pomerium/user"
    assert (await browser.get(url)).status_code == 404
    claims = {"iss": APP, "aud": APP, "exp": 1, "iat": 1, "jti": "x", "sub": "u", "email": "e"}
    good = sign_jwt(claims, derive_signing_key(SHARED))
    forged = sign_jwt(claims, derive_signing_key(b"x" * 32))
    answer = await browser.get(url, headers={"x-pomerium-jwt-assertion": good})
    assert answer.json() == {"sub": "u", "email": "e"}
    for headers in (
        [("x-pomerium-jwt-assertion", forged)],
        [("x-pomerium-jwt-assertion", good), ("x-pomerium-jwt-assertion", good)],
        [("x-pomerium-jwt-assertion", good[:-3])],
    ):
        assert (await browser.get(url, headers=headers)).status_code == 404
    jwt_url = f"https://{APP}/.pomerium/jwt"
    answer = await browser.get(jwt_url, headers={"x-pomerium-jwt-assertion": good})
    assert answer.status_code == 404  # off unless switched on


async def test_the_assertion_itself_is_shown_where_the_flag_says_so(world):
    browser = world.browser()
    old = world.hub.current
    flags = {**old.settings.runtime_flags, "pomerium_jwt_endpoint": True}
    changed = old.settings.model_copy(update={"runtime_flags": flags})
    await world.hub.apply(dataclasses.replace(old, settings=changed))
    claims = {"iss": APP, "aud": APP, "exp": 1, "iat": 1, "jti": "x", "sub": "u"}
    good = sign_jwt(claims, derive_signing_key(SHARED))
    url = f"https://{APP}/.pomerium/jwt"
    answer = await browser.get(url, headers={"x-pomerium-jwt-assertion": good})
    assert (answer.status_code, answer.text) == (200, good)
    assert answer.headers["content-type"] == "application/jwt"
    assert answer.headers["cache-control"] == "no-store"
    assert (await browser.get(url)).status_code == 404


async def test_a_program_is_told_what_is_wrong_with_its_question(world):
    browser = world.browser()
    login = f"https://{APP}/.pomerium/api/v1/login"
    assert (await browser.get(login)).status_code == 404
    for target in ("ftp://localhost/", "https://elsewhere.example.net/", "localhost", "/x"):
        asked = await browser.get(login, params={"pomerium_redirect_uri": target})
        assert asked.status_code == 400, target
    for method in ("POST", "HEAD", "PUT"):
        asked = await browser.request(
            method, login, params={"pomerium_redirect_uri": "http://localhost/"}
        )
        assert asked.status_code == 405, method
    for target in ("http://localhost/", "http://127.0.0.1:9/", "http://[::1]:9/x"):
        asked = await browser.get(login, params={"pomerium_redirect_uri": target})
        assert asked.status_code == 200, target
        assert "pomerium_programmatic=true" in asked.text
        assert "pomerium_callback_uri=https%3A%2F%2F" in asked.text
    assert (await browser.get(f"https://{APP}/.pomerium/api/v1/nothing")).status_code == 404


async def test_errors_are_json_for_those_who_ask_for_exactly_that(world):
    browser = world.browser()
    answer = await browser.get(
        f"{AUTHENTICATE}/.pomerium/sign_in", headers={"accept": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["Status"] == 400
    assert answer.headers["x-pomerium-intercepted-response"] == "true"


async def test_public_documents(world):
    browser = world.browser()
    metadata = (await browser.get(f"https://{APP}/.well-known/pomerium")).json()
    assert metadata == {
        "issuer": f"https://{APP}/",
        "authentication_callback_endpoint": f"{AUTHENTICATE}/oauth2/callback",
        "jwks_uri": f"https://{APP}/.well-known/pomerium/jwks.json",
        "frontchannel_logout_uri": f"https://{APP}/.pomerium/sign_out",
        "backchannel_logout_uri": f"{AUTHENTICATE}/.pomerium/backchannel_logout",
    }
    keys = await browser.get(metadata["jwks_uri"])
    assert keys.headers["access-control-allow-origin"] == "*"
    assert keys.headers["cache-control"] == "max-age=60"
    (key,) = keys.json()["keys"]
    assert key["use"] == "sig"
    assert "d" not in key
    same = await browser.get(metadata["jwks_uri"], headers={"if-none-match": keys.headers["etag"]})
    assert same.status_code == 304
    assert json.dumps(key)
    hpke = await browser.get(f"https://{APP}/.well-known/pomerium/hpke-public-key")
    assert len(hpke.content) == 32
    assert hpke.headers["content-type"] == "application/octet-stream"
    assert hpke.headers["cache-control"] == "max-age=60"
    for url in (f"https://{APP}/ping", f"{AUTHENTICATE}/healthz"):
        assert (await browser.get(url)).text == "OK\n"
        assert (await browser.post(url)).status_code == 405
    robots = await browser.get(f"{AUTHENTICATE}/robots.txt")
    assert robots.text == "User-agent: *\nDisallow: /\n"
    for url in (f"{AUTHENTICATE}/", f"https://{APP}/.pomerium"):
        assert (await browser.get(url)).headers["location"] == "/.pomerium/"
    for url in (f"{AUTHENTICATE}/nope", f"https://{APP}/.pomerium/nope", f"https://{APP}/"):
        assert (await browser.get(url)).status_code == 404


async def test_the_key_set_follows_a_rotation(world):
    browser = world.browser()
    url = f"https://{APP}/.well-known/pomerium/jwks.json"
    before = await browser.get(url)
    old = world.hub.current
    new_key = derive_signing_key(b"n" * 32)
    await world.hub.apply(dataclasses.replace(old, signing_keys=(new_key, *old.signing_keys)))
    after = await browser.get(url, headers={"if-none-match": before.headers["etag"]})
    assert after.status_code == 200
    kids = [key["kid"] for key in after.json()["keys"]]
    assert kids == [new_key.kid, *(key["kid"] for key in before.json()["keys"])]


async def test_hosts_that_are_not_served_get_nothing(world):
    browser = world.browser()
    for url in (f"{AUTHENTICATE}/.pomerium/", f"https://{APP}/.pomerium/"):
        answer = await browser.get(url, headers={"host": "evil.example.net"})
        assert answer.status_code == 404
