"""What attackers send, against the running product. Numbers are those of the regression list."""

from __future__ import annotations

import json
from urllib.parse import urlencode, urlsplit, urlunsplit

import jwt
import pytest

from tests.e2e.conftest import ADA, GRACE, World
from tests.e2e.test_security_paths import exchange
from tests.support.sign_in import follow, query_of, sign_in
from tests.support.upstream import headers_of

pytestmark = pytest.mark.e2e


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /p HTTP/9.9",
        b"GE\x00T /p HTTP/1.1",
        b"GET /%2fadmin HTTP/1.1",
        b"GET /%5Cadmin HTTP/1.1",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1",
    ],
    ids=["version", "nul", "escaped-slash", "escaped-backslash", "oversized"],
)
def test_r03_malformed_request_lines_reach_no_upstream(world: World, request_line: bytes) -> None:
    answer = exchange(
        world,
        request_line + b"\r\nHost: public.localhost\r\nConnection: close\r\n\r\n",
        sni="public.localhost",
    )
    assert not answer or 400 <= status_of(answer) < 500, answer[:200]


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 3\r\nContent-Length: 4\r\n",
        b"X_Pomerium_Jwt_Assertion: forged\r\n",
        b"Bad Header: x\r\n",
    ],
    ids=["cl-te", "two-lengths", "underscore", "space-in-name"],
)
def test_r54_smuggling_and_r14_underscores(world: World, headers: bytes) -> None:
    answer = exchange(
        world,
        b"POST / HTTP/1.1\r\nHost: public.localhost\r\nConnection: close\r\n"
        + headers
        + b"\r\nabc",
        sni="public.localhost",
    )
    assert 400 <= status_of(answer) < 500, answer[:200]


def test_r54_what_envoy_mends_arrives_in_one_spelling(world: World) -> None:
    """RFC 9112 lets a server read lenient request lines (3) and replace obs-fold by spaces (5.2).

    Envoy does both; what matters is that policy and upstream see the same mended request.
    """
    answer = exchange(
        world,
        b"GET  /private/../p HTTP/1.1\r\nHost: public.localhost\r\nX-Folded: a\r\n b\r\n"
        b"Connection: close\r\n\r\n",
        sni="public.localhost",
    )
    if status_of(answer) == 200:
        seen = json.loads(answer.split(b"\r\n\r\n", 1)[1])
        assert seen["path"] == "/p"
        folded = headers_of(seen)["x-folded"]
        assert folded.split() == ["a", "b"]
        assert "\n" not in folded
        assert "\r" not in folded
    else:
        assert status_of(answer) == 400


@pytest.mark.parametrize(
    "path",
    [
        "/../private/x",
        "/%2e%2e/private/x",
        "//private/x",
        "/x/../private/x",
        "/./private/x",
        "/%70rivate/x",
    ],
)
def test_r01_r02_a_path_is_decided_and_forwarded_in_one_spelling(world: World, path: str) -> None:
    answer = exchange(
        world,
        f"GET {path} HTTP/1.1\r\nHost: public.localhost\r\nAccept: text/html\r\n"
        "Connection: close\r\n\r\n".encode(),
        sni="public.localhost",
    )
    if status_of(answer) == 200:
        seen = json.loads(answer.split(b"\r\n\r\n", 1)[1])
        assert not seen["path"].startswith("/private")
    else:
        assert status_of(answer) in (302, 400)


@pytest.mark.parametrize(
    "host", ["ADMIN.localhost", "admin.localhost.", "Admin.LocalHost", "admin.localhost:{port}"]
)
def test_r08_host_spellings_meet_the_same_policy(world: World, host: str) -> None:
    spelled = host.format(port=world.stack.port)
    answer = exchange(
        world,
        f"GET / HTTP/1.1\r\nHost: {spelled}\r\nAccept: text/html\r\n"
        "Connection: close\r\n\r\n".encode(),
        sni="admin.localhost",
    )
    assert status_of(answer) in (302, 400, 404), answer[:300]


def test_r13_method_in_other_letters_is_refused(world: World) -> None:
    answer = exchange(
        world,
        b"get / HTTP/1.1\r\nHost: public.localhost\r\nConnection: close\r\n\r\n",
        sni="public.localhost",
    )
    assert status_of(answer) == 400


def test_r15_r18_r23_client_sent_identity_and_credentials_never_arrive(world: World) -> None:
    with world.client() as client:
        sign_in(client, world.stack.url("app.localhost"), GRACE)
        handle = client.cookies.get("_pomerium", domain="app.localhost")
        assert handle
    answer = exchange(
        world,
        (
            "GET /q?pomerium_session=abc&keep=1 HTTP/1.1\r\nHost: app.localhost\r\n"
            "X-Pomerium-Jwt-Assertion: forged\r\nx-pomerium-jwt-assertion-for: forged\r\n"
            f"X-POMERIUM-CLAIM-EMAIL: {ADA}\r\nX-Pomerium-Claim-Admin: yes\r\n"
            "X-Pomerium-Authorization: nonsense\r\nX-Pomerium-Routing-Key: k\r\n"
            f"Cookie: a=1; _pomerium={handle}\r\nCookie: b=2; _pomerium_authenticate={handle}\r\n"
            "Connection: close, X-Pomerium-Jwt-Assertion\r\n\r\n"
        ).encode(),
    )
    assert status_of(answer) == 200, answer[:500]
    seen = json.loads(answer.split(b"\r\n\r\n", 1)[1])
    assert "pomerium_session" not in seen["path"]
    assert "keep=1" in seen["path"]
    pomerium = {name: value for name, value in seen["headers"] if name.startswith("x-pomerium")}
    assert set(pomerium) == {"x-pomerium-jwt-assertion", "x-pomerium-claim-email"}
    assert pomerium["x-pomerium-claim-email"] == GRACE
    assert pomerium["x-pomerium-jwt-assertion"] != "forged"
    everything = json.dumps(seen["headers"])
    assert handle not in everything
    cookies = [value for name, value in seen["headers"] if name == "cookie"]
    assert "a=1" in "; ".join(cookies)
    assert "b=2" in "; ".join(cookies)


@pytest.mark.parametrize("prefix", ["Pomerium ", "Bearer Pomerium-"])
def test_handle_in_a_header_works_and_is_not_forwarded(world: World, prefix: str) -> None:
    with world.client() as client:
        sign_in(client, world.stack.url("app.localhost"), GRACE)
        handle = client.cookies.get("_pomerium", domain="app.localhost")
    with world.client() as other:
        answer = other.get(
            world.stack.url("app.localhost"), headers={"authorization": f"{prefix}{handle}"}
        )
        assert answer.status_code == 200, answer.text[:500]
        assert "authorization" not in headers_of(answer.json())


def test_r22_envoy_headers_from_clients_are_dropped(world: World) -> None:
    with world.client() as client:
        answer = client.get(
            world.stack.url("public.localhost"),
            headers={"x-envoy-original-path": "/admin", "x-envoy-upstream-rq-timeout-ms": "1"},
        )
        assert answer.status_code == 200
        names = {name for name, _ in answer.json()["headers"]}
        assert "x-envoy-original-path" not in names
        assert "x-envoy-upstream-rq-timeout-ms" not in names


@pytest.mark.parametrize(
    "value",
    ["", "x", "a.b.c", "a" * 8192, "%00%00", "eyJhbGciOiJub25lIn0.eyJqdGkiOiJ4In0.", "..", "\xff"],
    ids=["empty", "short", "dots", "8k", "nul", "alg-none", "two-dots", "latin1"],
)
def test_r49_malformed_cookies_mean_sign_in(world: World, value: str) -> None:
    answer = exchange(
        world,
        b"GET / HTTP/1.1\r\nHost: app.localhost\r\nAccept: text/html\r\nConnection: close\r\n"
        b"Cookie: _pomerium=" + value.encode("latin-1") + b"\r\n\r\n",
    )
    assert status_of(answer) in (302, 400), answer[:300]


def test_r37_handles_signed_by_others_are_no_session(world: World) -> None:
    with world.client() as client:
        sign_in(client, world.stack.url("app.localhost"), GRACE)
        handle = client.cookies.get("_pomerium", domain="app.localhost")
        assert handle
    claims = jwt.decode(handle, options={"verify_signature": False})
    forged = jwt.encode(claims, "another-secret-of-thirty-two-bytes!!", algorithm="HS256")
    with world.client() as other:
        for token in (forged, handle[:-2], handle[:-4] + "AAAA", handle + "A"):
            answer = other.get(
                world.stack.url("app.localhost"), headers={"cookie": f"_pomerium={token}"}
            )
            assert answer.status_code == 302, token


def test_handle_of_one_use_is_refused_for_another(world: World) -> None:
    """The authenticate cookie is no credential at a route, and the other way round."""
    with world.client() as client:
        sign_in(client, world.stack.url("app.localhost"), GRACE)
        own = client.cookies.get("_pomerium_authenticate", domain="authenticate.localhost")
        assert own
    with world.client() as other:
        answer = other.get(world.stack.url("app.localhost"), headers={"cookie": f"_pomerium={own}"})
        assert answer.status_code == 302


def test_r27_signed_urls_cannot_be_altered(world: World) -> None:
    with world.client() as client:
        signed = client.get(world.stack.url("app.localhost")).headers["location"]
        query = query_of(signed)
        parts = urlsplit(signed)

        def with_query(changed: dict[str, str]) -> str:
            return urlunsplit(parts._replace(query=urlencode(changed)))

        altered = [
            {**query, "pomerium_redirect_uri": "https://evil.example/"},
            {**query, "pomerium_expiry": str(int(query["pomerium_expiry"]) + 3600)},
            {name: value for name, value in query.items() if name != "pomerium_signature"},
            {name: value for name, value in query.items() if name != "pomerium_issued"},
            {**query, "pomerium_signature": "AAAA"},
            {**query, "extra": "1"},
        ]
        for changed in altered:
            with world.client() as fresh:
                answer = fresh.get(with_query(changed), headers={"accept": "text/html"})
                if answer.is_redirect:
                    assert answer.headers["location"].startswith(world.issuer)
                    hops = sign_in(fresh, with_query(changed), GRACE)
                    assert hops[-1].status_code == 400, changed
                    assert "evil.example" not in str(hops[-1].url)
                else:
                    assert answer.status_code == 400, changed


def callback_of(hops: list[str]) -> str:
    found = [url for url in hops if "/.pomerium/callback" in url]
    assert len(found) == 1
    return found[0]


def test_r30_a_callback_url_works_once(world: World) -> None:
    with world.client() as client:
        hops = sign_in(client, world.stack.url("app.localhost"), GRACE)
        callback = callback_of([str(hop.url) for hop in hops])
        again = client.get(callback, headers={"accept": "text/html"})
        assert again.status_code == 400, again.text[:500]
        assert "set-cookie" not in again.headers or "_pomerium=" not in again.headers["set-cookie"]


def test_r31_a_callback_url_of_another_browser_sets_no_cookie(world: World) -> None:
    """Login fixation: the attacker's own callback URL, opened by the victim."""
    with world.client() as attacker:
        first = attacker.get(world.stack.url("app.localhost"))
        page = follow(attacker, attacker.send(first.next_request))[-1]  # type: ignore[arg-type]
        answer = attacker.post(page.url, data={"sub": ADA})
        while "/.pomerium/callback" not in answer.headers["location"]:
            request = answer.next_request
            assert request is not None
            answer = attacker.send(request)
        callback = answer.headers["location"]
    with world.client() as victim:
        refused = victim.get(callback, headers={"accept": "text/html"})
        assert refused.status_code == 400
        assert "_pomerium" not in victim.cookies


def test_state_of_another_browser_is_refused(world: World) -> None:
    """Login CSRF at authenticate: the provider's answer brought to a browser that never asked."""
    with world.client() as attacker:
        first = attacker.get(world.stack.url("app.localhost"))
        page = follow(attacker, attacker.send(first.next_request))[-1]  # type: ignore[arg-type]
        answer = attacker.post(page.url, data={"sub": ADA})
        provider_callback = answer.headers["location"]
        assert "/oauth2/callback" in provider_callback
    with world.client() as victim:
        refused = victim.get(provider_callback, headers={"accept": "text/html"})
        assert refused.status_code == 400
        assert not victim.cookies.get("_pomerium_authenticate")


def test_r34_reflected_text_is_escaped(world: World) -> None:
    payload = "<script>alert(1)</script>"
    with world.client() as client:
        answer = client.get(
            f"{world.stack.authenticate_url}/oauth2/callback",
            params={"error": "access_denied", "error_description": payload, "state": payload},
            headers={"accept": "text/html"},
        )
        assert answer.status_code in (400, 401)
        assert payload not in answer.text
        assert "content-security-policy" in answer.headers


def test_no_secret_in_any_log(world: World) -> None:
    """Runs last in this file: greps what all the processes have written so far."""
    with world.client() as client:
        sign_in(client, world.stack.url("app.localhost"), GRACE)
        cookies = [cookie.value for cookie in client.cookies.jar if cookie.value]
    secrets = [
        world.stack.shared_secret,
        world.stack.cookie_secret,
        world.stack.client_secret,
        *cookies,
    ]
    for process in world.stack.processes.values():
        text = process.log() + process.access_log()
        for secret in secrets:
            assert secret not in text, process.name
        assert "pomerium_signature=" not in text
        assert "pomerium_session_encrypted=" not in text
