"""What the refused are answered: with which status, in which form, and where a page leads."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from gatehouse.common.jose.signed_url import verify_url
from gatehouse.common.policy.ast import Policy
from tests.support.check import (
    AUTHENTICATE_URL,
    SECRET,
    Desk,
    is_allowed,
    resolved_settings,
    route,
    set_headers,
    status_of,
)
from tests.support.client_pki import Issued
from tests.support.policy import NOW_S, policy_of

SIGNED_IN = policy_of("allow: {or: [{user: u1}]}")
NOBODY = policy_of("allow: {or: [{reject: true}]}")
DEVICE = policy_of("allow: {or: [{device: {approved: true}}]}")
NO_CERTIFICATE = policy_of("deny: {or: [{accept: true}, {invalid_client_certificate: true}]}")


def desk(policy: Policy = NOBODY, **keys: Any) -> Desk:
    return Desk(resolved_settings(route(policy), **keys))


CERTIFIED = Desk(
    resolved_settings(
        dataclasses.replace(
            route(policy_of("allow: {or: [{accept: true}]}")),
            tls_downstream_client_ca_pem=Issued.root().pem.encode(),
        )
    )
)


def refused(status: int, headers: dict[str, str], **request: Any) -> Any:
    """A refusal with this status, for a client that says so much of itself."""
    one = CERTIFIED if status == 495 else desk({401: SIGNED_IN, 450: DEVICE}.get(status, NOBODY))
    if status == 404:
        request["route_id"] = "f" * 16
    elif status == 400:
        request["method"] = "get"
    elif status == 450:
        headers = one.cookie("d1") | headers
    response = one.check(headers=headers, **request)
    assert status_of(response) == status
    return response


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, ""),
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (404, "NotFound"),
        (450, "Unauthorized"),
        (495, "Unauthorized"),
    ],
)
def test_kubectl_reads_a_status_object(status: int, reason: str) -> None:
    response = refused(status, {"user-agent": "kubectl/v1.30 (linux/amd64) kubernetes/abc"})
    found = json.loads(response.denied_response.body)
    message = found.pop("message")
    assert found == {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "reason": reason,
        "code": status,
    }
    assert "req-1" in message
    assert set_headers(response)["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, "Bad Request"),
        (401, "Unauthenticated"),
        (403, "Forbidden"),
        (404, "Not Found"),
        (
            450,
            (
                "your device fails to meet the requirements necessary to access this page, please "
                "contact your administrator for assistance"
            ),
        ),
        (495, "a valid client certificate is required to access this page"),
    ],
)
def test_json_says_why_and_names_the_request(status: int, error: str) -> None:
    for headers in (
        {"accept": "application/json"},
        {"accept": "text/plain, application/json;q=0.5"},  # a page was not asked for
        {"accept": "*/*, application/json"},
        {"accept": "text/html", "x-requested-with": "xmlhttprequest"},
    ):
        response = refused(status, headers)
        assert json.loads(response.denied_response.body) == {"error": error, "request_id": "req-1"}
        assert set_headers(response)["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("status", "code"), [(400, "13"), (401, "16"), (403, "7"), (404, "12"), (450, "2"), (495, "2")]
)
@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        ("application/grpc", "application/grpc+json"),
        ("application/grpc+proto", "application/grpc+json"),
        ("application/grpc-web-text", "application/grpc-web+json"),
        ("application/grpc-web+proto", "application/grpc-web+json"),
    ],
)
def test_grpc_reads_its_own_code(status: int, code: str, sent: str, answered: str) -> None:
    response = refused(status, {"content-type": sent})
    found = set_headers(response)
    assert (found["content-type"], found["grpc-status"]) == (answered, code)
    assert found["grpc-message"]
    assert response.denied_response.body == ""


def test_a_plain_grpc_web_type_is_no_grpc_answer_and_no_sign_in() -> None:
    response = refused(401, {"content-type": "application/grpc-web"})
    assert set_headers(response)["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("text/html", 302),
        ("*/*", 302),
        ("text/*", 302),
        ("application/xml", 302),  # nothing that we have: a page
        ("nonsense", 302),
        ("text/html, application/json", 302),
        ("application/json, text/html", 401),
        ("*/*, application/json", 401),
        ("application/*", 401),
        ("text/plain", 401),
        ("application/grpc-web-text", 401),
        ("application/grpc-web+proto", 401),
        ("text/html;q=0.5, application/grpc+proto", 401),
    ],
)
def test_only_who_prefers_pages_is_sent_to_sign_in(accept: str, status: int) -> None:
    assert status_of(desk(SIGNED_IN).check(headers={"accept": accept})) == status


@pytest.mark.parametrize("path", ["/?pomerium_session=x", "/?a=1&pomerium_session=", "/robots.txt"])
def test_a_session_in_the_query_and_robots_are_no_sign_in(path: str) -> None:
    response = desk(SIGNED_IN).check(path=path)
    assert status_of(response) == (200 if path == "/robots.txt" else 401)
    assert not is_allowed(response)
    assert "location" not in set_headers(response)


def test_robots_are_told_before_devices_and_pages() -> None:
    one = desk(DEVICE)
    for headers in (one.cookie("s1"), one.cookie("d1"), {"accept": "application/json"}):
        response = one.check(headers=headers, path="/robots.txt")
        assert response.denied_response.body == "User-agent: *\nDisallow: /\n"
        assert set_headers(response)["content-type"].startswith("text/plain")
    kubectl = one.check(headers={"user-agent": "kubernetes/1"}, path="/robots.txt")
    assert status_of(kubectl) == 401  # its own form comes first


# Where a page leads


def link_of(response: Any) -> str:
    found = re.findall(r'<a class="button[^"]*" href="([^"]+)">Your session</a>', _body(response))
    assert len(found) == 1
    return html.unescape(found[0])


def _body(response: Any) -> str:
    return str(response.denied_response.body)


@pytest.mark.parametrize("status", [401, 403, 404, 450, 495])
def test_a_page_leads_to_the_session_at_authenticate_and_back(status: int) -> None:
    headers = {"content-type": "application/grpc-web"} if status == 401 else {}
    link = link_of(refused(status, headers, path="/a?b=c&d"))
    verify_url(link, [SECRET], now_s=NOW_S)
    parts = urlsplit(link)
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"{AUTHENTICATE_URL}/.pomerium/"
    fields = parse_qs(parts.query, strict_parsing=True)
    assert fields["pomerium_redirect_uri"] == ["https://app.example.com/a?b=c&d"]
    assert fields.keys() == {
        *("pomerium_redirect_uri", "pomerium_issued"),
        *("pomerium_expiry", "pomerium_signature"),
    }


def test_what_cannot_be_understood_is_not_gone_back_to() -> None:
    requests: list[dict[str, Any]] = [
        {"method": "get"},
        {"path": "/%zz"},
        {"host": "evil@app.example.com"},
    ]
    for request in requests:
        assert link_of(desk().check(**request)) == f"{AUTHENTICATE_URL}/.pomerium/"


def test_a_long_address_is_gone_back_to_without_its_query() -> None:
    link = link_of(desk().check(path="/p?" + "x" * 20_000))
    assert parse_qs(urlsplit(link).query)["pomerium_redirect_uri"] == ["https://app.example.com/p"]


def test_without_authenticate_a_page_leads_to_the_hosts_own() -> None:
    assert link_of(desk(authenticate_url="").check()) == "/.pomerium/"


# Our own pages


NEED_A_SESSION = (
    *("jwt", "user", "webauthn", "routes", "api/v1/routes"),
    *("mcp/authorize", "mcp/connect", "mcp/routes", "explain"),
)


@pytest.mark.parametrize("path", NEED_A_SESSION)
def test_own_pages_about_a_person_want_a_session_by_their_exact_path(path: str) -> None:
    one = desk(NOBODY)
    for spelling, status in (
        (f"/.pomerium/{path}", 302),
        (f"/.pomerium/{path}?a=b", 302),
        (f"/.pomerium/{path}/", 200),
        (f"/.pomerium/{path}x", 200),
    ):
        assert status_of(one.check(path=spelling, internal=True)) == status, spelling
    signed_in = one.check(path=f"/.pomerium/{path}", internal=True, headers=one.cookie("s1"))
    assert is_allowed(signed_in)


def test_own_pages_ask_neither_policy_nor_certificate() -> None:
    one = desk(NO_CERTIFICATE)
    for path in ("/.pomerium/", "/.pomerium/sign_out", "/.well-known/pomerium", "/ping"):
        answer = one.check(path=path, internal=True, certificate="no certificate")
        assert is_allowed(answer), path
