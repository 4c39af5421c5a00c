"""What a route is called and what its URLs say: ids, checksums, `from`, `to`, path matching.

Pure functions. The id equals the reference implementation's (tests hold its vectors), so that
either side of ext_authz may be the other's.
"""

from __future__ import annotations

import enum
import re
import struct
from dataclasses import dataclass
from typing import Any, Final

import re2
import xxhash

from gatehouse.common.config.go_url import GoURL, GoURLError, parse_go_url
from gatehouse.common.config.model import Route
from gatehouse.common.config.resolved import FromURL, Upstream
from gatehouse.common.config.values import shorten
from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.ids import RouteId

FROM_SCHEMES: Final = ("https", "http", "tcp+https", "udp+https", "ssh")
TO_SCHEMES: Final = ("http", "https", "h2c", "tcp", "udp", "unix", "https+unix", "ssh")
UNIX_SCHEMES: Final = frozenset({"unix", "https+unix"})
DEFAULT_PORTS: Final = {"https": 443, "ssh": 22}

_HOST_LABEL: Final = re.compile(r"[A-Za-z0-9*_]([A-Za-z0-9*_\-]*[A-Za-z0-9*_])?")
_HOST_AND_PORT: Final = re.compile(r"[A-Za-z0-9*][A-Za-z0-9.*\-]*(?::[0-9]{1,5})?")
_IPV6: Final = re.compile(r"\[[0-9A-Fa-f:.]+(?:%25[\w.\-]+)?\]")


class RouteURLError(InvalidArgumentError):
    """A `from` or `to` that cannot be right; `fix` says what would be."""

    default_reason = "route-url"

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix


class PathMatchKind(enum.Enum):
    """How a route matches the path of a request; the first that applies, in this order."""

    CONNECT = "connect"
    REGEX = "regex"
    EXACT = "path"
    PREFIX = "prefix"


@dataclass(frozen=True, slots=True)
class PathMatch:
    """The path rule of a route. A regex matches the whole path, the query excluded."""

    kind: PathMatchKind
    value: str


def path_match(route: Route, from_url: FromURL) -> PathMatch:
    """The path rule that Envoy applies for `route`."""
    if is_tunnel(from_url):
        return PathMatch(PathMatchKind.CONNECT, "")
    if route.regex:
        return PathMatch(PathMatchKind.REGEX, route.regex)
    if route.path:
        return PathMatch(PathMatchKind.EXACT, route.path)
    return PathMatch(PathMatchKind.PREFIX, route.prefix or "/")


def is_tunnel(from_url: FromURL) -> bool:
    """True for CONNECT and CONNECT-UDP routes."""
    return from_url.scheme in {"tcp+https", "udp+https"}


def compile_regex(pattern: str) -> Any:
    """An RE2 expression, or RouteURLError with RE2's reason."""
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise RouteURLError(
            f"{shorten(pattern)} is not a regular expression: {text}", "RE2 syntax"
        ) from None


def _split_port(netloc: str, what: str) -> tuple[str, int | None]:
    """Host (brackets kept) and port of `host`, `host:port`, `[v6]`, `[v6]:port`."""
    bracketed = _IPV6.match(netloc)
    if bracketed is not None:
        host, rest = bracketed.group(), netloc[bracketed.end() :]
    else:
        host, colon, digits = netloc.partition(":")
        rest = colon + digits
    if not rest:
        return host, None
    match = re.fullmatch(r":(\d{1,5})", rest)
    if match is None or not 0 < int(match.group(1)) <= 65535:
        raise RouteURLError(
            f"{what} {shorten(netloc)} has a bad port", "host or host:port, port 1 to 65535"
        )
    return host, int(match.group(1))


def _check_host(host: str, what: str, *, wildcard: bool) -> None:
    if not host.isascii():
        raise RouteURLError(
            f"{what} {shorten(host)} is not ASCII", "write the name in its xn-- form"
        )
    if _IPV6.fullmatch(host):
        return
    labels = host.removesuffix(".").split(".")
    sound = len(host) <= 253 and all(_HOST_LABEL.fullmatch(label) for label in labels)
    if not sound or ("*" in host and not wildcard):
        raise RouteURLError(
            f"{what} {shorten(host)} is not a host name", "letters, digits, - and ."
        )


def check_authority(text: str) -> None:
    """Raise RouteURLError when `text` is neither a host nor host:port."""
    host, _ = _split_port(text, "host")
    _check_host(host, "host", wildcard=False)


def parse_from(text: str) -> FromURL:
    """The parts of a route's `from`, or RouteURLError. Spec: routes.md section 3."""
    fix = "a URL such as https://app.example.com"
    if not text:
        raise RouteURLError("is missing", fix)
    try:
        url = parse_go_url(text)
    except GoURLError as error:
        if _HOST_AND_PORT.fullmatch(text):
            fix = f"https://{text}"
        raise RouteURLError(f"policy bad source url: {error}", fix) from None
    if url.scheme not in FROM_SCHEMES:
        guess = f"did you mean https://{text}? " if _HOST_AND_PORT.fullmatch(text) else ""
        raise RouteURLError(
            f"unsupported scheme {shorten(url.scheme)}",
            f"{guess}only secure schemes are supported: https, tcp+https, udp+https or ssh",
        )
    if url.opaque or not url.host:
        raise RouteURLError(f"policy bad source url: {shorten(text)} has no host", fix)
    if url.user is not None or url.query or url.force_query or url.fragment:
        raise RouteURLError("policy bad source url: it holds more than scheme, host and port", fix)
    host, port = _split_port(url.host, "host")
    _check_host(host, "host", wildcard=True)
    host = host.lower().removesuffix(".")
    if url.scheme in {"tcp+https", "udp+https"}:
        return _tunnel_from(url, host, port)
    if url.path not in {"", "/"}:
        raise RouteURLError(
            f"policy source url ({text}) contains a path, "
            "but it should be set using the path field instead",
            "set path, prefix or regex",
        )
    if url.scheme == "ssh" and port is not None:
        raise RouteURLError("an ssh route is found by its host alone", "ssh://host without a port")
    if (url.scheme, port) in {("https", 443), ("http", 80)}:
        port = None
    return FromURL(url.scheme, host, port)


def _tunnel_from(url: GoURL, host: str, port: int | None) -> FromURL:
    segments = [segment for segment in url.path.split("/") if segment]
    if not segments:
        if port is None:
            raise RouteURLError("the port of the tunnel is missing", f"{url.scheme}://{host}:port")
        return FromURL(url.scheme, host, port, (f"{host}:{port}",))
    for segment in segments:
        target, target_port = _split_port(segment, "target")
        _check_host(target, "target", wildcard=False)
        if target_port is None:
            raise RouteURLError(f"target {shorten(segment)} has no port", "host:port")
    return FromURL(url.scheme, host, port, tuple(segment.lower() for segment in segments))


def split_weight(text: str) -> tuple[str, int | None]:
    """The URL and the weight of one element of `to`: split at the first comma."""
    url, comma, weight = text.partition(",")
    if not comma:
        return url, None
    if "://" in weight:
        several = ", ".join(part.strip() for part in text.split(","))
        raise RouteURLError(f"{shorten(text)} holds several URLs", f"a list: [{several}]")
    if not re.fullmatch(r"\d{1,10}", weight) or not 0 < int(weight) < 2**32:
        raise RouteURLError(
            f"bad weight {shorten(weight)}", "URL,weight with a whole number above 0"
        )
    return url, int(weight)


def parse_to(text: str) -> Upstream:
    """One upstream of a route, or RouteURLError. Spec: routes.md section 4."""
    fix = "an upstream URL such as http://app:8080"
    address, weight = split_weight(text)
    try:
        url = parse_go_url(address)
    except GoURLError as error:
        if _HOST_AND_PORT.fullmatch(address):
            fix = f"http://{address}"
        raise RouteURLError(str(error), fix) from None
    if url.scheme not in TO_SCHEMES:
        guess = f"did you mean http://{address}? " if _HOST_AND_PORT.fullmatch(address) else ""
        raise RouteURLError(
            f"unsupported scheme {shorten(url.scheme)}", f"{guess}one of {', '.join(TO_SCHEMES)}"
        )
    if url.scheme in UNIX_SCHEMES:
        if url.host or not url.path.startswith("/"):
            raise RouteURLError("the socket path is missing", f"{url.scheme}:///path/to/socket")
        return Upstream(url.scheme, "", 0, "", url.path, weight)
    if url.opaque or not url.host:
        raise RouteURLError("endpoint hostname must be specified", fix)
    host, port = _split_port(url.host, "host")
    _check_host(host, "host", wildcard=False)
    return Upstream(
        scheme=url.scheme,
        host=host.strip("[]").lower(),
        port=port or DEFAULT_PORTS.get(url.scheme, 80),
        hostname=url.host,
        path=url.path,
        weight=weight,
    )


class _Digest:
    """xxh3-64 over length-prefixed values."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_64()

    def raw(self, data: bytes) -> None:
        self._hash.update(data)

    def text(self, value: str) -> None:
        data = value.encode()
        self.raw(struct.pack("<i", len(data)) + data)

    def int32(self, value: int) -> None:
        self.raw(struct.pack("<i", value))

    def uint32(self, value: int) -> None:
        self.raw(struct.pack("<I", value))

    def flag(self, value: bool) -> None:
        self.raw(b"\x01" if value else b"\x00")

    def optional(self, value: str | bool | int | None, *, unsigned: bool = False) -> None:
        self.flag(value is not None)
        if isinstance(value, str):
            self.text(value)
        elif isinstance(value, bool):
            self.flag(value)
        elif value is not None:
            (self.uint32 if unsigned else self.int32)(value)

    def hex(self) -> str:
        return str(self._hash.hexdigest())


def route_id(route: Route) -> RouteId:
    """16 hex digits over what the route matches and where it leads. Spec: routes.md section 2.

    Raises RouteURLError when a `to` does not parse, or when there is no destination.
    """
    digest = _Digest()
    for value in (route.from_, route.prefix, route.path, route.regex):
        digest.text(value)
    if route.to:
        digest.raw(b"\x01")
        digest.int32(len(route.to))
        for target in route.to:
            _add_target(digest, target)
    elif route.redirect is not None:
        digest.raw(b"\x02")
        redirect = route.redirect
        digest.optional(redirect.https_redirect)
        digest.optional(redirect.scheme_redirect)
        digest.optional(redirect.host_redirect)
        digest.optional(redirect.port_redirect, unsigned=True)
        digest.optional(redirect.path_redirect)
        digest.optional(redirect.prefix_rewrite)
        digest.optional(redirect.response_code)
        digest.optional(redirect.strip_query)
    elif route.response is not None:
        digest.raw(b"\x03")
        digest.int32(route.response.status)
        digest.text(route.response.body)
    else:
        raise RouteURLError("the route leads nowhere", "to, redirect or response")
    return RouteId(digest.hex())


def _add_target(digest: _Digest, target: str) -> None:
    address, weight = split_weight(target)
    try:
        url = parse_go_url(address)
    except GoURLError as error:
        raise RouteURLError(str(error)) from None
    digest.text(url.scheme)
    digest.text(url.opaque)
    digest.flag(url.user is not None)
    if url.user is not None:
        digest.text(url.user)
        digest.text(url.password)
    for value in (url.host, url.path, url.raw_path):
        digest.text(value)
    digest.flag(url.omit_host)
    digest.flag(url.force_query)
    digest.text(url.fragment)
    digest.text(url.raw_fragment)
    digest.uint32(weight or 0)


def route_checksum(route: Route, policy: bytes, decision_settings: bytes, extra: bytes) -> int:
    """uint64 over the whole route, its policy tree and whatever else shapes its decisions.

    `policy` is the canonical form of the tree, `decision_settings` of the global keys, `extra` of
    the contents that the route's own keys only name. Secrets inside `route` are masked and do not
    count; those that matter come keyed in `extra`.
    """
    digest = xxhash.xxh3_64()
    body = route.model_dump_json(by_alias=True, exclude_defaults=True).encode()
    for part in (body, policy, decision_settings, extra):
        digest.update(struct.pack("<q", len(part)))
        digest.update(part)
    return int(digest.intdigest())
