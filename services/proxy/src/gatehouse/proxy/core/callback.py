"""Whether a callback may give this browser a session, and where the browser goes then.

A callback URL carries a sealed handle. It is honoured only in the browser that was sent to sign in,
which holds the login binding's cookie, and burns that binding: a sign-in URL that somebody else has
seen is worth nothing afterwards (security R30, R31). A program's callback has no such browser; it
works once, its handle is of use `api`, is never stored as a cookie, and goes only to an address on
the operator's list.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final
from urllib.parse import SplitResult, urlencode, urlunsplit

from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError
from gatehouse.common.jose.aead import open_sealed
from gatehouse.common.jose.signed_url import signature_digest
from gatehouse.common.pages import Link, link_to
from gatehouse.common.pages.refusal import RefusedRequestError
from gatehouse.common.session import query_params
from gatehouse.common.session.cookies import clear_elsewhere, set_cookie
from gatehouse.common.session.handle import decode_handle
from gatehouse.common.session.login_binding import held_nonce, is_digest, matches
from gatehouse.common.session.redirects import check_redirect
from gatehouse.proxy.core.pages_view import PagesView
from gatehouse.proxy.core.sign_in_chain import next_hop

# A signed URL lives 5 min and is accepted a minute early and a minute late.
_URL_LIFE_S: Final = 7 * 60.0

_START_AGAIN: Final = "Open the application again from its own address."


@dataclass(frozen=True, slots=True)
class AcceptedCallback:
    """A callback that may be honoured, if it has not been already."""

    lease_name: str
    lease_s: float  # as long as any callback of the same sign-in may come
    location: str
    set_cookies: tuple[str, ...]
    retry: str  # where to send somebody whose link was used already
    # Set where a page of this host's own must lead on. A SameSite=Strict cookie is not sent along a
    # chain of redirects that began at the identity provider: the next request would find no
    # session, and the sign-in would never end.
    page_link: Link | None = None


@dataclass(frozen=True, slots=True)
class Restart:
    """A callback of another sign-in than this browser's: the page is opened anew, by this browser.

    No harm is meant as a rule. Of two tabs that were sent to sign in at once, each got a cookie and
    the second one stayed; the first tab, sent back to its page, now signs in with that one.
    """

    location: str


def read_callback(
    view: PagesView,
    params: Mapping[str, str],
    cookie_lines: Sequence[str],
    *,
    host: str,
    url: str,
    now_s: float,
) -> AcceptedCallback | Restart:
    """Check a callback to `host` whose URL signature holds. Raises RefusedRequestError (400)."""
    programmatic = params.get(query_params.PROGRAMMATIC) == "true"
    redirect_uri = params.get(query_params.REDIRECT_URI, "")
    target = _check_target(view, redirect_uri, programmatic=programmatic)
    login = params.get(query_params.LOGIN, "")
    if not programmatic and not _is_bound(view, login, cookie_lines, retry=redirect_uri):
        return Restart(redirect_uri)
    token = _open_token(view, params.get(query_params.SESSION_ENCRYPTED, ""), programmatic)
    if programmatic:
        lease_name = f"gatehouse/callback/{signature_digest(url)}"
        return AcceptedCallback(lease_name, _URL_LIFE_S, _with_jwt(target, token), (), "")
    hop = next_hop(view, params, host=host, now_s=now_s)
    cookie = set_cookie(
        view.cookie_name,
        token,
        path="/",
        domain=view.cookie_domain,
        max_age_s=max(1, int(view.cookie_expire_s)),
        expires_at_s=now_s + view.cookie_expire_s,
        http_only=view.cookie_http_only,
        same_site=view.cookie_same_site,
    )
    accepted = AcceptedCallback(
        _burnt(login, is_second_round=query_params.CHAIN in params),
        2 * _URL_LIFE_S + view.sign_in_timeout_s,
        redirect_uri if hop is None else hop.location,
        (*_strays(view, cookie_lines, host), cookie),
        redirect_uri,
    )
    if hop is None and view.cookie_same_site.lower() == "strict":
        return replace(accepted, page_link=link_to("Go on", redirect_uri))
    return accepted


def _strays(view: PagesView, cookie_lines: Sequence[str], host: str) -> tuple[str, ...]:
    """Set-Cookie values for session cookies that would come before the new one for ever."""
    name = SplitResult("", host, "", "", "").hostname or ""
    return clear_elsewhere(cookie_lines, view.cookie_name, host=name, domain=view.cookie_domain)


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


def _is_bound(view: PagesView, login: str, cookie_lines: Sequence[str], *, retry: str) -> bool:
    """Whether the browser holds the nonce whose digest travelled through the signed URLs.

    Raises RefusedRequestError when it holds none: to be sent anew would not help it.
    """
    nonce = held_nonce(cookie_lines, view.cookie_name)
    if nonce is None or not is_digest(login):
        raise RefusedRequestError(
            HTTPStatus.BAD_REQUEST,
            "This sign-in was started somewhere else",
            message="the login binding cookie is missing or the callback has no binding",
            reason="login-binding",
            detail="The link belongs to another browser, or the cookies of this one are gone.",
            next_steps=(_START_AGAIN, "Allow cookies for this site."),
            links=_links("Try again", retry),
        )
    return matches(nonce, login)


def _burnt(login: str, *, is_second_round: bool) -> str:
    """The lease that says a binding was used. The host that began a chain uses its own twice."""
    use = hashlib.sha256(f"{login} {'again' if is_second_round else 'first'}".encode())
    return f"gatehouse/callback/{use.hexdigest()}"


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
