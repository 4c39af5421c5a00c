"""A route's older allow keys and its embedded policy, as one rule tree."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gatehouse.common.policy.ast import (
    Criterion,
    Data,
    FrozenObject,
    Policy,
    Rule,
    freeze,
    key_text,
    type_name,
)
from gatehouse.common.policy.errors import PolicyError

_INVALID_CERTIFICATE = Criterion("invalid_client_certificate", "", True)  # noqa: FBT003 - data


@dataclass(frozen=True, slots=True)
class SubPolicy:
    """A policy attached to a route from outside its own definition."""

    allowed_users: Sequence[str] = ()
    allowed_domains: Sequence[str] = ()
    allowed_idp_claims: Mapping[str, object] = field(default_factory=dict)
    policy: Policy | None = None


def route_policy(
    *,
    embedded: Policy | None = None,
    allow_public_unauthenticated_access: bool = False,
    cors_allow_preflight: bool = False,
    allow_any_authenticated_user: bool = False,
    allowed_domains: Sequence[str] = (),
    allowed_idp_claims: Mapping[str, object] | None = None,
    allowed_users: Sequence[str] = (),
    sub_policies: Sequence[SubPolicy] = (),
) -> Policy:
    """The whole policy of a route: one leading allow rule of alternatives, then `embedded`.

    Deny rules of `embedded` hold also against public access. With neither, an empty allow rule
    remains: nobody gets in. PolicyError for keys that contradict each other.
    """
    restricted = bool(allowed_domains or allowed_users)
    if allow_public_unauthenticated_access and (allow_any_authenticated_user or restricted):
        raise PolicyError(
            "policy route marked as public but contains whitelists: use either "
            "allow_public_unauthenticated_access or allow_any_authenticated_user, "
            "allowed_domains and allowed_users"
        )
    if allow_any_authenticated_user and restricted:
        raise PolicyError(
            "policy route marked accessible for any authenticated user but contains whitelists: "
            "use either allow_any_authenticated_user or allowed_domains and allowed_users"
        )

    alternatives: list[Criterion] = []
    if allow_public_unauthenticated_access:
        alternatives.append(Criterion("accept", "", True))  # noqa: FBT003 - data
    if cors_allow_preflight:
        alternatives.append(Criterion("cors_preflight", "", True))  # noqa: FBT003 - data
    if allow_any_authenticated_user:
        alternatives.append(Criterion("authenticated_user", "", True))  # noqa: FBT003 - data
    alternatives.extend(_is("domain", d) for d in allowed_domains)
    for sub in sub_policies:
        alternatives.extend(_is("domain", d) for d in sub.allowed_domains)
    alternatives.extend(_claims(allowed_idp_claims or {}))
    for sub in sub_policies:
        alternatives.extend(_claims(sub.allowed_idp_claims))
    for users in (allowed_users, *(sub.allowed_users for sub in sub_policies)):
        for user in users:
            alternatives.extend((_is("user", user), _is("email", user)))

    embedded_rules = embedded.rules if embedded is not None else ()
    attached = [sub.policy.rules for sub in sub_policies if sub.policy is not None]
    rules = (*embedded_rules, *(rule for group in attached for rule in group))
    if alternatives or not (embedded is not None or attached):
        rules = (Rule("allow", or_=tuple(alternatives)), *rules)
    return Policy(rules)


def with_client_certificate_rule(policy: Policy) -> Policy:
    """Append the default rule that refuses requests without a valid client certificate."""
    return Policy((*policy.rules, Rule("deny", or_=(_INVALID_CERTIFICATE,))))


def _is(name: str, value: str) -> Criterion:
    return Criterion(name, "", FrozenObject({"is": value}))


def _claims(claims: Mapping[str, object]) -> Iterator[Criterion]:
    for key, values in sorted(_flatten("", claims), key=operator.itemgetter(0)):
        for value in values:
            yield Criterion("claim", key, value)


def _flatten(prefix: str, claims: Mapping[str, object]) -> Iterator[tuple[str, tuple[Data, ...]]]:
    for raw_key, value in claims.items():
        key = f"{prefix}{key_text(raw_key)}"
        if isinstance(value, Mapping):
            yield from _flatten(f"{key}.", value)
        else:
            frozen = freeze(value)
            values = frozen if isinstance(frozen, tuple) else (frozen,)
            for item in values:
                if isinstance(item, tuple | FrozenObject):
                    raise PolicyError(
                        f"claim {key}: expected strings, numbers or booleans, "
                        f"got {type_name(item)}",
                        ("allowed_idp_claims", key),
                    )
            yield key, values
