"""The endpoint on which administrators ask why somebody is let in or not. It only reads."""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import JSONResponse, Response

from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.errors import (
    FailedPreconditionError,
    GatehouseError,
    NotFoundError,
    PermissionDeniedError,
)
from gatehouse.common.pages import render_explanation
from gatehouse.common.pages.endpoints import Call, Endpoint, Guard, html
from gatehouse.common.pages.negotiation import wants_exact_json
from gatehouse.common.pages.refusal import not_found, session_ended
from gatehouse.proxy.core.explain_page import (
    EXPLAIN_PATH,
    asked,
    explain_document,
    explain_page,
    may_not_ask,
    no_answer,
    question,
)
from gatehouse.proxy.edge.authorize_client import AuthorizeClient
from gatehouse.proxy.edge.portal import SessionOf, client_address


class ExplainEndpoint:
    """There only where `explain_policy` is set; authorize says whom it lets ask."""

    def __init__(
        self,
        settings_of: Callable[[], ResolvedSettings],
        authorize: AuthorizeClient,
        session_of: SessionOf,
    ) -> None:
        self._settings_of = settings_of
        self._authorize = authorize
        self._session_of = session_of

    def endpoints(self) -> tuple[Endpoint, ...]:
        """The page, or the answer as JSON for those who accept exactly that."""
        why = "authorize asks for a login, and answers administrators alone; reads only"
        return (Endpoint(EXPLAIN_PATH, self._page, guard=Guard.OPEN, why=why),)

    async def _page(self, call: Call) -> Response:
        settings = self._settings_of()
        if settings.explain_policy is None:
            raise not_found()
        session_id = self._session_of(call)
        typed = asked(call.params)
        try:
            answered = await self._authorize.answer(
                question(typed, session_id=session_id, ip=client_address(call))
            )
        except PermissionDeniedError as error:
            raise may_not_ask(str(error)) from error
        except NotFoundError as error:
            raise session_ended(str(error), purpose="ask", path=EXPLAIN_PATH) from error
        except FailedPreconditionError as error:  # authorize has other settings for a moment
            raise not_found() from error
        except GatehouseError as error:
            raise no_answer(str(error)) from error
        if wants_exact_json(call.header("accept")):
            return JSONResponse(explain_document(answered))
        return html(render_explanation(explain_page(typed, answered, settings)), has_form=True)
