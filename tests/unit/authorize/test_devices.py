"""Refusals that ask for a device, and refusals that explain themselves."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from gatehouse.common.jose.signed_url import verify_url
from tests.support.check import (
    SECRET,
    Desk,
    is_allowed,
    resolved_settings,
    route,
    set_headers,
    status_of,
)
from tests.support.policy import NOW_S, World, device_records, policy_of, session_record

NOBODY = policy_of("allow: {or: [{reject: true}]}")


def desk(policy, **keys) -> Desk:
    return Desk(resolved_settings(route(policy, **keys)))


APPROVED = policy_of("allow: {or: [{device: {approved: true}}]}")


def test_a_browser_without_a_device_is_sent_to_show_one() -> None:
    one = desk(APPROVED)
    response = one.check(headers=one.cookie("s1"), path="/a?b=c")
    assert status_of(response) == 302
    url = set_headers(response)["location"]
    verify_url(url, (SECRET,), now_s=NOW_S)
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.path) == (
        *("https", "app.example.com", "/.pomerium/webauthn"),
    )
    fields = parse_qs(parts.query)
    assert fields["pomerium_device_type"] == ["any"]
    assert fields["pomerium_redirect_uri"] == ["https://app.example.com/a?b=c"]
    assert "set-cookie" not in set_headers(response)


def test_programs_without_a_device_get_401() -> None:
    one = desk(APPROVED)
    headers = {**one.cookie("s1"), "accept": "application/json"}
    assert status_of(one.check(headers=headers)) == 401


def test_a_device_that_is_not_approved_is_450_and_one_that_is_gets_in() -> None:
    one = desk(APPROVED)
    assert status_of(one.check(headers=one.cookie("d1"))) == 450
    assert is_allowed(one.check(headers=one.cookie("d2")))


def test_r52_the_pages_that_show_a_device_are_not_sent_to_themselves() -> None:
    one = desk(APPROVED)
    for path in ("/.pomerium/webauthn", "/.pomerium/device-enrolled"):
        assert is_allowed(one.check(headers=one.cookie("s1"), path=path))
        assert is_allowed(one.check(headers=one.cookie("s1"), path=path, internal=True))
    denies = policy_of("{allow: {or: [{accept: true}]}, deny: {or: [{device: {is: dc1}}]}}")
    two = desk(denies)
    assert is_allowed(two.check(headers=two.cookie("s1"), path="/.pomerium/webauthn"))
    # The device is known and is another one: no need to show one again.
    assert status_of(two.check(headers=two.cookie("d1"))) == 403


def test_devices_are_those_of_the_impersonated_session() -> None:
    world = World(
        session_record("imp", "boss", impersonate="d"),
        session_record("d", "u1", devices={"any": "dc"}),
        *device_records("dc", approved_by="boss"),
    )
    one = Desk(resolved_settings(route(APPROVED)), world)
    assert is_allowed(one.check(headers=one.cookie("imp")))


def test_a_device_record_that_is_gone_is_no_device() -> None:
    world = World(session_record("d", "u1", devices={"any": "gone", "other": ""}))
    one = Desk(resolved_settings(route(APPROVED)), world)
    assert status_of(one.check(headers=one.cookie("d"))) == 302


# Refusals that explain themselves


def test_details_are_shown_only_where_the_route_says_so() -> None:
    sub = {
        "name": "Staff",
        "allowed_domains": ["staff.example"],
        "explanation": "Only staff <b>may</b> see this.",
        "remediation": "Ask in #access.",
    }
    page = desk(NOBODY, sub_policies=[sub], show_error_details=True)
    body = page.check(headers=page.cookie("s1")).denied_response.body
    assert "Staff: Only staff &lt;b&gt;may&lt;/b&gt; see this. Ask in #access." in body
    assert "Reasons: reject." in body
    silent = desk(NOBODY, sub_policies=[sub])
    body = silent.check(headers=silent.cookie("s1")).denied_response.body
    assert "Only staff" not in body
    assert "reject" not in body
