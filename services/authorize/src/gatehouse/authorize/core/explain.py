"""Why a policy decides as it does: every criterion's answer, and what would change the outcome.

Nothing is decided here. The compiled policy of the running service is asked, its parts are shown,
and a change is proposed only after the same evaluation has confirmed what it leads to.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.claims import json_of
from gatehouse.authorize.core.client_certificate import leaf_facts
from gatehouse.authorize.core.criteria.facts import UNAUTHENTICATED, Compiled, Result
from gatehouse.authorize.core.evaluator import (
    Allow,
    CompiledPolicy,
    Deny,
    EnrolDevice,
    Evaluation,
    Group,
    Outcome,
    SignIn,
    Verdict,
    decide,
    merged,
)
from gatehouse.authorize.core.identity import Identity
from gatehouse.common.observability.redaction import REDACTED, is_secret_name
from gatehouse.common.policy.ast import Action, Criterion, Policy
from gatehouse.common.policy.errors import format_path
from gatehouse.common.policy.facts import Fact

_MAX_TRIED: Final = 256  # combinations of changes that are looked at
_MAX_SHOWN: Final = 5

_Place: TypeAlias = tuple[int, int]  # group and criterion
_Flips: TypeAlias = dict[_Place, Result]


@dataclass(frozen=True, slots=True)
class CriterionAnswer:
    """What one criterion answered, and on which facts."""

    place: str  # in the policy's text, as far as it is known: allow.and[2].email
    key: str  # name and sub-path
    data: object  # as JSON has it
    value: bool
    reason: str
    decides: bool  # its reason is among those of the verdict
    facts: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class OperatorAnswer:
    """What one operator of one rule made of its criteria."""

    rule: int
    action: str
    operator: str
    value: bool
    reasons: tuple[str, ...]
    criteria: tuple[CriterionAnswer, ...]


@dataclass(frozen=True, slots=True)
class Need:
    """One criterion that would have to answer differently."""

    place: str
    now: str  # the reason it gives
    instead: str


@dataclass(frozen=True, slots=True)
class Change:
    """All of these together lead to the outcome."""

    outcome: str
    needs: tuple[Need, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """One decision, taken apart."""

    outcome: Outcome
    evaluation: Evaluation
    operators: tuple[OperatorAnswer, ...]
    changes: tuple[Change, ...]

    @property
    def summary(self) -> str:
        """The outcome in words."""
        return outcome_name(self.outcome)


def explain(policy: Policy, request: RequestFacts, identity: Identity) -> Explanation:
    """Ask a policy and take its answer apart. PolicyError when the policy cannot be used."""
    compiled = CompiledPolicy(policy)
    evaluation = compiled.evaluate(request, identity)
    outcome = decide(evaluation)
    results = [group.results(request, identity) for group in compiled.groups]
    assert _evaluated(compiled.groups, results, {})[0] == decide(evaluation)
    operators = tuple(
        _operator(group, answers, evaluation, request, identity)
        for group, answers in zip(compiled.groups, results, strict=True)
    )
    changes = tuple(_changes(compiled.groups, results, outcome))
    return Explanation(outcome, evaluation, operators, changes)


def outcome_name(outcome: Outcome) -> str:
    """allowed, sign-in, device, or denied with its status."""
    match outcome:
        case Allow():
            return "allowed"
        case SignIn():
            return "sign-in"
        case EnrolDevice():
            return "device"
        case Deny(status=status):
            return f"denied {status}"


def _operator(
    group: Group,
    results: Sequence[Result],
    evaluation: Evaluation,
    request: RequestFacts,
    identity: Identity,
) -> OperatorAnswer:
    verdict = group.verdict(results)
    action = evaluation.allow if group.action == "allow" else evaluation.deny
    return OperatorAnswer(
        rule=group.rule,
        action=group.action,
        operator=group.operator,
        value=verdict.value,
        reasons=tuple(sorted(verdict.reasons)),
        criteria=tuple(
            CriterionAnswer(
                place=_place(group, index),
                key=criterion.key,
                data=json_of(criterion.data),
                value=value,
                reason=reason,
                decides=verdict.value is action.value and reason in verdict.reasons,
                facts=dict(_facts(criterion, compiled, request, identity)),
            )
            for index, ((criterion, compiled), (value, reason)) in enumerate(
                zip(group.criteria, results, strict=True)
            )
        ),
    )


def _place(group: Group, index: int) -> str:
    criterion = group.criteria[index][0]
    if criterion.path:
        return format_path(criterion.path)
    return f"rule {group.rule + 1}: {group.action}.{group.operator}[{index}].{criterion.key}"


# Facts


def _facts(
    criterion: Criterion, compiled: Compiled, request: RequestFacts, identity: Identity
) -> Iterator[tuple[str, object]]:
    reads = compiled.reads
    if Fact.SESSION in reads:
        yield "session", identity.session_id if identity.has_session else "none"
    match criterion.name:
        case "claim":
            name = criterion.sub_path
            shown = [json_of(value) for value in identity.claims.get(name, ())]
            # A provider may put a token into a claim; who looks on needs none (security R36).
            is_secret = is_secret_name(name.rpartition(".")[2])
            yield f"claim {name}", REDACTED if shown and is_secret else shown
        case "groups":
            known = identity.group_ids
            yield "groups", list(known) if known is not None else "not in the directory"
        case "email" | "domain":
            yield "email", identity.email
        case "user" | "authenticated_user":
            yield "user", identity.user_id
    if compiled.record is not None:
        key = compiled.record.key(identity)
        found = request.records.get(key) if key is not None else None
        yield "record", json_of(found) if found is not None else "none"
    if Fact.DEVICE in reads:
        device = identity.devices.get(compiled.device_type)
        yield f"device {compiled.device_type}", "none" if device is None else device.credential_id
        if device is not None:
            yield "approved by", device.approved_by or "nobody"
    if Fact.METHOD in reads:
        yield "method", request.method
    if Fact.PATH in reads:
        yield "path", request.path
    if Fact.CORS_HEADERS in reads:
        for name in ("origin", "access-control-request-method"):
            yield name, request.headers.get(name, "")
    if Fact.SOURCE_IP in reads:
        yield "ip", request.ip
    if Fact.CLIENT_CERTIFICATE in reads:
        leaf = leaf_facts(request.certificate_chain) if request.certificate_presented else None
        yield "certificate", "none" if leaf is None else leaf.fingerprint
    if Fact.CERTIFICATE_VALIDITY in reads:
        yield "certificate valid", request.certificate_valid
    if Fact.MCP in reads:
        yield "mcp method", request.mcp.method if request.mcp is not None else "none"
        yield "mcp tool", request.mcp.tool if request.mcp is not None else "none"
    if Fact.SSH in reads:
        yield "ssh user", request.ssh.username if request.ssh is not None else ""
    if Fact.TIME in reads:
        yield "time", dt.datetime.fromtimestamp(request.now_s, dt.UTC).isoformat()


# What would change the outcome


def _evaluated(
    groups: Sequence[Group], results: Sequence[Sequence[Result]], flips: _Flips
) -> tuple[Outcome, Evaluation]:
    sides: dict[Action, list[Verdict]] = {"allow": [], "deny": []}
    for number, (group, answers) in enumerate(zip(groups, results, strict=True)):
        changed = [flips.get((number, index), answer) for index, answer in enumerate(answers)]
        sides[group.action].append(group.verdict(changed))
    evaluation = Evaluation(merged(sides["allow"]), merged(sides["deny"]))
    return decide(evaluation), evaluation


def _changes(
    groups: Sequence[Group], results: Sequence[Sequence[Result]], outcome: Outcome
) -> Iterator[Change]:
    candidates = (
        _single_flips(groups, results) if isinstance(outcome, Allow) else _ways_in(groups, results)
    )
    found: list[tuple[_Flips, Outcome]] = []
    for flips in itertools.islice(candidates, _MAX_TRIED):
        then, _ = _evaluated(groups, results, flips)
        if isinstance(then, Allow) is isinstance(outcome, Allow):
            continue
        if any(known.items() <= flips.items() for known, _ in found):
            continue
        found.append((flips, then))
    found.sort(key=lambda item: len(item[0]))
    for flips, then in found[:_MAX_SHOWN]:
        yield Change(
            outcome_name(then),
            tuple(
                Need(_place(groups[group], index), results[group][index][1], result[1])
                for (group, index), result in sorted(flips.items())
            ),
        )


def _single_flips(groups: Sequence[Group], results: Sequence[Sequence[Result]]) -> Iterator[_Flips]:
    for number, (group, answers) in enumerate(zip(groups, results, strict=True)):
        for index, (_, compiled) in enumerate(group.criteria):
            other = _flipped(compiled, answers[index])
            if other is not None:
                yield {(number, index): other}


def _ways_in(groups: Sequence[Group], results: Sequence[Sequence[Result]]) -> Iterator[_Flips]:
    """Ways to make some allow operator true, no deny operator true, and nothing unanswered."""
    settled = _settled(groups, results)
    allowing = [
        way
        for number, group in enumerate(groups)
        if group.action == "allow"
        for way in _ways(number, group, results[number], to=True)
    ]
    denying = [
        list(_ways(number, group, results[number], to=False))
        for number, group in enumerate(groups)
        if group.action == "deny"
    ]
    for way_in in sorted(allowing, key=len):
        for ways_out in itertools.product(*denying):
            flips = _joined((way_in, *ways_out))
            yield flips
            if settled:
                yield settled | flips


def _settled(groups: Sequence[Group], results: Sequence[Sequence[Result]]) -> _Flips:
    """Deny criteria that ask for a user or a device, as they answer once there is one."""
    return {
        (number, index): other
        for number, group in enumerate(groups)
        if group.action == "deny"
        for index, (_, compiled) in enumerate(group.criteria)
        if results[number][index][1] in {UNAUTHENTICATED[1], "device-unauthenticated"}
        and (other := _settled_answer(compiled)) is not None
    }


def _settled_answer(compiled: Compiled) -> Result | None:
    return next(
        (
            result
            for result in compiled.possible
            if not result[0] and result[1].endswith("-unauthorized")
        ),
        None,
    )


def _ways(number: int, group: Group, results: Sequence[Result], *, to: bool) -> Iterator[_Flips]:
    """The smallest changes that give an operator the value `to`; {} when it has it."""
    if group.verdict(results).value is to:
        yield {}
        return
    # `and` and `not` are true when all agree, `or` and `nor` when one does.
    wants = group.operator in {"and", "or"}
    target = wants if to else not wants
    every = (group.operator in {"and", "not"}) is to
    flips: list[_Flips] = []
    for index, (_, compiled) in enumerate(group.criteria):
        if results[index][0] is target:
            continue
        other = _flipped(compiled, results[index])
        if other is None:
            if every:
                return
            continue
        flips.append({(number, index): other})
    if every:
        yield _joined(flips)
    else:
        yield from flips


def _flipped(compiled: Compiled, result: Result) -> Result | None:
    """The same criterion with the other value; None when it cannot have it."""
    others = [other for other in compiled.possible if other[0] is not result[0]]
    usual = [other for other in others if other != UNAUTHENTICATED]
    return next(iter(usual or others), None)


def _joined(parts: Iterable[_Flips]) -> _Flips:
    whole: _Flips = {}
    for part in parts:
        whole |= part
    return whole
