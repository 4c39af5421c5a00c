"""Whether a route contradicts itself: checks that need several of its keys, without files.

Each yields the key it is about, relative to the route, so that the caller can name file and line.
Spec: routes.md sections 3 to 18.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from gatehouse.common.config.access_token_checks import check_access_tokens_of
from gatehouse.common.config.balancing_checks import check_balancing
from gatehouse.common.config.issues import Finding, Severity
from gatehouse.common.config.model import BearerTokenFormat, Route, Settings
from gatehouse.common.config.resolved import FromURL, Upstream
from gatehouse.common.config.route_effects import check_effects
from gatehouse.common.config.routes import (
    UNIX_SCHEMES,
    RouteURLError,
    compile_regex,
    is_tunnel,
)
from gatehouse.common.config.sent_text import check_texts
from gatehouse.common.config.values import shorten

ERROR: Final = Severity.ERROR
WARNING: Final = Severity.WARNING
REDIRECT_CODES: Final = (301, 302, 303, 307, 308)
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]{0,251}[A-Za-z0-9_])?")
MAX_RESPONSE_BODY_BYTES: Final = 4096
MAX_SERVER_NAME_BYTES: Final = 255
MAX_DEPENDS_ON: Final = 5
MAX_WEIGHTS: Final = 2**32 - 1


def _error(path: str, message: str, fix: str = "") -> Finding:
    return Finding(ERROR, (path,), message, fix)


def _warning(path: str, message: str, fix: str = "") -> Finding:
    return Finding(WARNING, (path,), message, fix)


def check_route(
    route: Route, from_url: FromURL | None, upstreams: tuple[Upstream, ...], settings: Settings
) -> Iterator[Finding]:
    """Everything wrong with one route; `from_url` is None when `from` itself did not parse."""
    yield from _destination(route, upstreams)
    yield from _redirect_and_response(route)
    yield from _matching(route, from_url)
    yield from _rewriting(route)
    yield from _hosts(route)
    yield from check_texts(route)
    yield from check_effects(route, upstreams, settings)
    yield from _timeouts(route, settings)
    yield from _upstream_tls(route, upstreams)
    yield from check_balancing(route, upstreams, settings)
    yield from _identity(route, settings)
    yield from check_access_tokens_of(route, settings)
    if from_url is not None:
        yield from _scheme(route, from_url, upstreams, settings)


def _destination(route: Route, upstreams: tuple[Upstream, ...]) -> Iterator[Finding]:
    given = [
        name
        for name, present in (
            ("to", bool(route.to)),
            ("redirect", route.redirect is not None),
            ("response", route.response is not None),
        )
        if present
    ]
    if not given:
        yield _error(
            "from",
            "policy should have either `to` or `redirect` or `response` defined",
            "add one of the three",
        )
    elif len(given) > 1:
        yield _error(given[1], f"{' and '.join(given)} are given", "exactly one of them")
    kinds = {upstream.scheme for upstream in upstreams}
    for name in ("tcp", "udp", "ssh"):
        if name in kinds and len(kinds) > 1:
            yield _error("to", f"cannot mix {name} and non-{name} To URLs", "one kind of upstream")
    if kinds & UNIX_SCHEMES and len(kinds) > 1:
        yield _error("to", "cannot mix unix and non-unix To URLs", "one kind of upstream")
    weighted = [upstream.weight is not None for upstream in upstreams]
    if any(weighted) and not all(weighted):
        yield _error(
            "to",
            "either no weights should be provided, or all endpoints must have non-zero weight "
            "specified",
            "a weight for each URL, or for none",
        )
    if sum(upstream.weight or 0 for upstream in upstreams) > MAX_WEIGHTS:
        yield _error("to", f"the weights add up to more than {MAX_WEIGHTS}", "smaller ones")


def _redirect_and_response(route: Route) -> Iterator[Finding]:
    redirect = route.redirect
    if redirect is not None:
        code = redirect.response_code
        if code is not None and code not in REDIRECT_CODES:
            yield Finding(
                ERROR,
                ("redirect", "response_code"),
                f"unsupported redirect response code {code}",
                f"one of {', '.join(map(str, REDIRECT_CODES))}",
            )
        if not redirect.model_fields_set:
            yield _error("redirect", "changes nothing", "host_redirect, path_redirect or the like")
        if redirect.path_redirect and redirect.prefix_rewrite:
            yield Finding(
                WARNING,
                ("redirect", "prefix_rewrite"),
                "has no effect beside path_redirect",
                "keep one of them",
            )
        if redirect.https_redirect is not None and redirect.scheme_redirect:
            yield Finding(
                WARNING,
                ("redirect", "scheme_redirect"),
                "has no effect beside https_redirect",
                "keep one of them",
            )
    if route.response is not None:
        status, size = route.response.status, len(route.response.body.encode())
        if not 200 <= status <= 599:
            yield Finding(ERROR, ("response", "status"), f"{status} is out of range", "200 to 599")
        if size > MAX_RESPONSE_BODY_BYTES:
            yield Finding(
                ERROR,
                ("response", "body"),
                f"has {size} bytes",
                f"at most {MAX_RESPONSE_BODY_BYTES} bytes",
            )


def _matching(route: Route, from_url: FromURL | None) -> Iterator[Finding]:
    given = [name for name in ("path", "prefix", "regex") if getattr(route, name)]
    if len(given) > 1:
        yield _error(given[1], f"{' and '.join(given)} are given", "one of path, prefix and regex")
    if given and from_url is not None and is_tunnel(from_url):
        yield _warning(given[0], "has no effect on a tunnel", "leave it out")
    for name in ("path", "prefix"):
        value = getattr(route, name)
        if value and not value.startswith("/"):
            yield _error(name, f"{shorten(value)} does not start with /", "a path such as /admin")
        elif "?" in value or "#" in value:
            yield _warning(
                name,
                f"{shorten(value)} can never match: a path ends before its ? or #",
                "the path alone",
            )
    if route.regex:
        yield from _regex("regex", route.regex)


def _regex(key: str, pattern: str) -> Iterator[Finding]:
    try:
        compile_regex(pattern)
    except RouteURLError as error:
        yield _error(key, str(error), error.fix)


def _rewriting(route: Route) -> Iterator[Finding]:
    if route.prefix_rewrite and route.regex_rewrite_pattern:
        yield _error(
            "prefix_rewrite",
            "only prefix_rewrite or regex_rewrite_pattern can be specified, but not both",
            "keep one of them",
        )
    for prefix in ("regex_rewrite", "host_path_regex_rewrite"):
        pattern = getattr(route, f"{prefix}_pattern")
        substitution = getattr(route, f"{prefix}_substitution")
        if substitution and not pattern:
            yield _error(f"{prefix}_substitution", f"needs {prefix}_pattern", "give both")
        if not pattern:
            continue
        try:
            groups = compile_regex(pattern).groups
        except RouteURLError as error:
            yield _error(f"{prefix}_pattern", str(error), error.fix)
            continue
        for escape in re.findall(r"\\(.|$)", substitution):
            if escape == "\\":
                continue
            if not escape.isdigit():
                yield _error(
                    f"{prefix}_substitution",
                    f"holds a \\ before {shorten(escape)}",
                    r"\0 to \9 for groups, \\ for a backslash",
                )
            elif int(escape) > groups:
                yield _error(
                    f"{prefix}_substitution",
                    f"refers to group {escape}, but {prefix}_pattern has {groups}",
                    f"\\0 to \\{groups}",
                )


def _hosts(route: Route) -> Iterator[Finding]:
    given = [
        name
        for name in ("host_rewrite", "host_rewrite_header", "host_path_regex_rewrite_pattern")
        if getattr(route, name)
    ]
    if len(given) > 1:
        yield _error(given[1], f"{' and '.join(given)} are given", "one of them")
    elif given and route.preserve_host_header:
        yield _warning("preserve_host_header", f"has no effect beside {given[0]}", "keep one")
    for name in ("host", ":authority", ":path", ":method", ":scheme"):
        if any(header.lower() == name for header in route.set_request_headers):
            yield _error(
                "set_request_headers",
                f"{name} cannot be set here",
                "use host_rewrite or the path rewrite keys",
            )
        if any(header.lower() == name for header in route.remove_request_headers):
            yield _error("remove_request_headers", f"{name} cannot be removed", "leave it out")
    if any(header.lower() == "host" for header in route.set_response_headers):
        yield _error("set_response_headers", "host cannot be set here", "leave it out")


def _timeouts(route: Route, settings: Settings) -> Iterator[Finding]:
    limit = settings.timeout_write
    if route.timeout and limit and route.timeout > limit:
        yield _warning("timeout", f"is above timeout_write and cut to {limit:g}s", "a shorter one")
    limit = settings.timeout_idle
    if route.idle_timeout and limit and route.idle_timeout > limit:
        yield _warning(
            "idle_timeout", f"is above timeout_idle and cut to {limit:g}s", "a shorter one"
        )


def _upstream_tls(route: Route, upstreams: tuple[Upstream, ...]) -> Iterator[Finding]:
    pairs = (
        ("tls_client_cert", bool(route.tls_client_cert), route.tls_client_key is not None),
        ("tls_client_cert_file", bool(route.tls_client_cert_file), bool(route.tls_client_key_file)),
    )
    for key, has_certificate, has_key in pairs:
        if has_certificate != has_key:
            name = key if has_certificate else key.replace("cert", "key", 1)
            yield _error(
                name,
                "client certificate key and cert both must be non-empty",
                f"{key} with {key.replace('cert', 'key', 1)}",
            )
    named = route.tls_upstream_server_name or route.tls_server_name
    if route.tls_server_name and named != route.tls_server_name:
        yield _warning(
            "tls_server_name", "has no effect beside tls_upstream_server_name", "keep one of them"
        )
    if not named and any(upstream.scheme == "https+unix" for upstream in upstreams):
        yield _error("to", "https+unix has no host to verify", "tls_upstream_server_name")
    for key in ("tls_upstream_server_name", "tls_server_name"):
        value = getattr(route, key)
        if "\x00" in value or len(value.encode()) > MAX_SERVER_NAME_BYTES:
            yield _error(key, f"{shorten(value)} is not a host name", "app.example.com")
    name = route.tls_downstream_server_name
    if name and not _HOST_NAME.fullmatch(name):
        yield _error(
            "tls_downstream_server_name", f"{shorten(name)} is not a host name", "app.example.com"
        )
    if route.tls_downstream_client_ca or route.tls_downstream_client_ca_file:
        key = "tls_downstream_client_ca" + ("" if route.tls_downstream_client_ca else "_file")
        yield _warning(key, "is deprecated", "downstream_mtls.ca with a policy on the certificate")


def _identity(route: Route, settings: Settings) -> Iterator[Finding]:
    if len(route.depends_on) > MAX_DEPENDS_ON:
        yield _error(
            "depends_on",
            f"depends_on is limited to {MAX_DEPENDS_ON} additional redirect hosts, "
            f"got {len(route.depends_on)}",
            f"at most {MAX_DEPENDS_ON}",
        )
    for index, entry in enumerate(route.depends_on):
        if depends_on_host(entry) is None:
            yield Finding(
                ERROR,
                ("depends_on", index),
                f"unsupported depends_on value {shorten(entry)}",
                "a host, or a full URL such as https://app.example.com",
            )
    tokens = route.bearer_token_format or settings.bearer_token_format
    if route.identity_providers:
        if tokens is not BearerTokenFormat.JWT:
            yield _error(
                "identity_providers",
                "is only used with bearer_token_format jwt",
                "bearer_token_format: jwt",
            )
        for name in route.identity_providers:
            if name.lower() not in settings.identity_providers:
                yield _error(
                    "identity_providers",
                    f"{shorten(name)} is not one of the global identity_providers",
                    f"one of {', '.join(settings.identity_providers) or 'those (none is set)'}",
                )
    if route.bearer_token_format is BearerTokenFormat.JWT and not settings.identity_providers:
        yield _error("bearer_token_format", "jwt needs the global identity_providers", "add them")
    if route.kubernetes_service_account_token and route.kubernetes_service_account_token_file:
        yield _error(
            "kubernetes_service_account_token_file",
            "kubernetes_service_account_token and kubernetes_service_account_token_file are given",
            "one of them",
        )
    if (route.idp_client_id == "") != (route.idp_client_secret is None):
        key = "idp_client_id" if route.idp_client_id else "idp_client_secret"
        yield _warning(
            key, "idp_client_id and idp_client_secret belong together", "give both or neither"
        )
    if route.mcp is not None:
        if route.mcp.server is None and route.mcp.client is None:
            yield _error("mcp", "mcp must have either server or client set", "mcp.server")
        url = route.mcp.server.authorization_server_url if route.mcp.server else ""
        if url and urlsplit(url).scheme != "https":
            yield Finding(
                ERROR, ("mcp", "server", "authorization_server_url"), "is not https", "https://"
            )
        oauth = route.mcp.server.upstream_oauth2 if route.mcp.server else None
        if oauth is not None and oauth.endpoint.auth_style not in {"", "header", "params"}:
            yield Finding(
                ERROR,
                ("mcp", "server", "upstream_oauth2", "endpoint", "auth_style"),
                f"unknown style {shorten(oauth.endpoint.auth_style)}",
                "header or params",
            )


def depends_on_host(entry: str) -> str | None:
    """The host (with port, if given) of one element of `depends_on`; None when it is neither."""
    if "/" in entry:
        try:
            parts = urlsplit(entry)
        except ValueError:
            return None
        return parts.netloc if parts.scheme and parts.hostname else None
    return entry if re.fullmatch(r"[A-Za-z0-9._\-\[\]:]+", entry) else None


def _scheme(
    route: Route, from_url: FromURL, upstreams: tuple[Upstream, ...], settings: Settings
) -> Iterator[Finding]:
    kinds = {upstream.scheme for upstream in upstreams}
    if from_url.scheme == "http" and not settings.insecure_server:
        yield _error(
            "from",
            "unsupported scheme 'http': only secure schemes are supported",
            "https://, or insecure_server: true",
        )
    for name in ("tcp", "udp"):
        own = from_url.scheme == f"{name}+https"
        if own and kinds - {name} and not (route.connect_chaining and kinds <= {"http", "https"}):
            yield _error(
                "to",
                f"the upstream of a {name}+https route must be {name}://",
                f"{name}://host:port, or connect_chaining: true with an http(s) upstream",
            )
        if not own and name in kinds:
            yield _error("to", f"{name}:// needs a from of {name}+https://", f"{name}+https://…")
    if route.connect_chaining and not is_tunnel(from_url):
        yield _warning("connect_chaining", "has no effect on this route", "leave it out")
    if from_url.scheme == "ssh":
        if len(upstreams) != 1 or kinds != {"ssh"}:
            yield _error("to", "an ssh route has exactly one ssh:// upstream", "ssh://host:port")
    elif "ssh" in kinds:
        yield _error("to", "ssh:// needs a from of ssh://", "ssh://host")
