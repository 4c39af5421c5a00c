"""Envoy's question as plain facts (envoy.service.auth.v3.CheckRequest).

https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/auth/v3/attribute_context.proto
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from urllib.parse import unquote, unquote_to_bytes

from gatehouse.common.extauthz_context import (
    CLIENT_ASSERTION_NAMESPACE,
    CLIENT_CERTIFICATE_NAMESPACE,
    INTERNAL,
    ROUTE_CHECKSUM,
    ROUTE_ID,
)
from gatehouse.common.ids import TypeUrl
from gatehouse.common.policy.ast import FrozenObject

# Records of external data sources that the route's policy asks for: type and id; None: no such one.
RecordKey: TypeAlias = tuple[TypeUrl, str]

_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DEFAULT_PORTS: Final = {"https": ":443", "http": ":80"}
_HOST: Final = re.compile(r"(?:[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?")
_METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
)
_MAX_CHAIN: Final = 256 * 1024  # characters of a URL-encoded certificate chain


@dataclass(frozen=True, slots=True)
class MCPRequest:
    """A JSON-RPC request to an MCP server, parsed."""

    method: str
    tool: str = ""  # of `tools/call`; "" when its parameters name none


@dataclass(frozen=True, slots=True)
class SSHLogin:
    """Who asks to log in over SSH, and with what."""

    username: str
    public_key: bytes  # wire format; a certificate is one too


@dataclass(slots=True)
class RequestFacts:
    """One request, as policy, headers and log see it. Not to be changed once read."""

    internal: bool
    route_id: str
    route_checksum: str  # decimal, as Envoy sent it
    method: str
    scheme: str
    host: str  # lower case, without the scheme's default port and a trailing dot
    hostname: str  # the same without port; IPv6 addresses without brackets
    raw_path: str  # without query, as received
    path: str  # percent-decoded
    query: str  # as received, without "?"
    ip: str
    headers: Mapping[str, str]  # lower-case names; Envoy joined repeated lines with ","
    cookie_lines: tuple[str, ...]
    request_id: str
    certificate_presented: bool = False
    certificate_chain: str = ""  # PEM, leaf first, not validated
    certificate_valid: bool = True  # also when no client CA applies to the route
    client_assertion: str = ""  # what the client itself sent as x-pomerium-jwt-assertion
    now_s: float = 0.0  # Unix time at which the request came
    records: Mapping[RecordKey, FrozenObject | None] = field(default_factory=dict)
    mcp: MCPRequest | None = None  # None: not one, or not to be parsed
    ssh: SSHLogin | None = None  # None: a request over HTTP
    problem: str = ""  # not empty: no policy should see this request; answer 400

    @property
    def url(self) -> str:
        """The URL that was asked for, always as https: that is how users reach us."""
        query = f"?{self.query}" if self.query else ""
        return f"https://{self.host}{self.raw_path}{query}"


@dataclass(frozen=True, slots=True)
class ForwardedFor:
    """How far X-Forwarded-For is to be believed: `xff_num_trusted_hops`, `skip_xff_append`."""

    trusted_hops: int = 0
    appended: bool = True  # Envoy has put the peer's address at the end

    def client_of(self, header: str, peer: str) -> str:
        """The client's address, found as Envoy does; `peer` where the header does not tell.

        ext_authz passes on the address of the TCP peer, which behind a balancer is the balancer
        (https://www.envoyproxy.io/docs/envoy/v1.40/configuration/http/http_conn_man/headers).
        """
        if self.trusted_hops <= 0:
            return peer
        entries = header.split(",") if header else []
        place = self.trusted_hops + (1 if self.appended else 0)
        if len(entries) < place:
            return peer
        try:
            return str(ipaddress.ip_address(entries[-place].strip()))
        except ValueError:
            return peer


DIRECT: Final = ForwardedFor()


def read_check_request(
    request: Any, now_s: float, forwarded: ForwardedFor = DIRECT
) -> RequestFacts:
    """The facts of a CheckRequest.

    A path that does not decode and a known method in other letters are a `problem`: policy and
    upstream could read them differently (security R13).
    """
    attributes = request.attributes
    http = attributes.request.http
    context = attributes.context_extensions
    raw_path, _, query = http.path.partition("?")
    host, hostname = split_host(http.host, http.scheme)
    path = decode_path(raw_path)
    headers: Mapping[str, str] = http.headers
    if http.HasField("header_map"):
        headers, cookie_lines = _header_lines(http.header_map.headers)
    else:
        cookie = headers.get("cookie", "")
        cookie_lines = (cookie,) if cookie else ()
    facts = RequestFacts(
        internal=context.get(INTERNAL, "") == "true",
        route_id=context.get(ROUTE_ID, ""),
        route_checksum=context.get(ROUTE_CHECKSUM, ""),
        method=http.method,
        scheme=http.scheme,
        host=host,
        hostname=hostname,
        raw_path=raw_path,
        path=path or "",
        query=query,
        ip=forwarded.client_of(
            headers.get("x-forwarded-for", ""), attributes.source.address.socket_address.address
        ),
        headers=headers,
        cookie_lines=cookie_lines,
        request_id=headers.get("x-request-id", ""),
        now_s=now_s,
    )
    if attributes.HasField("metadata_context"):
        _read_metadata(facts, attributes.metadata_context.filter_metadata)
    if not _HOST.fullmatch(host):
        # Such a host would be a cache key, an audience and part of URLs (security R08, R56).
        facts.problem = "The host is not a host name."
    elif path is None:
        facts.problem = "The request path is not correctly percent-encoded."
    elif facts.method not in _METHODS and facts.method.upper() in _METHODS:
        facts.problem = "The request method must be written in upper case."
    return facts


def split_host(authority: str, scheme: str) -> tuple[str, str]:
    """(host with a port that is not the default, host name) of an authority, normalised.

    Hosts compare without regard to case, and a trailing dot names the same host (RFC 9110 section
    4.2.3, RFC 1034 section 3.1); both are gone here (security R08).
    """
    host = authority.lower()
    default_port = _DEFAULT_PORTS.get(scheme or "https", ":443")
    host = host.removesuffix(default_port)
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        return (f"[{name}]{port}" if bracket else host), name
    name, colon, port = host.partition(":")
    name = name.removesuffix(".")
    return f"{name}{colon}{port}", name


def decode_path(raw_path: str) -> str | None:
    """A path percent-decoded; None when it cannot be, or holds a fragment."""
    if "#" in raw_path:  # a fragment never belongs in a request (security R04)
        return None
    if "%" not in raw_path:
        return raw_path
    if _BROKEN_ESCAPE.search(raw_path):
        return None
    # Bytes that are no UTF-8 stay distinct from every character a policy can hold.
    return unquote_to_bytes(raw_path).decode("utf-8", "surrogateescape")


def _header_lines(lines: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    headers: dict[str, str] = {}
    cookies: list[str] = []
    for line in lines:
        name = line.key.lower()
        value = line.value or line.raw_value.decode("utf-8", "replace")
        if name == "cookie":
            cookies.append(value)
            continue
        known = headers.get(name)
        headers[name] = value if known is None else f"{known},{value}"
    if cookies:
        headers["cookie"] = "; ".join(cookies)
    return headers, tuple(cookies)


def _read_metadata(facts: RequestFacts, metadata: Any) -> None:
    if CLIENT_CERTIFICATE_NAMESPACE in metadata:
        fields = metadata[CLIENT_CERTIFICATE_NAMESPACE].fields
        facts.certificate_presented = "presented" in fields and fields["presented"].bool_value
        chain = fields["chain"].string_value if "chain" in fields else ""
        if facts.certificate_presented and len(chain) <= _MAX_CHAIN:
            facts.certificate_chain = (
                "" if _BROKEN_ESCAPE.search(chain) else unquote(chain, errors="replace")
            )
    if CLIENT_ASSERTION_NAMESPACE in metadata:
        fields = metadata[CLIENT_ASSERTION_NAMESPACE].fields
        facts.client_assertion = fields["assertion"].string_value if "assertion" in fields else ""
