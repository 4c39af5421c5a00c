"""The answer to Envoy, and with it what a refused client gets to see.

https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/auth/v3/external_auth.proto
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2
from envoy.type.v3 import http_status_pb2
from google.protobuf.struct_pb2 import Struct
from google.rpc import status_pb2

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.common.errors import Code
from gatehouse.common.extauthz_context import DECISION_ALLOW, DECISION_FIELD
from gatehouse.common.pages import (
    INTERCEPTED_HEADER,
    ErrorPage,
    Link,
    negotiate,
    prefers_json,
    render_error,
    safe_request_id,
    security_headers,
)

CheckResponse = external_auth_pb2.CheckResponse

_OVERWRITE: Final = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_ADD: Final = base_pb2.HeaderValueOption.APPEND_IF_EXISTS_OR_ADD
_NO_STORE: Final = ("cache-control", "no-store")

_REASON_TEXT: Final[Mapping[int, str]] = {
    302: "Login",
    400: "Bad Request",
    401: "Unauthenticated",
    403: "Forbidden",
    404: "Not Found",
    450: (
        "your device fails to meet the requirements necessary to access this page, please contact "
        "your administrator for assistance"
    ),
    495: "a valid client certificate is required to access this page",
}
_KUBERNETES_REASON: Final[Mapping[int, str]] = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    450: "Unauthorized",
    495: "Unauthorized",
}
# https://grpc.github.io/grpc/core/md_doc_http-grpc-status-mapping.html
_GRPC_CODE: Final[Mapping[int, Code]] = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class DenialText:
    """What a refusal's page says. Never policy text, addresses or other people's data."""

    heading: str
    detail: str
    next_steps: tuple[str, ...]


def allowed(
    headers: Sequence[tuple[str, str]],
    *,
    remove: Sequence[str] = (),
    metadata: Mapping[str, object],
) -> Any:
    """Let the request through with these headers; `metadata` is for access log and filters.

    `remove`: headers that no client may send; those that are set here stay.
    """
    ours = {name for name, _ in headers}
    return CheckResponse(
        status=status_pb2.Status(code=Code.OK.value),
        ok_response=external_auth_pb2.OkHttpResponse(
            headers=[
                base_pb2.HeaderValueOption(
                    header=base_pb2.HeaderValue(key=name, value=value),
                    append_action=_OVERWRITE,
                    keep_empty_value=True,
                )
                for name, value in headers
            ],
            headers_to_remove=[name for name in remove if name not in ours],
        ),
        dynamic_metadata=_struct({**metadata, DECISION_FIELD: DECISION_ALLOW}),
    )


def with_metadata(response: Any, name: str, text: str) -> Any:
    """A copy of an answer with one more field in its metadata. The answer itself may be shared."""
    copy = CheckResponse()
    copy.CopyFrom(response)
    copy.dynamic_metadata.fields[name].string_value = text
    return copy


def denied(
    facts: RequestFacts,
    status: int,
    *,
    metadata: Mapping[str, object],
    session_page: Callable[[RequestFacts], str],
    email: str = "",
    detail: str = "",
    advice: Sequence[str] = (),
) -> Any:
    """Refuse, in the form that this client understands.

    `session_page` gives the address of the page that says who somebody is; only pages lead there.
    `advice` is what the administrator wants people to read; it replaces our own next steps.
    """
    request_id = safe_request_id(facts.request_id)
    if is_kubernetes(facts):
        body = _kubernetes_status(status, request_id)
        return _response(status, body, [("content-type", "application/json"), _NO_STORE], metadata)
    if facts.path == "/robots.txt":
        return _robots(metadata)
    reason = _REASON_TEXT.get(status, "Error")
    if wants_json(facts):
        body = json.dumps({"error": reason, "request_id": request_id})
        return _response(status, body, [("content-type", "application/json"), _NO_STORE], metadata)
    grpc_type = _grpc_answer_type(facts)
    if grpc_type:
        headers = [
            ("content-type", grpc_type),
            ("grpc-status", str(_GRPC_CODE.get(status, Code.UNKNOWN).value)),
            ("grpc-message", reason),
            _NO_STORE,
        ]
        return _response(status, "", headers, metadata)
    text = _denial_text(status, email)
    page = ErrorPage(
        status=status,
        reason=text.heading,
        request_id=request_id,
        detail=detail or text.detail,
        next_steps=tuple(advice) or text.next_steps,
        links=(Link("Your session", session_page(facts)),),
    )
    headers = [
        ("content-type", "text/html; charset=utf-8"),
        INTERCEPTED_HEADER,
        *security_headers().items(),
    ]
    return _response(status, render_error(page), headers, metadata)


def redirect(
    facts: RequestFacts,
    location: str,
    set_cookie: str = "",
    *,
    metadata: Mapping[str, object],
    what: str = "Sign in",
) -> Any:
    """Send a browser to sign in, or to another page of ours."""
    if facts.path == "/robots.txt":
        return _robots(metadata)
    body = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>'
        f'{what}</title><p><a href="{html.escape(location, quote=True)}">{what}</a>'
        " to continue.</p></html>\n"
    )
    headers = [
        ("location", location),
        ("content-type", "text/html; charset=utf-8"),
        INTERCEPTED_HEADER,
        ("referrer-policy", "no-referrer"),
        _NO_STORE,
    ]
    response = _response(302, body, headers, metadata)
    # Added, not set: nothing else that sets a cookie may be lost.
    if set_cookie:
        response.denied_response.headers.append(_header("set-cookie", set_cookie, _ADD))
    return response


def wants_sign_in_page(facts: RequestFacts, *, carries_token: bool) -> bool:
    """True for a client that can follow a person's sign-in; all others get 401."""
    if carries_token or wants_json(facts) or is_kubernetes(facts):
        return False
    if facts.headers.get("content-type", "").startswith("application/grpc"):
        return False
    return negotiate(facts.headers.get("accept")) == "html"


def wants_json(facts: RequestFacts) -> bool:
    """True for clients that read JSON rather than pages."""
    if facts.headers.get("x-requested-with", "").lower() == "xmlhttprequest":
        return True
    return prefers_json(facts.headers.get("accept"))


def is_kubernetes(facts: RequestFacts) -> bool:
    """True for kubectl and its kin."""
    return "kubernetes/" in facts.headers.get("user-agent", "")


def _denial_text(status: int, email: str) -> DenialText:
    match status:
        case 401:
            return DenialText(
                "Sign-in required",
                "This address needs a signed-in user, and the request carried no valid session.",
                ("Sign in with a browser.", "Programs: send a fresh token."),
            )
        case 403:
            who = f"You are signed in as {email}." if email else "You are not signed in."
            return DenialText(
                "You may not open this page",
                f"{who} The policy of this application does not let you in.",
                (
                    "Sign in with another account if you have one that may.",
                    "Ask your administrator for access and give them the request id below.",
                ),
            )
        case 404:
            return DenialText(
                "Page not found",
                "No application is configured here.",
                ("Check the address.",),
            )
        case 450:
            return DenialText(
                "Your device may not open this page",
                "This application is for approved devices, and this one is not approved.",
                ("Ask your administrator to approve this device.",),
            )
        case 495:
            return DenialText(
                "A client certificate is required",
                "This application needs a valid client certificate.",
                ("Choose a valid certificate when your browser asks for one.",),
            )
        case 400:
            return DenialText(
                "The request cannot be understood",
                "The request is not correctly formed.",
                ("Check the address.",),
            )
        case _:
            return DenialText("The request was refused", "", ())


def _kubernetes_status(status: int, request_id: str) -> str:
    message = _REASON_TEXT.get(status, "Error")
    if request_id:
        message = f"{message} (request id {request_id})"
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Status",
            "status": "Failure",
            "message": message,
            "reason": _KUBERNETES_REASON.get(status, ""),
            "code": status,
        }
    )


def _robots(metadata: Mapping[str, object]) -> Any:
    headers = [("content-type", "text/plain; charset=utf-8"), _NO_STORE]
    return _response(200, "User-agent: *\nDisallow: /\n", headers, metadata)


def _grpc_answer_type(facts: RequestFacts) -> str:
    content_type = facts.headers.get("content-type", "")
    if content_type == "application/grpc" or content_type.startswith("application/grpc+"):
        return "application/grpc+json"
    if content_type == "application/grpc-web-text" or content_type.startswith(
        "application/grpc-web+"
    ):
        return "application/grpc-web+json"
    return ""


def _response(
    status: int,
    body: str,
    headers: Sequence[tuple[str, str]],
    metadata: Mapping[str, object],
) -> Any:
    return CheckResponse(
        status=status_pb2.Status(code=Code.PERMISSION_DENIED.value, message="Access Denied"),
        denied_response=external_auth_pb2.DeniedHttpResponse(
            status=http_status_pb2.HttpStatus(code=status),
            headers=[_header(name, value, _OVERWRITE) for name, value in headers],
            body=body,
        ),
        dynamic_metadata=_struct(metadata),
    )


def _header(name: str, value: str, action: int) -> Any:
    return base_pb2.HeaderValueOption(
        header=base_pb2.HeaderValue(key=name, value=value), append_action=action
    )


def _struct(values: Mapping[str, Any]) -> Struct:
    struct = Struct()
    struct.update(values)
    return struct
