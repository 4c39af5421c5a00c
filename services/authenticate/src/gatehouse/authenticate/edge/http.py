"""Authenticate's HTTP endpoints: they perform what `core` has decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.responses import Response

from gatehouse.authenticate.core import sign_in, sign_out
from gatehouse.authenticate.core.records import session_record, user_record
from gatehouse.authenticate.core.state import SignInRequest
from gatehouse.authenticate.core.view import (
    CALLBACK_PATH,
    DASHBOARD_PATH,
    SIGN_IN_PATH,
    SIGN_OUT_PATH,
    AuthenticateView,
    view_of,
)
from gatehouse.authenticate.edge.session_writer import SessionWriter
from gatehouse.authenticate.edge.sign_outs import SignOutEndpoints
from gatehouse.authenticate.edge.token_checks import TokenChecks
from gatehouse.authenticate.errors import (
    no_provider,
    not_for_scripts,
    provider_answer_refused,
    provider_unavailable,
)
from gatehouse.common.clock import Clock, Rng
from gatehouse.common.config.resolved import IdentityProviderSettings, ResolvedSettings
from gatehouse.common.errors import DeadlineExceededError, GatehouseError, UnavailableError
from gatehouse.common.identity.pool import ProviderPool
from gatehouse.common.identity.provider import Provider
from gatehouse.common.jose.signed_url import verify_url
from gatehouse.common.pages import Link, render_user_info
from gatehouse.common.pages.endpoints import (
    SIGNATURE_PARAMETERS,
    Call,
    Endpoint,
    EndpointApp,
    Guard,
    Log,
    page_or_json,
    plain,
    probe_endpoints,
    redirect,
)
from gatehouse.common.pages.refusal import RefusedRequestError
from gatehouse.common.pages.user_info import Links, user_info_document, user_info_page
from gatehouse.common.session import query_params
from gatehouse.common.session.handle import Handle
from gatehouse.common.session.validity import has_expired
from gatehouse.pb.session_pb2 import Session


class AuthenticateEndpoints:
    """The handlers, and the settings they read at each request."""

    def __init__(
        self,
        *,
        settings_of: Callable[[], ResolvedSettings],
        sessions: SessionWriter,
        providers: ProviderPool,
        clock: Clock,
        rng: Rng,
        log: Log,
    ) -> None:
        self._settings_of = settings_of
        self._sessions = sessions
        self._providers = providers
        self._clock = clock
        self._rng = rng
        self._log = log
        self._settings = settings_of()
        self._cached_view = view_of(self._settings)
        self._token_checks = TokenChecks(lambda: self.view, providers, clock, log)
        self._sign_outs = SignOutEndpoints(
            lambda: self.view, sessions=sessions, providers=providers, clock=clock, rng=rng, log=log
        )

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
        """Everything that is served on the authenticate host."""
        return (
            Endpoint("/", self._root, guard=Guard.OPEN, why="redirects to a fixed path"),
            Endpoint(
                "/robots.txt",
                self._robots,
                methods=("GET", "HEAD"),
                guard=Guard.OPEN,
                why="a constant",
                reads_query=False,
            ),
            *probe_endpoints(),
            Endpoint(
                CALLBACK_PATH,
                self._callback,
                methods=("GET", "POST"),
                guard=Guard.OPEN,
                why="sealed state bound to the CSRF cookie, and a PKCE cookie for it",
                any_origin=True,
            ),
            Endpoint(SIGN_IN_PATH, self._sign_in),
            Endpoint(
                "/.pomerium",
                self._root,
                guard=Guard.OPEN,
                why="redirects to a fixed path",
            ),
            Endpoint(
                DASHBOARD_PATH,
                self._dashboard,
                guard=Guard.SIGNED_IF_MARKED,
                marks=(*SIGNATURE_PARAMETERS, query_params.REDIRECT_URI),
                why="shows a session to the browser that holds its cookie",
            ),
            *self._sign_outs.endpoints(),
            *self._token_checks.endpoints(),
        )

    @property
    def view(self) -> AuthenticateView:
        """The settings in force, in authenticate's own form."""
        settings = self._settings_of()
        if settings is not self._settings:
            self._cached_view = view_of(settings)
            self._settings = settings
        return self._cached_view

    def _canonical_host(self, host: str) -> str | None:
        return self.view.canonical_host(host)

    def _verify(self, url: str) -> None:
        verify_url(url, self.view.shared_secrets, now_s=self._clock.now_s())

    async def _root(self, _call: Call) -> Response:
        return redirect(DASHBOARD_PATH)

    async def _robots(self, _call: Call) -> Response:
        return plain("User-agent: *\nDisallow: /\n")

    async def _sign_in(self, call: Call) -> Response:
        view = self.view
        request = sign_in.read_request(view, call.params)
        handle = sign_in.usable_handle(view, call.cookie_lines, request)
        margin_s = sign_in.end_margin_s(view)
        if handle is not None and await self._live(handle, margin_s) is not None:
            now_s = self._clock.now_s()
            arrival = sign_in.arrive(view, request, handle, now_s=now_s, rng=self._rng)
            return redirect(arrival.url, set_cookies=arrival.set_cookies)
        return await self._leave(view, call, request)

    async def _dashboard(self, call: Call) -> Response:
        view = self.view
        kept = sign_out.keep_origin(view, call.params, now_s=self._clock.now_s(), rng=self._rng)
        if kept is not None:
            return redirect(DASHBOARD_PATH, set_cookies=kept)
        handle = sign_in.read_handle(view, call.cookie_lines)
        live = None if handle is None else await self._live(handle)
        if live is None:
            return await self._leave(view, call, sign_in.dashboard_request(view))
        session, impersonated = live
        person = await self._sessions.person((impersonated or session).user_id)
        # Both kinds of sign-out are on the page that this leads to.
        links = Links(sign_out=Link("Sign out", SIGN_OUT_PATH))
        page = user_info_page(
            session, person, host=call.host, links=links, impersonated=impersonated
        )
        document = user_info_document(session, person, impersonated=impersonated)
        return page_or_json(call, render_user_info(page), document)

    async def _live(
        self, handle: Handle, margin_s: float = 0.0
    ) -> tuple[Session, Session | None] | None:
        """The handle's session, and the one whose place it takes; None if it cannot be used.

        `margin_s`: nor then.

        A session that stands for one that has ended is of no use: authorize lets nobody in with
        it, and would send the browser here for ever.
        """
        now_s = self._clock.now_s() + margin_s
        session = await self._sessions.session(handle.session_id)
        if session is None or not sign_in.is_usable(session, handle, now_s):
            return None
        if not session.impersonate_session_id:
            return session, None
        other = await self._sessions.session(session.impersonate_session_id)
        return None if other is None or has_expired(other, now_s) else (session, other)

    async def _leave(self, view: AuthenticateView, call: Call, request: SignInRequest) -> Response:
        if (call.header("x-requested-with") or "").lower() == "xmlhttprequest":
            raise not_for_scripts()
        provider = self._provider(view, request.idp_id)
        await self._sessions.check()
        departure = sign_in.leave(
            view, request, call.cookie_lines, now_s=self._clock.now_s(), rng=self._rng
        )
        try:
            url = await provider.authorization_url(
                redirect_uri=view.redirect_uri,
                state=departure.state,
                nonce=departure.pkce.nonce,
                code_challenge=departure.pkce.challenge,
            )
        except GatehouseError as error:
            raise _provider_failure(error, request) from error
        return redirect(url, set_cookies=departure.set_cookies)

    async def _callback(self, call: Call) -> Response:
        view = self.view
        params: Mapping[str, str] = call.params
        if call.request.method == "POST":
            params = await call.form()
        back = sign_in.read_callback(view, params, call.cookie_lines, now_s=self._clock.now_s())
        try:
            return await self._complete(view, back, params)
        except RefusedRequestError as error:
            error.add_cookies(back.clear_cookies)
            raise

    async def _complete(
        self, view: AuthenticateView, back: sign_in.Return, params: Mapping[str, str]
    ) -> Response:
        request = back.request
        settings = self._provider_settings(view, request.idp_id)
        try:
            identity = await self._providers.provider(settings).exchange(
                code=back.code,
                redirect_uri=view.redirect_uri,
                code_verifier=back.pkce.proof,
                nonce=back.pkce.nonce,
                user_hint=params.get("user", ""),
            )
        except GatehouseError as error:
            raise _provider_failure(error, request) from error
        known = await self._sessions.user(identity.user_id)
        now_s = self._clock.now_s()
        session = session_record(
            identity,
            session_id=self._rng.uuid4(),
            idp_id=settings.id,
            audience=sign_in.audience(view, request),
            expire_s=view.cookie.expire_s,
            now_s=now_s,
        )
        stored = await self._sessions.store(session, user_record(known, identity), known)
        handle = sign_in.new_handle(
            view,
            request,
            session_id=session.id,
            user_id=session.user_id,
            idp_id=settings.id,
            server_version=stored.server_version,
            record_version=stored.record_version,
            now_s=now_s,
        )
        arrival = sign_in.arrive(view, request, handle, now_s=now_s, rng=self._rng)
        self._log.info("signed in", user=session.user_id, session_id=session.id, idp_id=settings.id)
        return redirect(arrival.url, set_cookies=(*back.clear_cookies, *arrival.set_cookies))

    def _provider_settings(self, view: AuthenticateView, idp_id: str) -> IdentityProviderSettings:
        settings = view.provider(idp_id)
        if settings is None:
            raise no_provider()
        return settings

    def _provider(self, view: AuthenticateView, idp_id: str) -> Provider:
        return self._providers.provider(self._provider_settings(view, idp_id))


def _provider_failure(error: GatehouseError, request: SignInRequest) -> RefusedRequestError:
    """What the identity provider did not do is a 502 if waiting may help, else a 500."""
    retry = "" if request.programmatic else request.redirect_uri
    if isinstance(error, UnavailableError | DeadlineExceededError):
        return provider_unavailable(str(error), retry=retry)
    return provider_answer_refused(str(error), retry=retry)
