"""The proxy's own HTTP endpoints, served on every route host behind Envoy.

The Host header is the route's; the scheme that a browser sees is always https.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from starlette.applications import Starlette
from starlette.responses import Response

from gatehouse.common.clock import Clock, Rng
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.databroker.client import DatabrokerClient
from gatehouse.common.databroker.person import read_person
from gatehouse.common.databroker.records import unpack
from gatehouse.common.errors import GatehouseError, InvalidTokenError
from gatehouse.common.ids import SESSION
from gatehouse.common.jose.hpke import public_key
from gatehouse.common.jose.keys import jwks, verify_jwt
from gatehouse.common.jose.signed_url import verify_url
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.pages import (
    Link,
    UserInfoPage,
    render_continue,
    render_sign_out_confirm,
    render_signed_out,
    render_user_info,
)
from gatehouse.common.pages.endpoints import (
    Call,
    Endpoint,
    EndpointApp,
    Guard,
    html,
    page_or_json,
    plain,
    probe_endpoints,
    redirect,
    with_cookies,
)
from gatehouse.common.pages.refusal import not_found, storage_unavailable
from gatehouse.common.pages.user_info import Links, user_info_document, user_info_page
from gatehouse.common.session.cookies import cookie_values
from gatehouse.common.session.handle import Handle, decode_handle
from gatehouse.common.session.validity import has_expired, record_problem
from gatehouse.pb.session_pb2 import Session
from gatehouse.proxy.core.callback import Restart, read_callback, used_already
from gatehouse.proxy.core.pages_view import PagesView, hostname_of, pages_view
from gatehouse.proxy.core.portal import PORTAL_PATH
from gatehouse.proxy.core.sign_in_chain import give_cookie, is_asking_for_cookie
from gatehouse.proxy.core.sign_in_links import (
    BACK_CHANNEL_LOGOUT_PATH,
    CALLBACK_PATH,
    SIGN_OUT_PATH,
    clear_route_cookie,
    confirm_path,
    is_cross_site,
    is_front_channel_logout,
    programmatic_login_url,
    sign_out_url,
)
from gatehouse.proxy.edge.authorize_client import AuthorizeClient
from gatehouse.proxy.edge.explain_page import ExplainEndpoint
from gatehouse.proxy.edge.portal import PortalEndpoints

ASSERTION_HEADER: Final = "x-pomerium-jwt-assertion"
_NOT_ABOUT_THE_USER: Final = frozenset({"iss", "aud", "exp", "iat", "jti"})
_CORS: Final = {"access-control-allow-origin": "*"}
_JWKS_PATH: Final = "/.well-known/pomerium/jwks.json"
_HPKE_PATH: Final = "/.well-known/pomerium/hpke-public-key"


def build_app(
    settings_of: Callable[[], ResolvedSettings],
    databroker: DatabrokerClient,
    authorize: AuthorizeClient,
    clock: Clock,
    rng: Rng,
) -> Starlette:
    """The ASGI application behind Envoy's cluster for the control plane's own paths."""
    return ProxyEndpoints(settings_of, databroker, authorize, clock, rng).app().asgi


class ProxyEndpoints:
    """The handlers, and the settings they read at each request."""

    def __init__(
        self,
        settings_of: Callable[[], ResolvedSettings],
        databroker: DatabrokerClient,
        authorize: AuthorizeClient,
        clock: Clock,
        rng: Rng,
    ) -> None:
        self._settings_of = settings_of
        self._portal = PortalEndpoints(settings_of, authorize, self._session_id)
        self._explain = ExplainEndpoint(settings_of, authorize, self._session_id)
        self._databroker = databroker
        self._clock = clock
        self._rng = rng
        self._log = get_logger("proxy")
        self._settings = settings_of()
        self._cached_view = pages_view(self._settings)
        self._cached_jwks = _encode_jwks(self._cached_view)

    def app(self) -> EndpointApp:
        """The ASGI application is `.asgi` of what this returns."""
        return EndpointApp(
            endpoints=self.endpoints(),
            verify=self._verify,
            canonical_host=self._canonical_host,
            rng=self._rng,
            log=self._log,
        )

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Everything that is served on a route host."""
        metadata = tuple(
            Endpoint(
                path,
                self._metadata,
                methods=("GET", "HEAD", "OPTIONS"),
                guard=Guard.OPEN,
                why="public by design",
                reads_query=False,
                any_origin=True,
            )
            for path in ("/.well-known/pomerium", "/.well-known/pomerium/")
        )
        return (
            *probe_endpoints(),
            *metadata,
            Endpoint(
                _JWKS_PATH,
                self._jwks,
                methods=("GET", "HEAD", "OPTIONS"),
                guard=Guard.OPEN,
                why="public keys",
                reads_query=False,
                any_origin=True,
            ),
            Endpoint(
                _HPKE_PATH,
                self._hpke,
                methods=("GET", "HEAD", "OPTIONS"),
                guard=Guard.OPEN,
                why="a public key",
                reads_query=False,
                any_origin=True,
            ),
            Endpoint("/.pomerium", self._slash, guard=Guard.OPEN, why="redirects to a fixed path"),
            Endpoint(
                "/.pomerium/",
                self._user_info,
                guard=Guard.OPEN,
                why="shows a session to the browser that holds its cookie",
            ),
            Endpoint(
                "/.pomerium/user",
                self._user,
                guard=Guard.OPEN,
                why="authorize asks for a login and sets the assertion that is shown",
            ),
            Endpoint(
                "/.pomerium/jwt",
                self._jwt,
                guard=Guard.OPEN,
                why="authorize asks for a login and sets the assertion that is shown",
            ),
            Endpoint(CALLBACK_PATH, self._callback),
            Endpoint(
                SIGN_OUT_PATH,
                self._sign_out,
                methods=("GET", "POST"),
                guard=Guard.OPEN,
                why="front-channel logout; other sites get a confirmation page",
                any_origin=True,
            ),
            Endpoint(
                "/.pomerium/api/v1/login",
                self._programmatic_login,
                guard=Guard.OPEN,
                why="hands out a sign-in link; signing in is still up to the person",
            ),
            *self._portal.endpoints(),
            *self._explain.endpoints(),
        )

    @property
    def view(self) -> PagesView:
        """The settings in force, in the endpoints' own form."""
        settings = self._settings_of()
        if settings is not self._settings:
            self._cached_view = pages_view(settings)
            self._cached_jwks = _encode_jwks(self._cached_view)
            self._settings = settings
        return self._cached_view

    def _canonical_host(self, host: str) -> str | None:
        return self.view.canonical_host(host)

    def _verify(self, url: str) -> None:
        verify_url(url, self.view.shared_secrets, now_s=self._clock.now_s())

    async def _slash(self, _call: Call) -> Response:
        return redirect("/.pomerium/")

    async def _metadata(self, call: Call) -> Response:
        view = self.view
        document = {
            "issuer": f"https://{call.host}/",
            "authentication_callback_endpoint": f"{view.authenticate_url}/oauth2/callback",
            "jwks_uri": f"https://{call.host}{_JWKS_PATH}",
            "frontchannel_logout_uri": f"https://{call.host}{SIGN_OUT_PATH}",
            "backchannel_logout_uri": f"{view.authenticate_url}{BACK_CHANNEL_LOGOUT_PATH}",
        }
        if not view.authenticate_url:
            del document["authentication_callback_endpoint"]
            del document["backchannel_logout_uri"]
        return _json(document, headers=_CORS)

    async def _jwks(self, call: Call) -> Response:
        _ = self.view  # brings the cached key set up to date
        body, etag = self._cached_jwks
        headers = {**_CORS, "cache-control": "max-age=60", "etag": etag}
        if call.header("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="application/json", headers=headers)

    async def _hpke(self, _call: Call) -> Response:
        headers = {**_CORS, "cache-control": "max-age=60"}
        key = public_key(self.view.shared_secrets[0])
        return Response(key, media_type="application/octet-stream", headers=headers)

    async def _user_info(self, call: Call) -> Response:
        view = self.view
        handle = self._handle(view, call)
        page = UserInfoPage(
            signed_in=False,
            host=call.host,
            sign_in=Link("Open the application", "/") if view.authenticate_url else None,
        )
        document: dict[str, object] = {"isImpersonated": False}
        if handle is not None:
            with _databroker_errors():
                session = await self._session(handle)
                impersonated = await self._impersonated(session)
                if session is not None and session.impersonate_session_id and impersonated is None:
                    session = None  # it stands for nobody any more, and opens nothing
                seen = impersonated if impersonated is not None else session
                user_id = seen.user_id if seen is not None else ""
                person = await read_person(self._databroker, user_id)
            if session is not None:
                links = _links(view)
                page = user_info_page(
                    session, person, host=call.host, links=links, impersonated=impersonated
                )
                document = user_info_document(session, person, impersonated=impersonated)
        document["runtimeFlags"] = {"routes_portal": view.routes_portal}
        return page_or_json(call, render_user_info(page), document)

    async def _user(self, call: Call) -> Response:
        claims = self._assertion(call)[1]
        shown = {name: value for name, value in claims.items() if name not in _NOT_ABOUT_THE_USER}
        return _json(shown)

    async def _jwt(self, call: Call) -> Response:
        if not self.view.jwt_endpoint:
            raise not_found()
        return Response(self._assertion(call)[0], media_type="application/jwt")

    async def _callback(self, call: Call) -> Response:
        view, now_s = self.view, self._clock.now_s()
        if is_asking_for_cookie(call.params):
            hop = give_cookie(
                view, call.params, call.cookie_lines, host=call.host, now_s=now_s, rng=self._rng
            )
            return redirect(hop.location, set_cookies=hop.set_cookies)
        callback = read_callback(
            view, call.params, call.cookie_lines, host=call.host, url=call.url, now_s=now_s
        )
        if isinstance(callback, Restart):
            return redirect(callback.location)
        with _databroker_errors():
            lease = await self._databroker.acquire_lease(callback.lease_name, callback.lease_s)
        if lease is None:
            raise used_already(callback)
        if callback.page_link is not None:
            return with_cookies(html(render_continue(callback.page_link)), callback.set_cookies)
        return redirect(callback.location, set_cookies=callback.set_cookies)

    async def _sign_out(self, call: Call) -> Response:
        view = self.view
        origin = call.header("origin")
        handle = self._handle(view, call)
        by_provider = await self._is_front_channel_logout(call, handle)
        if not by_provider and is_cross_site(
            sec_fetch_site=call.header("sec-fetch-site"),
            same_origin=origin is None or origin.lower() == f"https://{call.host}",
        ):
            confirm = Link("Sign out", confirm_path(call.params))
            page = render_sign_out_confirm(confirm, Link("Stay signed in", "/"))
            return page_or_json(call, page, {"confirm": confirm.href})
        cleared = clear_route_cookie(view)
        session_id = handle.session_id if handle is not None else ""
        url = sign_out_url(
            view,
            call.params,
            session_id=session_id,
            now_s=self._clock.now_s(),
            provider_ended=by_provider,
        )
        if url is None:
            answer = page_or_json(call, render_signed_out(), {"signedOut": True})
            return with_cookies(answer, [cleared])
        return redirect(url, set_cookies=[cleared])

    async def _is_front_channel_logout(self, call: Call, handle: Handle | None) -> bool:
        if handle is None or not call.params.get("sid"):
            return False
        with _databroker_errors():
            session = await self._session(handle)
        return session is not None and is_front_channel_logout(call.params, session)

    async def _programmatic_login(self, call: Call) -> Response:
        return plain(
            programmatic_login_url(
                self.view, call.params, host=call.host, now_s=self._clock.now_s()
            )
        )

    def _handle(self, view: PagesView, call: Call) -> Handle | None:
        """The handle in the route cookie; an unreadable one is none."""
        values = cookie_values(call.cookie_lines, view.cookie_name)
        if len(set(values)) != 1:
            return None
        try:
            handle = decode_handle(
                values[0], view.shared_secrets, allowed_uses=frozenset({"route"})
            )
        except InvalidTokenError:
            return None
        return handle if not view.cookie_audience or handle.is_for(hostname_of(call.host)) else None

    async def _session(self, handle: Handle) -> Session | None:
        record = await self._databroker.get(SESSION, handle.session_id)
        if record is None:
            return None
        session = unpack(record, Session)
        problem = record_problem(session, self._clock.now_s())
        return session if problem is None and session.user_id == handle.user_id else None

    async def _impersonated(self, session: Session | None) -> Session | None:
        """The session whose place this one takes, while there is one."""
        if session is None or not session.impersonate_session_id:
            return None
        record = await self._databroker.get(SESSION, session.impersonate_session_id)
        other = None if record is None else unpack(record, Session)
        return None if other is None or has_expired(other, self._clock.now_s()) else other

    def _session_id(self, call: Call) -> str:
        """The session that authorize has let in, whichever way its credential came."""
        return str(self._assertion(call)[1].get("sid", ""))

    def _assertion(self, call: Call) -> tuple[str, dict[str, Any]]:
        """The identity JWT that authorize set on this request, and its claims.

        Verified all the same: what does not carry our signature is not shown.
        """
        tokens = call.request.headers.getlist(ASSERTION_HEADER)
        if len(tokens) != 1:
            raise not_found()
        try:
            return tokens[0], verify_jwt(tokens[0], self.view.signing_keys)
        except InvalidTokenError as error:
            raise not_found() from error


def _links(view: PagesView) -> Links:
    everywhere = f"{view.authenticate_url}{SIGN_OUT_PATH}"
    return Links(
        sign_out=Link("Sign out", SIGN_OUT_PATH),
        # There the person is asked once more: a link that acts at once would lie around here.
        sign_out_everywhere=(
            Link("Sign out on all devices", everywhere) if view.authenticate_url else None
        ),
        applications=Link("Your applications", PORTAL_PATH) if view.routes_portal else None,
    )


def _encode_jwks(view: PagesView) -> tuple[bytes, str]:
    body = json.dumps(jwks(view.signing_keys), sort_keys=True).encode()
    return body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def _json(document: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        json.dumps(document, indent=2), media_type="application/json", headers=dict(headers or {})
    )


@contextlib.contextmanager
def _databroker_errors() -> Iterator[None]:
    """Whatever the databroker could not do is a 503: never "no session", never "not used yet"."""
    try:
        yield
    except GatehouseError as error:
        raise storage_unavailable(f"databroker: {error}") from error
