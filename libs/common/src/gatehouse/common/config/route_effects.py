"""Which keys of a route do less than they seem to, because of its others.

Nothing here keeps a route from being served. Pure. Spec: routes.md sections 4, 9, 11 and 12.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from gatehouse.common.config.header_templates import Source, parse_template
from gatehouse.common.config.issues import Finding, Severity
from gatehouse.common.config.model import Route, Settings
from gatehouse.common.config.resolved import Upstream
from gatehouse.common.config.routes import RouteURLError, split_weight
from gatehouse.common.config.values import shorten

_ASSERTIONS: Final = ("x-pomerium-jwt-assertion", "x-pomerium-jwt-assertion-for")
_TLS_KEYS: Final = (
    *("tls_skip_verify", "tls_upstream_server_name", "tls_server_name", "tls_custom_ca"),
    *("tls_custom_ca_file", "tls_client_cert", "tls_client_cert_file"),
    "tls_upstream_allow_renegotiation",
)
# What happens on the way to an upstream and back.
_UPSTREAM_KEYS: Final = (
    *("prefix_rewrite", "regex_rewrite_pattern", "host_rewrite", "host_rewrite_header"),
    *("host_path_regex_rewrite_pattern", "preserve_host_header", "pass_identity_headers"),
    *("set_request_headers", "remove_request_headers", "rewrite_response_headers", "timeout"),
    *("idle_timeout", "allow_websockets", "allow_spdy", "allow_upgrades", *_TLS_KEYS),
    *("outlier_detection", "circuit_breaker_thresholds", "load_balancing_policy"),
    *("kubernetes_service_account_token", "kubernetes_service_account_token_file"),
    "enable_google_cloud_serverless_authentication",
)
_WITH_TLS: Final = frozenset({"https", "https+unix"})
_PLAIN_HTTP: Final = frozenset({"http", "h2c", "unix"})


def check_effects(
    route: Route, upstreams: tuple[Upstream, ...], settings: Settings
) -> Iterator[Finding]:
    """Warnings about one route whose URLs could be read."""
    yield from _upstreams(route, upstreams)
    yield from _headers(route, settings)
    yield from _protocol(route, upstreams)
    answer = "redirect" if route.redirect else "response" if route.response else ""
    for key in _UPSTREAM_KEYS if answer and not route.to else ():
        if key in route.model_fields_set and getattr(route, key):
            yield _warning(
                key, f"has no effect: with {answer} there is no upstream", "leave it out"
            )
    schemes = {upstream.scheme for upstream in upstreams}
    if schemes and schemes <= _PLAIN_HTTP:
        for key in _TLS_KEYS:
            if getattr(route, key):
                yield _warning(key, "has no effect: no upstream in to is https", "https:// in to")


def _warning(key: str, message: str, fix: str) -> Finding:
    return Finding(Severity.WARNING, (key,), message, fix)


def _upstreams(route: Route, upstreams: tuple[Upstream, ...]) -> Iterator[Finding]:
    for index, target in enumerate(route.to):
        place = ("to", index) if len(route.to) > 1 else ("to",)
        try:
            parts = urlsplit(split_weight(target)[0])
        except (ValueError, RouteURLError):
            continue
        if parts.query or parts.fragment:
            yield Finding(
                Severity.WARNING,
                place,
                "what follows ? or # is not sent: the query is the client's own",
                "the URL without it",
            )
        if parts.username is not None or parts.password is not None:
            yield Finding(
                Severity.WARNING,
                place,
                "the user name and password are not sent",
                "set_request_headers with an Authorization header",
            )
    rewrites = route.prefix_rewrite or route.regex_rewrite_pattern
    paths = [upstream.path for upstream in upstreams]
    if len(set(paths)) > 1 and not rewrites and upstreams[0].host:
        message = f"only the path of the first URL counts: {shorten(paths[0] or '/')} for all"
        yield _warning("to", message, "URLs that differ in their hosts alone")


def _headers(route: Route, settings: Settings) -> Iterator[Finding]:
    removed = {name.lower() for name in route.remove_request_headers}
    passes = route.pass_identity_headers
    if passes is None:
        passes = bool(settings.pass_identity_headers)
    identity = {*_ASSERTIONS, *(name.lower() for name in settings.jwt_claims_headers)}
    for name, text in route.set_request_headers.items():
        if name.lower() in removed:
            message = f"{name} is set in vain: remove_request_headers takes it away again"
            yield _warning("set_request_headers", message, "one of the two")
        elif not passes and name.lower() in identity:
            message = f"{name} is set in vain: without pass_identity_headers it is taken away again"
            yield _warning("set_request_headers", message, "another name, or pass_identity_headers")
        if any(part.source is Source.NOTHING for part in parse_template(text).references):
            message = f"{name} refers to something that does not exist and is left empty there"
            fix = "${pomerium.jwt} and the like, or $$ for a dollar sign"
            yield _warning("set_request_headers", message, fix)


def _protocol(route: Route, upstreams: tuple[Upstream, ...]) -> Iterator[Finding]:
    schemes = {upstream.scheme for upstream in upstreams}
    if "h2c" not in schemes:
        return
    if len(schemes) > 1:
        message = "h2c:// beside other kinds: all of them are spoken to in HTTP/1.1"
        yield _warning("to", message, "h2c:// for all, or for none")
    elif route.allow_websockets:
        message = "with WebSockets the h2c:// upstream is spoken to in HTTP/1.1"
        yield _warning("allow_websockets", message, "http:// in to, or no WebSockets")
