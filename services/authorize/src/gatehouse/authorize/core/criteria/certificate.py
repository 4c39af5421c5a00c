"""Criteria about the client certificate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.client_certificate import leaf_facts
from gatehouse.authorize.core.criteria.facts import Compiled, Result, plain
from gatehouse.authorize.core.identity import Identity
from gatehouse.common.policy.ast import Criterion
from gatehouse.common.policy.matchers import StringMatcher, parse_certificate_matcher
from gatehouse.common.policy.matching import string_test

_NamesPredicate = Callable[[Sequence[str]], bool]


def client_certificate(criterion: Criterion) -> Compiled:
    """What the presented leaf says; whether to trust it is `invalid_client_certificate`'s."""
    wanted = parse_certificate_matcher(criterion.data)
    dns = _names(wanted.san_dns)
    emails = _names(wanted.san_email)
    uris = _names(wanted.san_uri)

    def condition(facts: RequestFacts, identity: Identity) -> bool:
        del identity
        if not facts.certificate_presented:
            return False
        leaf = leaf_facts(facts.certificate_chain)
        return (
            leaf is not None
            and (wanted.fingerprints is None or leaf.fingerprint in wanted.fingerprints)
            and (wanted.spki_hashes is None or leaf.spki_hash in wanted.spki_hashes)
            and (dns is None or dns(leaf.dns_names))
            and (emails is None or emails(leaf.email_addresses))
            and (uris is None or uris(leaf.uris))
        )

    return plain("client-certificate", condition)


def invalid_client_certificate(criterion: Criterion) -> Compiled:
    """True when the certificate is missing or does not verify against the route's CA."""
    del criterion
    missing, invalid = (True, "client-certificate-required"), (True, "invalid-client-certificate")
    valid = (False, "valid-client-certificate")

    def test(facts: RequestFacts, identity: Identity) -> Result:
        del identity
        if facts.certificate_valid:
            return valid
        return invalid if facts.certificate_presented else missing

    return Compiled(test, (missing, invalid, valid))


def _names(matcher: StringMatcher | None) -> _NamesPredicate | None:
    """Each test may be met by another name; with no name of the kind nothing is met."""
    if matcher is None:
        return None
    tests = [string_test(test) for test in matcher.tests]
    return lambda names: bool(names) and all(any(map(test, names)) for test in tests)
