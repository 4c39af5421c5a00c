"""The criterion about the device that a session was proven on."""

from __future__ import annotations

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.criteria.facts import UNAUTHENTICATED, Compiled, Result
from gatehouse.authorize.core.identity import Identity
from gatehouse.common.policy.ast import Criterion
from gatehouse.common.policy.matchers import parse_device_matcher

_PASSED: Result = (True, "device-ok")
_FAILED: Result = (False, "device-unauthorized")
_UNKNOWN: Result = (False, "device-unauthenticated")


def device(criterion: Criterion) -> Compiled:
    """The session's credential of the wanted type and its enrolment.

    The condition is tried first: one that asks for nothing, or for no approval, also holds where
    there is neither device nor session.
    """
    wanted = parse_device_matcher(criterion.data)

    def test(facts: RequestFacts, identity: Identity) -> Result:
        del facts
        found = identity.devices.get(wanted.type)
        is_approved = found is not None and bool(found.approved_by)
        if (
            (wanted.approved is None or wanted.approved is is_approved)
            and (
                wanted.credential_id is None
                or (found is not None and found.credential_id == wanted.credential_id)
            )
            and not (wanted.must_exist and found is None)
        ):
            return _PASSED
        if not identity.has_session:
            return UNAUTHENTICATED
        return _FAILED if found is not None and found.is_enrolled else _UNKNOWN

    return Compiled(
        test,
        (_PASSED, _FAILED, _UNKNOWN, UNAUTHENTICATED),
        device_type=wanted.type,
    )
