"""Criteria about the request itself."""

from __future__ import annotations

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.criteria.facts import Compiled, Result, plain
from gatehouse.authorize.core.identity import Identity
from gatehouse.common.policy.ast import Criterion
from gatehouse.common.policy.matchers import parse_networks, parse_string_matcher
from gatehouse.common.policy.matching import network_predicate, string_predicate


def accept(criterion: Criterion) -> Compiled:
    """Always true."""
    return _constant(criterion, (True, "accept"))


def reject(criterion: Criterion) -> Compiled:
    """Never true."""
    return _constant(criterion, (False, "reject"))


def http_method(criterion: Criterion) -> Compiled:
    """The method, case and all."""
    matches = string_predicate(parse_string_matcher(criterion.data))
    return plain("http-method", lambda facts, _identity: matches(facts.method))


def http_path(criterion: Criterion) -> Compiled:
    """The decoded path; never the query (security R05)."""
    matches = string_predicate(parse_string_matcher(criterion.data))
    return plain("http-path", lambda facts, _identity: matches(facts.path))


def cors_preflight(criterion: Criterion) -> Compiled:
    """A CORS preflight (https://fetch.spec.whatwg.org/#cors-preflight-fetch)."""
    del criterion
    passed, failed = (True, "cors-request"), (False, "non-cors-request")

    def test(facts: RequestFacts, identity: Identity) -> Result:
        del identity
        if (
            facts.method == "OPTIONS"
            and facts.headers.get("access-control-request-method")
            and facts.headers.get("origin")
        ):
            return passed
        return failed

    return Compiled(test, (passed, failed))


def source_ip(criterion: Criterion) -> Compiled:
    """The address Envoy took the request from, in any of the networks (security R20)."""
    contains = network_predicate(parse_networks(criterion.data))
    return plain("source-ip", lambda facts, _identity: contains(facts.ip))


def _constant(criterion: Criterion, result: Result) -> Compiled:
    del criterion

    def test(facts: RequestFacts, identity: Identity) -> Result:
        del facts, identity
        return result

    return Compiled(test, (result,))
