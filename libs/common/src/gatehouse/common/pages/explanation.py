"""The page on which administrators ask why somebody is let in or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_HEADLINES: Final = {
    "allowed": "Allowed",
    "sign-in": "Sent to sign in",
    "device": "Sent to show a device",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """The question, as it was typed. All text is escaped when rendered."""

    route: str = ""
    who: str = ""
    method: str = ""
    path: str = ""
    ip: str = ""
    time: str = ""


@dataclass(frozen=True, slots=True)
class CriterionRow:
    """What one criterion answered."""

    place: str  # in the policy's text
    data: str
    value: bool
    reason: str
    decides: bool  # its reason is among those of the verdict
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class OperatorRow:
    """One operator of one rule, with its criteria."""

    name: str  # allow.or
    rule: int  # from 1
    value: bool
    criteria: tuple[CriterionRow, ...]


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """What, all of it together, would lead to another outcome."""

    outcome: str
    needs: tuple[tuple[str, str, str], ...]  # place, reason now, reason instead


@dataclass(frozen=True, slots=True)
class Explained:
    """The answer."""

    outcome: str  # allowed, sign-in, device, or denied with its status
    reasons: tuple[str, ...]
    route: str
    who: str
    session_id: str  # "" for nobody
    valid_until: str  # readable; "" when time alone changes nothing
    operators: tuple[OperatorRow, ...]
    changes: tuple[ChangeRow, ...]
    other_sessions: tuple[tuple[str, str], ...] = ()  # of the same person: id and link

    @property
    def headline(self) -> str:
        """The outcome in a few words."""
        status = self.outcome.removeprefix("denied ")
        return _HEADLINES.get(self.outcome, f"Refused with {status}")


@dataclass(frozen=True, slots=True)
class ExplainPage:
    """The form, and under it the answer."""

    asked: Asked
    routes: tuple[tuple[str, str], ...]  # to choose from: what to type, what it is
    problem: str = ""  # what of the question cannot be answered
    explained: Explained | None = None
