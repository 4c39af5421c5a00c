"""Which fields of the logs may hold a credential, and what is shown instead.

Spec: observability.md sections 3.1 and 3.2. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from gatehouse.common.config.route_model import Route
from gatehouse.common.observability.redaction import is_secret_name

# Headers of our own that are no credentials; all others with our prefix are, or may become it.
_HARMLESS = ("x-pomerium-claim-",)
_OWN = "x-pomerium-"


def secret_header(field: str, routes: Iterable[Route]) -> str:
    """Why the request header of `headers.<field>` is not shown; "" when it is.

    A field may name a second header after `?`, for when the first is missing. What a route sets is
    meant for its upstream: often a key or, by a template, a token of the user.
    """
    for name in field.lower().split("?"):
        if is_secret_name(name) or (name.startswith(_OWN) and not name.startswith(_HARMLESS)):
            return "holds a credential"
        for route in routes:
            if any(header.lower() == name for header in route.set_request_headers):
                return f"is set for the upstream of {route.name or route.from_}"
    return ""
