"""How a cookie is set, cleared, and found in what a client sends (RFC 6265)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from email.utils import formatdate
from typing import Final

from gatehouse.common.errors import InvalidArgumentError

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
_PATH: Final = re.compile(r"/[\x20-\x3a\x3c-\x7e]*")
_DOMAIN: Final = re.compile(r"\.?[0-9A-Za-z_-]+(\.[0-9A-Za-z_-]+)*")
_SAME_SITE: Final = {"": "", "lax": "Lax", "strict": "Strict", "none": "None"}
_MAX_SCOPES: Final = 8
_LONG_AGO: Final = "Thu, 01 Jan 1970 00:00:00 GMT"
MAX_COOKIE_BYTES: Final = 4096
"""Name and value together: browsers drop more."""


def set_cookie(
    name: str,
    value: str,
    *,
    path: str = "/",
    domain: str = "",
    max_age_s: int | None = None,
    expires_at_s: float | None = None,
    http_only: bool = True,
    same_site: str = "",
) -> str:
    """A Set-Cookie header value; always Secure.

    `expires_at_s` is Unix time; with `max_age_s` beside it, browsers whose clock is wrong keep the
    cookie for as long as others (RFC 6265 section 5.3). `same_site` is strict, lax, none or empty
    (attribute left out), in any case. Raises InvalidArgumentError for anything a browser would
    misread or drop.
    """
    if len(name) + len(value) > MAX_COOKIE_BYTES:
        raise InvalidArgumentError(f"cookie {name[:64]!r} is over {MAX_COOKIE_BYTES} bytes")
    expires = None if expires_at_s is None else formatdate(expires_at_s, usegmt=True)
    return _header(name, value, path, domain, max_age_s, expires, http_only, same_site)


def clear_cookie(
    name: str,
    *,
    path: str = "/",
    domain: str = "",
    http_only: bool = True,
    same_site: str = "",
) -> str:
    """A Set-Cookie header value that deletes the cookie of this name, path and domain."""
    return _header(name, "", path, domain, 0, _LONG_AGO, http_only, same_site)


def clear_elsewhere(
    headers: Iterable[str], name: str, *, host: str, domain: str = ""
) -> tuple[str, ...]:
    """Set-Cookie values that delete what `host` is sent under `name` from outside its own scope.

    A browser sends cookies of one name in the order in which they came. One that was set while
    `domain` was another, or by a neighbour, would come before ours for as long as it lives. Nothing
    when none was sent, or when the name's prefix keeps such cookies out.
    """
    if name.lower().startswith("__host-") or not cookie_values(headers, name):
        return ()
    labels = host.split(".")
    scopes = {".".join(labels[first:]) for first in range(len(labels) - 1)} | {""}
    if host.replace(".", "").isdigit() or not all(map(_DOMAIN.fullmatch, scopes - {""})):
        scopes = {""}  # an address has no domain
    others = sorted(scopes - {domain.removeprefix(".").lower()}, key=lambda one: (len(one), one))
    return tuple(clear_cookie(name, domain=scope) for scope in others[:_MAX_SCOPES])


def bare_name(name: str) -> str:
    """`name` without `__Host-` or `__Secure-`, as the base of further names.

    Those cookies have paths of their own, which a `__Host-` prefix forbids.
    """
    for prefix in ("__host-", "__secure-"):
        if name.lower().startswith(prefix):
            return name[len(prefix) :]
    return name


def parse_cookies(headers: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Every name and value of all Cookie header lines, in order, repeated names included.

    Pairs without `=` or without a token as their name are left out; values are verbatim.
    """
    pairs: list[tuple[str, str]] = []
    for header in headers:
        for piece in header.split(";"):
            name, equals, value = piece.partition("=")
            name = name.strip(" \t")
            if equals and _TOKEN.fullmatch(name):
                pairs.append((name, value.strip(" \t")))
    return tuple(pairs)


def cookie_values(headers: Iterable[str], name: str) -> tuple[str, ...]:
    """All values that the client sent under `name`, in order."""
    return tuple(value for key, value in parse_cookies(headers) if key == name)


def _header(
    name: str,
    value: str,
    path: str,
    domain: str,
    max_age_s: int | None,
    expires: str | None,
    http_only: bool,
    same_site: str,
) -> str:
    if not _TOKEN.fullmatch(name):
        raise InvalidArgumentError(f"cookie name {name[:64]!r} is not an RFC 9110 token")
    if not _VALUE.fullmatch(value):
        raise InvalidArgumentError(f"cookie {name!r} has a value with forbidden characters")
    if not _PATH.fullmatch(path):
        raise InvalidArgumentError(f"cookie {name!r} needs a path that starts with /")
    if domain and not _DOMAIN.fullmatch(domain):
        raise InvalidArgumentError(f"cookie {name!r} has a domain that is no host name")
    if name.lower().startswith("__host-") and (domain or path != "/"):
        raise InvalidArgumentError(f"cookie {name!r} may have no domain, and only the path /")
    same_site_value = _SAME_SITE.get(same_site.lower())
    if same_site_value is None:
        raise InvalidArgumentError("SameSite must be strict, lax, none or empty")
    parts = [f"{name}={value}", f"Path={path}"]
    if domain:
        parts.append(f"Domain={domain}")
    if expires is not None:
        parts.append(f"Expires={expires}")
    if max_age_s is not None:
        parts.append(f"Max-Age={max_age_s}")
    if http_only:
        parts.append("HttpOnly")
    parts.append("Secure")
    if same_site_value:
        parts.append(f"SameSite={same_site_value}")
    return "; ".join(parts)
