"""Which client certificates are believed, and for how long."""

from __future__ import annotations

import datetime as dt
import ipaddress
import math
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from gatehouse.authorize.core.check_request import read_check_request
from gatehouse.authorize.core.client_certificate import leaf_facts
from gatehouse.authorize.core.client_trust import ClientTrust
from gatehouse.authorize.core.evaluator import Allow, Deny, decide
from gatehouse.authorize.core.identity import ANONYMOUS
from gatehouse.authorize.core.lru import LruCache
from gatehouse.authorize.core.route_plan import Plans, compile_plans
from gatehouse.authorize.errors import UnreadableCertificateError
from tests.support.check import check_request, resolved_settings, route
from tests.support.client_pki import CLIENT, DAY, SERVER, Issued, issued, principal
from tests.support.policy import policy_of

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
NOW_S = NOW.timestamp()
ROOT = Issued.root()
MIDDLE = ROOT.authority("middle")
LOW = MIDDLE.authority("low")


def trust(*authorities: Issued, crl: str = "", **keys: Any) -> ClientTrust:
    pem = "".join(each.pem for each in authorities or (ROOT,))
    return ClientTrust(pem.encode(), crl.encode(), **keys)


def problem(one: ClientTrust, chain: str, now_s: float = NOW_S) -> str:
    return one.judge(chain, now_s).problem


# The chain


def test_a_leaf_of_the_authority_is_good() -> None:
    judgement = trust().judge(ROOT.issue().pem, NOW_S)
    assert judgement.is_valid
    assert not judgement.problem


@pytest.mark.parametrize(
    "stranger",
    [
        Issued.root().issue(),  # an authority of the same name with another key
        Issued.root("other").issue(),
        issued("itself", None),
        ROOT.issue().issue("signed by a client"),
    ],
)
def test_strangers_are_not(stranger: Issued) -> None:
    assert problem(trust(), stranger.pem).startswith("the chain does not verify")
    assert problem(trust(), stranger.chain(ROOT)).startswith("the chain does not verify")


def test_a_client_makes_no_authority_by_presenting_its_own_certificate() -> None:
    client = ROOT.issue()
    assert problem(trust(max_depth=0), client.issue("forged").chain(client, ROOT))


@pytest.mark.parametrize(
    ("max_depth", "good"),
    [(0, (1, 2, 3)), (1, (1,)), (2, (1, 2)), (3, (1, 2, 3))],
)
def test_max_verify_depth_counts_what_is_above_the_leaf(
    max_depth: int, good: tuple[int, ...]
) -> None:
    chains = {
        1: ROOT.issue().pem,
        2: MIDDLE.issue().chain(MIDDLE),
        3: LOW.issue().chain(LOW, MIDDLE),
    }
    one = trust(max_depth=max_depth)
    assert tuple(depth for depth, chain in chains.items() if not problem(one, chain)) == good


def test_a_self_issued_link_counts_too() -> None:
    again = issued("client authority", ROOT, is_authority=True)  # same name, other key
    chain = again.issue().chain(again)
    assert problem(trust(max_depth=1), chain)
    assert not problem(trust(max_depth=2), chain)


def test_intermediates_come_in_any_order_and_useless_ones_do_no_harm() -> None:
    one = trust(max_depth=3)
    other = Issued.root("other")
    garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    assert not problem(one, LOW.issue().chain(MIDDLE, other, LOW) + garbage)
    assert problem(one, LOW.issue().chain(LOW))  # one is missing


def test_one_way_up_is_enough() -> None:
    """Cross-signed: by an authority that is trusted, and by one that is not."""
    crossed = issued("middle", Issued.root("other"), is_authority=True, key=MIDDLE.key)
    one = trust(max_depth=2)
    assert not problem(one, MIDDLE.issue().chain(crossed, MIDDLE))
    assert problem(one, MIDDLE.issue().chain(crossed))


def test_an_intermediate_can_be_the_authority() -> None:
    assert not problem(trust(MIDDLE), MIDDLE.issue().pem)


def test_several_authorities() -> None:
    other = Issued.root("other")
    one = trust(ROOT, other)
    assert not problem(one, ROOT.issue().pem)
    assert not problem(one, other.issue().pem)


def test_a_chain_has_a_limit() -> None:
    chain = ROOT.issue().chain(*[MIDDLE] * 10)
    assert problem(trust(), chain) == "too many certificates"


@pytest.mark.parametrize("chain", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA"])
def test_no_certificate_is_no_good_one(chain: str) -> None:
    assert problem(trust(), chain) == "no certificate can be made out"


def test_a_leaf_that_cannot_be_read_is_an_error() -> None:
    chain = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    with pytest.raises(UnreadableCertificateError):
        trust().judge(chain, NOW_S)
    broken = ROOT.issue(
        extensions=[
            x509.UnrecognizedExtension(x509.oid.ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x30\x05")
        ]
    )
    with pytest.raises(UnreadableCertificateError):
        trust().judge(broken.pem, NOW_S)


# What it is for (R57: CVE-2022-21657)


@pytest.mark.parametrize(
    ("purposes", "good"),
    [
        (None, True),
        (CLIENT, True),
        ((*SERVER, *CLIENT), True),
        ((ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,), True),
        (SERVER, False),
        ((ExtendedKeyUsageOID.CODE_SIGNING,), False),
    ],
)
def test_r57_a_certificate_for_other_purposes_is_no_client_certificate(
    purposes: Any, *, good: bool
) -> None:
    assert bool(problem(trust(), ROOT.issue(purposes=purposes).pem)) is not good


def test_r57_an_intermediate_for_servers_signs_no_clients() -> None:
    servers = ROOT.authority("servers", purposes=SERVER)
    assert problem(trust(max_depth=2), servers.issue(purposes=CLIENT).chain(servers))


def test_an_authority_must_be_allowed_to_sign() -> None:
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    other = Issued.root("no signer", extensions=[usage], critical=True)
    assert problem(trust(other), other.issue().pem)


def test_critical_extensions_that_nobody_knows_are_refused() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    assert problem(trust(), ROOT.issue(extensions=[unknown], critical=True).pem)
    assert not problem(trust(), ROOT.issue(extensions=[unknown]).pem)


# Time


def test_a_certificate_ends_while_it_is_remembered() -> None:
    leaf = ROOT.issue(begins=-DAY, ends=dt.timedelta(seconds=30), now=NOW)
    one = trust()
    assert not problem(one, leaf.pem, NOW_S)
    assert not problem(one, leaf.pem, NOW_S + 30.9)  # its last second
    assert problem(one, leaf.pem, NOW_S + 31)
    assert not problem(one, leaf.pem, NOW_S)  # the clock was set back


def test_a_certificate_begins_while_its_refusal_is_remembered() -> None:
    leaf = ROOT.issue(begins=dt.timedelta(seconds=30), now=NOW)
    one = trust()
    assert problem(one, leaf.pem, NOW_S + 29.9)
    assert not problem(one, leaf.pem, NOW_S + 30)


def test_the_authority_ends_too() -> None:
    root = Issued.root("short", ends=dt.timedelta(seconds=30), now=NOW)
    one = trust(root)
    leaf = root.issue()
    judgement = one.judge(leaf.pem, NOW_S)
    assert judgement.is_valid
    assert judgement.until_s == NOW_S + 31
    assert problem(one, leaf.pem, NOW_S + 31)


def test_an_intermediate_that_has_ended() -> None:
    old = ROOT.authority("old", begins=-2 * DAY, ends=-DAY)
    assert problem(trust(max_depth=2), old.issue().chain(old))


# Names


NAMES = [
    x509.DNSName("laptop.example.com"),
    x509.RFC822Name("ada@example.com"),
    x509.IPAddress(ipaddress.ip_address("10.1.2.3")),
    x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
    x509.UniformResourceIdentifier("spiffe://example.com/ada"),
    principal("ada@corp.example.com"),
]


@pytest.mark.parametrize(
    ("kind", "pattern", "good"),
    [
        ("dns", r".*\.example\.com", True),
        ("dns", "laptop", False),
        ("dns", "example.com", False),
        ("dns", "ada@example.com", False),
        ("email", "ada@example.com", True),
        ("email", "(?i)ADA@.*", True),
        ("email", "ada|eve", False),
        ("ip_address", r"10\..*", True),
        ("ip_address", "2001:db8::1", True),
        ("ip_address", "1", False),
        ("uri", "spiffe://example.com/.*", True),
        ("uri", "https://.*", False),
        ("user_principal_name", ".*@corp.example.com", True),
        ("user_principal_name", "ada@example.com", False),
    ],
)
def test_a_whole_name_of_the_kind_must_match(kind: str, pattern: str, *, good: bool) -> None:
    leaf = ROOT.issue(names=NAMES)
    assert bool(problem(trust(names=[(kind, pattern)]), leaf.pem)) is not good


def test_one_matching_entry_is_enough() -> None:
    leaf = ROOT.issue(names=NAMES)
    assert not problem(trust(names=[("dns", "no"), ("email", "ada@.*")]), leaf.pem)
    assert problem(trust(names=[("dns", "no"), ("email", "eve@.*")]), leaf.pem)


def test_without_names_nothing_matches() -> None:
    assert problem(trust(names=[("dns", ".*")]), ROOT.issue("laptop.example.com").pem)


@pytest.mark.parametrize(
    "name",
    [
        x509.DNSName("good.example.com\0.evil.test"),
        x509.RFC822Name("ada@example.com\0.evil.test"),
        x509.UniformResourceIdentifier("spiffe://example.com\0.evil.test"),
        principal("ada@example.com\0x"),
        x509.DNSName("good.example.com\n"),
    ],
)
@pytest.mark.parametrize("names", [(), [("dns", ".*"), ("email", ".*"), ("uri", ".*")]])
def test_r57_names_with_controls_are_refused(name: Any, names: Any) -> None:
    assert problem(trust(names=names), ROOT.issue(names=[name]).pem)


def test_r57_a_policy_compares_the_whole_name() -> None:
    leaf = ROOT.issue(names=[x509.DNSName("good.example.com\0.evil.test")])
    found = leaf_facts(leaf.pem)
    assert found is not None
    assert found.dns_names == ("good.example.com\0.evil.test",)


# Revocation


def test_revoked_leaves_are_refused() -> None:
    good, bad = ROOT.issue(), ROOT.issue()
    one = trust(crl=ROOT.revoke(bad))
    assert not problem(one, good.pem)
    assert problem(one, bad.pem) == "the certificate is revoked"


def test_an_old_list_still_revokes() -> None:
    good, bad = ROOT.issue(), ROOT.issue()
    one = trust(crl=ROOT.revoke(bad, ends=-DAY))
    assert not problem(one, good.pem)
    assert problem(one, bad.pem)


def test_only_the_leaf_is_looked_up() -> None:
    chain = MIDDLE.issue().chain(MIDDLE)
    assert not problem(trust(crl=ROOT.revoke(MIDDLE), max_depth=2), chain)


def test_each_authority_revokes_its_own() -> None:
    leaf = MIDDLE.issue()
    twin = issued("twin", ROOT)
    lists = ROOT.revoke(leaf, twin) + MIDDLE.revoke()
    one = trust(crl=lists, max_depth=2)
    assert not problem(one, leaf.chain(MIDDLE))  # ROOT did not sign it and cannot revoke it
    assert problem(one, twin.pem)
    assert problem(trust(crl=lists + MIDDLE.revoke(leaf), max_depth=2), leaf.chain(MIDDLE))


def test_a_list_that_the_issuer_did_not_sign_is_not_believed() -> None:
    leaf = ROOT.issue()
    forged = ROOT.revoke(key=Issued.root().key)
    assert "not signed by it" in problem(trust(crl=forged), leaf.pem)
    assert "not signed by it" in problem(trust(crl=ROOT.revoke() + forged), leaf.pem)


def test_an_issuer_without_a_list_revokes_nothing() -> None:
    other = Issued.root("other")
    assert not problem(trust(crl=other.revoke()), ROOT.issue().pem)


# Memory


def test_what_is_known_is_bounded_and_apart_for_each_trust() -> None:
    verdicts: Any = LruCache(2)
    other = Issued.root("other")
    ours = trust(verdicts=verdicts)
    theirs = trust(other, verdicts=verdicts)
    leaf = ROOT.issue()
    for _ in range(2):
        assert not problem(ours, leaf.pem)
        assert problem(theirs, leaf.pem)
    assert len(verdicts) == 2
    assert ours.judge(leaf.pem, NOW_S) is ours.judge(leaf.pem, NOW_S + 1)
    for _ in range(3):
        assert not problem(ours, ROOT.issue().pem)
    assert len(verdicts) == 2
    assert ours.judge("", NOW_S).until_s == math.inf


# Routes


RULE = "invalid-client-certificate"
PUBLIC = policy_of("allow: {or: [{accept: true}]}")


def reasons(plans: Plans, route_id: str, **facts: Any) -> frozenset[str]:
    plan = plans.routes[route_id]
    request = read_check_request(check_request(route_id=route_id, **facts), NOW_S)
    evaluation = plan.evaluate(request, ANONYMOUS)
    assert decide(evaluation).__class__ is (Deny if evaluation.deny.value else Allow)
    return evaluation.deny.reasons


def plans_of(enforcement: str, *, everywhere: bool, here: bool) -> Plans:
    own = route(PUBLIC, route_id="own", from_="https://own.example.com")
    if here:
        own = replace(own, tls_downstream_client_ca_pem=MIDDLE.pem.encode())
    settings = resolved_settings(
        own,
        route(PUBLIC, route_id="other"),
        downstream_mtls={"enforcement": enforcement},
    )
    if everywhere:
        settings = replace(settings, downstream_mtls_ca_pem=ROOT.pem.encode())
    return compile_plans(settings)


@pytest.mark.parametrize("enforcement", ["policy_with_default_deny", "reject_connection"])
def test_the_default_rule_is_for_all_routes_once_there_is_an_authority(enforcement: str) -> None:
    good, other = ROOT.issue().pem, MIDDLE.issue().pem
    plans = plans_of(enforcement, everywhere=True, here=True)
    assert reasons(plans, "own", certificate=good) == {RULE}
    assert reasons(plans, "own", certificate=other) == {"valid-client-certificate"}
    assert reasons(plans, "other", certificate=good) == {"valid-client-certificate"}
    assert reasons(plans, "other", certificate=other) == {RULE}
    assert reasons(plans, "other") == {"client-certificate-required"}
    # Where no authority is set, every certificate and none will do.
    plans = plans_of(enforcement, everywhere=False, here=True)
    assert reasons(plans, "own") == {"client-certificate-required"}
    assert reasons(plans, "other") == {"valid-client-certificate"}
    plans = plans_of(enforcement, everywhere=False, here=False)
    assert reasons(plans, "own") == frozenset()


def test_with_policy_there_is_no_default_rule() -> None:
    plans = plans_of("policy", everywhere=True, here=True)
    assert reasons(plans, "own") == reasons(plans, "other") == frozenset()


def test_a_decision_lasts_no_longer_than_the_certificate() -> None:
    plans = plans_of("policy_with_default_deny", everywhere=True, here=False)
    leaf = ROOT.issue(ends=dt.timedelta(seconds=30), now=NOW)
    request = read_check_request(check_request(route_id="own", certificate=leaf.pem), NOW_S)
    plan = plans.routes["own"]
    assert plan.evaluate(request, ANONYMOUS).valid_until_s == NOW_S + 31


def test_a_certificate_that_cannot_be_read_is_no_decision() -> None:
    plans = plans_of("policy_with_default_deny", everywhere=True, here=False)
    chain = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    request = read_check_request(check_request(route_id="own", certificate=chain), NOW_S)
    with pytest.raises(UnreadableCertificateError):
        plans.routes["own"].evaluate(request, ANONYMOUS)
    # Beyond what fits, and not decodable: presented, and nothing more is known.
    for odd in ("x" * 300_000, "%zz"):
        request = read_check_request(check_request(route_id="own", certificate=odd), NOW_S)
        assert plans.routes["own"].evaluate(request, ANONYMOUS).deny.reasons == {RULE}
