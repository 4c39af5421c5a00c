"""On what grounds, and for how long, an allow may be remembered in front of authorize.

The envelope is a text that the script in Envoy reads:

    <server version> <lifetime in ms> <dependencies>
    <headers>

Dependencies are `<record version>:<key>,<key>` for each type, with semicolons between; keys are
those of `common/record_keys.py`, of every record that was looked up, there or not. Headers repeat
what the answer says: `=` name value for each that is set, `-` name for each that is removed, every
text as its length in bytes, a colon, and itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gatehouse.authorize.core.identity import ANONYMOUS, Identity
from gatehouse.authorize.core.route_plan import RoutePlan
from gatehouse.common.ids import TypeUrl
from gatehouse.common.record_keys import type_key

# However long a decision could stand: a session in use is looked at once in this time.
LONGEST_S: Final = 60.0
_MOST_EXACT: Final = 1 << 53  # scripts compare versions as floating point


@dataclass(frozen=True, slots=True)
class Basis:
    """How far this process's copy was before anything was looked up for a request."""

    server_version: int
    versions: Mapping[TypeUrl, int] = field(default_factory=dict)  # of the types it has


def described_headers(ok_response: Any) -> str:
    """The header changes of an OkHttpResponse, as the envelope has them."""
    parts: list[str] = []
    for option in ok_response.headers:
        parts += ("=", _text(option.header.key), _text(option.header.value))
    for name in ok_response.headers_to_remove:
        parts += ("-", _text(name))
    return "".join(parts)


def envelope(
    plan: RoutePlan,
    identity: Identity,
    basis: Basis,
    *,
    ends_s: Sequence[float],
    now_s: float,
    headers: str,
) -> str:
    """The envelope of an allow; "" when it may not be remembered.

    `ends_s`: when the handle, the policy's answer and the assertion cease to be what they are now.
    """
    lifetime_s = min(LONGEST_S, min(*ends_s, identity.good_until_s) - now_s)
    lifetime_ms = math.floor(lifetime_s * 1000)
    if lifetime_ms <= 0 or not basis.server_version:
        return ""
    rests_on = identity.rests_on
    if identity is not ANONYMOUS and not rests_on:
        return ""  # whoever made this identity did not say of what
    if plan.policy.records and identity is not ANONYMOUS:
        types = sorted({need.type_url for need in plan.policy.records})
        rests_on = (*rests_on, *((type_url, str(type_key(type_url))) for type_url in types))
    parts: list[str] = []
    for type_url, keys in rests_on:
        version = basis.versions.get(type_url)
        if version is None or version >= _MOST_EXACT:
            return ""
        parts.append(f"{version}:{keys}")
    return f"{basis.server_version} {lifetime_ms} {';'.join(parts)}\n{headers}"


def _text(text: str) -> str:
    return f"{len(text.encode())}:{text}"
