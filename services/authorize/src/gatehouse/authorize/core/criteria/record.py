"""The criterion about a record that an external data source keeps for the user."""

from __future__ import annotations

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.criteria.facts import (
    UNAUTHENTICATED,
    Compiled,
    RecordNeed,
    Result,
)
from gatehouse.authorize.core.identity import Identity
from gatehouse.common.ids import TypeUrl
from gatehouse.common.policy.ast import Criterion
from gatehouse.common.policy.records import parse_record_matcher

_PASSED: Result = (True, "record-ok")
_FAILED: Result = (False, "record-unauthorized")


def record(criterion: Criterion) -> Compiled:
    """One field of the user's record. Without a user nothing matches, `exists: false` included.

    The caller looks the record up beforehand; one that was not looked up is an error.
    """
    wanted = parse_record_matcher(criterion.data)
    need = RecordNeed(TypeUrl(wanted.type), wanted.foreign_key)

    def test(facts: RequestFacts, identity: Identity) -> Result:
        key = need.key(identity)
        if key is not None and wanted.matches(facts.records[key]):
            return _PASSED
        return _FAILED if identity.has_session else UNAUTHENTICATED

    return Compiled(test, (_PASSED, _FAILED, UNAUTHENTICATED), record=need)
