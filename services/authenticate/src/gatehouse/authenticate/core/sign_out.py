"""The ways a sign-out goes: confirmed or not, and where the browser ends.

confirm_url   unsigned: the signed URL behind the button of the confirmation page
read          signed: whose session ends, and the target asked for
next_url      after the session has ended: to the provider's end-session page, or the target
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from gatehouse.authenticate.core.sign_in import read_handle
from gatehouse.authenticate.core.view import SIGN_OUT_PATH, AuthenticateView
from gatehouse.authenticate.errors import bad_redirect
from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.jose.signed_url import sign_url
from gatehouse.common.session import query_params
from gatehouse.common.session.handle import Handle
from gatehouse.common.session.redirects import check_redirect
from gatehouse.common.session.sign_out_binding import is_meant, sign_out_digest

_WEB = ("http", "https")


@dataclass(frozen=True, slots=True)
class SignOut:
    """A confirmed sign-out. Without a handle there is no session of ours to end."""

    handle: Handle | None
    target: str  # empty: the signed-out page


def confirm_url(
    view: AuthenticateView,
    params: Mapping[str, str],
    cookie_lines: Sequence[str],
    *,
    now_s: float,
) -> str:
    """A sign-out URL signed now, for the session of the browser that is shown it.

    The request's own target is kept only if it leads to this deployment, to
    `signout_redirect_url`, or anywhere when the operator allows that; else it is dropped, or the
    page would be an open redirect behind one click.
    """
    target = params.get(query_params.REDIRECT_URI, "")
    query: dict[str, str] = {}
    if target and _is_allowed(view, target):
        query[query_params.REDIRECT_URI] = target
    handle = read_handle(view, cookie_lines)
    if handle is not None:
        query[query_params.SIGN_OUT] = sign_out_digest(handle.session_id)
    url = f"https://{view.host}{SIGN_OUT_PATH}"
    return sign_url(
        f"{url}?{urlencode(query)}" if query else url, view.shared_secrets[0], now_s=now_s
    )


def needs_confirmation(sign_out: SignOut, params: Mapping[str, str]) -> bool:
    """Whether the signed link was made for another session than this browser's (security R34)."""
    if sign_out.handle is None:
        return False  # there is nothing of ours to end
    return not is_meant(params.get(query_params.SIGN_OUT, ""), sign_out.handle.session_id)


def read(view: AuthenticateView, params: Mapping[str, str], cookie_lines: Sequence[str]) -> SignOut:
    """A sign-out whose signature was checked. The signer chose the target; its form is checked."""
    target = params.get(query_params.REDIRECT_URI, "")
    if target:
        try:
            check_redirect(target, allowed_hosts=lambda _host: True, schemes=_WEB)
        except InvalidArgumentError as error:
            raise bad_redirect(str(error)) from error
    return SignOut(read_handle(view, cookie_lines), target)


def next_url(view: AuthenticateView, sign_out: SignOut, end_session_url: str | None) -> str:
    """Where the browser goes once the session has ended."""
    return end_session_url or post_logout_url(view, sign_out)


def post_logout_url(view: AuthenticateView, sign_out: SignOut) -> str:
    """Where the provider is asked to send the browser back to."""
    return sign_out.target or view.signout_redirect_url or view.signed_out_url


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
