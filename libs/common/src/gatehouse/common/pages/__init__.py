"""What a person sees: the pages that every service shows, one look for all of them.

`render_error` and its siblings return whole HTML documents without inline scripts or third-party
assets; `security_headers` returns the response headers that belong to them. `negotiate` says
which form of an answer a client wants.
"""

from __future__ import annotations

from gatehouse.common.pages.branding import DEFAULT_BRANDING, Branding
from gatehouse.common.pages.negotiation import (
    AnswerForm,
    negotiate,
    prefers_json,
    wants_exact_json,
)
from gatehouse.common.pages.render import (
    INTERCEPTED_HEADER,
    ClaimRow,
    ErrorPage,
    GroupRow,
    Link,
    UserInfoPage,
    envoy_error_template,
    error_document,
    link_to,
    render_continue,
    render_error,
    render_explanation,
    render_portal,
    render_sign_out_confirm,
    render_signed_out,
    render_user_info,
    safe_request_id,
    security_headers,
    status_text,
)

__all__ = [
    "DEFAULT_BRANDING",
    "INTERCEPTED_HEADER",
    "AnswerForm",
    "Branding",
    "ClaimRow",
    "ErrorPage",
    "GroupRow",
    "Link",
    "UserInfoPage",
    "envoy_error_template",
    "error_document",
    "link_to",
    "negotiate",
    "prefers_json",
    "render_continue",
    "render_error",
    "render_explanation",
    "render_portal",
    "render_sign_out_confirm",
    "render_signed_out",
    "render_user_info",
    "safe_request_id",
    "security_headers",
    "status_text",
    "wants_exact_json",
]
