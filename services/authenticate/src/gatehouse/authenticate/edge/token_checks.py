"""The endpoints where authorize asks whether a provider's token holds.

The wire is that of `common.identity.token_check`.

They are for our own services: a question without the service JWT, for this audience and from
authorize or an operator, is not read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from gatehouse.authenticate.core.view import AuthenticateView
from gatehouse.common.clock import Clock
from gatehouse.common.errors import GatehouseError, InvalidArgumentError, UnauthenticatedError
from gatehouse.common.identity.errors import IdentityRefusedError
from gatehouse.common.identity.pool import ProviderPool
from gatehouse.common.identity.token_check import (
    AUDIENCE,
    MAX_QUESTION_BYTES,
    Question,
    TokenKind,
    decode_question,
    is_bearer_token,
    verdict,
)
from gatehouse.common.pages.endpoints import Call, Endpoint, Guard, Log
from gatehouse.common.pages.refusal import RefusedRequestError, bad_request
from gatehouse.common.rpc.allow_list import AUTHORIZE, OPERATOR
from gatehouse.common.rpc.credentials import verify_call

_ASKERS: Final = frozenset({AUTHORIZE, OPERATOR})


class TokenChecks:
    """Answers with the providers of the settings in force."""

    def __init__(
        self,
        view_of: Callable[[], AuthenticateView],
        providers: ProviderPool,
        clock: Clock,
        log: Log,
    ) -> None:
        self._view_of = view_of
        self._providers = providers
        self._clock = clock
        self._log = log

    def endpoints(self) -> tuple[Endpoint, ...]:
        """One for each kind of token."""
        return tuple(
            Endpoint(
                kind.path,
                functools.partial(self._check, kind),
                methods=("POST",),
                guard=Guard.OPEN,
                why="requires the service JWT of authorize",
                reads_query=False,
            )
            for kind in TokenKind
        )

    async def _check(self, kind: TokenKind, call: Call) -> Response:
        view = self._view_of()
        self._require_service(view, call)
        try:
            question = decode_question(kind, await _body(call))
        except InvalidArgumentError as error:
            raise bad_request(
                "The question about a token cannot be read",
                reason="token-question",
                message=str(error),
            ) from None
        return JSONResponse(verdict(await self._claims(view, question)))

    def _require_service(self, view: AuthenticateView, call: Call) -> None:
        headers = call.request.headers.items()
        try:
            caller = verify_call(headers, view.shared_secrets, AUDIENCE, self._clock.now_s())
        except UnauthenticatedError as error:
            raise _not_a_service(str(error)) from None
        if caller.subject not in _ASKERS:
            raise _not_a_service(f"{caller.subject!r} may not ask about tokens")

    async def _claims(self, view: AuthenticateView, question: Question) -> dict[str, Any] | None:
        settings = view.providers.get(question.idp_id)
        if settings is None:
            # Another provider's word about the token would be worth nothing.
            raise _unknown(HTTPStatus.SERVICE_UNAVAILABLE, "no such identity provider here")
        if not is_bearer_token(question.token):
            return None
        try:
            provider = self._providers.provider(settings)
            if question.kind is TokenKind.IDENTITY:
                return await provider.verify_identity_token(question.token)
            return await provider.verify_access_token(question.token)
        except IdentityRefusedError as error:
            self._log.info(
                "token refused", idp_id=settings.id, reason=error.reason, error=str(error)
            )
            return None
        except GatehouseError as error:
            raise _unknown(HTTPStatus.BAD_GATEWAY, str(error)) from error


async def _body(call: Call) -> bytes:
    body = bytearray()
    try:
        async for chunk in call.request.stream():
            body += chunk
            if len(body) > MAX_QUESTION_BYTES:
                raise RefusedRequestError(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    "The question about a token is too large",
                    reason="token-question",
                )
    except ClientDisconnect as error:
        raise bad_request("The question did not arrive", reason="token-question") from error
    return bytes(body)


def _not_a_service(message: str) -> RefusedRequestError:
    return RefusedRequestError(
        HTTPStatus.UNAUTHORIZED,
        "This address is for the gateway's own services",
        message=message,
        reason="no-service",
    )


def _unknown(status: HTTPStatus, message: str) -> RefusedRequestError:
    return RefusedRequestError(
        status,
        "Nothing can be said about this token now",
        message=message,
        reason="token-unknown",
    )
