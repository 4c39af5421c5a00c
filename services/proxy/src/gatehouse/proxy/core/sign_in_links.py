"""The links that the proxy hands out: to sign in for a program, and to sign out."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.jose.signed_url import sign_url
from gatehouse.common.pages.refusal import RefusedRequestError, not_found
from gatehouse.common.session import query_params
from gatehouse.common.session.cookies import clear_cookie
from gatehouse.common.session.redirects import check_redirect
from gatehouse.common.session.sign_out_binding import sign_out_digest
from gatehouse.pb.session_pb2 import Session
from gatehouse.proxy.core.pages_view import PagesView, hostname_of

CALLBACK_PATH: Final = "/.pomerium/callback/"
SIGN_OUT_PATH: Final = "/.pomerium/sign_out"
BACK_CHANNEL_LOGOUT_PATH: Final = "/.pomerium/backchannel_logout"  # at authenticate
_SIGN_IN_PATH: Final = "/.pomerium/sign_in"
_WEB: Final = ("http", "https")


def programmatic_login_url(
    view: PagesView, params: Mapping[str, str], *, host: str, now_s: float
) -> str:
    """The signed URL that a program opens in a browser.

    The person ends at the program's own address with the handle in `pomerium_jwt`. Raises
    RefusedRequestError: 404 without an address or without sign-in, 400 for one not on the list.
    """
    target = params.get(query_params.REDIRECT_URI, "")
    if not target or not view.authenticate_url:
        raise not_found()
    try:
        check_redirect(target, allowed_hosts=view.is_programmatic_target, schemes=_WEB)
    except InvalidArgumentError as error:
        raise RefusedRequestError(
            HTTPStatus.BAD_REQUEST,
            "This program may not ask for a sign-in",
            message=str(error),
            reason="programmatic-target",
            detail="Its address is not in programmatic_redirect_domain_whitelist.",
        ) from error
    query = {
        query_params.REDIRECT_URI: target,
        query_params.IDP_ID: view.idp_id_of(hostname_of(host)),
        query_params.CALLBACK_URI: f"https://{host}{CALLBACK_PATH}",
        query_params.PROGRAMMATIC: "true",
    }
    return sign_url(
        f"{view.authenticate_url}{_SIGN_IN_PATH}?{urlencode(query)}",
        view.shared_secrets[0],
        now_s=now_s,
    )


def is_cross_site(*, sec_fetch_site: str | None, same_origin: bool) -> bool:
    """Whether another site asks; `same_origin` is for browsers without Fetch Metadata."""
    return sec_fetch_site == "cross-site" if sec_fetch_site is not None else not same_origin


def is_front_channel_logout(params: Mapping[str, str], session: Session) -> bool:
    """Whether a request is the provider ending the very session of this browser.

    OIDC Front-Channel Logout 1.0, section 2: it comes from another site by design, and names the
    provider (`iss`) and its session (`sid`) as the ID token of the sign-in did. The first is
    public; the second is the proof.
    """
    issuer, asked = params.get("iss", "").rstrip("/"), params.get("sid", "")
    return (
        bool(issuer)
        and issuer == session.id_token.issuer.rstrip("/")
        and bool(asked)
        and hmac.compare_digest(asked.encode(), session.idp_session_id.encode())
    )


def sign_out_url(
    view: PagesView,
    params: Mapping[str, str],
    *,
    session_id: str,
    now_s: float,
    provider_ended: bool = False,
) -> str | None:
    """The signed URL at authenticate that ends the session; None where nobody signs in.

    Without a session, or followed by another one's browser, authenticate asks first. With
    `provider_ended` it does not ask, nor send anybody to the provider: that is where this began.

    Raises RefusedRequestError (400) for a target that the operator allows to be named and that is
    no URL; where naming one is not allowed it is ignored.
    """
    if not view.authenticate_url:
        return None
    target = view.signout_redirect_url
    asked = params.get(query_params.REDIRECT_URI, "")
    if asked and view.any_sign_out_redirect:
        try:
            check_redirect(asked, allowed_hosts=lambda _host: True, schemes=_WEB)
        except InvalidArgumentError as error:
            raise RefusedRequestError(
                HTTPStatus.BAD_REQUEST,
                "This link leads somewhere it may not",
                message=str(error),
                reason="redirect-target",
            ) from error
        target = asked
    query = {query_params.REDIRECT_URI: target} if target else {}
    if provider_ended:
        query = {query_params.PROVIDER_ENDED: session_id}
    elif session_id:
        query[query_params.SIGN_OUT] = sign_out_digest(session_id)
    url = f"{view.authenticate_url}{SIGN_OUT_PATH}"
    return sign_url(
        f"{url}?{urlencode(query)}" if query else url, view.shared_secrets[0], now_s=now_s
    )


def confirm_path(params: Mapping[str, str]) -> str:
    """The button of the confirmation page: this host's own sign-out, asked for by a click."""
    asked = params.get(query_params.REDIRECT_URI, "")
    return SIGN_OUT_PATH + ("?" + urlencode({query_params.REDIRECT_URI: asked}) if asked else "")


def clear_route_cookie(view: PagesView) -> str:
    """Set-Cookie that deletes the route cookie."""
    return clear_cookie(
        view.cookie_name,
        path="/",
        domain=view.cookie_domain,
        http_only=view.cookie_http_only,
        same_site=view.cookie_same_site,
    )
