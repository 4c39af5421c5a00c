"""The facts a decision may rest on, and the shape of a compiled criterion."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.identity import Identity
from gatehouse.common.ids import TypeUrl
from gatehouse.common.policy.records import ForeignKey

Result: TypeAlias = tuple[bool, str]  # the value, and the reason for it
Test: TypeAlias = Callable[[RequestFacts, Identity], Result]

UNAUTHENTICATED: Final[Result] = (False, "user-unauthenticated")


class Fact(enum.Flag):
    """Kinds of facts. A criterion's outcome may change only with those it declares."""

    SESSION = enum.auto()  # that there is one, its user id and its claims
    USER = enum.auto()  # the user's email and claims
    DIRECTORY = enum.auto()  # the directory's email and groups
    DEVICE = enum.auto()  # the session's device credentials and their enrolments
    RECORDS = enum.auto()  # the user's records of external data sources
    METHOD = enum.auto()
    PATH = enum.auto()
    CORS_HEADERS = enum.auto()  # Origin and Access-Control-Request-Method
    SOURCE_IP = enum.auto()
    CLIENT_CERTIFICATE = enum.auto()  # presented, and the leaf
    CERTIFICATE_VALIDITY = enum.auto()
    TIME = enum.auto()  # the moment of the request


NOTHING: Final = Fact(0)


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

    reads: Fact
    test: Test
    possible: tuple[Result, ...]  # everything `test` may answer
    until_s: Callable[[float], float] | None = None  # of TIME: from now, how long it stays so
    device_type: str = ""  # what the user would have to enrol
    record: RecordNeed | None = None


def plain(
    reads: Fact,
    name: str,
    condition: Callable[[RequestFacts, Identity], bool],
    *,
    until_s: Callable[[float], float] | None = None,
) -> Compiled:
    """A criterion about the request: `<name>-ok` or `<name>-unauthorized`."""
    passed, failed = (True, f"{name}-ok"), (False, f"{name}-unauthorized")

    def test(facts: RequestFacts, identity: Identity) -> Result:
        return passed if condition(facts, identity) else failed

    return Compiled(reads, test, (passed, failed), until_s)


def about_session(reads: Fact, name: str, condition: Callable[[Identity], bool]) -> Compiled:
    """A criterion about who asks. The condition is tried first, even without a session."""
    passed, failed = (True, f"{name}-ok"), (False, f"{name}-unauthorized")

    def test(facts: RequestFacts, identity: Identity) -> Result:
        del facts
        if condition(identity):
            return passed
        return failed if identity.has_session else UNAUTHENTICATED

    return Compiled(reads | Fact.SESSION, test, (passed, failed, UNAUTHENTICATED))
