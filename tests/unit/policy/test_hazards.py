"""What `gatehouse check` warns about, and that it stays silent about what is well said."""

from __future__ import annotations

import pytest

from gatehouse.common.policy.hazards import hazards
from gatehouse.common.policy.legacy import route_policy, with_client_certificate_rule
from gatehouse.common.policy.parser import parse_policy
from tests.support.policy import policy_of


@pytest.mark.parametrize(
    ("policy", "place", "message"),
    [
        # [hazard] items of the language
        ("allow: {or: [{email: {not: b@x.y}}]}", "email", "route is open"),
        ("allow: {or: [{email: {not_in: [b@x.y]}}]}", "email", "route is open"),
        ("allow: {or: [{email: {}}]}", "email", "route is open"),
        ("allow: {or: [{email: ''}]}", "email", "route is open"),
        ("allow: {and: [{email: {starts_with: ''}}]}", "email", "route is open"),
        ("allow: {or: [{claim/roles: {exclude: c}}]}", "claim/roles", "route is open"),
        ("allow: {or: [{claim/roles: {}}]}", "claim/roles", "route is open"),
        ("deny: {or: [{email: {not: b@x.y}}]}", "email", "before they can sign in"),
        ("allow: {or: [{device: {approved: false}}]}", "device", "without any device"),
        ("allow: {or: [{device: {}}]}", "device", "true for everybody"),
        ("allow: {or: [{client_certificate: {}}]}", "client_certificate", "not whether it is"),
        # Operands that never match
        ("allow: {or: [{claim/roles: [a, b]}]}", "claim/roles", "as one element"),
        ("allow: {or: [{groups: {has: [a, b]}}]}", "groups", "as one element"),
        ("allow: {or: [{groups: {exclude: [a, b]}}]}", "groups", "true for everybody"),
        ("allow: {or: [{groups: 5}]}", "groups", "no text"),
        ("allow: {or: [{email: [a@x.y, b@x.y]}]}", "email", "whole list"),
        ("allow: {or: [{user: 5}]}", "user", "no text"),
        ("allow: {or: [{user: {in: []}}]}", "user", "never true"),
        ("allow: {or: [{user: {in: [1, a]}}]}", "user", "no text"),
        ("allow: {or: [{http_method: {in: [get]}}]}", "http_method", "upper case"),
        ("allow: {or: [{http_path: api}]}", "http_path", 'begins with "api"'),
        ("allow: {or: [{http_path: '/a?b=c'}]}", "http_path", "without the query"),
        ("allow: {or: [{http_path: '/a%20b'}]}", "http_path", "decoded"),
        ("allow: {or: [{source_ip: []}]}", "source_ip", "never true"),
        ("allow: {or: [{domain: '@example.com'}]}", "domain", "no @"),
        ("allow: {or: [{claim/org/team: core}]}", "claim/org/team", "nested claim"),
        ("allow: {or: [{claim: core}]}", "claim", "no claim is named"),
        ("allow: {or: [{claim/roles: {is: a}}]}", "claim/roles", "exactly this one"),
        (
            "allow: {or: [{client_certificate: {san_dns: {starts_with: a, ends_with: b}}}]}",
            *("client_certificate", "another name"),
        ),
        (
            "allow: {or: [{client_certificate: {san_dns: {not: a}}}]}",
            *("client_certificate", "one name differs"),
        ),
        (
            "allow: {or: [{client_certificate: {fingerprint: []}}]}",
            *("client_certificate", "no certificate"),
        ),
        ("allow: {or: [{mcp_tool: q}]}", "mcp_tool", "no MCP server"),
        ("deny: {or: [{ssh_username: root}]}", "ssh_username", "logins over SSH"),
        (
            "allow: {or: [{ssh_username_matches_email: true}]}",
            *("ssh_username_matches_email", "route is open"),
        ),
        # Operators and combinations
        ("allow: {not: [{authenticated_user: true}]}", "authenticated_user", "missing session"),
        (
            "{allow: {or: [{accept: true}]}, deny: {or: [{email: b@x.y}]}}",
            *("email", "everybody must sign in"),
        ),
    ],
)
def test_hazards_name_their_place(policy: str, place: str, message: str) -> None:
    found = hazards(policy_of(policy))
    told = [one for one in found if message in one.message]
    assert told, found
    assert told[0].path[-1] == place
    assert told[0].fix
    assert message in str(told[0])


def test_paths_lead_to_the_place_in_the_text() -> None:
    policy = parse_policy(
        [{"allow": {"or": [{"accept": True}]}}, {"deny": {"and": [{"source_ip": []}]}}]
    )
    (hazard,) = hazards(policy)
    assert hazard.path == (1, "deny", "and", 0, "source_ip")
    assert str(hazard).startswith("[1].deny.and[0].source_ip: an empty list ")


def test_a_hazard_names_its_criterion_once_wherever_it_stands() -> None:
    (placed,) = hazards(policy_of("allow: {or: [{claim/team/name: x}]}"))
    (without,) = hazards(route_policy(allowed_idp_claims={"team/name": ["x"]}))
    assert (placed.message, placed.fix) == (without.message, without.fix)
    assert (str(placed).count("claim/team/name"), str(without).count("claim/team/name")) == (1, 1)
    assert placed.path
    assert not without.path


def test_only_deny_rules_let_nobody_in() -> None:
    (hazard,) = hazards(policy_of("deny: {or: [{source_ip: 10.0.0.0/8}]}"))
    assert hazard.path == ()
    assert "nobody gets in" in hazard.message


@pytest.mark.parametrize(
    "policy",
    [
        "allow: {or: [{accept: true}]}",
        "allow: {or: [{email: {in: [a@x.y, b@x.y]}}]}",
        "allow: {or: [{domain: {not: evil.com}}]}",  # needs a domain, so a user
        "allow: {or: [{groups: {exclude: g9}}]}",  # needs a directory record
        "allow: {or: [{user: {not: u9}}]}",
        "allow: {and: [{authenticated_user: true}, {email: {not: b@x.y}}]}",
        "allow: {or: [{claim/org.team: core}, {claim/level: 7}]}",
        "allow: {or: [{device: {approved: true}}]}",
        "allow: {or: [{device: {approved: false, type: any}}]}",
        "{allow: {or: [{accept: true}]}, deny: {or: [{source_ip: 10.0.0.0/8}]}}",
        "allow: {or: [{http_path: {starts_with: /api/}}, {http_path: {ends_with: .css}}]}",
        "allow: {or: [{http_method: {in: [GET, PURGE]}}]}",
        """
        allow: {or: [{client_certificate: {san_dns: a}}]}
        deny: {or: [{invalid_client_certificate: true}]}
        """,
    ],
)
def test_good_policies_raise_no_warning(policy: str) -> None:
    assert hazards(policy_of(policy)) == ()


def test_the_default_certificate_rule_and_older_keys_count() -> None:
    certificates = policy_of("allow: {or: [{client_certificate: {san_dns: a}}]}")
    assert hazards(with_client_certificate_rule(certificates)) == ()
    assert hazards(route_policy(allowed_users=["a@x.y"], allowed_domains=["x.y"])) == ()
    assert hazards(route_policy()) == ()  # nothing is allowed, and nothing pretends to be
