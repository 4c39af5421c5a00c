"""Worked examples of our own, beside those of the specification: corners, one to a row."""

from __future__ import annotations

from typing import Any

import pytest

from gatehouse.authorize.core.check_request import MCPRequest, SSHLogin
from gatehouse.authorize.core.explain import outcome_name
from gatehouse.common.policy.ast import Policy
from gatehouse.common.policy.legacy import SubPolicy, route_policy
from tests.support.policy import evaluate, example_identity, policy_of, request_facts

MISSING = {"certificate_valid": False}
INVALID = {"certificate_valid": False, "certificate_presented": True}
CALL = {"mcp": MCPRequest("tools/call", "drop")}
POST = {"method": "POST"}
UNLESS_AT_EIGHT = """
allow: {{or: [{{accept: 1}}]}}
deny: {{or: [{{time_of_day: {{timezone: {}, after: "8:00", before: "9:00"}}}}]}}
"""

# policy, who, request, allow and deny ("+" true or "-" false, then the reasons), outcome
ROWS: tuple[tuple[str | Policy, str, dict[str, Any], str, str, str], ...] = (
    # Empty forms add nothing
    ("[]", "s1", {}, "-", "-", "denied 403"),
    ("{allow: {}, deny: {}}", "s1", {}, "-", "-", "denied 403"),
    ("allow: {and: [], or: [], not: [], nor: []}", "s1", {}, "-", "-", "denied 403"),
    ("[{allow: {and: []}}, {allow: {or: [{accept: 1}]}}]", "nobody", {}, "+accept", "-", "allowed"),
    ("{allow: {or: [{accept: 1}], action: deny}}", "nobody", {}, "+accept", "-", "allowed"),
    # Operators: one criterion
    ("allow: {and: [{accept: 0}]}", "nobody", {}, "+accept", "-", "allowed"),
    ("allow: {or: [{reject: 0}]}", "nobody", {}, "-reject", "-", "denied 403"),
    ("allow: {not: [{accept: 1}]}", "nobody", {}, "-accept", "-", "denied 403"),
    ("allow: {not: [{reject: 1}]}", "nobody", {}, "+reject", "-", "allowed"),
    ("allow: {nor: [{accept: 1}]}", "nobody", {}, "-accept", "-", "denied 403"),
    ("allow: {nor: [{reject: 1}]}", "nobody", {}, "+reject", "-", "allowed"),
    # Operators: which reasons are told
    ("allow: {and: [{accept: 1}, {reject: 1}]}", "nobody", {}, "-reject", "-", "denied 403"),
    ("allow: {or: [{accept: 1}, {reject: 1}]}", "nobody", {}, "+accept", "-", "allowed"),
    ("allow: {not: [{accept: 1}, {reject: 1}]}", "nobody", {}, "-accept", "-", "denied 403"),
    ("allow: {nor: [{accept: 1}, {reject: 1}]}", "nobody", {}, "+reject", "-", "allowed"),
    (
        "allow: {nor: [{accept: 1}, {http_method: GET}]}",
        *("nobody", {}, "-accept http-method-ok", "-", "denied 403"),
    ),
    (
        "allow: {not: [{reject: 1}, {http_method: POST}]}",
        *("nobody", {}, "+http-method-unauthorized reject", "-", "allowed"),
    ),
    # Alternatives within one action
    (
        "allow: {and: [{reject: 1}], not: [{http_method: POST}]}",
        *("nobody", {}, "+http-method-unauthorized", "-", "allowed"),
    ),
    (
        "[{allow: {or: [{user: u1}]}}, {allow: {or: [{groups: g1}]}}]",
        *("s1", {}, "+groups-ok user-ok", "-", "allowed"),
    ),
    (
        "[{allow: {or: [{reject: 1}]}}, {allow: {nor: [{accept: 1}]}}]",
        *("s1", {}, "-accept reject", "-", "denied 403"),
    ),
    (
        "{allow: {or: [{accept: 1}]}, deny: {and: [{reject: 1}], or: [{http_method: GET}]}}",
        *("nobody", {}, "+accept", "+http-method-ok", "denied 403"),
    ),
    (
        "[{deny: {or: [{reject: 1}]}}, {allow: {or: [{accept: 1}]}}, {deny: {not: [{reject: 1}]}}]",
        *("nobody", {}, "+accept", "+reject", "denied 403"),
    ),
    # Sign-in before everything but certificates
    (
        "{allow: {or: [{accept: 1}]}, deny: {not: [{user: u1}]}}",
        *("nobody", {}, "+accept", "+user-unauthenticated", "sign-in"),
    ),
    (
        "{allow: {or: [{accept: 1}]}, deny: {not: [{user: u1}]}}",
        *("s1", {}, "+accept", "-user-ok", "allowed"),
    ),
    (
        "{allow: {or: [{accept: 1}]}, deny: {not: [{user: u1}]}}",
        *("s3", {}, "+accept", "+user-unauthorized", "denied 403"),
    ),
    (
        "{allow: {or: [{accept: 1}, {user: u1}]}}",
        *("nobody", {}, "+accept", "-", "allowed"),
    ),
    (
        "{allow: {or: [{accept: 1}]}, deny: {or: [{source_ip: 10.0.0.0/8}, {user: u9}]}}",
        *("nobody", {}, "+accept", "+source-ip-ok", "denied 403"),
    ),
    (
        "{allow: {or: [{accept: 1}]}, deny: {and: [{source_ip: 10.0.0.0/8}, {user: u9}]}}",
        *("nobody", {}, "+accept", "-user-unauthenticated", "sign-in"),
    ),
    (
        "{allow: {or: [{accept: 1}]}, deny: {and: [{source_ip: 11.0.0.0/8}, {reject: 1}]}}",
        *("nobody", {}, "+accept", "-reject source-ip-unauthorized", "allowed"),
    ),
    # Certificates before everything
    (
        "{allow: {or: [{user: u1}]}, deny: {or: [{invalid_client_certificate: 1}, {user: u1}]}}",
        *("nobody", MISSING, "-user-unauthenticated", "+client-certificate-required"),
        "denied 495",
    ),
    (
        "{allow: {or: [{user: u1}]}, deny: {or: [{invalid_client_certificate: 1}, {user: u1}]}}",
        *("s1", INVALID, "+user-ok", "+invalid-client-certificate user-ok", "denied 495"),
    ),
    (
        "{allow: {or: [{accept: 1}]}, deny: {or: [{invalid_client_certificate: 1}]}}",
        *("nobody", {}, "+accept", "-valid-client-certificate", "allowed"),
    ),
    (
        "allow: {not: [{invalid_client_certificate: 1}]}",
        *("nobody", {}, "+valid-client-certificate", "-", "allowed"),
    ),
    (
        "allow: {not: [{invalid_client_certificate: 1}]}",
        *("nobody", MISSING, "-client-certificate-required", "-", "denied 495"),
    ),
    (
        "allow: {or: [{invalid_client_certificate: 1}]}",
        *("nobody", MISSING, "+client-certificate-required", "-", "allowed"),
    ),
    # ... but for a device that is not known yet, among what decides
    (
        """
        - allow: {or: [{accept: 1}]}
        - deny: {or: [{invalid_client_certificate: 1}], not: [{device: {type: enclave_only}}]}
        """,
        *("s1", MISSING, "+accept", "+client-certificate-required device-unauthenticated"),
        "device enclave_only",
    ),
    (
        """
        - allow: {or: [{device: {approved: true}}]}
        - deny: {or: [{invalid_client_certificate: 1}]}
        """,
        *("s1", MISSING, "-device-unauthenticated", "+client-certificate-required", "denied 495"),
    ),
    (
        """
        - allow: {or: [{accept: 1}]}
        - deny: {or: [{invalid_client_certificate: 1}], not: [{device: {approved: true}}]}
        """,
        *("d1", MISSING, "+accept", "+client-certificate-required device-unauthorized"),
        "denied 450",
    ),
    (
        """
        - allow: {or: [{accept: 1}]}
        - deny: {or: [{invalid_client_certificate: 1}], not: [{device: {approved: true}}]}
        """,
        *("nobody", MISSING, "+accept", "+client-certificate-required user-unauthenticated"),
        "denied 495",
    ),
    # Devices
    (
        "{allow: {or: [{accept: 1}]}, deny: {not: [{device: {approved: true}}]}}",
        *("s1", {}, "+accept", "+device-unauthenticated", "device any"),
    ),
    (
        "{allow: {or: [{accept: 1}]}, deny: {not: [{device: {approved: true}}]}}",
        *("d1", {}, "+accept", "+device-unauthorized", "denied 450"),
    ),
    (
        "{allow: {or: [{accept: 1}]}, deny: {not: [{device: {approved: true}}]}}",
        *("d2", {}, "+accept", "-device-ok", "allowed"),
    ),
    (
        "allow: {or: [{device: {type: enclave_only}}]}",
        *("d2", {}, "-device-unauthenticated", "-", "device enclave_only"),
    ),
    (
        "allow: {or: [{device: {type: enclave_only}}]}",
        *("nobody", {}, "-user-unauthenticated", "-", "sign-in"),
    ),
    (
        "allow: {or: [{device: {type: any, approved: false}}]}",
        *("d1", {}, "+device-ok", "-", "allowed"),
    ),
    (
        "allow: {or: [{device: {approved: []}}]}",
        *("d1", {}, "-device-unauthorized", "-", "denied 450"),
    ),
    (
        "allow: {and: [{device: {approved: true}}, {user: u9}]}",
        *("d1", {}, "-device-unauthorized user-unauthorized", "-", "denied 450"),
    ),
    (
        "allow: {or: [{device: {is: dc2, approved: true}}]}",
        *("d2", {}, "+device-ok", "-", "allowed"),
    ),
    # Who asks
    (
        "allow: {or: [{user: {not_in: [u9]}}]}",
        *("s2", {}, "-user-unauthorized", "-", "denied 403"),
    ),
    ("allow: {or: [{user: {not: u9}}]}", "s1", {}, "+user-ok", "-", "allowed"),
    ("allow: {or: [{user: {}}]}", "s2", {}, "-user-unauthorized", "-", "denied 403"),
    ("allow: {or: [{email: a@example.com}]}", "imp", {}, "+email-ok", "-", "allowed"),
    ("allow: {or: [{email: a@example.com}]}", "sa1", {}, "+email-ok", "-", "allowed"),
    ("allow: {or: [{groups: g2}]}", "sa1", {}, "+groups-ok", "-", "allowed"),
    ("allow: {or: [{claim/dept: user}]}", "sa1", {}, "+claim-ok", "-", "allowed"),
    (
        "allow: {or: [{claim/roles: a}]}",
        *("sa1", {}, "-claim-unauthorized", "-", "denied 403"),
    ),
    ("allow: {or: [{groups: {}}]}", "s3", {}, "-groups-unauthorized", "-", "denied 403"),
    ("allow: {or: [{groups: {}}]}", "s4", {}, "+groups-ok", "-", "allowed"),
    (
        "allow: {or: [{groups: {has: g1, exclude: g2}}]}",
        *("s1", {}, "-groups-unauthorized", "-", "denied 403"),
    ),
    ("allow: {or: [{claim/level: 7.0}]}", "s1", {}, "+claim-ok", "-", "allowed"),
    ("allow: {or: [{claim/admin: 'true'}]}", "s1", {}, "-claim-unauthorized", "-", "denied 403"),
    ("allow: {or: [{claim/family_name: {is: Smith}}]}", "s1", {}, "+claim-ok", "-", "allowed"),
    ("allow: {or: [{domain: {ends_with: .com}}]}", "s1", {}, "+domain-ok", "-", "allowed"),
    ("allow: {or: [{domain: EXAMPLE.com}]}", "s1", {}, "-domain-unauthorized", "-", "denied 403"),
    ("allow: {or: [{email: {contains: '@'}}]}", "s3", {}, "-email-unauthorized", "-", "denied 403"),
    # The request
    ("allow: {or: [{http_method: POST}]}", "nobody", POST, "+http-method-ok", "-", "allowed"),
    (
        "allow: {or: [{http_method: [GET, POST]}]}",
        *("nobody", {}, "-http-method-unauthorized", "-", "denied 403"),
    ),
    (
        "allow: {or: [{http_path: {starts_with: /a, not: /a/b}}]}",
        *("nobody", {"path": "/a/b"}, "-http-path-unauthorized", "-", "denied 403"),
    ),
    (
        "allow: {or: [{http_path: {starts_with: /a, not: /a/b}}]}",
        *("nobody", {"path": "/a/b/"}, "+http-path-ok", "-", "allowed"),
    ),
    (
        "allow: {or: [{source_ip: '::ffff:10.0.0.0/104'}]}",
        *("nobody", {}, "+source-ip-ok", "-", "allowed"),
    ),
    (
        "allow: {or: [{source_ip: 10.1.2.3/8}]}",
        *("nobody", {"ip": "10.255.0.1"}, "+source-ip-ok", "-", "allowed"),
    ),
    (
        "allow: {or: [{source_ip: '::/0'}]}",
        *("nobody", {}, "-source-ip-unauthorized", "-", "denied 403"),
    ),
    (
        "allow: {or: [{cors_preflight: false}]}",
        *("nobody", {"method": "OPTIONS", "headers": {"origin": "https://o.example"}}),
        *("-non-cors-request", "-", "denied 403"),
    ),
    # The clock stands at 2027-01-15T08:00:00Z, a Friday
    ("allow: {or: [{day_of_week: fri-mon}]}", "nobody", {}, "+day-of-week-ok", "-", "allowed"),
    ("allow: {or: [{date: {after: 2027-01-15}}]}", "nobody", {}, "+date-ok", "-", "allowed"),
    (
        UNLESS_AT_EIGHT.format("UTC"),
        *("nobody", {}, "+accept", "+time-of-day-ok", "denied 403"),
    ),
    (
        UNLESS_AT_EIGHT.format("Asia/Tokyo"),
        *("nobody", {}, "+accept", "-time-of-day-unauthorized", "allowed"),
    ),
    # MCP and SSH, whatever they come over
    (
        "{allow: {or: [{accept: 1}]}, deny: {or: [{mcp_tool: {not_in: [q]}}]}}",
        *("nobody", CALL, "+accept", "+mcp-tool-match", "denied 403"),
    ),
    (
        "allow: {or: [{mcp_tool: q}]}",
        *("nobody", CALL, "-mcp-tool-no-match", "-", "denied 403"),
    ),
    (
        "allow: {or: [{ssh_username: root}]}",
        *("nobody", {"ssh": SSHLogin("root", b"")}, "+ssh-username-ok", "-", "allowed"),
    ),
    (
        "allow: {and: [{ssh_username_matches_email: 1}]}",
        *("s1", {}, "-ssh-username-unauthorized", "-", "denied 403"),
    ),
    # The older keys and policies from outside
    (
        route_policy(
            allowed_domains=["x.y"],
            sub_policies=[SubPolicy(allowed_users=["u1"])],
        ),
        *("s1", {}, "+user-ok", "-", "allowed"),
    ),
    (
        route_policy(
            allow_public_unauthenticated_access=True,
            sub_policies=[SubPolicy(policy=policy_of("deny: {or: [{source_ip: 10.0.0.0/8}]}"))],
        ),
        *("nobody", {}, "+accept", "+source-ip-ok", "denied 403"),
    ),
    (
        route_policy(allowed_idp_claims={"org": {"team": ["x", "core"]}}),
        *("s1", {}, "+claim-ok", "-", "allowed"),
    ),
    (
        route_policy(cors_allow_preflight=True, allow_any_authenticated_user=True),
        *("nobody", {}, "-non-cors-request user-unauthenticated", "-", "sign-in"),
    ),
    (route_policy(), "s1", {}, "-", "-", "denied 403"),
)


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_further_example(number: int) -> None:
    policy, who, changes, allow, deny, expected = ROWS[number]
    evaluation, outcome = evaluate(policy, example_identity(who), request_facts(**changes))
    device = f" {outcome.device_type}" if hasattr(outcome, "device_type") else ""
    found = [
        ("+" if verdict.value else "-") + " ".join(sorted(verdict.reasons))
        for verdict in (evaluation.allow, evaluation.deny)
    ]
    assert (*found, outcome_name(outcome) + device) == (allow, deny, expected)
