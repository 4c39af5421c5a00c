"""How one service hands a browser a URL that another service can trust.

The MAC is HMAC-SHA-512/256 over the URL with its query in sorted form, then issue and expiry time.
Services of different hosts share only the key. A signed URL may be used again until it expires:
where that matters, the receiver keeps its own record of what was used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote_plus, unquote_to_bytes

from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError

ISSUED: Final = "pomerium_issued"
EXPIRY: Final = "pomerium_expiry"
SIGNATURE: Final = "pomerium_signature"

LIFETIME_S: Final = 300.0
LEEWAY_S: Final = 60
"""Clock difference tolerated at both ends of the lifetime."""

MAX_QUERY_BYTES: Final = 16 * 1024
_MAX_BASE_BYTES: Final = 16 * 1024
_SINGLE_PREFIXES: Final = (b"pomerium_", b"gatehouse_")
_OWN_KEYS: Final = frozenset({ISSUED.encode(), EXPIRY.encode(), SIGNATURE.encode()})
_PRINTABLE: Final = re.compile(r"[\x21-\x7e]*")
_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DECIMAL: Final = re.compile(rb"0|[1-9][0-9]{0,14}")


def sign_url(url: str, key: bytes, *, now_s: float, ttl_s: float = LIFETIME_S) -> str:
    """`url` with its query sorted by key, plus issue time, expiry time and signature.

    Query keys of an earlier signature are replaced. Raises InvalidArgumentError for a URL that
    could not be verified later (fragment, broken escapes, repeated pomerium_* key, too long).
    """
    try:
        base, pairs = _split(url)
    except InvalidTokenError as error:
        raise InvalidArgumentError(f"cannot sign this URL: {error}") from None
    kept = [pair for pair in pairs if pair[0] not in _OWN_KEYS]
    issued = math.floor(now_s)
    expiry = math.floor(now_s + ttl_s)
    kept += [(ISSUED.encode(), str(issued).encode()), (EXPIRY.encode(), str(expiry).encode())]
    digest = _mac(key, _join(base, kept), issued, expiry)
    signed = _join(base, [*kept, (SIGNATURE.encode(), base64.urlsafe_b64encode(digest))])
    if len(signed) - len(base) > MAX_QUERY_BYTES:
        raise InvalidArgumentError(f"cannot sign this URL: its query is over {MAX_QUERY_BYTES}")
    return signed


def verify_url(url: str, keys: Sequence[bytes], *, now_s: float) -> None:
    """Return if `url` was signed with any of `keys` and is within its lifetime, give or take 60 s.

    The caller rebuilds `url` as https, Host header, path and query. Raises InvalidTokenError.
    """
    base, pairs = _split(url)
    signature = _decode_signature(_single(pairs, SIGNATURE))
    issued = _decimal(pairs, ISSUED)
    expiry = _decimal(pairs, EXPIRY)
    unsigned = _join(base, [pair for pair in pairs if pair[0] != SIGNATURE.encode()])
    # every key is tried, so that the time taken says nothing about which one matched
    matches = [hmac.compare_digest(_mac(key, unsigned, issued, expiry), signature) for key in keys]
    if not any(matches):
        raise InvalidTokenError("URL signature does not verify", reason="url-signature")
    if now_s > expiry + LEEWAY_S:
        raise InvalidTokenError("signed URL is expired", reason="url-expired")
    if now_s < issued - LEEWAY_S:
        raise InvalidTokenError("signed URL is not valid yet", reason="url-future")


def signature_digest(url: str) -> str:
    """Hex SHA-256 of the signature bytes of a verified URL: its name in a record of used ones."""
    _, pairs = _split(url)
    return hashlib.sha256(_decode_signature(_single(pairs, SIGNATURE))).hexdigest()


def _split(url: str) -> tuple[str, list[tuple[bytes, bytes]]]:
    base, _, query = url.partition("?")
    if len(query) > MAX_QUERY_BYTES or len(base) > _MAX_BASE_BYTES:
        raise _refused(f"URL is too long (query limit {MAX_QUERY_BYTES} bytes)")
    if not _PRINTABLE.fullmatch(url) or "#" in url:
        raise _refused("URL holds characters that must be percent-encoded, or a fragment")
    if _BROKEN_ESCAPE.search(query) or ";" in query:
        raise _refused("URL query is not form-encoded")
    pairs: list[tuple[bytes, bytes]] = []
    seen: set[bytes] = set()
    for piece in query.split("&"):
        if not piece:
            continue
        name, _, value = (unquote_to_bytes(part) for part in piece.replace("+", " ").partition("="))
        if name.startswith(_SINGLE_PREFIXES) and name in seen:
            raise _refused("URL query repeats a pomerium_* or gatehouse_* key")
        seen.add(name)
        pairs.append((name, value))
    return base, pairs


def _join(base: str, pairs: Sequence[tuple[bytes, bytes]]) -> str:
    ordered = sorted(pairs, key=lambda pair: pair[0])  # stable: value order is kept
    query = "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in ordered)
    return f"{base}?{query}"


def _mac(key: bytes, url: str, issued: int, expiry: int) -> bytes:
    message = f"{url}{issued} {expiry}".encode("ascii")
    return hmac.digest(key, message, "sha512_256")


def _single(pairs: Sequence[tuple[bytes, bytes]], name: str) -> bytes:
    encoded = name.encode()
    for key, value in pairs:  # _split refused repetitions
        if key == encoded:
            return value
    raise _refused(f"URL has no {name}")


def _decimal(pairs: Sequence[tuple[bytes, bytes]], name: str) -> int:
    value = _single(pairs, name)
    if not _DECIMAL.fullmatch(value):
        raise _refused(f"{name} is not a decimal number")
    return int(value)


def _decode_signature(value: bytes) -> bytes:
    try:
        digest = base64.b64decode(value, altchars=b"-_", validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != 32 or base64.urlsafe_b64encode(digest) != value:
        raise _refused("URL signature is not 32 bytes of base64url")
    return digest


def _refused(message: str) -> InvalidTokenError:
    return InvalidTokenError(message, reason="url-malformed")
