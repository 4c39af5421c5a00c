"""The page of administrators: from what was typed to authorize's question, and back to words.

Who may ask, and what the answer is, authorize alone says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct

from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.pages import Link
from gatehouse.common.pages.explanation import (
    Asked,
    ChangeRow,
    CriterionRow,
    Explained,
    ExplainPage,
    OperatorRow,
)
from gatehouse.common.pages.refusal import RETRY_AFTER_S, RefusedRequestError
from gatehouse.pb import authorize_pb2

EXPLAIN_PATH: Final = "/.pomerium/explain"
_FACTS: Final = ("method", "path", "ip", "time")
_MAX_CHOICES: Final = 500  # routes that the form proposes; any other can be typed
_MAX_TEXT: Final = 2048


def asked(params: Mapping[str, str]) -> Asked:
    """What was typed."""
    fields = ("route", "who", *_FACTS)
    return Asked(**{name: params.get(name, "").strip()[:_MAX_TEXT] for name in fields})


def question(typed: Asked, *, session_id: str, ip: str) -> authorize_pb2.Question:
    """What to ask authorize, for the session that asks."""
    facts = {name: getattr(typed, name) for name in _FACTS if getattr(typed, name)}
    return authorize_pb2.Question(
        session_id=session_id,
        ip=ip,
        who=typed.who,
        route=typed.route,
        facts=ParseDict(facts, Struct()),
    )


def explain_page(
    typed: Asked, answered: authorize_pb2.Answered, settings: ResolvedSettings
) -> ExplainPage:
    """The form as it was typed, and the answer."""
    return ExplainPage(
        asked=typed,
        routes=tuple(
            (route.id, f"{route.settings.name} {route.settings.from_}".strip())
            for route in settings.routes[:_MAX_CHOICES]
        ),
        problem=answered.problem,
        explained=_explained(typed, answered) if answered.HasField("explanation") else None,
    )


def explain_document(answered: authorize_pb2.Answered) -> dict[str, Any]:
    """The answer as JSON has it, with the names of authorize's message."""
    return MessageToDict(answered, preserving_proto_field_name=True)


def may_not_ask(message: str) -> RefusedRequestError:
    """403: `explain_policy` does not let this session ask."""
    return RefusedRequestError(
        HTTPStatus.FORBIDDEN,
        "This page is for administrators",
        message=message,
        reason="no-administrator",
        detail="You are signed in, and may not ask why others are let in or not.",
        links=(Link("Your session", "/.pomerium/"),),
    )


def no_answer(message: str) -> RefusedRequestError:
    """503: authorize did not answer, or not in time."""
    return RefusedRequestError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "There is no answer right now",
        message=message,
        reason="authorize-unavailable",
        detail="The service that decides does not answer.",
        next_steps=("Wait a few seconds and load the page again.",),
        headers=(("retry-after", str(RETRY_AFTER_S)),),
    )


def _explained(typed: Asked, answered: authorize_pb2.Answered) -> Explained:
    found = answered.explanation
    session_id, *others = answered.session_id or ("",)
    return Explained(
        outcome=found.outcome,
        reasons=tuple(found.reasons),
        route=found.route_from,
        who=found.email or found.user_id or typed.who or "Somebody without a session",
        session_id=session_id,
        valid_until=_moment(found.valid_until) if found.HasField("valid_until") else "",
        operators=tuple(_operator(one) for one in found.operators),
        changes=tuple(
            ChangeRow(
                change.outcome,
                tuple((need.place, need.now, need.instead) for need in change.needs),
            )
            for change in found.changes
        ),
        other_sessions=tuple((other, _link(typed, other)) for other in others),
    )


def _operator(operator: authorize_pb2.Operator) -> OperatorRow:
    return OperatorRow(
        name=f"{operator.action}.{operator.operator}",
        rule=operator.rule + 1,
        value=operator.value,
        criteria=tuple(
            CriterionRow(
                place=one.place,
                data=_text(MessageToDict(one.data)),
                value=one.value,
                reason=one.reason,
                decides=one.decides,
                facts=tuple(_facts(one.facts)),
            )
            for one in operator.criteria
        ),
    )


def _facts(facts: Struct) -> Iterator[tuple[str, str]]:
    for name, value in MessageToDict(facts).items():
        yield name, _text(value) or "none"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _link(typed: Asked, session_id: str) -> str:
    again = {"route": typed.route, "who": session_id}
    again |= {name: getattr(typed, name) for name in _FACTS if getattr(typed, name)}
    return f"{EXPLAIN_PATH}?{urlencode(again)}"


def _moment(moment_s: float) -> str:
    moment = datetime.fromtimestamp(moment_s, tz=UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M:%S} UTC"
