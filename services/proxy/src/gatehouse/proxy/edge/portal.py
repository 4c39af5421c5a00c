"""The endpoints of the routes portal: the page, its JSON twin, and the page's script."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from starlette.responses import Response

from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.errors import GatehouseError, NotFoundError
from gatehouse.common.pages import render_portal
from gatehouse.common.pages.endpoints import Call, Endpoint, Guard, html
from gatehouse.common.pages.negotiation import wants_exact_json
from gatehouse.common.pages.refusal import not_found, session_ended
from gatehouse.proxy.core.portal import (
    MAX_ROUTES,
    PORTAL_API_PATH,
    PORTAL_PATH,
    PortalEntry,
    portal_entries,
    portal_page,
    portal_unavailable,
    search_text,
    searched,
)
from gatehouse.proxy.edge.authorize_client import AuthorizeClient, Openable

SCRIPT_PATH: Final = "/.pomerium/index.js"
CLIENT_ADDRESS_HEADER: Final = "x-envoy-external-address"
_SCRIPT: Final = (Path(__file__).parent / "portal.js").read_bytes()
_SCRIPT_TAG: Final = hashlib.sha256(_SCRIPT).hexdigest()[:16]
_MAX_ADDRESS: Final = 64


def client_address(call: Call) -> str:
    """Where Envoy says that a request comes from."""
    return (call.header(CLIENT_ADDRESS_HEADER) or "")[:_MAX_ADDRESS]


class SessionOf(Protocol):
    """Finds out who asks."""

    def __call__(self, call: Call) -> str:
        """The id of the session that authorize has let in. Raises RefusedRequestError."""
        ...


class PortalEndpoints:
    """Handlers; they read the settings in force at each request."""

    def __init__(
        self,
        settings_of: Callable[[], ResolvedSettings],
        authorize: AuthorizeClient,
        session_of: SessionOf,
    ) -> None:
        self._settings_of = settings_of
        self._authorize = authorize
        self._session_of = session_of
        self._known: tuple[ResolvedSettings | None, tuple[PortalEntry, ...]] = (None, ())

    def endpoints(self) -> tuple[Endpoint, ...]:
        """The page in its two forms, and what it loads."""
        why = "authorize asks for a login; shows what that session may open"
        return (
            Endpoint(PORTAL_PATH, self._page, guard=Guard.OPEN, why=why),
            Endpoint(PORTAL_API_PATH, self._api, guard=Guard.OPEN, why=why),
            Endpoint(
                SCRIPT_PATH,
                self._script,
                methods=("GET", "HEAD"),
                guard=Guard.OPEN,
                why="a constant",
                reads_query=False,
            ),
        )

    async def _page(self, call: Call) -> Response:
        if wants_exact_json(call.header("accept")):
            return await self._api(call)
        search = search_text(call.params)
        entries, openable, is_cut = await self._openable(call, search)
        page = portal_page(
            entries,
            search=search,
            page=call.params.get("page", "1"),
            host=call.host,
            devices=openable.behind_devices,
            is_cut=is_cut,
        )
        return html(
            render_portal(page, script=f"{SCRIPT_PATH}?v={_SCRIPT_TAG}"), has_own_script=True
        )

    async def _api(self, call: Call) -> Response:
        entries, _, is_cut = await self._openable(call, search_text(call.params))
        document: dict[str, object] = {"routes": [entry.document() for entry in entries]}
        if is_cut:
            document["truncated"] = True
        return Response(json.dumps(document), media_type="application/json")

    async def _script(self, _call: Call) -> Response:
        headers = {"cache-control": "public, max-age=86400, immutable"}
        return Response(_SCRIPT, media_type="text/javascript", headers=headers)

    async def _openable(self, call: Call, search: str) -> tuple[list[PortalEntry], Openable, bool]:
        if not self._settings_of().settings.runtime_flags["routes_portal"]:
            raise not_found()
        session_id = self._session_of(call)
        found = searched(self._entries(), search)
        asked = {entry.id: entry for entry in found[:MAX_ROUTES]}
        try:
            openable = await self._authorize.open_routes(
                session_id, tuple(asked), client_address(call)
            )
        except NotFoundError as error:
            raise session_ended(
                str(error), purpose="see your applications", path=PORTAL_PATH
            ) from error
        except GatehouseError as error:
            raise portal_unavailable(str(error)) from error
        entries = [asked[route_id] for route_id in openable.routes if route_id in asked]
        return entries, openable, len(found) > MAX_ROUTES

    def _entries(self) -> tuple[PortalEntry, ...]:
        settings = self._settings_of()
        if self._known[0] is not settings:
            self._known = (settings, portal_entries(settings))
        return self._known[1]
