"""The worked examples of the policy specification, row by row."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from gatehouse.authorize.core.check_request import MCPRequest, SSHLogin
from gatehouse.authorize.core.evaluator import Allow, Deny, EnrolDevice, SignIn
from gatehouse.common.policy.ast import Policy
from gatehouse.common.policy.legacy import route_policy, with_client_certificate_rule
from tests.support.policy import evaluate, example_identity, policy_of, request_facts

ALLOWED, LOGIN = "allowed", "login"

NO_CERTIFICATE = {"certificate_valid": False}
PREFLIGHT = {
    "method": "OPTIONS",
    "headers": {"origin": "https://o.example", "access-control-request-method": "PUT"},
}

AUTHENTICATED = "allow: {or: [{authenticated_user: true}]}"
IN_DOMAIN = "allow: {and: [{domain: example.com}]}"
NOT_EVIL = "allow: {and: [{domain: {not: evil.com}}]}"
NOT_G9 = "allow: {or: [{groups: {exclude: g9}}]}"
NOT_AUTHENTICATED = "allow: {not: [{authenticated_user: true}]}"
CORS = "allow: {or: [{cors_preflight: true}, {authenticated_user: true}]}"

APPROVED = "allow: {or: [{device: {approved: true}}]}"

# row, policy, who, request, allow, its reasons, deny, its reasons, outcome
ROWS = [
    (1, "allow: {or: [{accept: true}]}", "nobody", {}, True, "accept", False, "", ALLOWED),
    (2, "allow: {and: [{reject: true}]}", "nobody", {}, False, "reject", False, "", 403),
    (3, "{}", "s1", {}, False, "", False, "", 403),
    (4, "deny: {or: [{accept: true}]}", "s1", {}, False, "", True, "accept", 403),
    (5, AUTHENTICATED, "nobody", {}, False, "user-unauthenticated", False, "", LOGIN),
    (6, AUTHENTICATED, "s1", {}, True, "user-ok", False, "", ALLOWED),
    (7, AUTHENTICATED, "s2", {}, False, "user-unauthorized", False, "", 403),
    (8, IN_DOMAIN, "s1", {}, True, "domain-ok", False, "", ALLOWED),
    (9, IN_DOMAIN, "s4", {}, False, "domain-unauthorized", False, "", 403),
    (10, NOT_EVIL, "nobody", {}, False, "user-unauthenticated", False, "", LOGIN),
    (11, NOT_EVIL, "s3", {}, False, "domain-unauthorized", False, "", 403),
    (
        12,
        "allow: {or: [{email: {not: b@x.y}}]}",
        "nobody",
        {},
        True,
        "email-ok",
        False,
        "",
        ALLOWED,
    ),
    (
        *(13, "allow: {or: [{email: A@example.com}]}", "s1", {}),
        *(False, "email-unauthorized", False, "", 403),
    ),
    (
        *(14, "allow: {or: [{email: {starts_with: a@, ends_with: .com}}]}", "s1", {}),
        *(True, "email-ok", False, "", ALLOWED),
    ),
    (
        *(15, "allow: {or: [{email: {in: [a@example.com, c@d.e]}}]}", "s1", {}),
        *(True, "email-ok", False, "", ALLOWED),
    ),
    (16, "allow: {or: [{user: u1}]}", "imp", {}, True, "user-ok", False, "", ALLOWED),
    (17, "allow: {or: [{user: boss}]}", "imp", {}, False, "user-unauthorized", False, "", 403),
    (18, "allow: {or: [{user: u1}]}", "impx", {}, False, "user-unauthenticated", False, "", LOGIN),
    (19, "allow: {or: [{user: u1}]}", "sa1", {}, True, "user-ok", False, "", ALLOWED),
    (
        *(20, "allow: {or: [{claim/family_name: Smith}]}", "s1", {}),
        *(True, "claim-ok", False, "", ALLOWED),
    ),
    (
        *(21, "allow: {or: [{claim/family_name: smith}]}", "s1", {}),
        *(False, "claim-unauthorized", False, "", 403),
    ),
    (
        *(22, "allow: {or: [{claim/level: '7'}]}", "s1", {}),
        *(False, "claim-unauthorized", False, "", 403),
    ),
    (
        *(23, "allow: {or: [{claim/dept: sess}]}", "s1", {}),
        *(False, "claim-unauthorized", False, "", 403),
    ),
    (
        *(24, "allow: {and: [{claim/org.team: core}, {claim/admin: true}]}", "s1", {}),
        *(True, "claim-ok", False, "", ALLOWED),
    ),
    (
        *(25, "allow: {or: [{claim/org/team: core}]}", "s1", {}),
        *(False, "claim-unauthorized", False, "", 403),
    ),
    (
        *(26, "allow: {or: [{claim/roles: [a, b]}]}", "s1", {}),
        *(False, "claim-unauthorized", False, "", 403),
    ),
    (
        *(27, "allow: {or: [{claim/roles: {is: a}}]}", "s1", {}),
        *(False, "claim-unauthorized", False, "", 403),
    ),
    (
        *(28, "allow: {or: [{claim/roles: {exclude: c}}]}", "nobody", {}),
        *(True, "claim-ok", False, "", ALLOWED),
    ),
    (29, "allow: {or: [{groups: g1}]}", "s1", {}, True, "groups-ok", False, "", ALLOWED),
    (30, NOT_G9, "s3", {}, False, "groups-unauthorized", False, "", 403),
    (31, NOT_G9, "s4", {}, True, "groups-ok", False, "", ALLOWED),
    (
        *(32, "allow: {and: [{domain: other.com}, {http_method: POST}]}", "s1", {}),
        *(False, "domain-unauthorized http-method-unauthorized", False, "", 403),
    ),
    (
        *(33, "allow: {and: [{domain: other.com}], or: [{http_method: GET}]}", "s1", {}),
        *(True, "http-method-ok", False, "", ALLOWED),
    ),
    (
        34,
        "[{allow: {or: [{domain: other.com}]}}, {allow: {or: [{email: z@z.z}]}}]",
        *("s1", {}, False, "domain-unauthorized email-unauthorized", False, "", 403),
    ),
    (
        *(35, "allow: {not: [{domain: other.com}, {email: z@z.z}]}", "s1", {}),
        *(True, "domain-unauthorized email-unauthorized", False, "", ALLOWED),
    ),
    (
        *(36, "allow: {not: [{domain: example.com}, {email: z@z.z}]}", "s1", {}),
        *(False, "domain-ok", False, "", 403),
    ),
    (
        *(37, "allow: {nor: [{domain: example.com}, {email: z@z.z}]}", "s1", {}),
        *(True, "email-unauthorized", False, "", ALLOWED),
    ),
    (38, NOT_AUTHENTICATED, "nobody", {}, True, "user-unauthenticated", False, "", LOGIN),
    (39, NOT_AUTHENTICATED, "s1", {}, False, "user-ok", False, "", 403),
    (
        *(40, "{allow: {or: [{domain: example.com}]}, deny: {or: [{user: u1}]}}", "s1", {}),
        *(True, "domain-ok", True, "user-ok", 403),
    ),
    (
        *(41, "{allow: {or: [{accept: true}]}, deny: {or: [{email: b@x.y}]}}", "nobody", {}),
        *(True, "accept", False, "user-unauthenticated", LOGIN),
    ),
    (
        *(
            42,
            "{allow: {or: [{accept: true}]}, deny: {or: [{source_ip: 10.0.0.0/8}]}}",
            "nobody",
            {},
        ),
        *(True, "accept", True, "source-ip-ok", 403),
    ),
    (
        43,
        "{allow: {or: [{domain: example.com}]}, deny: {or: [{source_ip: 10.0.0.0/8}]}}",
        *("nobody", {}, False, "user-unauthenticated", True, "source-ip-ok", LOGIN),
    ),
    (
        44,
        (
            "{allow: {or: [{domain: example.com}]},"
            " deny: {not: [{source_ip: [192.168.0.0/16, 10.1.2.3]}]}}"
        ),
        *("s1", {}, True, "domain-ok", False, "source-ip-ok", ALLOWED),
    ),
    (
        *(45, "allow: {and: [{source_ip: 192.168.0.0/16}, {domain: example.com}]}", "nobody", {}),
        *(False, "source-ip-unauthorized user-unauthenticated", False, "", LOGIN),
    ),
    (
        *(46, "allow: {or: [{source_ip: 10.0.0.0/8}]}", "nobody", {"ip": ""}),
        *(False, "source-ip-unauthorized", False, "", 403),
    ),
    (
        *(47, "allow: {or: [{http_path: {starts_with: /api/}}]}", "nobody", {"path": "/API/x"}),
        *(False, "http-path-unauthorized", False, "", 403),
    ),
    (
        *(48, "allow: {or: [{http_method: {not_in: [POST, PUT]}}]}", "nobody", {}),
        *(True, "http-method-ok", False, "", ALLOWED),
    ),
    (49, CORS, "nobody", PREFLIGHT, True, "cors-request", False, "", ALLOWED),
    (
        *(50, CORS, "nobody", {"method": "OPTIONS", "headers": {"origin": "https://o.example"}}),
        *(False, "non-cors-request user-unauthenticated", False, "", LOGIN),
    ),
    (
        51,
        (
            "{allow: {or: [{authenticated_user: true}]},"
            " deny: {or: [{invalid_client_certificate: true}]}}"
        ),
        *("nobody", NO_CERTIFICATE),
        *(False, "user-unauthenticated", True, "client-certificate-required", 495),
    ),
    (
        52,
        "{allow: {or: [{accept: true}]}, deny: {or: [{invalid_client_certificate: true}]}}",
        *("nobody", {"certificate_valid": False, "certificate_presented": True}),
        *(True, "accept", True, "invalid-client-certificate", 495),
    ),
    (
        53,
        "{allow: {or: [{accept: true}]}, deny: {not: [{invalid_client_certificate: true}]}}",
        *("nobody", NO_CERTIFICATE, True, "accept", False, "client-certificate-required", 495),
    ),
    (
        54,
        (
            "{allow: {or: [{accept: true}]},"
            " deny: {and: [{invalid_client_certificate: true}, {http_path: /x}]}}"
        ),
        *("nobody", NO_CERTIFICATE, True, "accept", False, "http-path-unauthorized", ALLOWED),
    ),
    (
        *(55, APPROVED, "nobody", {}),
        *(False, "user-unauthenticated", False, "", LOGIN),
    ),
    (*(56, APPROVED, "s1", {}), *(False, "device-unauthenticated", False, "", "device any")),
    (*(57, APPROVED, "d1", {}), *(False, "device-unauthorized", False, "", 450)),
    (*(58, APPROVED, "d2", {}), *(True, "device-ok", False, "", ALLOWED)),
    (
        *(59, "allow: {or: [{device: {approved: false}}]}", "nobody", {}),
        *(True, "device-ok", False, "", ALLOWED),
    ),
    (
        *(60, "allow: {or: [{device: {is: dc2}}]}", "d1", {}),
        *(False, "device-unauthorized", False, "", 450),
    ),
    (
        *(61, "allow: {and: [{device: {type: any}}, {device: {type: enclave_only}}]}", "s1", {}),
        *(False, "device-unauthenticated", False, "", "device enclave_only"),
    ),
    # What an MCP client is told instead of a bare 403 is a matter of MCP routes.
    (
        *(62, "{allow: {or: [{accept: true}]}, deny: {or: [{mcp_tool: drop}]}}", "nobody"),
        *({"mcp": MCPRequest("tools/call", "drop")}, True, "accept", True, "mcp-tool-match", 403),
    ),
    (
        *(63, "{allow: {or: [{accept: true}]}, deny: {or: [{mcp_tool: {not_in: [q]}}]}}"),
        *("nobody", {"mcp": MCPRequest("tools/list")}),
        *(True, "accept", False, "mcp-not-a-tool-call", ALLOWED),
    ),
    (
        *(64, "allow: {or: [{mcp_tool: q}]}", "nobody", {}),
        *(False, "mcp-not-a-tool-call", False, "", 403),
    ),
    (
        *(65, "allow: {and: [{ssh_username_matches_email: true}]}", "s1"),
        *({"ssh": SSHLogin("a", b"")}, True, "ssh-username-ok", False, "", ALLOWED),
    ),
    (
        *(66, "allow: {and: [{ssh_username_matches_email: true}]}", "nobody", {}),
        *(True, "ssh-username-ok", False, "", ALLOWED),
    ),
    (
        *(67, "allow: {and: [{ssh_username_matches_claim: roles}]}", "s1"),
        *({"ssh": SSHLogin("b", b"")}, True, "ssh-username-ok", False, "", ALLOWED),
    ),
    (
        *(68, "allow: {and: [{ssh_username: {in: [root, ubuntu]}}]}", "nobody"),
        *({"ssh": SSHLogin("Root", b"")}, False, "ssh-username-unauthorized", False, "", 403),
    ),
    (
        69,
        route_policy(allowed_users=["u1"]),
        *("s1", {}, True, "user-ok", False, "", ALLOWED),
    ),
    (
        70,
        route_policy(allowed_users=["b@x.y"]),
        *("s1", {}, False, "email-unauthorized user-unauthorized", False, "", 403),
    ),
    (
        71,
        route_policy(
            allow_any_authenticated_user=True,
            embedded=policy_of("deny: {or: [{domain: example.com}]}"),
        ),
        *("s1", {}, True, "user-ok", True, "domain-ok", 403),
    ),
    (
        72,
        with_client_certificate_rule(route_policy(allow_public_unauthenticated_access=True)),
        *("nobody", NO_CERTIFICATE, True, "accept", True, "client-certificate-required", 495),
    ),
    (
        73,
        "allow: {or: [{client_certificate: {san_email: {ends_with: '@x.y'}}}]}",
        *("nobody", "certificate", True, "client-certificate-ok", False, "", ALLOWED),
    ),
    (
        *(74, "allow: {or: [{client_certificate: {}}]}", "nobody", {}),
        *(False, "client-certificate-unauthorized", False, "", 403),
    ),
]


def test_every_row_is_here() -> None:
    assert [row[0] for row in ROWS] == list(range(1, 75))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"row{row[0]}")
def test_worked_example(row: tuple[Any, ...]) -> None:
    _, policy, who, changes, allow, allow_reasons, deny, deny_reasons, expected = row
    if changes == "certificate":
        changes = {"certificate_presented": True, "certificate_chain": _certificate()}

    evaluation, outcome = evaluate(policy, example_identity(who), request_facts(**changes))

    assert (evaluation.allow.value, evaluation.allow.reasons) == (
        allow,
        frozenset(allow_reasons.split()),
    )
    assert (evaluation.deny.value, evaluation.deny.reasons) == (
        deny,
        frozenset(deny_reasons.split()),
    )
    if expected == ALLOWED:
        assert isinstance(outcome, Allow)
    elif expected == LOGIN:
        assert isinstance(outcome, SignIn)
    elif isinstance(expected, str):
        assert isinstance(outcome, EnrolDevice)
        assert f"device {outcome.device_type}" == expected
    else:
        assert isinstance(outcome, Deny)
        assert outcome.status == expected


def test_device_criteria_say_which_device_even_without_a_session() -> None:
    evaluation, _ = evaluate(APPROVED, example_identity("nobody"), request_facts())
    assert evaluation.allow.device_type == "any"


def test_an_empty_policy_lets_nobody_in() -> None:
    _, outcome = evaluate(Policy(), example_identity("s1"), request_facts())
    assert isinstance(outcome, Deny)
    assert outcome.status == 403


def _certificate() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    names = [x509.RFC822Name("a@b.c"), x509.RFC822Name("d@x.y")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(key, SHA256())
    )
    return certificate.public_bytes(Encoding.PEM).decode()
