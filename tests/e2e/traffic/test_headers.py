"""Headers on both ways: set, removed, rewritten, repeated, and made from templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.support.client_pki import Issued
from tests.support.sign_in import sign_in
from tests.support.traffic import DOMAIN, Product, Reply, https
from tests.support.traffic_upstreams import Application

pytestmark = pytest.mark.e2e

ADA = "ada@example.com"
DEFAULTS = {
    "x-frame-options": "SAMEORIGIN",
    "x-xss-protection": "1; mode=block",
    "strict-transport-security": "max-age=31536000; includeSubDomains; preload",
}

TEMPLATES = {
    "X-Copy": '${pomerium.request.headers["X-Name"]}',
    "X-Mixed": 'a-${pomerium.request.headers["X-Name"]}-$$b-${pomerium.none}-z',
    "X-Missing": '${pomerium.request.headers["X-Absent"]}',
    "X-Dollar": "5$$ and $$$$",
    "X-Percent": "100% %REQ(:path)%",
    "X-No-Session": "${pomerium.jwt_that_is_not}",
}

MAPPED = "http://localhost:8000/two/"
REWRITES = [
    {"header": name, "prefix": MAPPED, "value": "http://frontend/one/"}
    for name in ("Location", "LINK")
] + [
    {"header": "x-chain", "prefix": "a", "value": "b"},
    {"header": "x-chain", "prefix": "b", "value": "c"},
    {"header": "x-gone", "prefix": "long-", "value": ""},
]


def routes(up: str) -> list[dict[str, Any]]:
    signed_in = {"allow_public_unauthenticated_access": False, "allow_any_authenticated_user": True}
    return [
        https("plain", to=up),
        https(
            "set",
            to=up,
            set_request_headers={"X-Set": "ours", "x-other": "lower", **TEMPLATES},
        ),
        https(
            "remove",
            to=up,
            set_request_headers={"X-Both": "set"},
            remove_request_headers=["x-gone", "X-BOTH", "User-Agent"],
        ),
        https("rewrite", to=up, rewrite_response_headers=REWRITES),
        https(
            "response",
            to=up,
            set_response_headers={"X-Own": "50% %REQ(host)%", "X-FRAME-Options": "DENY"},
        ),
        https("silent", to=up, set_response_headers={"disable": "true", "X-Own": "lost"}),
        https("moved", redirect={"path_redirect": "/x"}, set_response_headers={"X-Own": "1"}),
        https("said", response={"status": 200, "body": ""}, set_response_headers={"X-Own": "1"}),
        https("down", to="http://127.0.0.1:1", set_response_headers={"X-Own": "1"}),
        https("app", to=up, pass_identity_headers=True, **signed_in),
        https(
            "tokens",
            to=up,
            **signed_in,
            set_request_headers={
                "X-Jwt": "$pomerium.jwt",
                "X-Id": "id ${pomerium.id_token}",
                "X-Access": "${pomerium.access_token}",
            },
        ),
    ]


CLAIMS = {"jwt_claims_headers": {"X-Email": "email", "X-Never": "no_such_claim"}}


@pytest.fixture(scope="module")
def world(shared: Product, application: Application) -> Product:
    shared.reload(routes(application.url), **CLAIMS)
    return shared


def globals_of(reply: Reply) -> dict[str, str]:
    return {name.lower(): value for name, value in reply.headers if name.lower() in DEFAULTS}


# -- requests


def test_headers_are_set_over_what_the_client_sent(world: Product) -> None:
    sent = [("x-set", "mine"), ("X-SET", "again"), ("X-Other", "mine"), ("X-Name", "n$1%")]
    reply = world.get("set", headers=sent)
    assert reply.arrived("x-set") == ["ours"]
    assert reply.arrived("x-other") == ["lower"]
    assert reply.arrived("x-copy") == ["n$1%"]
    assert reply.arrived("x-mixed") == ["a-n$1%-$b--z"]
    assert reply.arrived("x-dollar") == ["5$ and $$"]
    assert reply.arrived("x-percent") == ["100% %REQ(:path)%"]
    for name in ("x-missing", "x-no-session"):
        assert "".join(reply.arrived(name)) == ""


def test_a_template_sees_every_value_of_a_repeated_header(world: Product) -> None:
    reply = world.get("set", headers=[("X-Name", "one"), ("X-Name", "two")])
    (value,) = reply.arrived("x-copy")
    assert [each.strip() for each in value.split(",")] == ["one", "two"]


def test_headers_are_removed_in_any_letters_even_when_they_were_set(world: Product) -> None:
    sent = [("X-Gone", "1"), ("X-GONE", "2"), ("User-Agent", "me"), ("X-Stays", "3")]
    reply = world.get("remove", headers=sent)
    for name in ("x-gone", "x-both", "user-agent"):
        assert reply.arrived(name) == []
    assert reply.arrived("x-stays") == ["3"]


def test_repeated_and_odd_headers_arrive_as_they_were_sent(world: Product) -> None:
    sent = [("X-TwIce", "one"), ("X-TwIce", "two"), ("X-Comma", "a, b"), ("X-Empty", "")]
    reply = world.get("plain", headers=[*sent, ("Cookie", "a=1; b=2")])
    assert reply.arrived("x-twice") == ["one", "two"]
    assert reply.arrived("x-comma") == ["a, b"]
    assert reply.arrived("x-empty") == [""]
    assert reply.arrived("cookie") == ["a=1; b=2"]
    assert "X-TwIce" in [name for name, _ in reply.seen["headers"]]


def test_the_client_is_named_to_the_upstream(world: Product) -> None:
    reply = world.get("plain", headers=[("X-Forwarded-For", "203.0.113.9")])
    assert addresses(reply)[0] == "203.0.113.9"
    assert len(addresses(reply)) == 2  # Envoy calls a loopback client by the machine's address
    assert reply.arrived("x-forwarded-proto") == ["https"]
    (request_id,) = reply.arrived("x-request-id")
    assert reply.value("x-request-id") == request_id


def test_identity_headers_come_from_the_session_alone(world: Product) -> None:
    forged = {"x-email": "root@example.com", "x-pomerium-jwt-assertion": "a.b.c"}
    with world.browser("app", "tokens") as browser:
        page = sign_in(browser, world.url("app"), ADA)[-1]
        seen = headers_of(browser.get(page.url, headers=forged))
        claims = jwt.decode(seen["x-pomerium-jwt-assertion"], options={"verify_signature": False})
        assert (seen["x-email"], claims["email"]) == (ADA, ADA)
        assert seen.get("x-never", "") == ""
        assert sign_in(browser, world.url("tokens"), ADA)[-1].status_code == 200
        seen = headers_of(browser.get(world.url("tokens"), headers=forged))
        assert "x-email" not in seen
        assert "x-pomerium-jwt-assertion" not in seen
        named = jwt.decode(seen["x-jwt"], options={"verify_signature": False})
        assert (named["email"], named["aud"]) == (ADA, f"tokens.{DOMAIN}")
        provider = jwt.decode(seen["x-id"].removeprefix("id "), options={"verify_signature": False})
        assert provider["aud"] in ("gatehouse", ["gatehouse"])
        assert seen["x-access"]


def test_r15_claim_headers_of_a_client_never_arrive_from_who_is_not_signed_in(
    world: Product,
) -> None:
    """Named as the settings have it, in any letters and however often; on every public route."""
    sent = [("X-Email", "forged"), ("x-EMAIL", "forged too"), ("X-Never", "forged")]
    for host in ("plain", "set", "remove"):
        reply = world.get(host, headers=sent)
        assert reply.arrived("x-email") == []
        assert reply.arrived("x-never") == []
        assert "forged" not in str(reply.seen)


def test_templates_name_the_client_certificate(
    world: Product, application: Application, tmp_path: Path
) -> None:
    keys = {
        "X-Fingerprint": "${pomerium.client_cert_fingerprint}",
        "X-Names": "<${pomerium.client_cert_san_dns}>",
        "X-Emails": "<${pomerium.client_cert_san_email}>",
    }
    root = Issued.root("Clients")
    authority = tmp_path / "clients.pem"
    authority.write_text(root.pem)
    names = [x509.DNSName(name) for name in ("one.client.test", "a,b.test", "two.client.test")]
    emails = [x509.RFC822Name(name) for name in ("a@client.test", "b,c@client.test")]
    leaf = root.issue("told", names=[*names, *emails])
    world.reload(
        [https("shown", to=application.url, set_request_headers=keys)],
        downstream_mtls={"ca_file": str(authority), "enforcement": "policy"},
    )
    context = world.client_tls()
    leaf.load_into(context)
    with world.connection(tls=context) as connection:
        reply = connection.request(host=f"shown.{DOMAIN}")
    assert reply.arrived("x-fingerprint") == [leaf.certificate.fingerprint(hashes.SHA256()).hex()]
    # A name that holds a comma would read as two.
    assert reply.arrived("x-names") == ["<one.client.test,two.client.test>"]
    assert reply.arrived("x-emails") == ["<a@client.test>"]
    without = world.get("shown")
    assert "".join(without.arrived("x-fingerprint")) == ""
    assert without.arrived("x-names") == ["<>"]


def headers_of(response: httpx.Response) -> dict[str, str]:
    assert response.status_code == 200, response.text[:500]
    return {name.lower(): value for name, value in response.json()["headers"]}


@pytest.mark.parametrize(
    ("action", "status", "arrived"),
    [("allow", 200, ["1"]), ("drop_header", 200, []), ("reject_request", 400, None)],
)
def test_underscores_are_treated_as_set(
    world: Product, application: Application, action: str, status: int, arrived: list[str] | None
) -> None:
    world.reload(routes(application.url), headers_with_underscores_action=action, **CLAIMS)
    reply = world.get("plain", headers=[("x_a", "1")])
    assert reply.status == status
    if arrived is not None:
        assert reply.arrived("x_a") == arrived


# -- responses


def test_response_headers_are_rewritten_value_by_value(world: Product) -> None:
    wished = [
        f"location:{MAPPED}some/path/?x=1",
        f"link:{MAPPED}a",
        "link:http://elsewhere/",
        f"Link:{MAPPED}b",
        "x-chain:a1",
        "x-gone:long-tail",
        f"x-other:{MAPPED}",
        "set-cookie:a=1",
        "set-cookie:b=2",
    ]
    query = str(httpx.QueryParams([("header", each) for each in wished]))
    reply = world.get("rewrite", f"/?{query}")
    assert reply.value("location") == "http://frontend/one/some/path/?x=1"
    assert reply.values("link") == [
        "http://frontend/one/a",
        "http://elsewhere/",
        "http://frontend/one/b",
    ]
    assert reply.value("x-chain") == "c1"
    assert reply.value("x-gone") == "tail"
    assert reply.value("x-other") == MAPPED
    assert reply.values("set-cookie") == ["a=1", "b=2"]


def test_a_prefix_that_is_a_pattern_elsewhere_is_plain_text(world: Product) -> None:
    reply = world.get("rewrite", "/?header=location:http://localhostx8000/two/a")
    assert reply.value("location") == "http://localhostx8000/two/a"


def test_every_response_carries_the_default_headers(world: Product) -> None:
    for host in ("plain", "rewrite", "nowhere"):
        assert globals_of(world.get(host)) == DEFAULTS, host
    reply = world.get("plain", "/?header=x-frame-options:ALLOWALL&header=X-XSS-Protection:0")
    assert globals_of(reply) == DEFAULTS
    assert len(reply.values("x-frame-options")) == 1
    assert globals_of(world.get("plain", "/.well-known/pomerium")) == DEFAULTS


def test_a_routes_headers_come_on_top(world: Product) -> None:
    reply = world.get("response")
    assert globals_of(reply) == {**DEFAULTS, "x-frame-options": "DENY"}
    assert reply.value("x-own") == "50% %REQ(host)%"
    for host in ("moved", "said", "down"):
        assert world.get(host).value("x-own") == "1", host


def test_a_route_can_drop_them_all(world: Product) -> None:
    reply = world.get("silent")
    assert globals_of(reply) == {}
    assert reply.value("x-own") is None
    kept = world.get("silent", "/?header=x-frame-options:upstream")
    assert globals_of(kept) == {"x-frame-options": "upstream"}


def test_global_headers_replace_the_defaults(world: Product, application: Application) -> None:
    custom = {"X-Global": "g", "X-Frame-Options": "DENY"}
    world.reload(routes(application.url), set_response_headers=custom, **CLAIMS)
    for host, own in (("plain", None), ("nowhere", None), ("moved", "1")):
        reply = world.get(host)
        assert globals_of(reply) == {"x-frame-options": "DENY"}, host
        assert (reply.value("x-global"), reply.value("x-own")) == ("g", own), host
    assert world.get("silent").value("x-global") is None


def test_disabled_global_headers_leave_those_of_routes(
    world: Product, application: Application
) -> None:
    disabled = {"disable": "true", "X-Global": "g"}
    world.reload(routes(application.url), set_response_headers=disabled, **CLAIMS)
    for host, own in (("plain", None), ("nowhere", None), ("said", "1")):
        reply = world.get(host)
        assert globals_of(reply) == {}, host
        assert (reply.value("x-global"), reply.value("x-own")) == (None, own), host
    assert globals_of(world.get("response")) == {"x-frame-options": "DENY"}


def addresses(reply: Reply) -> list[str]:
    (forwarded,) = reply.arrived("x-forwarded-for")
    return [each.strip() for each in forwarded.split(",")]


def test_forwarded_addresses_follow_the_settings(world: Product, application: Application) -> None:
    sent = [("X-Forwarded-For", "198.51.100.7, 203.0.113.9")]
    for keys, count, trusted in (
        ({}, 3, "127.0.0.1"),
        ({"skip_xff_append": True}, 2, "127.0.0.1"),
        ({"xff_num_trusted_hops": 1}, 3, "203.0.113.9"),
        ({"xff_num_trusted_hops": 2}, 3, "198.51.100.7"),
    ):
        world.reload(routes(application.url), **keys)
        reply = world.get("plain", headers=sent)
        assert len(addresses(reply)) == count, keys
        assert reply.arrived("x-envoy-external-address") == [trusted], keys
