"""From Envoy's question to the answer, with everything but the network."""

from __future__ import annotations

import dataclasses
import json
from urllib.parse import parse_qs, urlsplit

import pytest

from gatehouse.authorize.core.evaluator import CompiledPolicy
from gatehouse.authorize.core.route_plan import compile_plans
from gatehouse.common.config.issues import ConfigError
from tests.support.check import (
    OTHER_SECRET,
    ROUTE_ID,
    SECRET,
    Desk,
    handle_token,
    is_allowed,
    provider,
    resolved_settings,
    route,
    set_headers,
    status_of,
)
from tests.support.policy import NOW_S, World, policy_of, session_record, user_record

U1 = policy_of("allow: {or: [{user: u1}]}")
PUBLIC = policy_of("allow: {or: [{accept: true}]}")
NOBODY = policy_of("allow: {or: [{reject: true}]}")


def desk(policy=U1, **keys) -> Desk:
    return Desk(resolved_settings(route(policy, **keys)))


# Credentials


def test_a_signed_in_browser_gets_through() -> None:
    one = desk()
    response = one.check(headers=one.cookie("s1"))
    assert is_allowed(response)
    assert dict(response.dynamic_metadata) == {
        "decision": "allow",  # what lets Envoy take the answer for an allow
        "route-id": ROUTE_ID,
        "session-id": "s1",
        "user": "u1",
    }


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({"x-pomerium-authorization": "{}"}, "/"),
        ({"authorization": "Pomerium {}"}, "/"),
        ({"authorization": "Bearer Pomerium-{}"}, "/"),
        ({}, "/?a=b&pomerium_session={}"),
    ],
)
@pytest.mark.parametrize("use", ["api", "route"])
def test_programs_send_their_handle_in_headers_or_query(headers, path, use) -> None:
    token = handle_token(SECRET, "s1", idp_id="idp-1", use=use)
    filled = {name: value.format(token) for name, value in headers.items()}
    assert is_allowed(desk().check(headers=filled, path=path.format(token)))


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "pomerium {}"},
        {"authorization": "Bearer {}"},
        {"authorization": "bearer Pomerium-{}"},
        {"x-authorization": "{}"},
    ],
)
def test_prefixes_are_exact(headers) -> None:
    token = handle_token(SECRET, "s1", idp_id="idp-1", use="api")
    filled = {name: value.format(token) for name, value in headers.items()}
    assert not is_allowed(desk().check(headers=filled))


def test_a_bad_cookie_hides_a_good_header() -> None:
    good = handle_token(SECRET, "s1", idp_id="idp-1", use="api")
    headers = {"cookie": "_pomerium=nonsense", "x-pomerium-authorization": good}
    assert not is_allowed(desk().check(headers=headers))


def test_a_bad_header_hides_a_good_query() -> None:
    good = handle_token(SECRET, "s1", idp_id="idp-1", use="api")
    response = desk().check(
        headers={"x-pomerium-authorization": "x"}, path=f"/?pomerium_session={good}"
    )
    assert status_of(response) == 401


@pytest.mark.parametrize(
    "cookie",
    [
        "a=b; _pomerium={good}",
        "_pomerium={good}; _pomerium=bad",
        '_pomerium="{good}"',
        "x_pomerium=bad; _pomerium={good}",
        "_pomerium_login_1=bad; _pomerium={good}",
    ],
)
def test_the_first_cookie_of_that_name_counts(cookie) -> None:
    good = handle_token(SECRET, "s1", idp_id="idp-1")
    assert is_allowed(desk().check(headers={"cookie": cookie.format(good=good)}))


@pytest.mark.parametrize(
    "cookie",
    [
        "a=b,_pomerium={good}",  # R18: the rest of another cookie's value, whoever set that
        "_pomerium=bad; _pomerium={good}",
        "x_pomerium={good}",
        "_pomerium_={good}",
        "_Pomerium={good}",
    ],
)
def test_other_cookies_do_not(cookie) -> None:
    good = handle_token(SECRET, "s1", idp_id="idp-1")
    assert not is_allowed(desk().check(headers={"cookie": cookie.format(good=good)}))


def test_r17_every_line_of_a_repeated_header_is_seen() -> None:
    good = handle_token(SECRET, "s1", idp_id="idp-1")
    lines = [("cookie", "a=b"), ("cookie", f"_pomerium={good}"), ("accept", "text/html")]
    assert is_allowed(desk().check(lines=lines))
    turned = [("cookie", "_pomerium=bad"), ("cookie", f"_pomerium={good}")]
    assert not is_allowed(desk().check(lines=turned))


@pytest.mark.parametrize("use", ["authenticate", "api"])
def test_a_handle_of_another_use_is_none_in_a_cookie(use) -> None:
    one = desk()
    assert status_of(one.check(headers=one.cookie("s1", use=use))) == 302


def test_a_handle_of_authenticate_is_none_in_a_header() -> None:
    token = handle_token(SECRET, "s1", idp_id="idp-1", use="authenticate")
    assert status_of(desk().check(headers={"x-pomerium-authorization": token})) == 401


def test_the_previous_secret_still_verifies() -> None:
    settings = resolved_settings(route(U1), secrets=(OTHER_SECRET, SECRET))
    one = Desk(settings)
    assert is_allowed(one.check(headers=one.cookie("s1")))


def test_a_handle_of_another_secret_is_no_session() -> None:
    token = handle_token(OTHER_SECRET, "s1", idp_id="idp-1")
    assert status_of(desk().check(headers={"cookie": f"_pomerium={token}"})) == 302


def test_a_handle_of_another_provider_is_no_session() -> None:
    one = desk()
    assert status_of(one.check(headers=one.cookie("s1", idp_id="idp-2"))) == 302
    assert is_allowed(one.check(headers=one.cookie("s1", idp_id="")))


@pytest.mark.parametrize(
    "value",
    [
        "",
        "!!!!",
        "a.b.c",
        "eyJhbGciOiJub25lIn0.eyJqdGkiOiJzMSJ9.",
        "x" * 8192,
        "{good}\x00",
        "{good}x",
        "{half}",
        "{good}.{good}",
        "%00",
    ],
)
def test_r49_a_malformed_cookie_means_sign_in(value: str) -> None:
    good = handle_token(SECRET, "s1", idp_id="idp-1")
    cookie = f"_pomerium={value.format(good=good, half=good[: len(good) // 2])}"
    assert status_of(desk().check(headers={"cookie": cookie})) == 302


def test_r45_an_expired_session_is_refused_when_it_is_read() -> None:
    world = World(
        session_record("s1", "u1", expires_at_s=NOW_S + 10), user_record("u1", "a@example.com")
    )
    one = Desk(resolved_settings(route(U1)), world)
    assert is_allowed(one.check(headers=one.cookie("s1")))
    one.now_s = NOW_S + 10  # the record is still there, and the identity was remembered
    assert status_of(one.check(headers=one.cookie("s1"))) == 302


def test_r45_an_expired_oauth_token_without_refresh_ends_the_session() -> None:
    world = World(
        session_record("s1", "u1", token_expires_at_s=NOW_S + 10),
        session_record("s2", "u1", token_expires_at_s=NOW_S + 10, refresh_token="r"),
    )
    one = Desk(resolved_settings(route(U1)), world)
    one.now_s = NOW_S + 11
    assert status_of(one.check(headers=one.cookie("s1"))) == 302
    assert is_allowed(one.check(headers=one.cookie("s2")))


# Routes


def test_an_unknown_route_is_404() -> None:
    one = desk(PUBLIC)
    answer = one.check(route_id="ffffffffffffffff")
    assert status_of(answer) == 404


def test_r06_policy_is_that_of_the_route_envoy_chose() -> None:
    settings = resolved_settings(
        route(PUBLIC, route_id="aaaaaaaaaaaaaaaa", prefix="/public"),
        route(NOBODY, route_id="bbbbbbbbbbbbbbbb", prefix="/"),
    )
    one = Desk(settings)
    for path in ("/public", "/public/../secret", "/x?/public", "/public?a=1&a=2", "//public"):
        assert status_of(one.check(path=path, route_id="bbbbbbbbbbbbbbbb")) == 403
        assert is_allowed(one.check(path=path, route_id="aaaaaaaaaaaaaaaa"))


def test_r06_the_provider_is_that_of_the_route_envoy_chose() -> None:
    settings = resolved_settings(
        route(U1, route_id="aaaaaaaaaaaaaaaa", idp=provider("idp-1"), prefix="/a"),
        route(U1, route_id="bbbbbbbbbbbbbbbb", idp=provider("idp-2")),
    )
    one = Desk(settings)
    cookie = one.cookie("s1", idp_id="idp-1")
    assert is_allowed(one.check(path="/b", route_id="aaaaaaaaaaaaaaaa", headers=cookie))
    assert not is_allowed(one.check(path="/a", route_id="bbbbbbbbbbbbbbbb", headers=cookie))


def test_r05_path_rules_never_see_the_query_and_match_whole_values() -> None:
    one = desk(policy_of("allow: {or: [{http_path: /open}, {http_path: {ends_with: /bar}}]}"))
    assert is_allowed(one.check(path="/open"))
    assert is_allowed(one.check(path="/open?x=1"))
    for path in ("/secret?x=/bar", "/secret?/open", "/openx", "/a/open"):
        assert status_of(one.check(path=path)) == 403, path


def test_paths_are_matched_decoded() -> None:
    one = desk(policy_of("{allow: {or: [{accept: 1}]}, deny: {or: [{http_path: /admin}]}}"))
    assert status_of(one.check(path="/%61dmin")) == 403
    assert is_allowed(one.check(path="/admin2"))


@pytest.mark.parametrize("path", ["/admin%zz", "/admin%", "/%4", "/admin#x"])
def test_a_path_that_does_not_decode_reaches_no_policy(path) -> None:
    assert status_of(desk(PUBLIC).check(path=path)) == 400


def test_bytes_that_are_no_utf8_do_not_hide_a_path() -> None:
    one = desk(
        policy_of("{allow: {or: [{accept: 1}]}, deny: {or: [{http_path: {starts_with: /admin}}]}}")
    )
    assert status_of(one.check(path="/admin%ff")) == 403


@pytest.mark.parametrize(("method", "status"), [("get", 400), ("Post", 400), ("PURGE", 200)])
def test_r13_a_known_method_in_other_letters_reaches_no_policy(method, status) -> None:
    one = desk(policy_of("{allow: {or: [{accept: 1}]}, deny: {or: [{http_method: GET}]}}"))
    assert status_of(one.check(method=method)) == status
    assert status_of(one.check(method="GET")) == 403


@pytest.mark.parametrize(
    "host",
    ["App.Example.COM", "app.example.com.", "app.example.com:443", "APP.example.com.:443"],
)
def test_r08_spellings_of_a_host_are_one_host(host) -> None:
    one = desk(pass_identity_headers=True)
    response = one.check(host=host, headers=one.cookie("s1"))
    again = one.check(headers=one.cookie("s1"))
    assert set_headers(response) == set_headers(again)
    location = set_headers(one.check(host=host, path="/p"))["location"]
    target = parse_qs(urlsplit(location).query)["pomerium_redirect_uri"]
    assert target == ["https://app.example.com/p"]


@pytest.mark.parametrize("ip", ["a", "", "1.2.3.4, 5.6.7.8", "10.1.2.3%eth0", "999.1.1.1"])
def test_r20_an_address_that_is_none_matches_nothing_and_breaks_nothing(ip) -> None:
    one = desk(policy_of("allow: {or: [{source_ip: [0.0.0.0/0, '::/0']}]}"))
    assert status_of(one.check(ip=ip)) == 403


def test_r20_forwarded_headers_do_not_change_the_address() -> None:
    one = desk(policy_of("allow: {or: [{source_ip: 192.0.2.0/24}]}"))
    headers = {"x-forwarded-for": "192.0.2.1", "x-real-ip": "192.0.2.1"}
    assert status_of(one.check(headers=headers)) == 403


def test_r20_ipv4_mapped_ipv6_is_ipv4() -> None:
    one = desk(policy_of("allow: {or: [{source_ip: 10.0.0.0/8}]}"))
    assert is_allowed(one.check(ip="::ffff:10.1.2.3"))
    mapped = desk(policy_of("allow: {or: [{source_ip: '::ffff:10.0.0.0/104'}]}"))
    assert is_allowed(mapped.check(ip="10.1.2.3"))
    assert status_of(mapped.check(ip="11.1.2.3")) == 403


@pytest.mark.parametrize(
    "email",
    [
        "a@evil.com@corp.com",
        "a@corp.com\n",
        "a@corp.com\x00",
        " a@corp.com",
        "a@c\u043erp.com",  # a Cyrillic o
        "a@CORP.com",
        "@corp.com",
        "corp.com",
        "a@corp.com@",
        "a@x.corp.com",
        "a\u200b@corp.com",
    ],
)
def test_r41_only_one_plain_address_has_a_domain(email) -> None:
    world = World(session_record("s1", "u1"), user_record("u1", email))
    one = Desk(resolved_settings(route(policy_of("allow: {or: [{domain: corp.com}]}"))), world)
    assert status_of(one.check(headers=one.cookie("s1"))) == 403
    world.records[user_record("u1").type, "u1"] = user_record("u1", "a@corp.com")
    assert is_allowed(one.check(headers=one.cookie("s1")))


# What the refused get to see


@pytest.mark.parametrize(
    "headers",
    [
        {"accept": "application/json"},
        {"accept": "text/plain"},
        {"accept": "application/json, text/html;q=0.5"},
        {"x-requested-with": "XmlHttpRequest"},
        {"content-type": "application/grpc"},
        {"content-type": "application/grpc-web+proto"},
        {"x-pomerium-authorization": "x"},
        {"authorization": "Pomerium x"},
        {"authorization": "Bearer Pomerium-x"},
        {"user-agent": "kubectl/v1.30 (linux/amd64) kubernetes/abcdef"},
    ],
)
def test_programs_get_401_instead_of_a_redirect(headers) -> None:
    response = desk().check(headers=headers)
    assert status_of(response) == 401
    assert "location" not in set_headers(response)
    assert set_headers(response)["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "headers",
    [
        {"accept": "*/*"},
        {"accept": ""},
        {"authorization": "Bearer foreign"},
        {"accept": "text/html, application/json;q=0.9"},
    ],
)
def test_others_are_redirected(headers) -> None:
    assert status_of(desk().check(headers=headers)) == 302


def test_without_an_authenticate_service_sign_in_is_401() -> None:
    one = Desk(resolved_settings(route(U1), authenticate_url=""))
    assert status_of(one.check()) == 401


def test_a_refused_person_gets_a_page_with_their_request_id() -> None:
    one = desk(NOBODY)
    response = one.check(headers=one.cookie("s1"))
    headers = set_headers(response)
    body = response.denied_response.body
    assert status_of(response) == 403
    assert headers["content-type"].startswith("text/html")
    assert headers["cache-control"] == "no-store"
    assert "content-security-policy" in headers
    assert headers["x-pomerium-intercepted-response"] == "true"
    assert "req-1" in body
    assert "a@example.com" in body
    assert "reject" not in body


def test_json_clients_get_json() -> None:
    response = desk(NOBODY).check(headers={"accept": "application/json"})
    assert json.loads(response.denied_response.body) == {
        "error": "Forbidden",
        "request_id": "req-1",
    }


def test_kubernetes_clients_get_a_status_object() -> None:
    response = desk(NOBODY).check(headers={"user-agent": "kubectl kubernetes/1"})
    body = json.loads(response.denied_response.body)
    assert (body["kind"], body["code"], body["reason"]) == ("Status", 403, "Forbidden")


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        ("application/grpc", "application/grpc+json"),
        ("application/grpc+proto", "application/grpc+json"),
        ("application/grpc-web-text", "application/grpc-web+json"),
        ("application/grpc-web+proto", "application/grpc-web+json"),
    ],
)
def test_grpc_clients_get_a_grpc_status(sent, answered) -> None:
    response = desk(NOBODY).check(headers={"content-type": sent})
    headers = set_headers(response)
    assert headers["content-type"] == answered
    assert headers["grpc-status"] == "7"
    assert headers["grpc-message"] == "Forbidden"
    assert response.denied_response.body == ""


@pytest.mark.parametrize("policy", [U1, NOBODY])
def test_refused_robots_are_told_to_stay_away(policy) -> None:
    response = desk(policy).check(path="/robots.txt")
    assert status_of(response) == 200
    assert not is_allowed(response)
    assert response.denied_response.body == "User-agent: *\nDisallow: /\n"


def test_what_a_client_sends_is_escaped() -> None:
    response = desk().check(path="/%22%3E<script>alert(1)</script>")
    assert "<script>" not in response.denied_response.body
    page = desk(NOBODY).check(headers={"x-request-id": "<script>"}).denied_response.body
    assert "<script>" not in page


def test_r52_a_deny_rule_that_needs_the_user_sends_the_anonymous_to_sign_in() -> None:
    one = desk(policy_of("{allow: {or: [{accept: 1}]}, deny: {or: [{email: b@x.y}]}}"))
    assert status_of(one.check()) == 302
    assert is_allowed(one.check(headers=one.cookie("s1")))


# Our own pages


def test_own_pages_are_open_but_those_about_the_user() -> None:
    one = desk(NOBODY)
    for path in (
        "/.pomerium/",
        "/.pomerium/callback/",
        "/.well-known/pomerium",
        "/.pomerium/users",
    ):
        assert is_allowed(one.check(path=path, internal=True)), path
    assert status_of(one.check(path="/.pomerium/user", internal=True)) == 302
    assert is_allowed(one.check(path="/.pomerium/user", internal=True, headers=one.cookie("s1")))


def test_own_pages_get_an_assertion_when_there_is_somebody_to_assert() -> None:
    one = desk(pass_identity_headers=False)
    response = one.check(path="/.pomerium/", internal=True, headers=one.cookie("s1"))
    assert set_headers(response).keys() == {"x-pomerium-jwt-assertion"}
    assert not any(set_headers(one.check(path="/.pomerium/", internal=True)).values())


@pytest.mark.parametrize(
    "host", ["x" * 254, "a" * 50_000, "evil@app.example.com", "app.example.com:1:2", "a%2fb", ""]
)
def test_r56_r08_what_is_no_host_name_is_refused_and_remembered_nowhere(host) -> None:
    one = desk(NOBODY)
    assert status_of(one.check(path="/.pomerium/", internal=True, host=host)) == 400
    assert status_of(one.check(path="/", host=host)) == 400


def test_own_pages_take_handles_of_any_provider_in_use_and_of_no_other() -> None:
    one = Desk(resolved_settings(route(U1, idp=provider("idp-2"))))
    for idp_id, status in (("idp-1", 200), ("idp-2", 200), ("idp-9", 302)):
        headers = one.cookie("s1", idp_id=idp_id)
        assert (
            status_of(one.check(path="/.pomerium/user", internal=True, headers=headers)) == status
        )


def test_sign_in_from_own_pages_names_the_hosts_provider() -> None:
    one = Desk(resolved_settings(route(U1, idp=provider("idp-2"))))
    location = set_headers(one.check(path="/.pomerium/user", internal=True))["location"]
    assert parse_qs(urlsplit(location).query)["pomerium_idp_id"] == ["idp-2"]


def test_only_true_means_internal() -> None:
    one = desk(NOBODY)
    assert status_of(one.check(path="/.pomerium/")) == 403


# Configuration


def test_all_that_is_wrong_with_a_configuration_is_said_at_once() -> None:
    settings = resolved_settings(
        dataclasses.replace(route(U1), identity_provider=None),
        bearer_token_format="idp_access_token",
        authenticate_url="http://authenticate.example.com",
    )
    with pytest.raises(ConfigError) as caught:
        compile_plans(settings)
    assert {issue.key for issue in caught.value.issues} == {
        "authenticate_internal_service_url",
        "routes[0].bearer_token_format",
    }


def test_an_error_while_deciding_is_no_answer(monkeypatch) -> None:
    """The edge turns it into 503: see the integration test."""

    def broken(*_):
        raise ZeroDivisionError

    one = desk(PUBLIC)
    monkeypatch.setattr(CompiledPolicy, "evaluate", broken)
    with pytest.raises(ZeroDivisionError):
        one.check()
