"""Whether a callback may give this browser a session, and where the browser goes then.

A callback URL carries a sealed handle. It is honoured once (`lease_name`), and only in the browser
that was sent to sign in, which holds the login binding's cookie (security R30, R31). A program's
callback has no such browser; its handle is of use `api`, is never stored as a cookie, and goes
only to an address on the operator's list.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import SplitResult, urlencode, urlunsplit

from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError
from gatehouse.common.jose.aead import open_sealed
from gatehouse.common.jose.signed_url import signature_digest
from gatehouse.common.pages import Link, link_to
from gatehouse.common.pages.refusal import RefusedRequestError
from gatehouse.common.session import query_params
from gatehouse.common.session.cookies import clear_cookie, cookie_values, set_cookie
from gatehouse.common.session.handle import decode_handle
from gatehouse.common.session.login_binding import COOKIE_PATH, cookie_name, matches
from gatehouse.common.session.redirects import check_redirect
from gatehouse.proxy.core.pages_view import PagesView

# A signed URL lives 5 min and is accepted a minute early and a minute late.
LEASE_S: Final = 7 * 60.0

_START_AGAIN: Final = "Open the application again from its own address."


@dataclass(frozen=True, slots=True)
class AcceptedCallback:
    """A callback that may be honoured, if it has not been already."""

    lease_name: str
    location: str
    set_cookies: tuple[str, ...]
    retry: str  # where to send somebody whose link was used already
    # Set where a page of this host's own must lead on. A SameSite=Strict cookie is not sent along a
    # chain of redirects that began at the identity provider: the next request would find no
    # session, and the sign-in would never end.
    page_link: Link | None = None


def read_callback(
    view: PagesView,
    params: Mapping[str, str],
    cookie_lines: Sequence[str],
    *,
    url: str,
    now_s: float,
) -> AcceptedCallback:
    """Check a callback whose URL signature holds. Raises RefusedRequestError (400)."""
    programmatic = params.get(query_params.PROGRAMMATIC) == "true"
    redirect_uri = params.get(query_params.REDIRECT_URI, "")
    target = _check_target(view, redirect_uri, programmatic=programmatic)
    login = params.get(query_params.LOGIN, "")
    if not programmatic:
        _check_binding(view, login, cookie_lines, retry=redirect_uri)
    token = _open_token(view, params.get(query_params.SESSION_ENCRYPTED, ""), programmatic)
    lease_name = f"gatehouse/callback/{signature_digest(url)}"
    if programmatic:
        return AcceptedCallback(lease_name, _with_jwt(target, token), (), "")
    cookies = (
        set_cookie(
            view.cookie_name,
            token,
            path="/",
            domain=view.cookie_domain,
            expires_at_s=now_s + view.cookie_expire_s,
            http_only=view.cookie_http_only,
            same_site=view.cookie_same_site,
        ),
        clear_cookie(
            cookie_name(view.cookie_name, login),
            path=COOKIE_PATH,
            http_only=True,
            same_site="lax",
        ),
    )
    strict = view.cookie_same_site.lower() == "strict"
    link = link_to("Go on", redirect_uri) if strict else None
    return AcceptedCallback(lease_name, redirect_uri, cookies, redirect_uri, link)


def used_already(callback: AcceptedCallback) -> RefusedRequestError:
    """400: somebody has been signed in with this link."""
    return RefusedRequestError(
        HTTPStatus.BAD_REQUEST,
        "This link was used already",
        message="the callback URL was used before",
        reason="callback-replayed",
        detail="A sign-in link works once. If you are signed in, go on to the application.",
        next_steps=(_START_AGAIN,),
        links=_links("Go on", callback.retry),
    )


def _check_target(view: PagesView, redirect_uri: str, *, programmatic: bool) -> SplitResult:
    try:
        if programmatic:
            return check_redirect(
                redirect_uri, allowed_hosts=view.is_programmatic_target, schemes=("http", "https")
            )
        return check_redirect(redirect_uri, allowed_hosts=view.is_served)
    except InvalidArgumentError as error:
        raise RefusedRequestError(
            HTTPStatus.BAD_REQUEST,
            "This link leads somewhere it may not",
            message=str(error),
            reason="redirect-target",
            detail="The address to return to is missing, malformed, or not served here.",
            next_steps=(_START_AGAIN,),
        ) from error


def _check_binding(view: PagesView, login: str, cookie_lines: Sequence[str], *, retry: str) -> None:
    """The browser must hold the nonce whose digest travelled through the signed URLs."""
    try:
        values = cookie_values(cookie_lines, cookie_name(view.cookie_name, login))
    except InvalidTokenError:
        values = ()
    if not any(matches(value, login) for value in values[:4]):
        raise RefusedRequestError(
            HTTPStatus.BAD_REQUEST,
            "This sign-in was started somewhere else",
            message="the login binding cookie is missing or does not match",
            reason="login-binding",
            detail="The link belongs to another browser, or the cookies of this one are gone.",
            next_steps=(_START_AGAIN, "Allow cookies for this site."),
            links=_links("Try again", retry),
        )


def _open_token(view: PagesView, sealed: str, programmatic: bool) -> str:
    try:
        data = base64.b64decode(sealed, altchars=b"-_", validate=True)
        token = open_sealed(view.shared_secrets, data).decode("ascii")
        use = "api" if programmatic else "route"
        decode_handle(token, view.shared_secrets, allowed_uses=frozenset({use}))
    except (InvalidTokenError, binascii.Error, ValueError) as error:
        raise RefusedRequestError(
            HTTPStatus.BAD_REQUEST,
            "This link is not valid",
            message="the session in the callback does not open",
            reason="callback-session",
            next_steps=(_START_AGAIN,),
        ) from error
    return token


def _with_jwt(target: SplitResult, token: str) -> str:
    parameter = urlencode({query_params.JWT: token})
    query = f"{target.query}&{parameter}" if target.query else parameter
    return urlunsplit(target._replace(query=query, fragment=""))


def _links(label: str, url: str) -> tuple[Link, ...]:
    link = link_to(label, url)
    return () if link is None else (link,)
