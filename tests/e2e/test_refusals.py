"""What the refused are answered at the edge, by the kind of client, and where a page leads them."""

from __future__ import annotations

import html
import json
import re
import time

import pytest

from tests.e2e.conftest import ADA, GRACE, World
from tests.e2e.test_security_paths import Reply, handle_of, http1, http2, pseudo
from tests.support.sign_in import follow, query_of, sign_in

pytestmark = pytest.mark.e2e

HTML = {"accept": "text/html"}
# How a client shows what it is, and the form of a refusal that it gets.
CLIENTS: dict[str, tuple[list[tuple[str, str]], str]] = {
    "browser": ([("accept", "text/html,application/xhtml+xml,*/*;q=0.8")], "text/html"),
    "curl": ([("accept", "*/*")], "text/html"),
    "silent": ([], "text/html"),
    "axios": ([("accept", "application/json, text/plain, */*")], "application/json"),
    "any, best JSON": ([("accept", "*/*, application/json")], "application/json"),
    "xhr": ([("accept", "*/*"), ("x-requested-with", "XMLHttpRequest")], "application/json"),
    "kubectl": ([("user-agent", "kubectl/v1.33 kubernetes/abc")], "application/json"),
    "plain": ([("accept", "text/plain")], "text/html"),
    "grpc-web": ([("content-type", "application/grpc-web+proto")], ""),  # Envoy: no body, no type
}
NO_SIGN_IN = set(CLIENTS) - {"browser", "curl", "silent"}


def ask(world: World, host: str, fields: list[tuple[str, str]], *, http: int) -> Reply:
    """Both helpers see to it that a refusal leaves the upstream untouched."""
    if http == 2:
        return http2(world, [*pseudo("/x?a=b", host=host), *fields])
    lines = [f"{name}: {value}" for name, value in fields]
    return http1(world, "/x?a=b", host=host, lines=lines, accept="")


@pytest.mark.parametrize("http", [1, 2])
@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_each_client_is_refused_in_a_form_that_it_reads(world: World, name: str, http: int) -> None:
    fields, form = CLIENTS[name]
    handle = handle_of(world, GRACE)
    refused = ask(world, "admin.localhost", [*fields, ("cookie", f"_pomerium={handle}")], http=http)
    assert refused.status == 403
    headers = dict(refused.headers)
    assert headers.get("content-type", "").partition(";")[0] == form
    assert headers["cache-control"] == "no-store"
    if name == "kubectl":
        assert json.loads(refused.body)["reason"] == "Forbidden"
    elif form == "application/json":
        said = json.loads(refused.body)
        assert said == {"error": "Forbidden", "request_id": headers["x-request-id"]}
    elif form == "text/html":
        assert headers["x-pomerium-intercepted-response"] == "true"
        assert headers["x-request-id"].encode() in refused.body
    else:
        assert (headers["grpc-status"], refused.body) == ("7", b"")
    unknown = ask(world, "admin.localhost", fields, http=http)
    assert unknown.status == (401 if name in NO_SIGN_IN else 302)
    assert bool(unknown.location) is (name not in NO_SIGN_IN)
    assert dict(unknown.headers).get("content-type", "").partition(";")[0] == form


def test_a_grpc_client_learns_its_own_status(world: World) -> None:
    """Envoy makes the answer one that gRPC reads: 200, with the status in a header."""
    handle = handle_of(world, GRACE)
    call = [
        *pseudo("/a.Service/Method", host="admin.localhost", method="POST"),
        *(("te", "trailers"), ("content-type", "application/grpc")),
    ]
    for credential, code, message in (
        ([], "16", "Unauthenticated"),
        ([("authorization", f"Bearer Pomerium-{handle}")], "7", "Forbidden"),
        ([("cookie", f"_pomerium={handle}")], "7", "Forbidden"),
    ):
        refused = http2(world, [*call, *credential], body=b"\0\0\0\0\0")
        headers = dict(refused.headers)
        assert (refused.status, headers["content-type"]) == (200, "application/grpc")
        assert (headers["grpc-status"], headers["grpc-message"]) == (code, message)
        assert refused.body == b""


def test_robots_are_told_to_stay_away_from_what_they_may_not_read(world: World) -> None:
    for host in ("app.localhost", "admin.localhost"):
        told = http1(world, "/robots.txt", host=host)
        assert (told.status, told.body) == (200, b"User-agent: *\nDisallow: /\n")
    assert http1(world, "/robots.txt").arrived["path"] == "/robots.txt"


def test_a_refused_person_finds_their_session_and_signs_out_back_to_the_page(world: World) -> None:
    page = world.stack.url("admin.localhost", "/x?a=b")
    with world.client() as client:
        refused = sign_in(client, page, GRACE)[-1]
        assert refused.status_code == 403
        (link,) = re.findall(r'href="([^"]+)">Your session<', refused.text)
        shown = follow(client, client.get(html.unescape(link), headers=HTML))[-1]
        assert shown.status_code == 200
        assert GRACE in shown.text
        assert str(shown.url) == f"{world.stack.authenticate_url}/.pomerium/"
        asked = client.get(
            f"{world.stack.authenticate_url}/.pomerium/sign_out",
            headers={"accept": "application/json"},
        )
        confirm = asked.json()["confirm"]
        assert query_of(confirm)["pomerium_redirect_uri"] == page
        assert client.get(confirm).is_redirect
        deadline = time.monotonic() + 20
        while client.get(page, headers=HTML).status_code != 302:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_an_assertion_of_ours_is_handed_on_as_that_of_the_caller_before(world: World) -> None:
    """An application calls another one in its user's name; what others made up goes nowhere."""
    handles = {user: handle_of(world, user) for user in (ADA, GRACE)}

    def seen(*lines: str) -> dict[str, str]:
        own = f"Cookie: _pomerium={handles[GRACE]}"
        found = http1(world, host="app.localhost", lines=[own, *lines]).arrived["headers"]
        return {name: value for name, value in found if name.startswith("x-pomerium-jwt")}

    sent = http1(world, host="app.localhost", lines=[f"Cookie: _pomerium={handles[ADA]}"])
    assertion = dict(sent.arrived["headers"])["x-pomerium-jwt-assertion"]
    name = "x-pomerium-jwt-assertion"
    for lines in (
        [f"X-Pomerium-Jwt-Assertion: {assertion}"],
        [f"X-Pomerium-Jwt-Assertion-For: {assertion}"],
        [f"X-Pomerium-Jwt-Assertion-For: {assertion}", "X-Pomerium-Jwt-Assertion: made-up"],
    ):
        arrived = seen(*lines)
        assert arrived[f"{name}-for"] == assertion
        assert arrived[name] not in {assertion, "made-up"}
    for lines in (
        [f"X-Pomerium-Jwt-Assertion-For: {assertion[:-3]}"],
        [
            f"X-Pomerium-Jwt-Assertion-For: {assertion}",
            f"X-Pomerium-Jwt-Assertion-For: {assertion}",
        ],
        ["X-Pomerium-Jwt-Assertion-For: made-up", f"X-Pomerium-Jwt-Assertion: {assertion}"],
    ):
        assert f"{name}-for" not in seen(*lines)
