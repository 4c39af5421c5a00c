"""Envoy's side of ext_authz: requests as it sends them, and what its answers say."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from envoy.service.auth.v3 import external_auth_pb2

from gatehouse.common.extauthz_context import (
    CLIENT_ASSERTION_NAMESPACE,
    CLIENT_CERTIFICATE_NAMESPACE,
)
from gatehouse.common.session.handle import Handle, encode_handle

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
    return response.denied_response.status.code


def is_allowed(response: Any) -> bool:
    return response.HasField("ok_response")


def set_headers(response: Any) -> dict[str, str]:
    """The request headers of an allowed request, or the response headers of a refusal."""
    part = response.ok_response if is_allowed(response) else response.denied_response
    names = [option.header.key for option in part.headers]
    assert len(names) == len(set(names)), names
    return {option.header.key: option.header.value for option in part.headers}
