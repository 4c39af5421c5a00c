"""The endpoints that end sessions: asked for by a person, or by the identity provider."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final

from starlette.responses import JSONResponse, Response

from gatehouse.authenticate.core import sign_in, sign_out
from gatehouse.authenticate.core.view import (
    BACK_CHANNEL_LOGOUT_PATH,
    SIGN_OUT_PATH,
    SIGNED_OUT_PATH,
    AuthenticateView,
)
from gatehouse.authenticate.edge.session_writer import SessionWriter
from gatehouse.common.clock import Clock, Rng
from gatehouse.common.errors import GatehouseError, InvalidTokenError
from gatehouse.common.identity.errors import IdentityRefusedError
from gatehouse.common.identity.id_token import MAX_ID_TOKEN_BYTES
from gatehouse.common.identity.logout_token import MAX_AGE_S, LogoutToken
from gatehouse.common.identity.pool import ProviderPool
from gatehouse.common.jose.compact import parse_compact
from gatehouse.common.pages import Link, render_sign_out_confirm, render_signed_out
from gatehouse.common.pages.endpoints import (
    Call,
    Endpoint,
    Guard,
    Log,
    html,
    page_or_json,
    redirect,
)
from gatehouse.common.pages.refusal import RefusedRequestError
from gatehouse.common.session import query_params
from gatehouse.common.session.ending import Ending
from gatehouse.pb.session_pb2 import Session

_PROVIDER_S: Final = 5.0  # signing out waits this long for the provider at most
_USED_S: Final = 2 * MAX_AGE_S  # a logout token is refused by its age before it is forgotten
_NO_STORE: Final = {"cache-control": "no-store"}


class SignOutEndpoints:
    """Handlers; they read the settings in force at each request."""

    def __init__(
        self,
        view_of: Callable[[], AuthenticateView],
        *,
        sessions: SessionWriter,
        providers: ProviderPool,
        clock: Clock,
        rng: Rng,
        log: Log,
    ) -> None:
        self._view_of = view_of
        self._sessions = sessions
        self._providers = providers
        self._clock = clock
        self._rng = rng
        self._log = log

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Sign-out, the page it ends on, and the provider's own way in."""
        return (
            Endpoint(
                SIGN_OUT_PATH,
                self._sign_out,
                methods=("GET", "POST"),
                guard=Guard.SIGNED_IF_MARKED,
                why="unsigned it only asks for confirmation",
            ),
            Endpoint(
                SIGNED_OUT_PATH,
                self._signed_out,
                guard=Guard.OPEN,
                why="a constant page, or a redirect that only our sealed cookie can name",
            ),
            Endpoint(
                BACK_CHANNEL_LOGOUT_PATH,
                self._back_channel,
                methods=("POST",),
                guard=Guard.OPEN,
                why="acts only upon a logout token that the identity provider has signed",
                any_origin=True,
                reads_query=False,
            ),
        )

    # A person signs out

    async def _sign_out(self, call: Call) -> Response:
        view = self._view_of()
        request = sign_out.read(view, call.params, call.cookie_lines) if call.signed else None
        if request is None or sign_out.needs_confirmation(request, call.params):
            return self._confirmation(view, call)
        if request.provider_ended:
            return await self._ended_by_provider(view, request)
        ended: tuple[Session, ...] = ()
        idp_id = call.params.get(query_params.IDP_ID, "")
        if request.handle is not None:
            idp_id = request.handle.idp_id
            ended = await self._end(request)
            self._log.info(
                "signed out",
                user=request.handle.user_id,
                session_id=request.handle.session_id,
                idp_id=idp_id,
                everywhere=request.everywhere,
                sessions=len(ended),
            )
        url, cookies = await self._leave_provider(view, idp_id, ended, request)
        return redirect(
            sign_out.next_url(view, request, url),
            set_cookies=(
                sign_in.clear_session_cookie(view),
                *sign_out.forget_origin(view, call.cookie_lines),
                *cookies,
            ),
        )

    def _confirmation(self, view: AuthenticateView, call: Call) -> Response:
        now_s = self._clock.now_s()
        url = sign_out.confirm_url(view, call.params, call.cookie_lines, now_s=now_s)
        everywhere = None
        if sign_in.read_handle(view, call.cookie_lines) is not None:
            everywhere = Link(
                "Sign out on all devices",
                sign_out.confirm_url(
                    view, call.params, call.cookie_lines, now_s=now_s, everywhere=True
                ),
            )
        page = render_sign_out_confirm(Link("Sign out", url), everywhere=everywhere)
        document = {"confirm": url}
        if everywhere is not None:
            document["everywhere"] = everywhere.href
        return page_or_json(call, page, document)

    async def _end(self, request: sign_out.SignOut) -> tuple[Session, ...]:
        """End the handle's session and, if asked for, all others of its person; its own first."""
        handle = request.handle
        assert handle is not None
        session = await self._sessions.session(handle.session_id)
        # An old handle may outlive its session, and must not end others for it.
        is_live = sign_in.is_usable(session, handle, self._clock.now_s())
        ended = await self._sessions.end(handle.session_id)
        own = () if ended is None else (ended,)
        if not (request.everywhere and is_live and handle.user_id):
            return own
        return (*own, *await self._sessions.end_all(Ending(user_id=handle.user_id)))

    async def _ended_by_provider(
        self, view: AuthenticateView, request: sign_out.SignOut
    ) -> Response:
        """Front-channel logout: the proxy has found the provider's proof right.

        In the provider's frame our cookies may be missing, so the session is named; and the person
        must not be sent to the provider's sign-out page, where this began.
        """
        ended = await self._sessions.end(request.provider_ended)
        if ended is not None:
            self._log.info(
                "signed out by the identity provider",
                user=ended.user_id,
                session_id=ended.id,
                idp_id=ended.idp_id,
            )
        response = html(render_signed_out())
        if request.handle is not None and request.handle.session_id == request.provider_ended:
            response.headers.append("set-cookie", sign_in.clear_session_cookie(view))
        return response

    async def _leave_provider(
        self,
        view: AuthenticateView,
        idp_id: str,
        ended: Sequence[Session],
        request: sign_out.SignOut,
    ) -> tuple[str | None, tuple[str, ...]]:
        """Revoke the tokens; the provider's own sign-out page, and cookies for the way there.

        Never fails the sign-out.
        """
        settings = view.provider(idp_id)
        if settings is None:
            return None, ()
        try:
            provider = self._providers.provider(settings)
            async with asyncio.timeout(_PROVIDER_S):
                own = ended[0] if ended else None
                cookies: tuple[str, ...] = ()
                return_to = sign_out.post_logout_url(view, request)
                if provider.has_fixed_return:
                    return_to = view.signed_out_url
                    cookies = sign_out.keep_target(
                        view, request, now_s=self._clock.now_s(), rng=self._rng
                    )
                await self._revoke_all(view, ended[:1])
                url = await provider.end_session_url(
                    id_token_hint=own.id_token.raw if own is not None else "",
                    post_logout_redirect_uri=return_to,
                )
        except (GatehouseError, TimeoutError) as error:
            self._log.warning("provider sign-out failed", idp_id=settings.id, error=str(error))
            return None, ()
        try:
            async with asyncio.timeout(_PROVIDER_S):
                await self._revoke_all(view, ended[1:])
        except TimeoutError:
            self._log.warning("not all tokens revoked", idp_id=settings.id, sessions=len(ended))
        return url, cookies if url is not None else ()

    async def _revoke_all(self, view: AuthenticateView, ended: Sequence[Session]) -> None:
        for session in ended:
            settings = view.providers.get(session.idp_id)
            if settings is None or not session.HasField("oauth_token"):
                continue
            try:
                await self._providers.provider(settings).revoke(
                    access_token=session.oauth_token.access_token,
                    refresh_token=session.oauth_token.refresh_token,
                )
            except GatehouseError as error:
                self._log.warning(
                    "token revocation failed", session_id=session.id, error=str(error)
                )

    async def _signed_out(self, call: Call) -> Response:
        back = sign_out.returned(self._view_of(), call.cookie_lines, now_s=self._clock.now_s())
        if back is None:
            return page_or_json(call, render_signed_out(), {"signedOut": True})
        target, forget = back
        return redirect(target, set_cookies=(forget,))

    # The provider signs a person out (OIDC Back-Channel Logout 1.0)

    async def _back_channel(self, call: Call) -> Response:
        view = self._view_of()
        try:
            raw = (await call.form()).get("logout_token", "")
            claims = parse_compact(raw, max_bytes=MAX_ID_TOKEN_BYTES).claims
        except (RefusedRequestError, InvalidTokenError) as error:
            return self._refused(str(error))
        refusal = "the token is for none of this gateway's clients"
        meant: dict[str, LogoutToken] = {}  # a token may name several clients in its audience
        for settings in sign_out.logout_candidates(view, claims):
            try:
                provider = self._providers.provider(settings)
                meant[settings.id] = await provider.verify_logout_token(raw)
            except IdentityRefusedError as error:
                refusal = str(error)
            except GatehouseError as error:
                return self._later((settings.id,), error)
        if not meant:
            return self._refused(refusal)
        return await self._end_by_token(tuple(meant), next(iter(meant.values())))

    async def _end_by_token(self, idp_ids: tuple[str, ...], token: LogoutToken) -> Response:
        ending = sign_out.back_channel(token, idp_ids)
        name = sign_out.logout_lease_name(token)
        try:
            ended = await self._sessions.end_once(name, _USED_S, ending)
        except RefusedRequestError as error:
            return self._later(idp_ids, error)
        if ended is None:
            return self._refused("the logout token was used before")
        self._log.info(
            "signed out by the identity provider",
            idp_ids=idp_ids,
            sessions=[session.id for session in ended[:20]],
            count=len(ended),
        )
        return Response(status_code=HTTPStatus.OK, headers=_NO_STORE)

    def _refused(self, why: str) -> Response:
        """Section 2.8: the provider learns that its request was no good."""
        self._log.warning("logout token refused", error=why)
        body = {"error": "invalid_request", "error_description": why}
        return JSONResponse(body, status_code=HTTPStatus.BAD_REQUEST, headers=_NO_STORE)

    def _later(self, idp_ids: tuple[str, ...], error: GatehouseError) -> Response:
        self._log.warning("logout token not acted upon", idp_ids=idp_ids, error=str(error))
        return JSONResponse(
            {"error": "temporarily_unavailable"},
            status_code=HTTPStatus.SERVICE_UNAVAILABLE,
            headers={**_NO_STORE, "retry-after": "5"},
        )
