"""Whether a browser may be sent to a URL.

Every place that takes a redirect target from a request asks here. Only spellings on which all URL
parsers agree are accepted (WHATWG URL and RFC 3986 differ on backslashes, control characters,
userinfo, numeric hosts and missing slashes); the host must then be one the caller knows.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection
from typing import Final
from urllib.parse import SplitResult, urlsplit

from gatehouse.common.errors import InvalidArgumentError

MAX_URL_BYTES: Final = 8 * 1024

_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
    r"(?P<host>[0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[^?#]*)?"
    r"(?:\?[^#]*)?"
    r"(?:#.*)?"
)
_SAFE_CHARACTERS: Final = re.compile(r"[\x21-\x5b\x5d-\x7e]+")  # printable ASCII, no backslash
# In a path: an encoded slash, backslash or control character (the data plane refuses them too).
_ENCODED_TRICK: Final = re.compile(r"%(?:2f|5c|[01][0-9a-f]|7f)", re.IGNORECASE)
_LABEL: Final = re.compile(r"(?!-)[0-9a-z_-]{1,63}(?<!-)")
_NUMBER_LABEL: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")


def check_redirect(
    url: str,
    *,
    allowed_hosts: Callable[[str], bool],
    schemes: Collection[str] = ("https",),
) -> SplitResult:
    """The parsed URL, if it is absolute, unambiguous, and its host is allowed.

    `allowed_hosts` gets the host in lower case, without port, brackets and trailing dot; the port
    is in the result for callers to whom it matters. Raises InvalidArgumentError whose message does
    not repeat the URL.
    """
    if len(url) > MAX_URL_BYTES:
        raise _refused(f"is longer than {MAX_URL_BYTES} bytes")
    if not _SAFE_CHARACTERS.fullmatch(url):
        raise _refused("holds a character that has no place in a URL")
    match = _URL.fullmatch(url)
    if match is None:
        raise _refused("is not an absolute URL with a plain host")
    if match["scheme"].lower() not in schemes:
        raise _refused(f"must start with {' or '.join(f'{name}://' for name in sorted(schemes))}")
    if match["port"] is not None and not 1 <= int(match["port"]) <= 65535:
        raise _refused("has an impossible port")
    path = match["path"] or ""
    if path.startswith("//") or _ENCODED_TRICK.search(path):
        raise _refused("has a path that could be read as another host")
    host = _canonical_host(match["host"])
    parsed = _split(url)
    if (parsed.hostname or "").removesuffix(".") != match["host"].lower().strip("[]").removesuffix(
        "."
    ):
        raise _refused("is read differently by different parsers")
    if not allowed_hosts(host):
        raise InvalidArgumentError(
            "redirect target is on a host that is not served here", reason="redirect-host"
        )
    return parsed


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        raise _refused("is not a URL") from None


def _canonical_host(text: str) -> str:
    if text.startswith("["):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError:
            raise _refused("has a malformed IPv6 address") from None
    host = text.lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _refused("has a malformed host name")
    if _NUMBER_LABEL.fullmatch(labels[-1]):  # browsers read such names as IPv4 in many spellings
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise _refused("has a malformed IPv4 address") from None
    return host


def _refused(what: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"redirect target {what}", reason="redirect-malformed")
