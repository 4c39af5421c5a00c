"""The shape of a compiled criterion. What it reads is declared in `common/policy/facts.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.identity import Identity
from gatehouse.common.ids import TypeUrl
from gatehouse.common.policy.facts import NOTHING, Fact
from gatehouse.common.policy.records import ForeignKey

Result: TypeAlias = tuple[bool, str]  # the value, and the reason for it
Test: TypeAlias = Callable[[RequestFacts, Identity], Result]

UNAUTHENTICATED: Final[Result] = (False, "user-unauthenticated")


@dataclass(frozen=True, slots=True)
class RecordNeed:
    """Which record of an external data source a criterion looks at."""

    type_url: TypeUrl
    foreign_key: ForeignKey

    def key(self, identity: Identity) -> tuple[TypeUrl, str] | None:
        """The record's type and id for whoever asks; None without a user."""
        record_id = identity.user_id if self.foreign_key == "user.id" else identity.email
        return (self.type_url, record_id) if identity.has_session and record_id else None


@dataclass(frozen=True, slots=True)
class Compiled:
    """A criterion ready to be asked."""

    test: Test
    possible: tuple[Result, ...]  # everything `test` may answer
    until_s: Callable[[float], float] | None = None  # of TIME: from now, how long it stays so
    device_type: str = ""  # what the user would have to enrol
    record: RecordNeed | None = None
    reads: Fact = NOTHING  # set by `compile_criterion`


def plain(
    name: str,
    condition: Callable[[RequestFacts, Identity], bool],
    *,
    until_s: Callable[[float], float] | None = None,
) -> Compiled:
    """A criterion about the request: `<name>-ok` or `<name>-unauthorized`."""
    passed, failed = (True, f"{name}-ok"), (False, f"{name}-unauthorized")

    def test(facts: RequestFacts, identity: Identity) -> Result:
        return passed if condition(facts, identity) else failed

    return Compiled(test, (passed, failed), until_s)


def about_session(name: str, condition: Callable[[Identity], bool]) -> Compiled:
    """A criterion about who asks. The condition is tried first, even without a session."""
    passed, failed = (True, f"{name}-ok"), (False, f"{name}-unauthorized")

    def test(facts: RequestFacts, identity: Identity) -> Result:
        del facts
        if condition(identity):
            return passed
        return failed if identity.has_session else UNAUTHENTICATED

    return Compiled(test, (passed, failed, UNAUTHENTICATED))
