"""Whether a text is one well-formed compact JWS, and what its two JSON parts say.

Only the form is judged here; no signature is checked. Callers verify the signature over the very
text that was parsed, and use these values only afterwards. The form is narrower than RFC 7515 asks:
one signature, canonical base64url, no duplicate members, no header that points at other keys.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass
from typing import Any, Final

from gatehouse.common.errors import InvalidTokenError

MAX_TOKEN_BYTES: Final = 16 * 1024
"""Default cap of a token's text."""

# Headers that name keys outside our own key sets, or change what the signature covers (RFC 7515
# section 4.1, RFC 7797, RFC 7516). None of them is ever needed by us.
_REFUSED_HEADERS: Final = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "enc"})


@dataclass(frozen=True, slots=True)
class CompactToken:
    """The parts of a compact JWS; nothing in it is verified yet."""

    header: dict[str, Any]
    claims: dict[str, Any]
    signing_input: bytes
    signature: bytes


def base64url_decode(text: str) -> bytes:
    """Decode unpadded base64url; only the one canonical spelling is accepted (ValueError)."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64url") from None
    if base64url_encode(raw) != text:
        raise ValueError("not canonical base64url")
    return raw


def base64url_encode(raw: bytes) -> str:
    """Encode as base64url without padding (RFC 7515 appendix C)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def parse_json_object(raw: bytes) -> dict[str, Any]:
    """Parse one JSON object; duplicate members, NaN, infinities and lone surrogates are refused.

    Raises ValueError.
    """
    value = _parse_json(raw)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - one error for all bad input
    return value


def parse_json_list(raw: bytes) -> list[Any]:
    """Parse one JSON list, as strictly as `parse_json_object`. Raises ValueError."""
    value = _parse_json(raw)
    if not isinstance(value, list):
        raise ValueError("not a JSON list")  # noqa: TRY004 - one error for all bad input
    return value


def _parse_json(raw: bytes) -> Any:
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique_members,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
        if b"\\ud" in raw.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def parse_compact(token: str, *, max_bytes: int = MAX_TOKEN_BYTES) -> CompactToken:
    """Take a compact JWS apart without verifying it. Raises InvalidTokenError."""
    if len(token) > max_bytes:
        raise InvalidTokenError(f"token is longer than {max_bytes} bytes", reason="token-too-long")
    if not token.isascii() or token.count(".") != 2:
        raise _malformed("token is not three base64url parts joined by dots")
    encoded_header, encoded_claims, encoded_signature = token.split(".")
    try:
        header = parse_json_object(base64url_decode(encoded_header))
        claims = parse_json_object(base64url_decode(encoded_claims))
        signature = base64url_decode(encoded_signature)
    except ValueError as error:
        # json's own messages hold positions, not content, but the cause may: it is dropped
        detail = str(error) if type(error) is ValueError else "not valid JSON"
        raise _malformed(f"token has an unreadable part: {detail}") from None
    refused = _REFUSED_HEADERS.intersection(header)
    if refused:
        raise _malformed(f"token header has {min(refused)}, which is never accepted")
    if not isinstance(header.get("alg"), str):
        raise _malformed("token header has no alg")
    return CompactToken(
        header=header,
        claims=claims,
        signing_input=f"{encoded_header}.{encoded_claims}".encode("ascii"),
        signature=signature,
    )


def _malformed(message: str) -> InvalidTokenError:
    return InvalidTokenError(message, reason="token-malformed")


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a JSON member appears twice")
    return members


def _refuse_constant(_name: str) -> float:
    raise ValueError("a JSON number is not finite")


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a JSON number is not finite")
    return number
