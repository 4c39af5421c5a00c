"""How a sign-in goes on: the steps between browser, provider and route, as values.

    read_request    the signed URL of a sign-in -> what it is for
    usable_handle   what the browser holds      -> a session that may save asking again
    leave           no session                  -> off to the identity provider, with state
    read_callback   back from the provider      -> the code to exchange, or a refusal
    arrive          a session                   -> off to the route's callback, handle in hand

The edge performs what lies between: it fetches the session record, exchanges the code, and stores
session and user. Times are Unix seconds. Refusals are `RefusedRequestError`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlencode

from gatehouse.authenticate.core.state import (
    CLOCK_LEEWAY_S,
    Pkce,
    SignInRequest,
    csrf_cookie_name,
    matches_csrf,
    new_csrf_token,
    new_pkce,
    open_csrf,
    open_pkce,
    open_state,
    pkce_cookie_name,
    seal_csrf,
    seal_pkce,
    seal_state,
)
from gatehouse.authenticate.core.view import CALLBACK_PATH, AuthenticateView, authority
from gatehouse.authenticate.errors import (
    bad_redirect,
    bad_state,
    provider_refused,
    sign_in_too_slow,
)
from gatehouse.common.clock import Rng
from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError
from gatehouse.common.jose.aead import NONCE_BYTES, seal
from gatehouse.common.jose.signed_url import sign_url
from gatehouse.common.session import query_params
from gatehouse.common.session.cookies import (
    clear_cookie,
    clear_elsewhere,
    cookie_values,
    set_cookie,
)
from gatehouse.common.session.handle import Handle, Use, decode_handle, encode_handle
from gatehouse.common.session.redirects import check_redirect
from gatehouse.common.session.validity import record_problem
from gatehouse.pb.session_pb2 import Session

ROUTE_CALLBACK_PATH: Final = "/.pomerium/callback/"
CSRF_COOKIE_S: Final = 12 * 3600
_OWN_USE: Final = frozenset({"authenticate"})


@dataclass(frozen=True, slots=True)
class Departure:
    """Everything for the redirect to the identity provider."""

    state: str
    pkce: Pkce
    set_cookies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Return:
    """A good answer of the identity provider: exchange `code`."""

    request: SignInRequest
    code: str
    pkce: Pkce
    clear_cookies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Arrival:
    """The redirect to where the person wanted to go."""

    url: str
    set_cookies: tuple[str, ...]


def read_request(view: AuthenticateView, params: Mapping[str, str]) -> SignInRequest:
    """What a sign-in URL, whose signature was checked, asks for."""
    programmatic = params.get(query_params.PROGRAMMATIC) == "true"
    callback_uri = params.get(query_params.CALLBACK_URI, "")
    request = SignInRequest(
        redirect_uri=params.get(query_params.REDIRECT_URI, ""),
        idp_id=params.get(query_params.IDP_ID, ""),
        callback_uri=callback_uri,
        programmatic=programmatic,
        additional_hosts=params.get(query_params.ADDITIONAL_HOSTS, ""),
        login_digest=params.get(query_params.LOGIN, ""),
        traceparent=params.get(query_params.TRACEPARENT, ""),
        tracestate=params.get(query_params.TRACESTATE, ""),
    )
    check_targets(view, request)
    return request


def dashboard_request(view: AuthenticateView) -> SignInRequest:
    """A sign-in for authenticate's own user-info page."""
    return SignInRequest(redirect_uri=f"{view.url}/.pomerium/", idp_id="", dashboard=True)


def check_targets(view: AuthenticateView, request: SignInRequest) -> None:
    """Refuse a redirect or callback that leads off the deployment (security R26).

    A programmatic sign-in ends at a program's own address, which the route's proxy has checked
    against its list before signing and checks again; its callback must be a route's all the same.
    """
    try:
        if request.programmatic and request.callback_uri:
            check_redirect(
                request.redirect_uri, allowed_hosts=lambda _host: True, schemes=("http", "https")
            )
        else:
            check_redirect(request.redirect_uri, allowed_hosts=view.is_served)
        if request.callback_uri:
            parts = check_redirect(request.callback_uri, allowed_hosts=view.is_served)
            if parts.path != ROUTE_CALLBACK_PATH or parts.query or parts.fragment:
                raise bad_redirect("pomerium_callback_uri is not the callback of a route")
    except InvalidArgumentError as error:
        raise bad_redirect(str(error)) from error


def usable_handle(
    view: AuthenticateView, cookie_lines: Sequence[str], request: SignInRequest
) -> Handle | None:
    """The handle in the browser's authenticate cookie, if it is for the provider asked for.

    An unreadable cookie is no session (security R49).
    """
    handle = read_handle(view, cookie_lines)
    provider = view.provider(request.idp_id)
    if handle is None or provider is None or handle.idp_id != provider.id:
        return None
    return handle


def read_handle(view: AuthenticateView, cookie_lines: Sequence[str]) -> Handle | None:
    """The handle in the authenticate cookie; None if there is none, two, or an unreadable one."""
    values = cookie_values(cookie_lines, view.cookie.authenticate_name)
    if len(set(values)) != 1:
        return None
    try:
        return decode_handle(values[0], view.shared_secrets, allowed_uses=_OWN_USE)
    except InvalidTokenError:
        return None


def is_usable(session: Session | None, handle: Handle, now_s: float) -> bool:
    """True while the session record exists, is the handle's, and has not ended."""
    if session is None or session.id != handle.session_id or session.idp_id != handle.idp_id:
        return False
    return record_problem(session, now_s) is None


def end_margin_s(view: AuthenticateView) -> float:
    """A session that ends within this time saves nobody a sign-in.

    Authorize may judge it by a clock that is ahead of this one: sent back with a session that has
    ended there, the browser would turn in circles until it has ended here.
    """
    return min(CLOCK_LEEWAY_S, view.cookie.expire_s / 10)


def leave(
    view: AuthenticateView,
    request: SignInRequest,
    cookie_lines: Sequence[str],
    *,
    now_s: float,
    rng: Rng,
) -> Departure:
    """Go to the identity provider: state, verifier and the cookies that bind them to the browser.

    Any old authenticate cookie is cleared, whatever its scope, so that nothing planted before the
    sign-in survives it (security R31).
    """
    key = view.cookie_secrets[0]
    name = csrf_cookie_name(view.cookie.name)
    same_site = _flow_same_site(view, request)
    token = _csrf_token(view, cookie_lines, now_s) or new_csrf_token(rng)
    pkce = new_pkce(rng, is_on=view.pkce)
    state = seal_state(request, csrf_token=token, key=key, now_s=now_s, rng=rng)
    pkce_name = pkce_cookie_name(view.cookie.name, state)
    return Departure(
        state=state,
        pkce=pkce,
        set_cookies=(
            *clear_elsewhere(
                cookie_lines,
                view.cookie.authenticate_name,
                host=view.hostname,
                domain=view.cookie.domain,
            ),
            clear_session_cookie(view),
            set_cookie(
                name,
                seal_csrf(token, name=name, key=key, now_s=now_s, rng=rng),
                path="/",
                max_age_s=CSRF_COOKIE_S,
                http_only=True,
                same_site=same_site,
            ),
            set_cookie(
                pkce_name,
                seal_pkce(pkce, name=pkce_name, key=key, now_s=now_s, rng=rng),
                path=CALLBACK_PATH,
                max_age_s=int(view.sign_in_timeout_s),
                http_only=True,
                same_site=same_site,
            ),
        ),
    )


def read_callback(
    view: AuthenticateView,
    params: Mapping[str, str],
    cookie_lines: Sequence[str],
    *,
    now_s: float,
) -> Return:
    """Check the identity provider's answer against this browser's state, CSRF and PKCE cookies."""
    state_text = params.get("state", "")
    retry = _retry_target(view, state_text)
    error = params.get("error", "")
    if error:
        raise provider_refused(error, retry=retry)
    code = params.get("code", "")
    if not code:
        raise bad_state("the callback has no code", reason="code-missing", retry=retry)
    try:
        state = open_state(state_text, keys=view.cookie_secrets)
    except InvalidTokenError as failure:
        raise bad_state(str(failure), reason="state") from failure
    token = _csrf_token(view, cookie_lines, now_s)
    if token is None or not matches_csrf(state, token):
        raise bad_state("invalid CSRF token", reason="csrf", retry=retry)
    if not state.is_current(now_s, view.sign_in_timeout_s):
        raise sign_in_too_slow(retry, limit_s=view.sign_in_timeout_s)
    if not state.request.dashboard:
        check_targets(view, state.request)
    pkce, name = _pkce(view, state_text, cookie_lines, now_s=now_s, retry=retry)
    cleared = clear_cookie(
        name,
        path=CALLBACK_PATH,
        http_only=True,
        same_site=_flow_same_site(view, state.request),
    )
    return Return(request=state.request, code=code, pkce=pkce, clear_cookies=(cleared,))


def new_handle(
    view: AuthenticateView,
    request: SignInRequest,
    *,
    session_id: str,
    user_id: str,
    idp_id: str,
    server_version: int | None,
    record_version: int | None,
    now_s: float,
) -> Handle:
    """The handle for a session that was stored just now."""
    return Handle(
        session_id=session_id,
        user_id=user_id,
        idp_id=idp_id,
        server_version=server_version,
        record_version=record_version,
        issuer=view.hostname,
        audience=audience(view, request),
        issued_at=int(now_s),
        use="authenticate",
    )


def audience(view: AuthenticateView, request: SignInRequest) -> tuple[str, ...]:
    """The hosts a handle is made for: authenticate, the redirect's, and the callback's if given.

    Where a cookie counts on those alone, the further hosts of a chain are among them.
    """
    hosts = [view.host, authority(request.redirect_uri)]
    if request.callback_uri:
        hosts.append(authority(request.callback_uri))
    if view.cookie.is_for_its_hosts:
        hosts.extend(filter(None, request.additional_hosts.lower().split(",")))
    return tuple(dict.fromkeys(hosts))


def arrive(
    view: AuthenticateView,
    request: SignInRequest,
    handle: Handle,
    *,
    now_s: float,
    rng: Rng,
) -> Arrival:
    """Send the browser on with a fresh handle: to the route's callback, or to the dashboard."""
    own = replace(
        handle,
        issuer=view.hostname,
        audience=audience(view, request),
        issued_at=int(now_s),
        use="authenticate",
    )
    cookie = set_cookie(
        view.cookie.authenticate_name,
        encode_handle(own, view.shared_secrets[0]),
        path="/",
        domain=view.cookie.domain,
        max_age_s=max(1, int(view.cookie.expire_s)),
        expires_at_s=now_s + view.cookie.expire_s,
        http_only=view.cookie.http_only,
        same_site=view.cookie.same_site,
    )
    if request.dashboard:
        return Arrival(request.redirect_uri, (cookie,))
    return Arrival(_callback_url(view, request, own, now_s=now_s, rng=rng), (cookie,))


def clear_session_cookie(view: AuthenticateView) -> str:
    """Set-Cookie that deletes the authenticate cookie."""
    return clear_cookie(
        view.cookie.authenticate_name,
        path="/",
        domain=view.cookie.domain,
        http_only=view.cookie.http_only,
        same_site=view.cookie.same_site,
    )


def _callback_url(
    view: AuthenticateView, request: SignInRequest, own: Handle, *, now_s: float, rng: Rng
) -> str:
    # A program's handle is of another use, so that it is no cookie even if a browser is made to
    # take it for one: programmatic callbacks are not bound to a browser.
    use: Use = "api" if request.programmatic else "route"
    handle = replace(own, issuer=view.host, use=use)
    key = view.shared_secrets[0]
    token = encode_handle(handle, key).encode()
    sealed = base64.urlsafe_b64encode(seal(key, token, nonce=rng.token_bytes(NONCE_BYTES)))
    params = {
        query_params.SESSION_ENCRYPTED: sealed.decode(),
        query_params.REDIRECT_URI: request.redirect_uri,
        query_params.PROGRAMMATIC: "true" if request.programmatic else "",
        query_params.ADDITIONAL_HOSTS: request.additional_hosts,
        query_params.LOGIN: request.login_digest,
        query_params.TRACEPARENT: request.traceparent,
        query_params.TRACESTATE: request.tracestate,
    }
    target = request.callback_uri or (
        f"https://{authority(request.redirect_uri)}{ROUTE_CALLBACK_PATH}"
    )
    query = urlencode({name: value for name, value in params.items() if value})
    return sign_url(f"{target}?{query}", key, now_s=now_s)


def _csrf_token(view: AuthenticateView, cookie_lines: Sequence[str], now_s: float) -> str | None:
    name = csrf_cookie_name(view.cookie.name)
    values = cookie_values(cookie_lines, name)
    if len(set(values)) != 1:
        return None
    try:
        return open_csrf(values[0], name=name, keys=view.cookie_secrets, now_s=now_s)
    except InvalidTokenError:
        return None


def _pkce(
    view: AuthenticateView,
    state_text: str,
    cookie_lines: Sequence[str],
    *,
    now_s: float,
    retry: str,
) -> tuple[Pkce, str]:
    name = pkce_cookie_name(view.cookie.name, state_text)
    values = cookie_values(cookie_lines, name)
    if len(set(values)) != 1:
        raise bad_state("no PKCE cookie for this state", reason="pkce-missing", retry=retry)
    try:
        pkce = open_pkce(
            values[0],
            name=name,
            keys=view.cookie_secrets,
            now_s=now_s,
            limit_s=view.sign_in_timeout_s,
        )
    except InvalidTokenError as error:
        raise bad_state(str(error), reason="pkce", retry=retry) from error
    return pkce, name


def _retry_target(view: AuthenticateView, state_text: str) -> str:
    """Where the person wanted to go, if the state is ours, however old; else nothing.

    A program's own address is no place to retry from.
    """
    try:
        request = open_state(state_text, keys=view.cookie_secrets).request
    except InvalidTokenError:
        return ""
    return "" if request.programmatic else request.redirect_uri


def _flow_same_site(view: AuthenticateView, request: SignInRequest) -> str:
    """Lax lets the cookies come along when the provider redirects back; a form_post needs None."""
    provider = view.provider(request.idp_id)
    return "none" if provider is not None and provider.type == "apple" else "lax"
