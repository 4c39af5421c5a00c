"""Whether somebody may open a route: its own policy, asked about a request for its start page.

A hint for people. The request that follows is decided by itself, with all that it really brings.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from gatehouse.authorize.core.check_request import RequestFacts, decode_path
from gatehouse.authorize.core.evaluator import Allow, EnrolDevice, decide
from gatehouse.authorize.core.identity import Identity
from gatehouse.authorize.core.route_plan import RoutePlan
from gatehouse.common.config.resolved import ResolvedRoute

Opening: TypeAlias = Literal["open", "device", "closed"]

MAX_ROUTES: Final = 10_000  # in one question
_TUNNELS: Final = frozenset({"tcp+https", "udp+https"})


def start_request(route: ResolvedRoute, *, ip: str, now_s: float) -> RequestFacts:
    """What a browser asks for first. It shows the client certificate that a route wants.

    Which one that would be is not known here: criteria about its contents do not hold.
    """
    raw_path = start_path(route)
    host = route.from_url.host
    return RequestFacts(
        internal=False,
        route_id=route.id,
        route_checksum="",
        method="CONNECT" if route.from_url.scheme in _TUNNELS else "GET",
        scheme="https",
        host=host,
        hostname=host,
        raw_path=raw_path,
        path=decode_path(raw_path) or raw_path,
        query="",
        ip=ip,
        headers={},
        cookie_lines=(),
        request_id="",
        now_s=now_s,
        certificate_presented=True,
        certificate_valid=True,
    )


def start_path(route: ResolvedRoute) -> str:
    """The path at which a route begins."""
    return route.settings.path or route.settings.prefix or "/"


def opening(plan: RoutePlan, facts: RequestFacts, identity: Identity) -> Opening:
    """What would happen. Whatever goes wrong in a policy keeps its route closed."""
    try:
        outcome = decide(plan.policy.evaluate(facts, identity))
    except Exception:  # noqa: BLE001 - as with requests: what a criterion raises denies
        return "closed"
    match outcome:
        case Allow():
            return "open"
        case EnrolDevice():
            return "device"
    return "closed"
