"""The page on which administrators ask: what it says of an answer."""

from __future__ import annotations

import dataclasses

import pytest

from gatehouse.common.pages import render_explanation
from gatehouse.common.pages.explanation import (
    Asked,
    ChangeRow,
    CriterionRow,
    Explained,
    ExplainPage,
    OperatorRow,
)

ATTACK = '"><script>alert(1)</script>'
EXPLAINED = Explained(
    outcome="denied 403",
    reasons=(),
    route="https://wiki.example.com",
    who="ann@example.com",
    session_id="",
    valid_until="",
    operators=(),
    changes=(),
)


def page(**changes: object) -> str:
    explained = dataclasses.replace(EXPLAINED, **changes)  # type: ignore[arg-type]
    return render_explanation(ExplainPage(Asked(), (), explained=explained))


@pytest.mark.parametrize(
    ("outcome", "headline"),
    [
        ("allowed", "Allowed"),
        ("sign-in", "Sent to sign in"),
        ("device", "Sent to show a device"),
        ("denied 403", "Refused with 403"),
        ("denied 495", "Refused with 495"),
    ],
)
def test_every_outcome_has_its_words(outcome: str, headline: str) -> None:
    document = page(outcome=outcome)
    assert f"<title>{headline}</title>" in document
    assert f">{headline}</h2>" in document


def test_what_is_not_there_is_said_or_left_out() -> None:
    document = page()
    assert "No rule says anything about this request." in document
    assert "No change of a few criteria does." in document
    for absent in ("By session", "Time alone", "Other sessions", "<table"):
        assert absent not in document
    assert 'id="answer"' in document
    assert "Refused" not in render_explanation(ExplainPage(Asked(), ()))


def test_r34_nothing_of_an_answer_is_markup() -> None:
    criterion = CriterionRow(ATTACK, ATTACK, True, ATTACK, True, ((ATTACK, ATTACK),))
    document = page(
        outcome=ATTACK,
        reasons=(ATTACK,),
        route=ATTACK,
        who=ATTACK,
        session_id=ATTACK,
        valid_until=ATTACK,
        operators=(OperatorRow(ATTACK, 1, True, (criterion,)),),
        changes=(ChangeRow(ATTACK, ((ATTACK, ATTACK, ATTACK),)),),
        other_sessions=((ATTACK, "/.pomerium/explain?who=x"),),
    )
    assert document.count("alert(1)") >= 14
    assert "<script" not in document
    asked = Asked(*(ATTACK,) * 6)
    form = render_explanation(ExplainPage(asked, ((ATTACK, ATTACK),), problem=ATTACK))
    assert form.count("alert(1)") >= 9
    assert "<script" not in form
