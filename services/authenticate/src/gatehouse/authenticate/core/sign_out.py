"""The ways a sign-out goes: confirmed or not, and where the browser ends.

keep_origin     on the page about the session: the cookie for where somebody came from
confirm_url     unsigned: the signed URL behind the button of the confirmation page
read            signed: whose session ends, and the target asked for
keep_target     before a provider that comes back to the signed-out page alone: the cookie for it
next_url        after the session has ended: to the provider's end-session page, or the target
returned        back from such a provider: where the cookie says

back_channel    a provider's logout token: which sessions end
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from gatehouse.authenticate.core.sign_in import read_handle
from gatehouse.authenticate.core.state import (
    RETURN_LIFETIME_S,
    open_return,
    origin_cookie_name,
    return_cookie_name,
    seal_return,
)
from gatehouse.authenticate.core.view import (
    DASHBOARD_PATH,
    SIGN_OUT_PATH,
    SIGNED_OUT_PATH,
    AuthenticateView,
)
from gatehouse.authenticate.errors import bad_redirect
from gatehouse.common.clock import Rng
from gatehouse.common.config.resolved import IdentityProviderSettings
from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError
from gatehouse.common.identity.id_token import has_audience
from gatehouse.common.identity.logout_token import LogoutToken
from gatehouse.common.jose.signed_url import sign_url
from gatehouse.common.session import query_params
from gatehouse.common.session.cookies import clear_cookie, cookie_values, set_cookie
from gatehouse.common.session.ending import Ending
from gatehouse.common.session.handle import Handle
from gatehouse.common.session.redirects import check_redirect
from gatehouse.common.session.sign_out_binding import is_meant, sign_out_digest

_WEB = ("http", "https")
_MAX_ORIGIN = 2000  # characters: sealed, it must fit in a cookie


@dataclass(frozen=True, slots=True)
class SignOut:
    """A confirmed sign-out. Without a handle there is no session of ours to end."""

    handle: Handle | None
    target: str  # empty: the signed-out page
    everywhere: bool = False  # all sessions of the handle's user
    provider_ended: str = ""  # the session that the provider has ended already


def confirm_url(
    view: AuthenticateView,
    params: Mapping[str, str],
    cookie_lines: Sequence[str],
    *,
    now_s: float,
    everywhere: bool = False,
) -> str:
    """A sign-out URL signed now, for the session of the browser that is shown it.

    The request's own target, or else the page that somebody came from, is kept only if it leads to
    this deployment, to `signout_redirect_url`, or anywhere when the operator allows that; else it
    is dropped, or the page would be an open redirect behind one click.
    """
    target = params.get(query_params.REDIRECT_URI, "") or _origin(view, cookie_lines, now_s)
    query: dict[str, str] = {}
    if target and _is_allowed(view, target):
        query[query_params.REDIRECT_URI] = target
    handle = read_handle(view, cookie_lines)
    if handle is not None:
        query[query_params.SIGN_OUT] = sign_out_digest(handle.session_id)
        if everywhere:
            query[query_params.EVERYWHERE] = "true"
    url = f"https://{view.host}{SIGN_OUT_PATH}"
    return sign_url(
        f"{url}?{urlencode(query)}" if query else url, view.shared_secrets[0], now_s=now_s
    )


def keep_origin(
    view: AuthenticateView, params: Mapping[str, str], *, now_s: float, rng: Rng
) -> tuple[str, ...] | None:
    """Set-Cookie that remembers where somebody came from, so that a sign-out leads back there.

    None when the request does not say.
    """
    target = params.get(query_params.REDIRECT_URI, "")
    if not target:
        return None
    if len(target) > _MAX_ORIGIN or not _is_allowed(view, target):
        return ()
    name = origin_cookie_name(view.cookie.name)
    cookie = set_cookie(
        name,
        seal_return(target, name=name, key=view.cookie_secrets[0], now_s=now_s, rng=rng),
        path=DASHBOARD_PATH,
        max_age_s=int(RETURN_LIFETIME_S),
        http_only=True,
        same_site="lax",
    )
    return (cookie,)


def forget_origin(view: AuthenticateView, cookie_lines: Sequence[str]) -> tuple[str, ...]:
    """Set-Cookie that ends what `keep_origin` began, where it did."""
    name = origin_cookie_name(view.cookie.name)
    if not cookie_values(cookie_lines, name):
        return ()
    return (clear_cookie(name, path=DASHBOARD_PATH, http_only=True, same_site="lax"),)


def needs_confirmation(sign_out: SignOut, params: Mapping[str, str]) -> bool:
    """Whether the signed link was made for another session than this browser's (security R34)."""
    if sign_out.handle is None or sign_out.provider_ended:
        return False  # there is nothing of ours to end, or it is named
    return not is_meant(params.get(query_params.SIGN_OUT, ""), sign_out.handle.session_id)


def read(view: AuthenticateView, params: Mapping[str, str], cookie_lines: Sequence[str]) -> SignOut:
    """A sign-out whose signature was checked. The signer chose the target; its form is checked."""
    target = params.get(query_params.REDIRECT_URI, "")
    if target:
        try:
            check_redirect(target, allowed_hosts=lambda _host: True, schemes=_WEB)
        except InvalidArgumentError as error:
            raise bad_redirect(str(error)) from error
    return SignOut(
        read_handle(view, cookie_lines),
        target,
        everywhere=params.get(query_params.EVERYWHERE) == "true",
        provider_ended=params.get(query_params.PROVIDER_ENDED, ""),
    )


def next_url(view: AuthenticateView, sign_out: SignOut, end_session_url: str | None) -> str:
    """Where the browser goes once the session has ended."""
    return end_session_url or post_logout_url(view, sign_out)


def post_logout_url(view: AuthenticateView, sign_out: SignOut) -> str:
    """Where the provider is asked to send the browser back to."""
    return sign_out.target or view.signout_redirect_url or view.signed_out_url


def keep_target(
    view: AuthenticateView, sign_out: SignOut, *, now_s: float, rng: Rng
) -> tuple[str, ...]:
    """Set-Cookie that remembers the target while the provider sends everybody to one page."""
    target = post_logout_url(view, sign_out)
    if target == view.signed_out_url:
        return ()
    name = return_cookie_name(view.cookie.name)
    value = seal_return(target, name=name, key=view.cookie_secrets[0], now_s=now_s, rng=rng)
    cookie = set_cookie(
        name,
        value,
        path=SIGNED_OUT_PATH,
        max_age_s=int(RETURN_LIFETIME_S),
        http_only=True,
        same_site="lax",
    )
    return (cookie,)


def returned(
    view: AuthenticateView, cookie_lines: Sequence[str], *, now_s: float
) -> tuple[str, str] | None:
    """Target and Set-Cookie that forgets it, when a sign-out is to go on from the last page."""
    name = return_cookie_name(view.cookie.name)
    target = _kept(view, name, cookie_lines, now_s)
    if not target:
        return None
    return target, clear_cookie(name, path=SIGNED_OUT_PATH, http_only=True, same_site="lax")


def logout_candidates(
    view: AuthenticateView, claims: Mapping[str, Any]
) -> tuple[IdentityProviderSettings, ...]:
    """The providers whose logout token this may be, by its unverified audience."""
    return tuple(one for one in view.providers.values() if has_audience(claims, one.client_id))


def back_channel(token: LogoutToken, idp_ids: Collection[str]) -> Ending:
    """The sessions that a verified logout token ends: one of the provider's, or the person's.

    The person is found by the subject of the ID token: the user id may be another claim of it.
    """
    return Ending(
        provider_session=token.session_id,
        idp_ids=frozenset(idp_ids),
        subject=token.subject,
    )


def logout_lease_name(token: LogoutToken) -> str:
    """A logout token's name in the record of those that were used."""
    name = f"{token.issuer}\x00{token.token_id}"
    return f"gatehouse/logout/{hashlib.sha256(name.encode()).hexdigest()}"


def _origin(view: AuthenticateView, cookie_lines: Sequence[str], now_s: float) -> str:
    return _kept(view, origin_cookie_name(view.cookie.name), cookie_lines, now_s)


def _kept(view: AuthenticateView, name: str, cookie_lines: Sequence[str], now_s: float) -> str:
    """The target in a cookie of ours; empty when there is none that holds."""
    values = cookie_values(cookie_lines, name)
    if len(set(values)) != 1:
        return ""
    try:
        target = open_return(values[0], name=name, keys=view.cookie_secrets, now_s=now_s)
        check_redirect(target, allowed_hosts=lambda _host: True, schemes=_WEB)
    except (InvalidTokenError, InvalidArgumentError):
        return ""
    return target


def _is_allowed(view: AuthenticateView, target: str) -> bool:
    if view.signout_redirect_url and target == view.signout_redirect_url:
        return True
    try:
        if view.any_sign_out_redirect:
            check_redirect(target, allowed_hosts=lambda _host: True, schemes=_WEB)
        else:
            check_redirect(target, allowed_hosts=view.is_served)
    except InvalidArgumentError:
        return False
    return True
