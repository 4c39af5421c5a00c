"""What the browser holds to prove its session, and how that proof is read.

A handle names a session record and has no lifetime of its own: the record decides how long it
lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args
from urllib.parse import urlsplit

from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError
from gatehouse.common.jose.hs256 import decode_hs256, encode_hs256
from gatehouse.common.jose.times import check_times, numeric_date

Use = Literal["authenticate", "route", "api"]

USES: Final[frozenset[str]] = frozenset(get_args(Use))
MAX_ID_LENGTH: Final = 512
MAX_AUDIENCE: Final = 64
_MAX_UINT64: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Handle:
    """The content of a session handle."""

    session_id: str
    user_id: str
    idp_id: str  # "" only for handles not bound to a provider (service accounts)
    server_version: int | None  # of the databroker, when the session was stored
    record_version: int | None  # likewise; a read-your-writes hint, valid for that server version
    issuer: str  # host
    audience: tuple[str, ...]  # hosts
    issued_at: int  # Unix seconds
    use: Use

    def is_for(self, hostname: str) -> bool:
        """Whether it was made for this host, at any port: mappings in front change it."""
        return any(_hostname(host) == hostname for host in self.audience)


def encode_handle(handle: Handle, key: bytes) -> str:
    """Sign a handle as a compact HS256 JWT."""
    if not handle.session_id or len(handle.session_id) > MAX_ID_LENGTH:
        raise InvalidArgumentError("a session handle needs a session id of at most 512 characters")
    if handle.use not in USES:
        raise InvalidArgumentError("a session handle is for authenticate, route or api")
    claims: dict[str, Any] = {
        "jti": handle.session_id,
        "sub": handle.user_id,
        "iss": handle.issuer,
        "aud": list(handle.audience),
        "iat": handle.issued_at,
        "use": handle.use,
    }
    if handle.idp_id:
        claims["idp_id"] = handle.idp_id
    if handle.server_version is not None:
        claims["databroker_server_version"] = handle.server_version
    if handle.record_version is not None:
        claims["databroker_record_version"] = handle.record_version
    return encode_hs256(claims, key)


def decode_handle(
    token: str,
    keys: Sequence[bytes],
    *,
    allowed_uses: frozenset[str],
    unmarked_use: Use | None = None,
    now_s: float | None = None,
) -> Handle:
    """Read a handle signed by any of `keys`. Raises InvalidTokenError.

    A handle whose `use` is not in `allowed_uses` is refused. One without `use` is refused too,
    unless `unmarked_use` says what it is to be taken for (a cookie set by an older system).
    A handle with `exp` or `nbf` is refused unless `now_s` is given to judge them by.
    Issuer and audience are returned, not judged.
    """
    claims = decode_hs256(token, keys)
    use = claims.get("use", unmarked_use)
    if not isinstance(use, str) or use not in USES or use not in allowed_uses:
        raise InvalidTokenError("session handle is not for this use", reason="handle-use")
    if now_s is not None:
        check_times(claims, now_s=now_s, nbf_leeway_s=60, require_exp=False)
    elif "exp" in claims or "nbf" in claims:
        raise _malformed("has a time limit that cannot be judged here")
    session_id = _text(claims, "jti")
    if not session_id:
        raise _malformed("names no session")
    issued_at = numeric_date(claims, "iat")
    return Handle(
        session_id=session_id,
        user_id=_text(claims, "sub"),
        idp_id=_text(claims, "idp_id"),
        server_version=_version(claims, "databroker_server_version"),
        record_version=_version(claims, "databroker_record_version"),
        issuer=_text(claims, "iss"),
        audience=_audience(claims),
        issued_at=int(issued_at) if issued_at is not None else 0,
        use=cast("Use", use),
    )


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name, "")
    if not isinstance(value, str) or len(value) > MAX_ID_LENGTH or not _is_plain(value):
        raise _malformed(f"has a {name} that is not a short plain string")
    return value


def _is_plain(value: str) -> bool:
    return all(character >= " " and character != "\x7f" for character in value)


def _version(claims: dict[str, Any], name: str) -> int | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_UINT64:
        raise _malformed(f"has a {name} that is no unsigned 64-bit number")
    return value


def _audience(claims: dict[str, Any]) -> tuple[str, ...]:
    value = claims.get("aud", [])
    hosts = [value] if isinstance(value, str) else value
    if (
        not isinstance(hosts, list)
        or len(hosts) > MAX_AUDIENCE
        or not all(isinstance(host, str) and len(host) <= MAX_ID_LENGTH for host in hosts)
    ):
        raise _malformed("has an aud that is not a short list of hosts")
    return tuple(hosts)


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _malformed(what: str) -> InvalidTokenError:
    return InvalidTokenError(f"session handle {what}", reason="handle-malformed")
