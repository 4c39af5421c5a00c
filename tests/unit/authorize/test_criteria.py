"""Properties of criteria and operators that must hold for any policy."""

from __future__ import annotations

import base64
import dataclasses

import pytest
from hypothesis import find, given
from hypothesis import strategies as st

from gatehouse.authorize.core.check_request import MCPRequest, SSHLogin
from gatehouse.authorize.core.criteria import COMPILERS, compile_criterion
from gatehouse.authorize.core.criteria.facts import UNAUTHENTICATED
from gatehouse.authorize.core.evaluator import CompiledPolicy, decide
from gatehouse.authorize.core.identity import ANONYMOUS, Device, Identity
from gatehouse.common.policy.ast import Criterion, FrozenObject, Policy, Rule, freeze
from gatehouse.common.policy.criteria import CRITERIA
from gatehouse.common.policy.facts import Fact
from tests.support.policy import policy_of, request_facts
from tests.support.ssh import CERTIFICATE_LINE, CERTIFIED_AT_S, SSH_KEYS

WORDS = st.sampled_from(["", "a", "b", "a@x.y", "b@z.w", "GET", "OPTIONS", "/a", "/b"])
ADDRESSES = st.sampled_from(["10.0.0.1", "192.168.0.1", "::1", "::ffff:10.0.0.1", "", "bad"])
VALUES = st.sampled_from(["a", "b", 1, 1.0, True, None])
LISTS = st.lists(VALUES, max_size=3).map(tuple)

STRING_MATCHERS = st.one_of(
    WORDS,
    st.fixed_dictionaries(
        {},
        optional={
            "is": WORDS,
            "not": WORDS,
            "starts_with": WORDS,
            "ends_with": WORDS,
            "contains": WORDS,
            "in": st.lists(WORDS, max_size=3),
            "not_in": st.lists(WORDS, max_size=3),
        },
    ),
)
LIST_MATCHERS = st.one_of(
    VALUES,
    st.fixed_dictionaries({}, optional={"has": VALUES, "is": VALUES, "exclude": VALUES}),
)
NETWORKS = st.lists(
    st.sampled_from(["10.0.0.0/8", "192.168.0.1", "::/0", "::ffff:10.0.0.0/104"]), max_size=3
)
SSH_BLOBS = [
    b"",
    *(base64.b64decode(line.split()[1]) for line in (*SSH_KEYS, CERTIFICATE_LINE)),
]
DATA = {
    "mcp_tool": STRING_MATCHERS,
    "ssh_username": STRING_MATCHERS,
    "ssh_username_matches_claim": WORDS,
    "ssh_publickey": st.sampled_from([SSH_KEYS[0], list(SSH_KEYS)]),
    "ssh_ca": st.sampled_from([SSH_KEYS[1], list(SSH_KEYS)]),
    "user": STRING_MATCHERS,
    "email": STRING_MATCHERS,
    "domain": STRING_MATCHERS,
    "http_method": STRING_MATCHERS,
    "http_path": STRING_MATCHERS,
    "groups": LIST_MATCHERS,
    "claim": LIST_MATCHERS,
    "source_ip": NETWORKS,
    "device": st.fixed_dictionaries(
        {},
        optional={
            "approved": st.booleans(),
            "is": st.sampled_from(["dc1", "dc2"]),
            "type": st.sampled_from(["any", "enclave_only"]),
        },
    ),
    "date": st.sampled_from(
        [{"after": "2027-01-01"}, {"before": "2027-01-15T08:00:00Z"}, {"after": "1970-01-02"}]
    ),
    "day_of_week": st.sampled_from(["*", "mon-fri", "sat,sun", "fri"]),
    "time_of_day": st.sampled_from(
        [
            {"timezone": "Europe/Berlin", "after": "09:00", "before": "17:00"},
            {"timezone": "UTC", "after": "22:00", "before": "6:00"},
        ]
    ),
    "record": st.fixed_dictionaries(
        {"type": st.just("t"), "field": st.sampled_from(["a", "b"]), "is": VALUES},
        optional={"has": VALUES, "foreign_key": st.sampled_from(["user.id", "user.email"])},
    ),
    "client_certificate": st.sampled_from([{}, {"san_dns": "a"}, {"fingerprint": "0" * 64}]),
}


@st.composite
def criteria(draw: st.DrawFn) -> Criterion:
    name = draw(st.sampled_from(sorted(CRITERIA)))
    data = draw(DATA.get(name, st.just(True)))
    return Criterion(name, draw(WORDS) if name == "claim" else "", freeze(data))


REQUESTS = st.fixed_dictionaries(
    {
        "method": WORDS,
        "path": WORDS,
        "ip": ADDRESSES,
        "headers": st.fixed_dictionaries(
            {}, optional={"origin": WORDS, "access-control-request-method": WORDS, "x": WORDS}
        ),
        "certificate_presented": st.booleans(),
        "certificate_chain": st.sampled_from(["", "-----BEGIN CERTIFICATE-----"]),
        "certificate_valid": st.booleans(),
        "now_s": st.sampled_from([0.0, 90_000.0, CERTIFIED_AT_S, 1_800_040_000.5]),
        "records": st.fixed_dictionaries(
            {
                ("t", word): st.none()
                | st.dictionaries(st.sampled_from("ab"), VALUES).map(FrozenObject)
                for word in ("", "a", "b", "a@x.y", "b@z.w", "GET", "OPTIONS", "/a", "/b")
            }
        ),
        "mcp": st.none()
        | st.builds(MCPRequest, st.sampled_from(["tools/call", "tools/list"]), WORDS),
        "ssh": st.none() | st.builds(SSHLogin, WORDS, st.sampled_from(SSH_BLOBS)),
        "host": WORDS,
        "query": WORDS,
        "raw_path": WORDS,
        "scheme": WORDS,
    }
)
IDENTITIES = st.builds(
    Identity,
    has_session=st.booleans(),
    session_id=WORDS,
    user_id=WORDS,
    email=WORDS,
    claims=st.dictionaries(WORDS, LISTS, max_size=3),
    group_ids=st.none() | st.lists(st.sampled_from("ab"), max_size=3).map(tuple),
    devices=st.dictionaries(
        st.sampled_from(["any", "enclave_only"]),
        st.builds(
            Device,
            credential_id=st.sampled_from(["dc1", "dc2"]),
            is_enrolled=st.booleans(),
            approved_by=st.sampled_from(["", "boss"]),
        ),
    ),
    header_groups=LISTS,
    assertion_email=WORDS,
    is_service_account=st.booleans(),
    log_email=WORDS,
)

# Which fields of request and identity each fact stands for; all others no criterion may read.
REQUEST_FIELDS = {
    Fact.METHOD: {"method"},
    Fact.PATH: {"path"},
    Fact.CORS_HEADERS: {"headers"},
    Fact.SOURCE_IP: {"ip"},
    Fact.CLIENT_CERTIFICATE: {"certificate_presented", "certificate_chain"},
    Fact.CERTIFICATE_VALIDITY: {"certificate_valid"},
    Fact.TIME: {"now_s"},
    Fact.RECORDS: {"records"},
    Fact.MCP: {"mcp"},
    Fact.SSH: {"ssh"},
}
IDENTITY_FIELDS = {
    Fact.SESSION: {"has_session", "user_id"},
    Fact.USER: {"email"},
    Fact.DIRECTORY: {"email", "group_ids"},
    Fact.DEVICE: {"devices"},
}


def fields_of(reads: Fact, table: dict[Fact, set[str]]) -> set[str]:
    found = {name for fact, names in table.items() if fact & reads for name in names}
    if table is IDENTITY_FIELDS and reads & Fact.SESSION and reads & Fact.USER:
        found.add("claims")  # of the session, overlaid by the user's
    return found


def mixed_request(base, other, reads):
    keep = fields_of(reads, REQUEST_FIELDS)
    changed = {name: value for name, value in other.items() if name not in keep}
    return request_facts(**{**base, **changed})


def mixed_identity(base: Identity, other: Identity, reads: Fact) -> Identity:
    keep = fields_of(reads, IDENTITY_FIELDS)
    changed = {
        field.name: getattr(other, field.name)
        for field in dataclasses.fields(Identity)
        if field.name not in keep
    }
    return dataclasses.replace(base, **changed)


@given(criteria(), REQUESTS, REQUESTS, IDENTITIES, IDENTITIES)
def test_facts_that_are_not_declared_change_nothing(criterion, req, req2, who, who2) -> None:
    compiled = compile_criterion(criterion)
    result = compiled.test(request_facts(**req), who)
    again = compiled.test(
        mixed_request(req, req2, compiled.reads), mixed_identity(who, who2, compiled.reads)
    )
    assert again == result


RULES = st.builds(
    Rule,
    action=st.sampled_from(["allow", "deny"]),
    and_=st.lists(criteria(), max_size=3).map(tuple),
    or_=st.lists(criteria(), max_size=3).map(tuple),
    not_=st.lists(criteria(), max_size=3).map(tuple),
    nor=st.lists(criteria(), max_size=3).map(tuple),
)
POLICIES = st.lists(RULES, max_size=3).map(lambda rules: Policy(tuple(rules)))


def test_a_criterion_that_reads_more_than_it_says_is_found_out() -> None:
    """The property above can fail."""
    honest = compile_criterion(Criterion("http_path", "", "/a"))
    lying = dataclasses.replace(honest, reads=Fact.METHOD)

    def is_caught(requests) -> bool:
        one, other = requests
        result = lying.test(request_facts(**one), ANONYMOUS)
        return lying.test(mixed_request(one, other, lying.reads), ANONYMOUS) != result

    assert find(st.tuples(REQUESTS, REQUESTS), is_caught)


@given(POLICIES, REQUESTS, REQUESTS, IDENTITIES, IDENTITIES)
def test_a_policy_reads_what_its_criteria_read_and_no_more(policy, req, req2, who, who2) -> None:
    compiled = CompiledPolicy(policy)
    outcome = decide(compiled.evaluate(request_facts(**req), who))
    again = decide(
        compiled.evaluate(
            mixed_request(req, req2, compiled.reads), mixed_identity(who, who2, compiled.reads)
        )
    )
    assert again == outcome


@given(POLICIES, REQUESTS, IDENTITIES)
def test_operators_follow_their_definition(policy, req, who) -> None:
    """A second, plain reading of the specification's operator table."""
    facts = request_facts(**req)
    evaluation = CompiledPolicy(policy).evaluate(facts, who)
    for action, verdict in (("allow", evaluation.allow), ("deny", evaluation.deny)):
        results = [
            combined(operator, [compile_criterion(c).test(facts, who) for c in group])
            for rule in policy.rules
            if rule.action == action
            for operator, group in rule.operators()
        ]
        value, reasons = merged_as_or(results)
        assert (verdict.value, verdict.reasons) == (value, reasons)


def combined(operator, results):
    if operator in {"not", "nor"}:
        results = [(not value, reason) for value, reason in results]
    as_sets = [(value, {reason}) for value, reason in results]
    return merged_as_and(as_sets) if operator in {"and", "not"} else merged_as_or(as_sets)


def merged_as_and(results):
    value = all(value for value, _ in results)
    return value, union(reasons for was, reasons in results if value or not was)


def merged_as_or(results):
    value = any(value for value, _ in results)
    return value, union(reasons for was, reasons in results if was or not value)


def union(sets):
    return {reason for reasons in sets for reason in reasons}


@given(criteria(), REQUESTS, IDENTITIES)
def test_every_result_has_one_reason(criterion, req, who) -> None:
    value, reason = compile_criterion(criterion).test(request_facts(**req), who)
    assert isinstance(value, bool)
    assert reason
    if reason == UNAUTHENTICATED[1]:
        assert not value
        assert not who.has_session


def test_each_available_criterion_is_built() -> None:
    assert COMPILERS.keys() == CRITERIA


def test_what_a_criterion_raises_is_not_swallowed() -> None:
    compiled = CompiledPolicy(policy_of("deny: {or: [{http_path: {starts_with: /admin}}]}"))
    with pytest.raises(AttributeError):
        compiled.evaluate(request_facts(path=None), ANONYMOUS)
