"""The settings that the proxy's own HTTP endpoints read, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gatehouse.common.config.resolved import ResolvedRoute, ResolvedSettings
from gatehouse.common.jose.keys import SigningKey
from gatehouse.common.session.allowed_hosts import host_pattern, served_hosts, whitelisted_hosts

_HTTPS_PORT = ":443"
# A name and at most a port: userinfo and second ports are read differently by different parsers.
_PLAIN_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class PagesView:
    """One generation of settings. Hosts handed to the functions are lower case, without port."""

    authenticate_url: str  # without trailing slash; empty: no sign-in in this deployment
    shared_secrets: tuple[bytes, ...] = field(repr=False)
    signing_keys: tuple[SigningKey, ...]
    cookie_name: str
    cookie_domain: str
    cookie_audience: bool
    cookie_http_only: bool
    cookie_same_site: str
    cookie_expire_s: float
    sign_in_timeout_s: float  # from leaving for the provider to coming back
    is_served: Callable[[str], bool]
    is_programmatic_target: Callable[[str], bool]
    idp_id_of: Callable[[str], str]  # empty: no provider
    signout_redirect_url: str
    any_sign_out_redirect: bool
    jwt_endpoint: bool
    routes_portal: bool

    def canonical_host(self, host: str) -> str | None:
        """`host` as URLs are signed for it (no default port), if it is served here; else None."""
        name = hostname_of(host) if _PLAIN_HOST.fullmatch(host) else ""
        if not name or not self.is_served(name):
            return None
        return host.removesuffix(_HTTPS_PORT)


def pages_view(settings: ResolvedSettings) -> PagesView:
    """The part of `settings` that the endpoints use."""
    options = settings.settings
    return PagesView(
        authenticate_url=settings.authenticate_url.rstrip("/"),
        shared_secrets=settings.shared_secrets,
        signing_keys=settings.signing_keys,
        cookie_name=options.cookie_name,
        cookie_domain=options.cookie_domain,
        cookie_audience=options.cookie_audience,
        cookie_http_only=options.cookie_http_only,
        cookie_same_site=str(options.cookie_same_site),
        cookie_expire_s=options.cookie_expire,
        sign_in_timeout_s=options.sign_in_timeout,
        is_served=served_hosts(settings),
        is_programmatic_target=whitelisted_hosts(options.programmatic_redirect_domain_whitelist),
        idp_id_of=_idp_lookup(settings),
        signout_redirect_url=options.signout_redirect_url,
        any_sign_out_redirect=options.runtime_flags.get("allow_any_sign_out_redirect_uri", False),
        jwt_endpoint=options.runtime_flags.get("pomerium_jwt_endpoint", False),
        routes_portal=options.runtime_flags.get("routes_portal", False),
    )


def hostname_of(host: str) -> str:
    """A Host header's name: lower case, without port and trailing dot; empty if unreadable."""
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def _idp_lookup(settings: ResolvedSettings) -> Callable[[str], str]:
    """Host to idp id: an exact host's first route, else the first wildcard that fits."""
    fallback = settings.identity_provider.id if settings.identity_provider else ""
    exact: dict[str, str] = {}
    patterns = [
        (host_pattern(route.from_url.host), _idp_id(route, fallback))
        for route in settings.routes
        if route.from_url.is_wildcard
    ]
    for route in settings.routes:
        if not route.from_url.is_wildcard:
            exact.setdefault(route.from_url.host, _idp_id(route, fallback))

    def lookup(host: str) -> str:
        if host in exact:
            return exact[host]
        return next((idp for pattern, idp in patterns if pattern.fullmatch(host)), fallback)

    return lookup


def _idp_id(route: ResolvedRoute, fallback: str) -> str:
    return route.identity_provider.id if route.identity_provider is not None else fallback
