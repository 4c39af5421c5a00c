"""Refusals that ask for a device, and refusals that explain themselves."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from gatehouse.common.jose.signed_url import verify_url
from gatehouse.pb.databroker_pb2 import Record
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


CREDENTIAL, ENROLLMENT = device_records("dc", approved_by="boss")
MATCHERS = ("approved: true", "is: dc", "type: any")


@pytest.mark.parametrize("matcher", MATCHERS)
def test_r46_only_a_device_that_this_session_has_proven_counts(matcher: str) -> None:
    """Not one of the user's other sessions, not an attempt that failed, not one taken away."""
    policy = policy_of(f"allow: {{or: [{{device: {{{matcher}}}}}]}}")

    def allowed(*records: Record, devices: dict[str, str] | None = None) -> bool:
        world = World(session_record("s", "u1", devices=devices or {}), *records)
        one = Desk(resolved_settings(route(policy)), world)
        return is_allowed(one.check(headers=one.cookie("s")))

    both = (CREDENTIAL, ENROLLMENT)
    assert allowed(*both, devices={"any": "dc"})
    elsewhere = session_record("other", "u1", devices={"any": "dc"})
    assert not allowed(*both, elsewhere)
    assert not allowed(*both, devices={"any": ""})  # tried, and could not prove one
    assert not allowed(*both, devices={"enclave_only": "dc"})  # proven as another type
    assert not allowed(ENROLLMENT, devices={"any": "dc"})  # the credential was taken away
    assert not allowed(devices={"any": "dc"})


def test_r46_an_approval_that_was_taken_away_counts_no_more() -> None:
    for records in ((CREDENTIAL,), device_records("dc")):
        world = World(session_record("s", "u1", devices={"any": "dc"}), *records)
        one = Desk(resolved_settings(route(APPROVED)), world)
        assert not is_allowed(one.check(headers=one.cookie("s")))


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


@pytest.mark.parametrize(
    ("source", "is_told"),
    [
        ("allow: {or: [{email: a@example.com}]}", False),  # it lets her in; another refuses
        ("allow: {or: [{email: bob@example.com}]}", True),
        ("deny: {or: [{http_method: GET}]}", True),
        ("deny: {or: [{http_method: POST}]}", False),
        ("{allow: {or: [{accept: true}]}, deny: {or: [{email: a@example.com}]}}", True),
    ],
)
def test_only_the_attached_policy_that_refuses_explains_itself(source: str, is_told: bool) -> None:
    sub = {"name": "Attached", "source_ppl": source, "explanation": "Because of this one."}
    refuses = policy_of("deny: {or: [{accept: true}]}")
    page = desk(refuses, sub_policies=[sub], show_error_details=True)
    body = page.check(headers=page.cookie("s1")).denied_response.body
    assert ("Attached: Because of this one." in body) is is_told
