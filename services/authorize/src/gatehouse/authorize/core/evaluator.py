"""From a policy to an outcome: compiled once, then asked for every request.

Every criterion of the policy is asked each time, also when the verdict is clear already: the
reasons of all of them decide what the client is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.criteria import compile_criterion
from gatehouse.authorize.core.criteria.facts import (
    UNAUTHENTICATED,
    Compiled,
    RecordNeed,
    Result,
)
from gatehouse.authorize.core.identity import Identity
from gatehouse.common.policy.ast import Action, Criterion, Operator, Policy
from gatehouse.common.policy.facts import Fact, policy_reads
from gatehouse.common.policy.matchers import ANY_DEVICE

_CERTIFICATE_REASONS: Final = frozenset(
    {"client-certificate-required", "invalid-client-certificate"}
)
_UNAUTHENTICATED: Final = UNAUTHENTICATED[1]
_DEVICE_UNAUTHENTICATED: Final = "device-unauthenticated"
_DEVICE_UNAUTHORIZED: Final = "device-unauthorized"
_ROUTE_NOT_FOUND: Final = "route-not-found"
_NO_REASONS: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """One action's value and the reasons for it."""

    value: bool
    reasons: frozenset[str]
    device_type: str = ""  # of the device criteria among what decided


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Both actions of a policy for one request."""

    allow: Verdict
    deny: Verdict
    valid_until_s: float = math.inf  # Unix seconds: from then on, time alone may change it


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


@dataclass(frozen=True, slots=True)
class EnrolDevice:
    """Nobody can say before the user has shown a device of this type."""

    reasons: frozenset[str]
    device_type: str


Outcome: TypeAlias = Allow | Deny | SignIn | EnrolDevice

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
        "explain",
        "mcp/authorize",
        "mcp/connect",
        "mcp/routes",
    )
)

Combine: TypeAlias = Callable[[Sequence[Result]], Verdict]


@dataclass(frozen=True, slots=True)
class Group:
    """One operator of one rule, compiled: an alternative of its action."""

    rule: int  # its number in the policy, from 0
    action: Action
    operator: Operator
    criteria: tuple[tuple[Criterion, Compiled], ...]

    def results(self, facts: RequestFacts, identity: Identity) -> list[Result]:
        """Ask every criterion."""
        return [compiled.test(facts, identity) for _, compiled in self.criteria]

    def verdict(self, results: Sequence[Result]) -> Verdict:
        """What the operator makes of its criteria's results."""
        return self._with_device(_COMBINE[self.operator](results), results)

    def _with_device(self, verdict: Verdict, results: Sequence[Result]) -> Verdict:
        types = [
            compiled.device_type
            for (_, compiled), result in zip(self.criteria, results, strict=True)
            if compiled.device_type and result[1] in verdict.reasons
        ]
        if not types:
            return verdict
        return Verdict(verdict.value, verdict.reasons, max(types))


class CompiledPolicy:
    """A policy as closures. `reads` is everything its outcome can depend on.

    `records` are the records of external data sources that must be looked up beforehand.
    """

    __slots__ = ("_allow", "_clocks", "_deny", "groups", "reads", "records")

    def __init__(self, policy: Policy) -> None:
        self.groups = tuple(_groups(policy))
        compiled = [c for group in self.groups for _, c in group.criteria]
        self.reads: Fact = policy_reads(policy)
        self.records: frozenset[RecordNeed] = frozenset(c.record for c in compiled if c.record)
        self._clocks = tuple(c.until_s for c in compiled if c.until_s is not None)
        self._allow = tuple(_Step(group) for group in self.groups if group.action == "allow")
        self._deny = tuple(_Step(group) for group in self.groups if group.action == "deny")

    def evaluate(self, facts: RequestFacts, identity: Identity) -> Evaluation:
        """Ask every criterion. What one of them raises is not caught here: it must deny."""
        allow = merged([step.verdict(facts, identity) for step in self._allow])
        deny = merged([step.verdict(facts, identity) for step in self._deny])
        if not self._clocks:
            return Evaluation(allow, deny)
        now_s = facts.now_s
        return Evaluation(allow, deny, min([until_s(now_s) for until_s in self._clocks]))


class _Step:
    """A group without what only people want to know."""

    __slots__ = ("_combine", "_tests")

    def __init__(self, group: Group) -> None:
        self._tests = tuple(compiled.test for _, compiled in group.criteria)
        has_devices = any(compiled.device_type for _, compiled in group.criteria)
        self._combine = group.verdict if has_devices else _COMBINE[group.operator]

    def verdict(self, facts: RequestFacts, identity: Identity) -> Verdict:
        return self._combine([test(facts, identity) for test in self._tests])


def _groups(policy: Policy) -> Iterator[Group]:
    for number, rule in enumerate(policy.rules):
        for operator, criteria in rule.operators():
            compiled = tuple((criterion, compile_criterion(criterion)) for criterion in criteria)
            yield Group(number, rule.action, operator, compiled)


def evaluate_internal(path: str, identity: Identity) -> Evaluation:
    """Our own endpoints: policy is not asked; some of them need a session."""
    if path in _INTERNAL_WITH_SESSION and not identity.has_session:
        return INTERNAL_SIGN_IN
    return INTERNAL_ALLOWED


def decide(evaluation: Evaluation) -> Outcome:
    """What happens to the request. The order of these steps is the interface."""
    allow, deny = evaluation.allow, evaluation.deny
    if not _CERTIFICATE_REASONS.isdisjoint(deny.reasons):
        if _DEVICE_UNAUTHENTICATED not in deny.reasons:
            return _denied(deny.reasons)
    elif _UNAUTHENTICATED in allow.reasons or _UNAUTHENTICATED in deny.reasons:
        return SignIn(allow.reasons | deny.reasons)
    if _DEVICE_UNAUTHENTICATED in allow.reasons or _DEVICE_UNAUTHENTICATED in deny.reasons:
        return EnrolDevice(
            allow.reasons | deny.reasons, allow.device_type or deny.device_type or ANY_DEVICE
        )
    if deny.value:
        return _denied(deny.reasons)
    if allow.value:
        return Allow(allow.reasons)
    return _denied(allow.reasons)


def _denied(reasons: frozenset[str]) -> Deny:
    if _DEVICE_UNAUTHORIZED in reasons:
        return Deny(reasons, 450)
    if _ROUTE_NOT_FOUND in reasons:
        return Deny(reasons, 404)
    if not _CERTIFICATE_REASONS.isdisjoint(reasons):
        return Deny(reasons, 495)
    return Deny(reasons, 403)


def merged(verdicts: Sequence[Verdict]) -> Verdict:
    """Alternatives: true if any is; the reasons of those that decide."""
    if not verdicts:
        return NO_VERDICT
    if len(verdicts) == 1:
        return verdicts[0]
    value = any(verdict.value for verdict in verdicts)
    deciding = [verdict for verdict in verdicts if verdict.value is value]
    return Verdict(
        value,
        _NO_REASONS.union(*[verdict.reasons for verdict in deciding]),
        max([verdict.device_type for verdict in deciding]),
    )


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


_COMBINE: Final[dict[Operator, Combine]] = {"and": _and, "or": _or, "not": _not, "nor": _nor}
