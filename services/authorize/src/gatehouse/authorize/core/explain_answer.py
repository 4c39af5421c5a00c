"""An explanation as it goes over the wire (gatehouse.authorize.v1.ExplainService) and as JSON."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict

from gatehouse.authorize.core.evaluator import Verdict
from gatehouse.authorize.core.explain import Explanation
from gatehouse.authorize.core.identity import Identity
from gatehouse.common.config.resolved import ResolvedRoute
from gatehouse.pb import authorize_pb2


def explain_answer(
    found: Explanation, route: ResolvedRoute, identity: Identity
) -> authorize_pb2.ExplainResponse:
    """The message for one explanation."""
    until_s = found.evaluation.valid_until_s
    document: dict[str, Any] = {
        "route_id": route.id,
        "route_from": route.settings.from_,
        "outcome": found.summary,
        "reasons": sorted(found.outcome.reasons),
        "allow": _verdict(found.evaluation.allow),
        "deny": _verdict(found.evaluation.deny),
        "operators": [
            {
                "rule": operator.rule,
                "action": operator.action,
                "operator": operator.operator,
                "value": operator.value,
                "reasons": list(operator.reasons),
                "criteria": [
                    {
                        "place": criterion.place,
                        "criterion": criterion.key,
                        "data": criterion.data,
                        "value": criterion.value,
                        "reason": criterion.reason,
                        "decides": criterion.decides,
                        "facts": dict(criterion.facts),
                    }
                    for criterion in operator.criteria
                ],
            }
            for operator in found.operators
        ],
        "changes": [
            {
                "outcome": change.outcome,
                "needs": [
                    {"place": need.place, "now": need.now, "instead": need.instead}
                    for need in change.needs
                ],
            }
            for change in found.changes
        ],
        "user_id": identity.user_id,
        "email": identity.email,
    }
    if until_s != float("inf"):
        document["valid_until"] = until_s
    return ParseDict(document, authorize_pb2.ExplainResponse())


def document(answer: authorize_pb2.ExplainResponse) -> dict[str, Any]:
    """An answer as JSON has it, with the names of the message."""
    return MessageToDict(
        answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _verdict(verdict: Verdict) -> dict[str, object]:
    return {"value": verdict.value, "reasons": sorted(verdict.reasons)}
