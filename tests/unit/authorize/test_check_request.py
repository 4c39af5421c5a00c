"""Envoy's words as facts."""

from __future__ import annotations

import datetime as dt
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.authorize.core.check_request import ForwardedFor, read_check_request, split_host
from gatehouse.authorize.core.client_certificate import leaf_facts
from tests.support.check import Desk, check_request, is_allowed, resolved_settings, route
from tests.support.policy import NOW_S, policy_of


def certificate() -> tuple[str, str]:
    """PEM and fingerprint of a certificate with a name."""
    key = ec.generate_private_key(ec.SECP256R1())
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("az.example"), x509.DNSName("za.example"), x509.DNSName("a,b")]
            ),
            critical=True,
        )
        .sign(key, SHA256())
    )
    der = made.public_bytes(Encoding.DER)
    return made.public_bytes(Encoding.PEM).decode(), hashlib.sha256(der).hexdigest()


@pytest.mark.parametrize(
    ("authority", "scheme", "host", "name"),
    [
        ("a.example", "https", "a.example", "a.example"),
        ("A.Example.:443", "https", "a.example", "a.example"),
        ("a.example:80", "http", "a.example", "a.example"),
        ("a.example:80", "https", "a.example:80", "a.example"),
        ("a.example.:8443", "https", "a.example:8443", "a.example"),
        ("[::1]:8443", "https", "[::1]:8443", "::1"),
        ("[::1]:443", "https", "[::1]", "::1"),
        ("[::1", "https", "[::1", "::1"),
        ("", "", "", ""),
    ],
)
def test_r08_hosts(authority: str, scheme: str, host: str, name: str) -> None:
    assert split_host(authority, scheme) == (host, name)


def test_path_and_query_part_at_the_first_question_mark() -> None:
    facts = read_check_request(check_request(path="/a%20b/%C3%BC?x=%2F&y?z"), NOW_S)
    assert (facts.raw_path, facts.path, facts.query) == ("/a%20b/%C3%BC", "/a b/ü", "x=%2F&y?z")
    assert facts.url == "https://app.example.com/a%20b/%C3%BC?x=%2F&y?z"


def test_r17_repeated_lines_are_joined_and_cookies_kept_apart() -> None:
    facts = read_check_request(
        check_request(lines=[("X-A", "1"), ("x-a", "2"), ("Cookie", "a=1"), ("cookie", "b=2")]),
        NOW_S,
    )
    assert facts.headers["x-a"] == "1,2"
    assert facts.cookie_lines == ("a=1", "b=2")


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=10), st.sampled_from(["", "a"]))
def test_reading_never_fails(path: str, host: str, method: str, scheme: str) -> None:
    facts = read_check_request(
        check_request(path=path, host=host, method=method, scheme=scheme, ip=host), NOW_S
    )
    assert facts.problem or facts.path or facts.raw_path == ""


def test_certificates_come_from_metadata() -> None:
    pem, fingerprint = certificate()
    policy = policy_of(f"allow: {{and: [{{client_certificate: {{fingerprint: {fingerprint}}}}}]}}")
    one = Desk(resolved_settings(route(policy)))
    assert is_allowed(one.check(certificate=pem))
    assert not is_allowed(one.check())
    assert not is_allowed(one.check(certificate="-----BEGIN CERTIFICATE-----\nAA"))
    assert not is_allowed(one.check(certificate=certificate()[0]))


def test_each_name_test_may_be_met_by_another_name() -> None:
    pem, _ = certificate()
    for matcher, matches in (
        ("{starts_with: a, ends_with: b}", True),
        ("{starts_with: az, contains: za}", True),
        ("{not: az.example}", True),
        ("{is: q}", False),
        ("{starts_with: a, is: q}", False),
        ("{}", True),
    ):
        policy = policy_of(f"allow: {{or: [{{client_certificate: {{san_dns: {matcher}}}}}]}}")
        one = Desk(resolved_settings(route(policy)))
        assert is_allowed(one.check(certificate=pem)) is matches, matcher
    policy = policy_of("allow: {or: [{client_certificate: {san_email: {}}}]}")
    assert not is_allowed(Desk(resolved_settings(route(policy))).check(certificate=pem))


def test_certificate_names_with_commas_cannot_pass_for_two_in_headers() -> None:
    pem, fingerprint = certificate()
    facts = leaf_facts(pem)
    assert facts is not None
    assert facts.dns_names[2] == "a,b"
    one = Desk(
        resolved_settings(
            route(
                policy_of("allow: {or: [{accept: 1}]}"),
                set_request_headers={
                    "x-names": "$pomerium.client_cert_san_dns",
                    "x-print": "$pomerium.client_cert_fingerprint",
                },
            )
        )
    )
    response = one.check(certificate=pem)
    values = {o.header.key: o.header.value for o in response.ok_response.headers}
    assert values == {"x-names": "az.example,za.example", "x-print": fingerprint}


@pytest.mark.parametrize(
    ("hops", "appended", "header", "found"),
    [
        (0, True, "203.0.113.9", "10.0.0.1"),  # nobody in front is believed
        (1, True, "198.51.100.7, 203.0.113.9, 10.0.0.1", "203.0.113.9"),
        (2, True, "198.51.100.7,203.0.113.9,10.0.0.1", "198.51.100.7"),
        (1, False, "198.51.100.7, 203.0.113.9", "203.0.113.9"),
        (1, True, "2001:DB8::1, 10.0.0.1", "2001:db8::1"),
        (1, True, "10.0.0.1", "10.0.0.1"),  # the balancer itself
        (3, True, "203.0.113.9, 10.0.0.1", "10.0.0.1"),
        (1, True, "a, 10.0.0.1", "10.0.0.1"),
        (1, True, "", "10.0.0.1"),
    ],
)
def test_r20_the_client_behind_trusted_hops(hops, appended, header, found) -> None:
    assert ForwardedFor(hops, appended).client_of(header, "10.0.0.1") == found
