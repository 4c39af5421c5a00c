"""From a policy to an outcome: compiled once, then asked for every request.

Every criterion of the policy is asked each time, also when the verdict is clear already: the
reasons of all of them decide what the client is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.criteria import compile_criterion
from gatehouse.authorize.core.criteria.facts import NOTHING, Fact, Result, Test
from gatehouse.authorize.core.identity import Identity
from gatehouse.common.policy.ast import Action, Operator, Policy

_CERTIFICATE_REASONS: Final = frozenset(
    {"client-certificate-required", "invalid-client-certificate"}
)
_UNAUTHENTICATED: Final = "user-unauthenticated"
_ROUTE_NOT_FOUND: Final = "route-not-found"
_NO_REASONS: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """One action's value and the reasons for it."""

    value: bool
    reasons: frozenset[str]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Both actions of a policy for one request."""

    allow: Verdict
    deny: Verdict


@dataclass(frozen=True, slots=True)
class Allow:
    """The request may go on."""

    reasons: frozenset[str]


@dataclass(frozen=True, slots=True)
class Deny:
    """The request is refused with this HTTP status."""

    reasons: frozenset[str]
    status: int


@dataclass(frozen=True, slots=True)
class SignIn:
    """Nobody can say before the user has signed in."""

    reasons: frozenset[str]


Outcome: TypeAlias = Allow | Deny | SignIn

NO_VERDICT: Final = Verdict(value=False, reasons=_NO_REASONS)
ROUTE_NOT_FOUND: Final = Evaluation(
    NO_VERDICT,
    Verdict(value=True, reasons=frozenset({_ROUTE_NOT_FOUND})),
)
INTERNAL_ALLOWED: Final = Evaluation(
    Verdict(value=True, reasons=frozenset({"pomerium-route"})),
    NO_VERDICT,
)
INTERNAL_SIGN_IN: Final = Evaluation(
    Verdict(value=False, reasons=frozenset({_UNAUTHENTICATED})),
    NO_VERDICT,
)

# Our own pages that mean something only to a signed-in user; exact paths.
_INTERNAL_WITH_SESSION: Final = frozenset(
    f"/.pomerium/{name}"
    for name in (
        "jwt",
        "user",
        "webauthn",
        "routes",
        "api/v1/routes",
        "mcp/authorize",
        "mcp/connect",
        "mcp/routes",
    )
)

_Combine: TypeAlias = Callable[[Sequence[Result]], Verdict]


class CompiledPolicy:
    """A policy as closures. `reads` is everything its outcome can depend on."""

    __slots__ = ("_allow", "_deny", "reads")

    def __init__(self, policy: Policy) -> None:
        self.reads: Fact = NOTHING
        self._allow = self._compile(policy, "allow")
        self._deny = self._compile(policy, "deny")

    def evaluate(self, facts: RequestFacts, identity: Identity) -> Evaluation:
        """Ask every criterion. What one of them raises is not caught here: it must deny."""
        return Evaluation(
            _alternatives(self._allow, facts, identity), _alternatives(self._deny, facts, identity)
        )

    def _compile(
        self, policy: Policy, action: Action
    ) -> tuple[tuple[_Combine, tuple[Test, ...]], ...]:
        groups: list[tuple[_Combine, tuple[Test, ...]]] = []
        for rule in policy.rules:
            if rule.action != action:
                continue
            for operator, criteria in rule.operators():
                compiled = [compile_criterion(criterion) for criterion in criteria]
                for criterion in compiled:
                    self.reads |= criterion.reads
                groups.append((_COMBINE[operator], tuple(c.test for c in compiled)))
        return tuple(groups)


def evaluate_internal(path: str, identity: Identity) -> Evaluation:
    """Our own endpoints: policy is not asked; some of them need a session."""
    if path in _INTERNAL_WITH_SESSION and not identity.has_session:
        return INTERNAL_SIGN_IN
    return INTERNAL_ALLOWED


def decide(evaluation: Evaluation) -> Outcome:
    """What happens to the request. The order of these steps is the interface."""
    allow, deny = evaluation.allow, evaluation.deny
    if not _CERTIFICATE_REASONS.isdisjoint(deny.reasons):
        return _denied(deny.reasons)
    if _UNAUTHENTICATED in allow.reasons or _UNAUTHENTICATED in deny.reasons:
        return SignIn(allow.reasons | deny.reasons)
    if deny.value:
        return _denied(deny.reasons)
    if allow.value:
        return Allow(allow.reasons)
    return _denied(allow.reasons)


def _denied(reasons: frozenset[str]) -> Deny:
    if _ROUTE_NOT_FOUND in reasons:
        return Deny(reasons, 404)
    if not _CERTIFICATE_REASONS.isdisjoint(reasons):
        return Deny(reasons, 495)
    return Deny(reasons, 403)


def _alternatives(
    groups: tuple[tuple[_Combine, tuple[Test, ...]], ...],
    facts: RequestFacts,
    identity: Identity,
) -> Verdict:
    if not groups:
        return NO_VERDICT
    verdicts = [combine([test(facts, identity) for test in tests]) for combine, tests in groups]
    if len(verdicts) == 1:
        return verdicts[0]
    value = any(verdict.value for verdict in verdicts)
    reasons = frozenset[str]().union(*(v.reasons for v in verdicts if v.value is value))
    return Verdict(value, reasons)


# Every criterion gives a reason, so a set of reasons is empty exactly when no result is in it.


def _and(results: Sequence[Result]) -> Verdict:
    failed = _reasons(results, of=False)
    return (
        Verdict(value=False, reasons=failed)
        if failed
        else Verdict(value=True, reasons=_reasons(results, of=True))
    )


def _or(results: Sequence[Result]) -> Verdict:
    passed = _reasons(results, of=True)
    return (
        Verdict(value=True, reasons=passed)
        if passed
        else Verdict(value=False, reasons=_reasons(results, of=False))
    )


def _not(results: Sequence[Result]) -> Verdict:
    passed = _reasons(results, of=True)
    return (
        Verdict(value=False, reasons=passed)
        if passed
        else Verdict(value=True, reasons=_reasons(results, of=False))
    )


def _nor(results: Sequence[Result]) -> Verdict:
    failed = _reasons(results, of=False)
    return (
        Verdict(value=True, reasons=failed)
        if failed
        else Verdict(value=False, reasons=_reasons(results, of=True))
    )


def _reasons(results: Iterable[Result], *, of: bool) -> frozenset[str]:
    return frozenset([reason for value, reason in results if value is of])


_COMBINE: Final[dict[Operator, _Combine]] = {"and": _and, "or": _or, "not": _not, "nor": _nor}
