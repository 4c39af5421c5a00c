"""Access tokens as bearer tokens: for whom they must be, so that not everybody's are good here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gatehouse.common.config.issues import Finding, Severity
from gatehouse.common.config.model import BearerTokenFormat, Route, Settings
from gatehouse.common.identity.variants import signs_in_every_tenant

_KEY: Final = "bearer_token_format"
_AUDIENCES: Final = "idp_access_token_allowed_audiences: the audiences that mean this place"


def check_access_tokens(settings: Settings) -> Iterator[Finding]:
    """What is wrong with taking access tokens everywhere, our own pages included."""
    if settings.bearer_token_format is BearerTokenFormat.IDP_ACCESS_TOKEN:
        yield from _for_anybody(settings, settings.idp_access_token_allowed_audiences)


def check_access_tokens_of(route: Route, settings: Settings) -> Iterator[Finding]:
    """What is wrong with taking them on a route that says so itself."""
    if route.bearer_token_format is BearerTokenFormat.IDP_ACCESS_TOKEN:
        audiences = route.idp_access_token_allowed_audiences
        if audiences is None:
            audiences = settings.idp_access_token_allowed_audiences
        yield from _for_anybody(settings, audiences)


def _for_anybody(settings: Settings, audiences: object) -> Iterator[Finding]:
    if audiences is not None:
        return
    if signs_in_every_tenant(settings.idp_provider.strip().lower(), settings.idp_provider_url):
        # Anybody can have a tenant, and write into its tokens who their users are.
        yield Finding(
            Severity.ERROR,
            (_KEY,),
            "access tokens that any tenant gave to any application would be accepted: "
            "idp_provider_url is the address that all tenants share",
            f"{_AUDIENCES}; or idp_provider_url of your own tenant",
        )
        return
    yield Finding(
        Severity.WARNING,
        (_KEY,),
        "access tokens that the provider gave to any other application are accepted too",
        _AUDIENCES,
    )
