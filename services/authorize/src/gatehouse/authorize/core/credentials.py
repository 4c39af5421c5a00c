"""Which credential a request carries, and which session it names.

The first place that holds one decides; a value there that does not verify ends the search, so that
a bad cookie is never silently replaced by something else (the order is part of the interface).
"""

from __future__ import annotations

import enum
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.lru import LruCache
from gatehouse.common.errors import InvalidTokenError
from gatehouse.common.jose.compact import MAX_TOKEN_BYTES, parse_compact
from gatehouse.common.jose.times import check_times
from gatehouse.common.session.handle import Handle, decode_handle
from gatehouse.common.session.query_params import SESSION

_COOKIE_USES: Final = frozenset({"route"})
_CARRIED_USES: Final = frozenset({"route", "api"})
_MAX_QUERY_FIELDS: Final = 1000
NBF_LEEWAY_S: Final = 60.0  # for clocks that disagree; as in decode_handle

# A handle, and the limits in time that its token has of its own.
_Known: TypeAlias = tuple[Handle, dict[str, Any] | None]


class Place(enum.Enum):
    """Where a credential was found, in search order."""

    COOKIE = "cookie"
    POMERIUM_HEADER = "x-pomerium-authorization"
    AUTHORIZATION = "authorization"
    QUERY = "query"


@dataclass(frozen=True, slots=True)
class Credential:
    """An unverified credential."""

    place: Place
    token: str = field(repr=False)


def find_credential(facts: RequestFacts, cookie_name: str) -> Credential | None:
    """The first credential by the order cookie, own header, Authorization, query.

    Of several cookies of that name, on whatever line, the first counts.
    """
    return _cookie(facts, cookie_name) or _carried(facts)


def has_cookie(facts: RequestFacts, cookie_name: str) -> bool:
    """True when a session cookie came along, whatever it is worth."""
    return _cookie(facts, cookie_name) is not None


def carries_token(facts: RequestFacts) -> bool:
    """True when a program sent a credential in a header or the query: it wants no sign-in page."""
    return _carried(facts) is not None


def _cookie(facts: RequestFacts, cookie_name: str) -> Credential | None:
    for line in facts.cookie_lines:
        if cookie_name in line:
            match = _cookie_pattern(cookie_name).search(line)
            if match is not None:
                return Credential(Place.COOKIE, match[1].strip(' \t"'))
    return None


def _carried(facts: RequestFacts) -> Credential | None:
    headers = facts.headers
    token = headers.get("x-pomerium-authorization", "")
    if token:
        return Credential(Place.POMERIUM_HEADER, token)
    authorization = headers.get("authorization", "")
    if authorization:
        for prefix in ("Pomerium ", "Bearer Pomerium-"):
            if authorization.startswith(prefix):
                return Credential(Place.AUTHORIZATION, authorization.removeprefix(prefix))
    if SESSION in facts.query:
        try:
            fields = parse_qsl(
                facts.query, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS
            )
        except ValueError:
            return Credential(Place.QUERY, "")
        for name, value in fields:
            if name == SESSION:
                return Credential(Place.QUERY, value)
    return None


class HandleReader:
    """Verifies session handles. Remembers good ones by their full text; bounded."""

    def __init__(self, keys: Sequence[bytes], *, capacity: int = 50_000) -> None:
        self._keys = tuple(keys)
        self._known: LruCache[tuple[bool, str], _Known] = LruCache(capacity)

    def read(self, credential: Credential, now_s: float) -> Handle | None:
        """The handle, or None when the credential is not one of ours for this place and time."""
        token = credential.token
        is_cookie = credential.place is Place.COOKIE
        key = (is_cookie, token)
        known = self._known.get(key)
        if known is None:
            if not token or len(token) > MAX_TOKEN_BYTES:
                return None
            known = self._verified(token, now_s, is_cookie=is_cookie)
            if known is None:
                return None
            self._known.put(key, known)
        handle, limits = known
        return handle if limits is None or _is_time(limits, now_s) else None

    def good_until_s(self, credential: Credential) -> float:
        """When a credential that was read ceases to hold by itself, Unix seconds."""
        known = self._known.get((credential.place is Place.COOKIE, credential.token))
        limits = known[1] if known is not None else None
        return float(limits["exp"]) if limits is not None and "exp" in limits else math.inf

    def _verified(self, token: str, now_s: float, *, is_cookie: bool) -> _Known | None:
        # Only a token with a time limit of its own is judged by the clock, here and each time.
        for moment_s in (None, now_s):
            try:
                handle = decode_handle(
                    token,
                    self._keys,
                    allowed_uses=_COOKIE_USES if is_cookie else _CARRIED_USES,
                    unmarked_use="route" if is_cookie else None,
                    now_s=moment_s,
                )
            except InvalidTokenError:
                continue
            if moment_s is None:
                return handle, None
            claims = parse_compact(token, max_bytes=MAX_TOKEN_BYTES).claims
            return handle, {n: v for n, v in claims.items() if n in {"exp", "nbf"}}
        return None


def _is_time(limits: dict[str, Any], now_s: float) -> bool:
    try:
        check_times(limits, now_s=now_s, nbf_leeway_s=NBF_LEEWAY_S, require_exp=False)
    except InvalidTokenError:
        return False
    return True


@functools.lru_cache(maxsize=16)
def _cookie_pattern(cookie_name: str) -> re.Pattern[str]:
    # Cookies are apart by semicolons alone (RFC 6265 section 4.2.1): after a comma there is only
    # more of another cookie's value, which anybody may have set (security R18).
    return re.compile(rf"(?:^|;)[ \t]*{re.escape(cookie_name)}[ \t]*=([^;]*)")
