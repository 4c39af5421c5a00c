"""Who may ask why others are let in or not: whom `explain_policy` lets in."""

from __future__ import annotations

from typing import Final

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.evaluator import Allow, CompiledPolicy, decide
from gatehouse.authorize.core.identity import Identity

EXPLAIN_PATH: Final = "/.pomerium/explain"


def may_ask(policy: CompiledPolicy, asker: Identity, *, ip: str, now_s: float) -> bool:
    """Whether this policy lets somebody in who is signed in.

    Only an allow counts: a device that has yet to be shown is no reason to answer.
    """
    facts = RequestFacts(
        internal=True,
        route_id="",
        route_checksum="",
        method="GET",
        scheme="https",
        host="",
        hostname="",
        raw_path=EXPLAIN_PATH,
        path=EXPLAIN_PATH,
        query="",
        ip=ip,
        headers={},
        cookie_lines=(),
        request_id="",
        now_s=now_s,
        certificate_valid=False,  # nobody has looked at one
    )
    return asker.has_session and isinstance(decide(policy.evaluate(facts, asker)), Allow)
