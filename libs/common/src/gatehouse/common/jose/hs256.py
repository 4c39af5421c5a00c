"""Small JWTs signed with a shared secret: how services write them and read them back.

Times are not judged here (see `times.check_times`): a session handle has none, a call token has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import jwt

from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError
from gatehouse.common.jose.compact import MAX_TOKEN_BYTES, parse_compact

ALGORITHM: Final = "HS256"
MIN_KEY_BYTES: Final = 32
"""RFC 7518 section 3.2: a key as long as the hash output, or longer."""

_JWS: Final = jwt.PyJWS(algorithms=[ALGORITHM])


def encode_hs256(claims: Mapping[str, Any], key: bytes, *, typ: str = "JWT") -> str:
    """Sign `claims` as a compact JWT with header `alg` HS256 and the given `typ`."""
    _check_key(key)
    payload = json.dumps(dict(claims), separators=(",", ":"), allow_nan=False).encode("utf-8")
    return _JWS.encode(payload, key, algorithm=ALGORITHM, headers={"typ": typ})


def decode_hs256(token: str, keys: Sequence[bytes], *, typ: str | None = "JWT") -> dict[str, Any]:
    """Claims of a token signed by any of `keys`. Raises InvalidTokenError.

    Exactly HS256; the header's `typ` must equal `typ` unless that is None; at most 16 KiB.
    """
    parsed = parse_compact(token, max_bytes=MAX_TOKEN_BYTES)
    if parsed.header["alg"] != ALGORITHM:
        raise InvalidTokenError("token algorithm is not HS256", reason="token-algorithm")
    if typ is not None and parsed.header.get("typ") != typ:
        raise InvalidTokenError(f"token type is not {typ}", reason="token-type")
    for key in keys:
        _check_key(key)
        try:
            _JWS.decode_complete(token, key, algorithms=[ALGORITHM])
        except jwt.InvalidTokenError:
            continue
        return parsed.claims
    raise InvalidTokenError("token signature does not verify", reason="token-signature")


def _check_key(key: bytes) -> None:
    if len(key) < MIN_KEY_BYTES:
        raise InvalidArgumentError(f"an HS256 key needs at least {MIN_KEY_BYTES} bytes")
