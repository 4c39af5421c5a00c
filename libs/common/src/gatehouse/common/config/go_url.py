"""What a `to` URL consists of, field by field, as the route id needs it.

Route ids hash the fields of Go's `net/url.URL` (https://pkg.go.dev/net/url#URL), so its parsing is
followed here, where Python's differs: decoded and raw paths, empty authorities, a lone `?`.
"""

from __future__ import annotations

import functools
import re
import string
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*")
_UNRESERVED: Final = string.ascii_letters + string.digits + "-_.~"
_PATH_SAFE: Final = frozenset((_UNRESERVED + "$&+,/:;=@").encode())
_FRAGMENT_SAFE: Final = frozenset((_UNRESERVED + "$&+,/:;=?@!()*").encode())
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


class GoURLError(ValueError):
    """Text that is not a URL; the message quotes no part that may be secret."""


@dataclass(frozen=True, slots=True)
class GoURL:
    """A parsed URL. `raw_path` and `raw_fragment` are empty unless the default spelling differs."""

    scheme: str
    opaque: str
    user: str | None
    password: str
    host: str  # with port and brackets, as written
    path: str
    raw_path: str
    omit_host: bool
    force_query: bool
    query: str
    fragment: str
    raw_fragment: str


def _escape(data: bytes, safe: frozenset[int]) -> str:
    return "".join(chr(byte) if byte in safe else f"%{byte:02X}" for byte in data)


def _decode(text: str, what: str) -> bytes:
    if _BAD_PERCENT.search(text):
        raise GoURLError(f"the {what} holds a % that is not followed by two hex digits")
    return unquote_to_bytes(text)


def _plain(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise GoURLError(f"the {what} is not UTF-8 when decoded") from None


@functools.lru_cache(maxsize=1024)  # a route's URLs are needed for its checks and for its id
def parse_go_url(text: str) -> GoURL:
    """Split `text` as Go's `url.Parse` does, or raise GoURLError."""
    if re.search(r"[\x00-\x20\x7f]", text):
        raise GoURLError("the URL holds a blank or control character")
    rest, _, fragment = text.partition("#")
    scheme_match = _SCHEME.match(rest)
    if scheme_match is None or rest[scheme_match.end() : scheme_match.end() + 1] != ":":
        raise GoURLError("url scheme must be provided")
    scheme = scheme_match.group().lower()
    rest = rest[scheme_match.end() + 1 :]
    force_query, query = False, ""
    if rest.endswith("?") and rest.count("?") == 1:
        force_query, rest = True, rest[:-1]
    else:
        rest, _, query = rest.partition("?")
    opaque, user, password, host, omit_host = "", None, "", "", False
    if not rest.startswith("/"):
        opaque, rest = rest, ""
    elif rest.startswith("//"):
        authority, slash, tail = rest[2:].partition("/")
        rest = slash + tail
        userinfo, at, host = authority.rpartition("@")
        if at:
            name, _, secret = userinfo.partition(":")
            user = _plain(_decode(name, "user name"), "user name")
            password = _plain(_decode(secret, "password"), "password")
    else:
        omit_host = True
    path_bytes = _decode(rest, "path")
    fragment_bytes = _decode(fragment, "fragment")
    return GoURL(
        scheme=scheme,
        opaque=opaque,
        user=user,
        password=password,
        host=host,
        path=_plain(path_bytes, "path"),
        raw_path="" if _escape(path_bytes, _PATH_SAFE) == rest else rest,
        omit_host=omit_host,
        force_query=force_query,
        query=query,
        fragment=_plain(fragment_bytes, "fragment"),
        raw_fragment="" if _escape(fragment_bytes, _FRAGMENT_SAFE) == fragment else fragment,
    )
