"""The main job, end to end: sign in, be authorized, reach the application, sign out."""

from __future__ import annotations

import json
import time

import jwt
import pytest

from tests.e2e.conftest import ADA, GRACE, MALLORY, World
from tests.support.sign_in import follow, query_of, sign_in
from tests.support.upstream import headers_of

pytestmark = pytest.mark.e2e


def test_browser_is_sent_to_sign_in_and_comes_back(world: World) -> None:
    with world.stack.client() as client:
        first = client.get(world.stack.url("app.localhost", "/page?q=1"))
        assert first.status_code == 302
        location = first.headers["location"]
        assert location.startswith(f"{world.stack.authenticate_url}/.pomerium/sign_in?")
        assert query_of(location)["pomerium_redirect_uri"] == world.stack.url(
            "app.localhost", "/page?q=1"
        )
        assert first.headers["cache-control"] == "no-store"

        hops = sign_in(client, world.stack.url("app.localhost", "/page?q=1"), GRACE)
        final = hops[-1]
        assert final.status_code == 200, final.text
        assert str(final.url) == world.stack.url("app.localhost", "/page?q=1")
        seen = json.loads(final.text)
        assert seen["path"] == "/page?q=1"
        headers = headers_of(seen)
        assert headers["x-pomerium-claim-email"] == GRACE
        assert headers["x-set"] == "by-gatehouse"
        assert "_pomerium" not in headers.get("cookie", "")


def test_assertion_verifies_with_published_keys(world: World) -> None:
    with world.stack.client() as client:
        final = sign_in(client, world.stack.url("app.localhost"), GRACE)[-1]
        assertion = headers_of(json.loads(final.text))["x-pomerium-jwt-assertion"]
        keys = client.get(world.stack.url("app.localhost", "/.well-known/pomerium/jwks.json"))
        key = jwt.PyJWKSet.from_dict(keys.json())[jwt.get_unverified_header(assertion)["kid"]]
        claims = jwt.decode(
            assertion,
            key,
            algorithms=["ES256"],
            audience="app.localhost",
            issuer="app.localhost",
            options={"require": ["exp", "iat", "jti", "sub"]},
        )
        assert claims["email"] == GRACE
        assert claims["sub"] == GRACE
        assert claims["groups"] == []
        with pytest.raises(jwt.InvalidAudienceError):
            jwt.decode(assertion, key, algorithms=["ES256"], audience="admin.localhost")


def test_policy_refuses_who_it_should(world: World) -> None:
    with world.stack.client() as client:
        before = len(world.upstream.requests)
        refused = sign_in(client, world.stack.url("admin.localhost"), GRACE)[-1]
        assert refused.status_code == 403
        assert len(world.upstream.requests) == before
        assert refused.headers["x-pomerium-intercepted-response"] == "true"
        assert refused.headers["x-request-id"] in refused.text
        assert "403" in refused.text
    with world.stack.client() as client:
        allowed = sign_in(client, world.stack.url("admin.localhost"), ADA)[-1]
        assert allowed.status_code == 200


def test_one_sign_in_serves_every_route(world: World) -> None:
    with world.stack.client() as client:
        sign_in(client, world.stack.url("app.localhost"), ADA)
        hops = follow(client, client.get(world.stack.url("admin.localhost")))
        assert hops[-1].status_code == 200
        assert all("localhost:" in str(hop.url) for hop in hops)
        assert not any(str(hop.url).startswith(world.issuer) for hop in hops)


def test_sign_out_ends_the_session_everywhere(world: World) -> None:
    with world.stack.client() as client:
        sign_in(client, world.stack.url("app.localhost"), ADA)
        follow(client, client.get(world.stack.url("admin.localhost")))
        stolen = {cookie.name: cookie.value for cookie in client.cookies.jar if cookie.value}
        follow(client, client.get(world.stack.url("app.localhost", "/.pomerium/sign_out")))
        after = client.get(world.stack.url("app.localhost"))
        assert after.status_code == 302
    with world.stack.client() as thief:
        cookie = {"cookie": f"_pomerium={stolen['_pomerium']}"}
        deadline = time.monotonic() + 5.0  # the stream of changes brings it to every process
        while thief.get(world.stack.url("admin.localhost"), headers=cookie).status_code != 302:
            assert time.monotonic() < deadline


def test_clients_that_are_no_browsers_get_401(world: World) -> None:
    with world.stack.client() as client:
        url = world.stack.url("app.localhost")
        answer = client.get(url, headers={"accept": "application/json"})
        assert answer.status_code == 401
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        answer = client.get(url, headers={"x-requested-with": "XMLHttpRequest"})
        assert answer.status_code == 401
        answer = client.post(url, headers={"content-type": "application/grpc", "te": "trailers"})
        assert answer.headers["grpc-status"] == "16"


def test_public_route_needs_no_sign_in_and_gets_no_identity(world: World) -> None:
    with world.stack.client() as client:
        answer = client.get(
            world.stack.url("public.localhost", "/x"),
            headers={
                "X-Pomerium-Jwt-Assertion": "forged",
                "x-pomerium-claim-email": ADA,
                "X-Pomerium-Anything": "x",
            },
        )
        assert answer.status_code == 200
        names = {name for name, _ in answer.json()["headers"]}
        assert not {name for name in names if name.startswith("x-pomerium")}
        private = client.get(world.stack.url("public.localhost", "/private/x"))
        assert private.status_code == 302


def test_method_and_path_criteria(world: World) -> None:
    with world.stack.client() as client:
        sign_in(client, world.stack.url("methods.localhost"), MALLORY)
        before = len(world.upstream.requests)
        assert client.post(world.stack.url("methods.localhost")).status_code == 403
        assert client.get(world.stack.url("methods.localhost", "/secret/x")).status_code == 403
        assert client.get(world.stack.url("methods.localhost", "/%73ecret")).status_code == 403
        assert len(world.upstream.requests) == before
        assert client.get(world.stack.url("methods.localhost", "/open")).status_code == 200


def test_rewrites_and_host_header(world: World) -> None:
    with world.stack.client() as client:
        seen = client.get(world.stack.url("rewrite.localhost", "/old/x?y=1")).json()
        assert seen["path"] == "/new/x?y=1"
        assert headers_of(seen)["host"] == world.upstream.url.removeprefix("http://")
        seen = client.get(world.stack.url("rewrite.localhost", "/exact")).json()
        assert headers_of(seen)["host"] == f"rewrite.localhost:{world.stack.port}"
        assert client.get(world.stack.url("rewrite.localhost", "/r/42")).status_code == 200
        assert client.get(world.stack.url("rewrite.localhost", "/r/x")).status_code == 404


def test_http2(world: World) -> None:
    with world.stack.client(http2=True) as client:
        answer = client.get(world.stack.url("public.localhost", "/h2"))
        assert answer.http_version == "HTTP/2"
        assert answer.status_code == 200


def test_user_info_shows_the_user_and_no_token(world: World) -> None:
    with world.stack.client() as client:
        sign_in(client, world.stack.url("app.localhost"), GRACE)
        page = client.get(world.stack.url("app.localhost", "/.pomerium/"))
        assert page.status_code == 200
        assert GRACE in page.text
        claims = client.get(world.stack.url("app.localhost", "/.pomerium/user")).json()
        assert claims["email"] == GRACE
        for secret_word in ("access_token", "refresh_token", "id_token"):
            assert secret_word not in page.text
        cookie = client.cookies.get("_pomerium", domain="app.localhost")
        assert cookie
        assert cookie not in page.text


def test_unknown_host_is_a_page_and_reaches_nothing(world: World) -> None:
    with world.stack.client() as client:
        before = len(world.upstream.requests)
        answer = client.get(world.stack.url("nobody.localhost"), headers={"accept": "text/html"})
        assert answer.status_code == 404
        assert answer.headers["x-request-id"] in answer.text
        answer = client.get(
            world.stack.url("nobody.localhost"), headers={"accept": "application/json"}
        )
        assert answer.status_code == 404
        assert answer.json()["status"] in (404, "404")
        assert len(world.upstream.requests) == before


def test_access_log_and_decision_log_tell_who(world: World) -> None:
    with world.stack.client() as client:
        sign_in(client, world.stack.url("app.localhost"), GRACE)
        # Remembered decisions leave no line: this one is asked about.
        path = "/logged?pomerium_session=none"
        answer = client.get(world.stack.url("app.localhost", path))
        request_id = answer.headers["x-request-id"]
    authorize = world.stack.processes["authorize" if world.stack.split else "proxy"]
    authorize.wait_log(request_id)
    lines = [json.loads(line) for line in authorize.log().splitlines() if line.startswith("{")]
    decisions = [
        line
        for line in lines
        if line.get("message") == "authorize check" and line.get("check-request-id") == request_id
    ]
    assert len(decisions) == 1
    assert decisions[0]["allow"] is True
    assert decisions[0]["email"] == GRACE
    assert decisions[0]["path"] == "/logged"
