"""Resolved settings for tests of the HTTP endpoints, without files."""

from __future__ import annotations

from typing import Any

from gatehouse.common.config.model import Settings
from gatehouse.common.config.resolved import (
    FromURL,
    IdentityProviderSettings,
    ListenAddress,
    ResolvedRoute,
    ResolvedSettings,
    ServiceName,
)
from gatehouse.common.config.route_model import Route
from gatehouse.common.config.routes import parse_from
from gatehouse.common.ids import RouteId
from gatehouse.common.jose.keys import derive_signing_key
from gatehouse.common.policy.ast import Policy

SHARED = b"s" * 32
COOKIE = b"c" * 32
AUTHENTICATE = "https://authenticate.example.com"
APP = "app.example.com"
IDP_ID = "idp-global"


def provider(url: str = "https://idp.example.com", idp_id: str = IDP_ID, **changes: Any):
    values: dict[str, Any] = {
        "id": idp_id,
        "type": "oidc",
        "url": url,
        "client_id": "client",
        "client_secret": "client-secret-value",
        "scopes": (),
        "request_params": None,
    }
    return IdentityProviderSettings(**(values | changes))


def route(
    from_: str = f"https://{APP}", *, idp: IdentityProviderSettings | None = None, **keys: Any
) -> ResolvedRoute:
    from_url: FromURL = parse_from(from_)
    settings = Route.model_validate({"from": from_, "to": ["http://127.0.0.1:1"], **keys})
    return ResolvedRoute(
        id=RouteId("0123456789abcdef"),
        checksum=1,
        settings=settings,
        from_url=from_url,
        upstreams=(),
        policy=Policy(()),
        identity_provider=idp,
    )


def settings(
    *,
    routes: tuple[ResolvedRoute, ...] | None = None,
    idp: IdentityProviderSettings | None = None,
    no_idp: bool = False,
    authenticate_url: str = AUTHENTICATE,
    internal_url: str | None = None,
    services: frozenset[ServiceName] = frozenset(ServiceName),
    shared: tuple[bytes, ...] = (SHARED,),
    cookie: tuple[bytes, ...] = (COOKIE,),
    address: ListenAddress | None = None,
    databroker_urls: tuple[str, ...] = (),
    **keys: Any,
) -> ResolvedSettings:
    return ResolvedSettings(
        settings=Settings.model_validate(keys),
        services=services,
        shared_secrets=shared,
        cookie_secrets=cookie,
        signing_keys=(derive_signing_key(shared[0]),),
        identity_provider=None if no_idp else idp or provider(),
        certificates=(),
        fallback_certificate=None,
        ca_bundle_pem=None,
        databroker_connection="",
        routes=(route(),) if routes is None else routes,
        address=address or ListenAddress("127.0.0.1", 0),
        grpc_address=ListenAddress("127.0.0.1", 0),
        grpc_insecure=True,
        authenticate_url=authenticate_url,
        authenticate_internal_url=authenticate_url if internal_url is None else internal_url,
        authorize_urls=(),
        databroker_urls=databroker_urls,
        watched_files=(),
        generation="test",
    )
