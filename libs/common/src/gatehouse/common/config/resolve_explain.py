"""`explain_policy`: who may ask why others are let in or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gatehouse.common.config.inputs import Inputs
from gatehouse.common.config.model import Settings
from gatehouse.common.policy.ast import Criterion, Policy
from gatehouse.common.policy.errors import PolicyError
from gatehouse.common.policy.facts import Fact, criterion_reads
from gatehouse.common.policy.hazards import hazards
from gatehouse.common.policy.parser import parse_policy

KEY: Final = "explain_policy"
# What is known of somebody who asks: the rest of a request is that of the page itself.
_KNOWN: Final = Fact.SESSION | Fact.USER | Fact.DIRECTORY | Fact.DEVICE | Fact.SOURCE_IP | Fact.TIME
_EVERYBODY: Final = frozenset({"accept", "authenticated_user"})


def explain_policy(settings: Settings, inputs: Inputs) -> Policy | None:
    """The policy; None when nobody may ask, or when it is wrong, which is reported."""
    if settings.explain_policy is None:
        return None
    try:
        policy = parse_policy(settings.explain_policy)
    except PolicyError as error:
        for problem in error.problems:
            inputs.error((KEY, *problem.path), problem.message)
        return None
    for criterion in policy.criteria():
        if criterion_reads(criterion) & ~_KNOWN:
            inputs.error(
                (KEY, *criterion.path),
                "cannot hold here: only who asks, from where and when is known",
                "criteria about users, groups, claims, devices, source_ip and time",
            )
    for hazard in hazards(policy):
        inputs.warn((KEY, *hazard.path), hazard.message, hazard.fix)
    for criterion in _open_to_all(policy):
        inputs.warn(
            (KEY, *criterion.path),
            "whoever is signed in may see what is known of everybody else",
            "email, user or groups, of the administrators",
        )
    return policy


def _open_to_all(policy: Policy) -> Iterator[Criterion]:
    """Criteria that let everybody in who is signed in, with nothing beside them that must hold."""
    for rule in policy.rules:
        if rule.action == "allow":
            alone = rule.and_ if len(rule.and_) == 1 else ()
            yield from (one for one in (*alone, *rule.or_) if one.name in _EVERYBODY)
