"""How a page becomes HTML, and which response headers go with it.

The templates hold no inline scripts, and their only style sheet is inline. The content security
policy therefore allows exactly that style sheet by its hash (CSP 3, section 8.4: a hash allows one
inline block like a nonce does), which also fits pages that are rendered once and answered by Envoy,
where a nonce for each response is not possible. The portal and the page for administrators have a
form that asks; the portal alone has a script file of its own origin, and works without it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

import jinja2
from markupsafe import Markup

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.pages.branding import Branding, branding_in_force, ink_on
from gatehouse.common.pages.explanation import ExplainPage
from gatehouse.common.pages.routes_portal import PortalPage

INTERCEPTED_HEADER: Final = ("x-pomerium-intercepted-response", "true")

_TEMPLATES = Path(__file__).parent / "templates"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_DETAIL_LIMIT: Final = 1000
_ENCODED: Final = str.maketrans({'"': "%22", "<": "%3C", ">": "%3E"})
_OWN_STATUS: Final = {
    450: "Device Not Authorized",
    495: "Client Certificate Required",
}


@dataclass(frozen=True, slots=True)
class Link:
    """A link or button. `href` is absolute https/http or a path on the same host."""

    label: str
    href: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.href)
        is_path = not parts.scheme and not parts.netloc and self.href.startswith("/")
        is_url = parts.scheme in {"https", "http"} and bool(parts.hostname)
        if not (is_path or is_url) or any(ord(c) < 0x21 or c in '\\"<>' for c in self.href):
            raise InvalidArgumentError("a link must be a path on this host or an http(s) URL")


def link_to(label: str, url: str) -> Link | None:
    """A link to a URL that came with a request; None if it is no web address.

    Characters that no browser leaves bare in an address are percent-encoded.
    """
    try:
        return Link(label, url.translate(_ENCODED))
    except InvalidArgumentError:
        return None


@dataclass(frozen=True, slots=True)
class ErrorPage:
    """What went wrong and what the reader can do about it. All text is escaped when rendered."""

    status: int
    reason: str  # one line, the heading
    request_id: str
    detail: str = ""  # a sentence or two
    next_steps: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()  # the first is the main button


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """A claim and its values, as text."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A directory group."""

    id: str
    name: str  # the id where the directory gives no name


@dataclass(frozen=True, slots=True)
class UserInfoPage:
    """What Gatehouse knows about the person who asks. Never holds a token (security R36)."""

    signed_in: bool
    name: str = ""
    email: str = ""
    user_id: str = ""
    session_id: str = ""
    issued_at: str = ""  # readable, with its time zone
    expires_at: str = ""  # likewise
    is_impersonated: bool = False  # all this is about the person whose place was taken
    groups: tuple[GroupRow, ...] = ()
    more_groups: int = 0  # not shown
    claims: tuple[ClaimRow, ...] = ()
    sign_out: Link | None = None
    sign_out_everywhere: Link | None = None
    applications: Link | None = None
    sign_in: Link | None = None
    host: str = ""


def status_text(status: int) -> str:
    """The short name of an HTTP status, those of our own included."""
    own = _OWN_STATUS.get(status)
    if own is not None:
        return own
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def safe_request_id(value: str | None) -> str:
    """`value` if it looks like a request id, else an empty string: it is shown and logged."""
    if value is not None and _REQUEST_ID.fullmatch(value):
        return value
    return ""


def render_error(page: ErrorPage, branding: Branding | None = None) -> str:
    """A whole HTML document for an error answer."""
    return _render(
        "error.html.j2",
        branding,
        page=page,
        detail=_shorten(page.detail),
        status_line=status_text(page.status),
        title=f"{page.status} {page.reason}",
    )


def error_document(page: ErrorPage) -> dict[str, object]:
    """The JSON form of an error answer; keys as Pomerium's handlers spell them."""
    document: dict[str, object] = {"Status": page.status}
    description = page.reason if not page.detail else f"{page.reason}: {_shorten(page.detail)}"
    if description:
        document["description"] = description
    if page.request_id:
        document["RequestID"] = page.request_id
    return document


def render_user_info(page: UserInfoPage, branding: Branding | None = None) -> str:
    """The `/.pomerium/` page: who am I here."""
    return _render(
        "user_info.html.j2",
        branding,
        page=page,
        initial=_initial(page),
        title="Your session" if page.signed_in else "Not signed in",
    )


def render_portal(page: PortalPage, branding: Branding | None = None, *, script: str) -> str:
    """The `/.pomerium/routes` page: what may I open. `script` is a path on the same host."""
    return _render("routes.html.j2", branding, page=page, script=script, title="Your applications")


def render_explanation(page: ExplainPage, branding: Branding | None = None) -> str:
    """The `/.pomerium/explain` page: why is somebody let in or not."""
    title = page.explained.headline if page.explained is not None else "Explain a decision"
    return _render("explain.html.j2", branding, page=page, title=title)


def render_sign_out_confirm(
    confirm: Link,
    cancel: Link | None = None,
    branding: Branding | None = None,
    *,
    everywhere: Link | None = None,
) -> str:
    """Asks before signing out; `confirm` is the button that does it.

    `everywhere` ends the person's sessions in other browsers as well.
    """
    return _render(
        "sign_out_confirm.html.j2",
        branding,
        confirm=confirm,
        cancel=cancel,
        everywhere=everywhere,
        title="Sign out?",
    )


def render_continue(target: Link, branding: Branding | None = None) -> str:
    """Goes on to `target` by itself, as a navigation that begins at this page."""
    return _render("continue.html.j2", branding, target=target, title="Signed in")


def render_signed_out(sign_in: Link | None = None, branding: Branding | None = None) -> str:
    """Says that the session has ended."""
    return _render("signed_out.html.j2", branding, sign_in=sign_in, title="Signed out")


def envoy_error_template(branding: Branding | None = None) -> str:
    """The error page as an Envoy format string, for local replies.

    Literal percent signs are doubled; Envoy fills in the status, its details and the stream id
    (https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage).
    """
    operators = {
        "gh-slot-status": "%RESPONSE_CODE%",
        "gh-slot-details": "%RESPONSE_CODE_DETAILS%",
        "gh-slot-request": "%STREAM_ID%",
        "gh-slot-flags": "%RESPONSE_FLAGS%",
    }
    text = _render(
        "envoy_error.html.j2",
        branding,
        status="gh-slot-status",
        details="gh-slot-details",
        request_id="gh-slot-request",
        flags="gh-slot-flags",
        title="gh-slot-status",
    ).replace("%", "%%")
    for slot, operator in operators.items():
        text = text.replace(slot, operator)
    return text


def security_headers(
    branding: Branding | None = None, *, has_own_script: bool = False, has_form: bool = False
) -> Mapping[str, str]:
    """The headers of every page: nothing may be loaded, framed, sniffed, stored or leaked.

    `has_own_script`: script files of the same origin, and forms and requests to it, are let in.
    `has_form`: forms alone.
    """
    return _security_headers(
        branding or branding_in_force(), has_own_script, has_form or has_own_script
    )


@functools.lru_cache(maxsize=64)
def _security_headers(
    branding: Branding, has_own_script: bool, has_form: bool
) -> Mapping[str, str]:
    digest = base64.b64encode(hashlib.sha256(_style(branding).encode()).digest()).decode()
    own = "'self'" if has_form else "'none'"
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src 'sha256-{digest}'",
            "img-src https: data:",
            *(("script-src 'self'", "connect-src 'self'") if has_own_script else ()),
            "base-uri 'none'",
            f"form-action {own}",
            "frame-ancestors 'none'",
        )
    )
    return {
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
    }


@functools.lru_cache(maxsize=32)
def _style(branding: Branding) -> str:
    return (
        _environment()
        .get_template("style.css.j2")
        .render(
            accent=branding.light_accent,
            accent_ink=ink_on(branding.light_accent),
            dark_accent=branding.dark_accent,
            dark_accent_ink=ink_on(branding.dark_accent),
        )
    )


@functools.lru_cache(maxsize=32)
def _favicon(branding: Branding) -> str:
    if branding.favicon_url:
        return branding.favicon_url
    svg = (
        _environment()
        .get_template("mark.svg.j2")
        .render(accent=branding.light_accent, ink=ink_on(branding.light_accent))
    )
    return "data:image/svg+xml," + quote(svg, safe=" =:/'(),")


@functools.lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )


def _render(template: str, branding: Branding | None, **values: object) -> str:
    branding = branding or branding_in_force()
    return (
        _environment()
        .get_template(template)
        .render(
            # Safe as markup: made from our own template and checked colours, and a hash stands
            # on its exact bytes.
            style=Markup(_style(branding)),  # noqa: S704
            branding=branding,
            favicon=_favicon(branding),
            **values,
        )
    )


def _shorten(text: str) -> str:
    return text if len(text) <= _DETAIL_LIMIT else text[: _DETAIL_LIMIT - 1] + "…"


def _initial(page: UserInfoPage) -> str:
    for source in (page.name, page.email, page.user_id):
        stripped = source.strip()
        if stripped:
            return stripped[0].upper()
    return "?"
