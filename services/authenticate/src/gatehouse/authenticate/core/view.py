"""The settings that authenticate reads, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gatehouse.common.config.resolved import IdentityProviderSettings, ResolvedSettings
from gatehouse.common.session.allowed_hosts import served_hosts

CALLBACK_PATH = "/oauth2/callback"
SIGN_IN_PATH = "/.pomerium/sign_in"
SIGN_OUT_PATH = "/.pomerium/sign_out"
SIGNED_OUT_PATH = "/.pomerium/signed_out"
BACK_CHANNEL_LOGOUT_PATH = "/.pomerium/backchannel_logout"
DASHBOARD_PATH = "/.pomerium/"


@dataclass(frozen=True, slots=True)
class CookieView:
    """How the session cookie is set."""

    name: str
    domain: str
    http_only: bool
    same_site: str
    expire_s: float
    is_for_its_hosts: bool  # it counts on the hosts that its handle names alone

    @property
    def authenticate_name(self) -> str:
        """The cookie that authenticate itself reads."""
        return f"{self.name}_authenticate"


@dataclass(frozen=True, slots=True)
class AuthenticateView:
    """One generation of settings. URLs have no trailing slash; hosts are lower case."""

    url: str  # https://host[:port]
    host: str  # host[:port] of `url`, the default port left out
    internal_host: str
    shared_secrets: tuple[bytes, ...] = field(repr=False)
    cookie_secrets: tuple[bytes, ...] = field(repr=False)
    cookie: CookieView
    default_provider: IdentityProviderSettings | None
    providers: Mapping[str, IdentityProviderSettings]  # by idp id
    is_served: Callable[[str], bool]
    signout_redirect_url: str
    any_sign_out_redirect: bool
    pkce: bool  # whether sign-ins that begin now have a code challenge
    sign_in_timeout_s: float  # from leaving for the provider to coming back

    @property
    def hostname(self) -> str:
        """`host` without its port."""
        return urlsplit(self.url).hostname or ""

    @property
    def redirect_uri(self) -> str:
        """Where identity providers send people back to."""
        return self.url + CALLBACK_PATH

    @property
    def signed_out_url(self) -> str:
        """Where people end up after signing out, unless told otherwise."""
        return self.url + SIGNED_OUT_PATH

    def provider(self, idp_id: str) -> IdentityProviderSettings | None:
        """The provider of that id; for an unknown id, the global one."""
        return self.providers.get(idp_id, self.default_provider)

    def canonical_host(self, host: str) -> str | None:
        """The host that URLs are signed for, if `host` (from a request) is ours; else None.

        The internal name counts as the external one, and any port does: balancers and port
        mappings in front change it.
        """
        name = _hostname(host)
        if name and name in {_hostname(self.host), _hostname(self.internal_host)}:
            return self.host
        return None


def view_of(settings: ResolvedSettings) -> AuthenticateView:
    """The part of `settings` that authenticate uses."""
    options = settings.settings
    providers = {
        route.identity_provider.id: route.identity_provider
        for route in settings.routes
        if route.identity_provider is not None
    }
    if settings.identity_provider is not None:
        providers[settings.identity_provider.id] = settings.identity_provider
    url = settings.authenticate_url.rstrip("/")
    return AuthenticateView(
        url=url,
        host=authority(url),
        internal_host=authority(settings.authenticate_internal_url),
        shared_secrets=settings.shared_secrets,
        cookie_secrets=settings.cookie_secrets,
        cookie=CookieView(
            name=options.cookie_name,
            domain=options.cookie_domain,
            http_only=options.cookie_http_only,
            same_site=str(options.cookie_same_site),
            expire_s=options.cookie_expire,
            is_for_its_hosts=options.cookie_audience,
        ),
        default_provider=settings.identity_provider,
        providers=providers,
        is_served=served_hosts(settings),
        signout_redirect_url=options.signout_redirect_url,
        pkce=options.idp_pkce,
        sign_in_timeout_s=options.sign_in_timeout,
        any_sign_out_redirect=options.runtime_flags.get("allow_any_sign_out_redirect_uri", False),
    )


def authority(url: str) -> str:
    """host[:port] of a URL, lower case, the scheme's default port left out."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    default = {"https": 443, "http": 80}.get(parts.scheme)
    return host if parts.port in {None, default} else f"{host}:{parts.port}"


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return ""
