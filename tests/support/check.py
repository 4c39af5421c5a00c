"""Envoy's side of ext_authz: requests as it sends them, and what its answers say."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from envoy.service.auth.v3 import external_auth_pb2

from gatehouse.authorize.core.check_request import read_check_request
from gatehouse.authorize.core.decision import Answer, Decider
from gatehouse.authorize.core.identity import ANONYMOUS, IdentityCache
from gatehouse.authorize.core.identity_headers import NO_TOKENS, Tokens
from gatehouse.authorize.core.route_plan import compile_plans
from gatehouse.common.config.model import Settings
from gatehouse.common.config.resolved import (
    IdentityProviderSettings,
    ListenAddress,
    ResolvedRoute,
    ResolvedSettings,
    ServiceName,
)
from gatehouse.common.config.route_model import Route
from gatehouse.common.config.routes import parse_from
from gatehouse.common.extauthz_context import (
    CLIENT_ASSERTION_NAMESPACE,
    CLIENT_CERTIFICATE_NAMESPACE,
)
from gatehouse.common.ids import RouteId
from gatehouse.common.jose.keys import SigningKey, derive_signing_key
from gatehouse.common.policy.ast import Policy
from gatehouse.common.session.handle import Handle, encode_handle
from tests.support.clock import SeededRng
from tests.support.policy import NOW_S, World, example_world

CheckRequest = external_auth_pb2.CheckRequest
CheckResponse = external_auth_pb2.CheckResponse

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def check_request(
    *,
    host: str = "app.example.com",
    path: str = "/",
    method: str = "GET",
    headers: dict[str, str] | None = None,
    lines: list[tuple[str, str]] | None = None,
    ip: str = "10.1.2.3",
    internal: bool = False,
    route_id: str = "0123456789abcdef",
    route_checksum: str = "1",
    scheme: str = "https",
    certificate: str | None = None,
    client_assertion: str = "",
) -> Any:
    """A CheckRequest. `lines`: headers one by one, as Envoy sends them with encode_raw_headers."""
    request = CheckRequest()
    attributes = request.attributes
    attributes.source.address.socket_address.address = ip
    http = attributes.request.http
    http.method = method
    http.host = host
    http.path = path
    http.scheme = scheme
    for name, value in {"accept": BROWSER, "x-request-id": "req-1", **(headers or {})}.items():
        http.headers[name] = value
    for name, value in lines or ():
        http.header_map.headers.add(key=name, raw_value=value.encode())
    context = attributes.context_extensions
    context["internal"] = "true" if internal else "false"
    context["route_id"] = "" if internal else route_id
    context["route_checksum"] = "0" if internal else route_checksum
    metadata = attributes.metadata_context.filter_metadata
    if certificate is not None:
        metadata[CLIENT_CERTIFICATE_NAMESPACE].update(
            {"presented": True, "chain": quote(certificate)}
        )
    if client_assertion:
        metadata[CLIENT_ASSERTION_NAMESPACE].update({"assertion": client_assertion})
    return request


def handle_token(key: bytes, session_id: str, **changes: Any) -> str:
    """A signed session handle."""
    values: dict[str, Any] = {
        "session_id": session_id,
        "user_id": "",
        "idp_id": "",
        "server_version": None,
        "record_version": None,
        "issuer": "authenticate.example.com",
        "audience": ("app.example.com",),
        "issued_at": 1_800_000_000,
        "use": "route",
    }
    return encode_handle(Handle(**(values | changes)), key)


def status_of(response: Any) -> int:
    """What the client would see: 200 for an allowed request, else the denial's status."""
    if response.HasField("ok_response"):
        assert response.status.code == 0
        return 200
    assert response.status.code == 7
    assert response.HasField("denied_response")
    return int(response.denied_response.status.code)


def is_allowed(response: Any) -> bool:
    return bool(response.HasField("ok_response"))


def set_headers(response: Any) -> dict[str, str]:
    """The request headers of an allowed request, or the response headers of a refusal."""
    part = response.ok_response if is_allowed(response) else response.denied_response
    names = [option.header.key for option in part.headers]
    assert len(names) == len(set(names)), names
    return {option.header.key: option.header.value for option in part.headers}


SECRET = b"s" * 32
OTHER_SECRET = b"o" * 32
ROUTE_ID = "0123456789abcdef"
AUTHENTICATE_URL = "https://authenticate.example.com"


def provider(idp_id: str = "idp-1") -> IdentityProviderSettings:
    return IdentityProviderSettings(
        id=idp_id,
        type="oidc",
        url="https://idp.example.com",
        client_id="client",
        client_secret="client-secret-value",
        scopes=(),
        request_params=None,
    )


def route(
    policy: Policy,
    *,
    route_id: str = ROUTE_ID,
    from_: str = "https://app.example.com",
    idp: IdentityProviderSettings | None = None,
    **keys: Any,
) -> ResolvedRoute:
    return ResolvedRoute(
        id=RouteId(route_id),
        checksum=7,
        settings=Route.model_validate({"from": from_, "to": ["http://127.0.0.1:1"], **keys}),
        from_url=parse_from(from_),
        upstreams=(),
        policy=policy,
        identity_provider=idp or provider(),
    )


def resolved_settings(
    *routes: ResolvedRoute,
    secrets: tuple[bytes, ...] = (SECRET,),
    authenticate_url: str = AUTHENTICATE_URL,
    databroker_urls: tuple[str, ...] = (),
    services: frozenset[ServiceName] = frozenset({ServiceName.AUTHORIZE}),
    signing_keys: tuple[SigningKey, ...] | None = None,
    **keys: Any,
) -> ResolvedSettings:
    address = ListenAddress("127.0.0.1", 0)
    return ResolvedSettings(
        settings=Settings.model_validate(keys),
        services=services,
        shared_secrets=secrets,
        cookie_secrets=secrets,
        signing_keys=(derive_signing_key(secrets[0]),) if signing_keys is None else signing_keys,
        identity_provider=provider(),
        certificates=(),
        fallback_certificate=None,
        ca_bundle_pem=None,
        databroker_connection="",
        routes=routes,
        address=address,
        grpc_address=address,
        grpc_insecure=True,
        authenticate_url=authenticate_url,
        authenticate_internal_url=authenticate_url,
        authorize_urls=(),
        databroker_urls=databroker_urls,
        watched_files=(),
        generation="test",
    )


class Desk:
    """A Decider over some records: what `edge/ext_authz.py` does, without a network."""

    def __init__(
        self, settings: ResolvedSettings, world: World | None = None, rng: SeededRng | None = None
    ) -> None:
        self.world = world or example_world()
        self.now_s = NOW_S
        self.rng = rng or SeededRng()
        self.decider = Decider(compile_plans(settings), self.rng)
        self.identities = IdentityCache()

    def answer(self, request: Any, tokens: Tokens = NO_TOKENS) -> Answer:
        facts = read_check_request(request, self.now_s)
        prepared = self.decider.prepare(facts, self.now_s)
        identity = ANONYMOUS
        if prepared.handle is not None:
            name = prepared.handle.session_id
            identity = self.identities.resolve(name, self.world.subject(name), self.now_s)
        return self.decider.answer(facts, prepared, identity, self.now_s, tokens)

    def check(self, *, tokens: Tokens = NO_TOKENS, **request: Any) -> Any:
        return self.answer(check_request(**request), tokens).response

    def cookie(self, session_id: str, **changes: Any) -> dict[str, str]:
        """Request headers of a signed-in browser."""
        changes = {"idp_id": "idp-1"} | changes
        return {"cookie": f"_pomerium={handle_token(SECRET, session_id, **changes)}"}
