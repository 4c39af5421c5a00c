"""Explanations agree with decisions, decisions with a second evaluator, and advice with both."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatehouse.authorize.core.evaluator import CompiledPolicy, decide
from gatehouse.authorize.core.explain import explain, outcome_name
from gatehouse.authorize.core.supposition import suppose
from gatehouse.common.policy.ast import Policy
from gatehouse.common.policy.errors import PolicyError
from gatehouse.common.policy.hazards import hazards
from gatehouse.common.policy.parser import parse_policy
from tests.support import reference_policy
from tests.support.policy import NOW_S, policy_of

TEXTS = st.sampled_from(["", "a", "b", "a@x.y", "b@x.y", "a@z.w", "GET", "OPTIONS", "/a", "/a/b"])
VALUES = st.sampled_from(["a", "b", 1, 1.0, True, False, 2.5])
STRING_DATA = TEXTS | st.fixed_dictionaries(
    {},
    optional={
        "is": TEXTS,
        "not": TEXTS,
        "starts_with": TEXTS,
        "ends_with": TEXTS,
        "contains": TEXTS,
        "in": st.lists(TEXTS, max_size=2),
        "not_in": st.lists(TEXTS, max_size=2),
    },
)
LIST_DATA = VALUES | st.fixed_dictionaries(
    {}, optional={"has": VALUES, "is": VALUES, "exclude": VALUES}
)
NETWORKS = st.sampled_from(["10.0.0.0/8", "10.1.2.3", "::ffff:10.0.0.0/104", "2001:db8::/32"])
CRITERIA = st.one_of(
    *(st.tuples(st.just(name), st.just(True)) for name in ("accept", "reject")),
    st.tuples(st.just("authenticated_user"), st.just(True)),
    st.tuples(st.just("cors_preflight"), st.just(True)),
    st.tuples(st.just("invalid_client_certificate"), st.just(True)),
    *(
        st.tuples(st.just(name), STRING_DATA)
        for name in ("user", "email", "domain", "http_method", "http_path")
    ),
    *(
        st.tuples(st.just(name), LIST_DATA)
        for name in ("groups", "claim/a", "claim/b.c", "claim/b/c")
    ),
    st.tuples(st.just("source_ip"), NETWORKS | st.lists(NETWORKS, max_size=2)),
    st.tuples(
        st.just("device"),
        st.fixed_dictionaries(
            {},
            optional={
                "approved": st.booleans(),
                "is": st.sampled_from(["dc1", "dc2"]),
                "type": st.sampled_from(["any", "enclave_only"]),
            },
        ),
    ),
    st.tuples(
        st.just("date"), st.sampled_from([{"after": "2027-01-15"}, {"before": "2027-01-15"}])
    ),
    st.tuples(st.just("day_of_week"), st.sampled_from(["mon,tue", "fri", "sat,sun"])),
    st.tuples(
        st.just("time_of_day"),
        st.sampled_from(
            [
                {"timezone": "Europe/Berlin", "after": "09:00", "before": "17:00"},
                {"timezone": "UTC", "after": "22:00", "before": "06:00"},
            ]
        ),
    ),
    st.tuples(st.just("record"), st.just({"type": "hr", "field": "level", ">=": 3})),
).map(lambda pair: {pair[0]: pair[1]})
BODIES = st.dictionaries(
    st.sampled_from(["and", "or", "not", "nor"]), st.lists(CRITERIA, max_size=3), max_size=2
)
RULES = st.dictionaries(st.sampled_from(["allow", "deny"]), BODIES, max_size=2)
POLICIES = RULES | st.lists(RULES, max_size=3)

CLAIMS = st.dictionaries(st.sampled_from(["a", "b.c"]), st.lists(VALUES, max_size=2), max_size=2)
REQUESTS: dict[str, Any] = {
    "method": st.sampled_from(["GET", "OPTIONS", "a"]),
    "path": st.sampled_from(["/", "/a", "/a/b"]),
    "ip": st.sampled_from(["10.1.2.3", "192.168.0.1", "::ffff:10.0.0.1", "2001:db8::1", "", "x"]),
    "headers": st.dictionaries(
        st.sampled_from(["origin", "access-control-request-method"]), st.sampled_from(["", "x"])
    ),
    "certificate": st.sampled_from(["none", "missing", "invalid", "valid"]),
    "time": st.sampled_from(
        ["2027-01-14T23:59:59Z", "2027-01-15T08:00:00Z", "2027-01-16T22:00:00Z"]
    ),
}
FACTS = st.one_of(
    st.fixed_dictionaries(REQUESTS),
    st.fixed_dictionaries(
        {
            **REQUESTS,
            "session": st.just(True),
            "user": st.sampled_from(["", "a", "b"]),
            "email": st.sampled_from(["", "a@x.y", "b", "a@x.y@z.w", "@x.y", "a@"]),
            "claims": CLAIMS,
        },
        optional={
            "groups": st.lists(st.sampled_from("ab"), max_size=2),
            "devices": st.dictionaries(
                st.sampled_from(["any", "enclave_only"]),
                st.fixed_dictionaries(
                    {
                        "id": st.sampled_from(["dc1", "dc2"]),
                        "approved_by": st.sampled_from(["", "boss"]),
                    }
                ),
            ),
            "records": st.fixed_dictionaries(
                {"hr": st.fixed_dictionaries({}, optional={"level": st.integers(1, 5)})}
            ),
        },
    ),
)


def as_reference(facts: dict[str, Any], now_s: float) -> dict[str, Any]:
    return {
        "session": False,
        "user": "",
        "email": "",
        "claims": {},
        "groups": None,
        "devices": {},
        "records": {},
        **facts,
        "time": now_s,
    }


@settings(max_examples=400)
@given(POLICIES, FACTS)
def test_the_evaluator_agrees_with_a_plain_one(policy, facts) -> None:
    tree = parse_policy(policy)
    described = suppose(facts, tree, now_s=NOW_S)
    found = CompiledPolicy(tree).evaluate(described.request, described.identity)
    plain = as_reference(facts, described.request.now_s)
    expected = reference_policy.evaluate(policy, plain)
    assert (found.allow.value, set(found.allow.reasons)) == expected["allow"]
    assert (found.deny.value, set(found.deny.reasons)) == expected["deny"]
    assert outcome_name(decide(found)) == reference_policy.outcome(policy, plain)


@settings(max_examples=200)
@given(POLICIES, FACTS)
def test_an_explanation_tells_the_decision_and_its_parts(policy, facts) -> None:
    tree = parse_policy(policy)
    described = suppose(facts, tree, now_s=NOW_S)
    found = explain(tree, described.request, described.identity)
    assert found.evaluation == CompiledPolicy(tree).evaluate(described.request, described.identity)
    assert found.outcome == decide(found.evaluation)
    told = [criterion.key for operator in found.operators for criterion in operator.criteria]
    assert sorted(told) == sorted(criterion.key for criterion in tree.criteria())
    for change in found.changes:
        assert change.needs
        assert (change.outcome == "allowed") != (found.summary == "allowed")


# The parser, and everything that reads what it made

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *(
                        "allow",
                        "deny",
                        "and",
                        "or",
                        "not",
                        "nor",
                        "action",
                        "accept",
                        "email",
                        "claim",
                    ),
                    *(
                        "claim/a",
                        "groups",
                        "source_ip",
                        "client_certificate",
                        "device",
                        "date",
                        "is",
                    ),
                    *(
                        "day_of_week",
                        "time_of_day",
                        "record",
                        "in",
                        "has",
                        "after",
                        "timezone",
                        "type",
                    ),
                    *("field", "exists", ">=", "fingerprint", "san_dns", "approved", "domain", "x"),
                ]
            )
            | st.text(max_size=4),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)
NEARLY = st.fixed_dictionaries(
    {
        "allow": st.fixed_dictionaries(
            {
                "or": st.lists(
                    st.dictionaries(
                        st.sampled_from(
                            [
                                "email",
                                "claim/a",
                                "groups",
                                "source_ip",
                                "client_certificate",
                                "device",
                                "date",
                                "day_of_week",
                                "time_of_day",
                                "record",
                                "domain",
                                "http_path",
                                "accept",
                                "user",
                            ]
                        ),
                        JSON,
                        min_size=1,
                        max_size=1,
                    ),
                    min_size=1,
                    max_size=2,
                )
            }
        )
    }
)


def parsed(value: object) -> Policy | None:
    with contextlib.suppress(PolicyError):
        return parse_policy(value)
    return None


@settings(max_examples=400)
@given(JSON | NEARLY, FACTS)
def test_no_input_crashes_the_parser_or_what_comes_after(value, facts) -> None:
    tree = parsed(value)
    if tree is None:
        return
    hazards(tree)
    described = suppose(facts, tree, now_s=NOW_S)
    explain(tree, described.request, described.identity)


@given(st.dictionaries(st.sampled_from(["user", "claims", "time", "path", "devices", "x"]), JSON))
def test_no_facts_crash_the_reader(facts) -> None:
    with contextlib.suppress(PolicyError):
        suppose(facts, policy_of("{}"), now_s=NOW_S)


# Advice


def changes_of(policy: str, **facts: Any) -> list[tuple[str, list[str]]]:
    tree = policy_of(policy)
    described = suppose(facts, tree, now_s=NOW_S)
    found = explain(tree, described.request, described.identity)
    return [
        (change.outcome, [f"{need.place}: {need.instead}" for need in change.needs])
        for change in found.changes
    ]


def test_advice_names_every_criterion_that_stands_in_the_way() -> None:
    policy = "allow: {and: [{domain: example.com}, {http_method: POST}, {accept: true}]}"
    assert changes_of(policy, email="a@other.com") == [
        ("allowed", ["allow.and[0].domain: domain-ok", "allow.and[1].http_method: http-method-ok"])
    ]


def test_each_alternative_is_a_way_in() -> None:
    policy = "allow: {or: [{domain: example.com}, {user: u1}]}"
    assert changes_of(policy, email="a@other.com") == [
        ("allowed", ["allow.or[0].domain: domain-ok"]),
        ("allowed", ["allow.or[1].user: user-ok"]),
    ]


def test_a_deny_rule_must_let_go_as_well() -> None:
    policy = "{allow: {or: [{domain: x.y}]}, deny: {or: [{user: u1}, {source_ip: 10.0.0.0/8}]}}"
    assert changes_of(policy, email="a@z.w", user="u1", ip="10.0.0.1") == [
        (
            "allowed",
            [
                "allow.or[0].domain: domain-ok",
                "deny.or[0].user: user-unauthorized",
                "deny.or[1].source_ip: source-ip-unauthorized",
            ],
        )
    ]


def test_a_public_route_that_asks_who_comes_says_so() -> None:
    policy = "{allow: {or: [{accept: true}]}, deny: {or: [{email: b@x.y}]}}"
    assert changes_of(policy) == [("allowed", ["deny.or[0].email: email-unauthorized"])]


def test_what_would_lock_out_somebody_who_may_come_in() -> None:
    policy = "{allow: {or: [{domain: x.y}]}, deny: {or: [{http_path: /secret}]}}"
    assert changes_of(policy, email="a@x.y") == [
        ("denied 403", ["allow.or[0].domain: domain-unauthorized"]),
        ("denied 403", ["deny.or[0].http_path: http-path-ok"]),
    ]


def test_there_is_no_advice_where_nothing_helps() -> None:
    assert changes_of("allow: {or: [{reject: true}]}") == []
    assert changes_of("{}") == []


def test_large_policies_are_explained_in_bounded_time() -> None:
    many = ", ".join(f"{{user: u{number}}}" for number in range(300))
    found = changes_of(f"{{allow: {{or: [{many}]}}, deny: {{nor: [{many}]}}}}", user="other")
    assert len(found) <= 5


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"usr": "x"}, "unknown fact: usr"),
        ({"user": 5}, "user: expected a string"),
        ({"groups": "g1"}, "groups: expected a list"),
        ({"time": "2027-01-01"}, "time: expected a moment with its zone"),
        ({"time": "noon"}, "time: expected a moment"),
        ({"path": "x"}, "path: expected a path"),
        ({"path": "/%zz"}, "path: not correctly percent-encoded"),
        ({"certificate": "good"}, "certificate: expected one of"),
        ({"devices": {"any": {"os": "x"}}}, "devices.any: expected id and approved_by"),
    ],
)
def test_wrong_facts_are_named(facts, message) -> None:
    with pytest.raises(PolicyError, match=message):
        suppose(facts, policy_of("{}"), now_s=NOW_S)


def test_facts_are_shown_where_they_were_read() -> None:
    tree = policy_of(
        "allow: {and: [{claim/org.team: core}, {groups: g1}, {http_path: /a}, {device: {}},"
        " {record: {type: hr, field: level, '>=': 3}}]}"
    )
    described = suppose(
        {
            "email": "a@x.y",
            "claims": {"org": {"team": "core"}},
            "path": "/a?b=c",
            "records": {"hr": {"level": 4}},
            "devices": {"any": {"id": "dc1"}},
        },
        tree,
        now_s=NOW_S,
    )
    found = explain(tree, described.request, described.identity)
    facts = dict(
        itertools.chain.from_iterable(
            criterion.facts.items() for criterion in found.operators[0].criteria
        )
    )
    assert facts == {
        "session": "supposed-session",
        "claim org.team": ["core"],
        "groups": "not in the directory",
        "path": "/a",
        "device any": "dc1",
        "approved by": "nobody",
        "record": {"level": 4},
    }
