"""The older allow keys of a route."""

from __future__ import annotations

import pytest

from gatehouse.common.policy.ast import Criterion, FrozenObject, Policy, Rule
from gatehouse.common.policy.legacy import SubPolicy, route_policy, with_client_certificate_rule
from gatehouse.common.policy.parser import PolicyError, parse_policy

EMBEDDED = parse_policy({"deny": {"or": [{"user": "x"}]}})


def is_(name: str, value: str) -> Criterion:
    return Criterion(name, "", FrozenObject({"is": value}))


def test_every_key_becomes_an_alternative_in_order() -> None:
    policy = route_policy(
        cors_allow_preflight=True,
        allowed_domains=["a.example"],
        allowed_idp_claims={"z": ["1", 2], "a": {"b": [True]}},
        allowed_users=["u"],
        sub_policies=[
            SubPolicy(
                allowed_users=["s"],
                allowed_domains=["s.example"],
                allowed_idp_claims={"q": "r"},
                policy=parse_policy({"allow": {"or": [{"reject": 1}]}}),
            )
        ],
        embedded=EMBEDDED,
    )
    assert policy.rules == (
        Rule(
            "allow",
            or_=(
                Criterion("cors_preflight", "", True),
                is_("domain", "a.example"),
                is_("domain", "s.example"),
                Criterion("claim", "a.b", True),
                Criterion("claim", "z", "1"),
                Criterion("claim", "z", 2),
                Criterion("claim", "q", "r"),
                is_("user", "u"),
                is_("email", "u"),
                is_("user", "s"),
                is_("email", "s"),
            ),
        ),
        *EMBEDDED.rules,
        Rule("allow", or_=(Criterion("reject", "", 1),)),
    )


def test_an_embedded_policy_alone_stands_alone() -> None:
    assert route_policy(embedded=EMBEDDED) == EMBEDDED
    assert route_policy(embedded=Policy()) == Policy()


def test_nothing_at_all_lets_nobody_in() -> None:
    assert route_policy() == Policy((Rule("allow"),))


@pytest.mark.parametrize(
    "keys",
    [
        {"allow_public_unauthenticated_access": True, "allow_any_authenticated_user": True},
        {"allow_public_unauthenticated_access": True, "allowed_domains": ["a"]},
        {"allow_public_unauthenticated_access": True, "allowed_users": ["a"]},
        {"allow_any_authenticated_user": True, "allowed_domains": ["a"]},
        {"allow_any_authenticated_user": True, "allowed_users": ["a"]},
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys) -> None:
    with pytest.raises(PolicyError, match="contains whitelists"):
        route_policy(**keys)


def test_claims_and_policy_do_not_contradict_public_access() -> None:
    policy = route_policy(
        allow_public_unauthenticated_access=True,
        allowed_idp_claims={"a": ["b"]},
        embedded=EMBEDDED,
    )
    assert [criterion.name for criterion in policy.criteria()] == ["accept", "claim", "user"]


def test_nested_lists_of_claims_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"claim a\.b: expected strings"):
        route_policy(allowed_idp_claims={"a": {"b": [["x"]]}})


def test_the_certificate_rule_comes_last() -> None:
    policy = with_client_certificate_rule(EMBEDDED)
    assert policy.rules[:-1] == EMBEDDED.rules
    assert policy.rules[-1].action == "deny"
    assert policy.rules[-1].or_[0].name == "invalid_client_certificate"
