"""How a service's own HTTP endpoints are guarded: one place that no handler can forget.

An endpoint is declared with its methods and its guard. The methods, the host, the query, the
request's origin and the signature are checked here before the handler runs; whatever it raises
becomes a page here. Handlers return Starlette responses.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gatehouse.common.clock import Rng
from gatehouse.common.errors import GatehouseError, InvalidTokenError
from gatehouse.common.pages.branding import Branding, branding_in_force
from gatehouse.common.pages.negotiation import wants_exact_json
from gatehouse.common.pages.refusal import (
    RefusedRequestError,
    bad_request,
    bad_signature,
    not_found,
)
from gatehouse.common.pages.render import (
    INTERCEPTED_HEADER,
    error_document,
    render_error,
    safe_request_id,
    security_headers,
)

QUERY_LIMIT_BYTES: Final = 16 * 1024
BODY_LIMIT_BYTES: Final = 64 * 1024
FIELD_LIMIT: Final = 64

SIGNATURE_PARAMETERS: Final = ("pomerium_signature", "pomerium_issued", "pomerium_expiry")
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
_OWN_SITES: Final = frozenset({"same-origin", "none"})


class Guard(enum.Enum):
    """What must be right about a request's URL before its handler sees it."""

    SIGNED = "signed"  # a valid signature, always
    SIGNED_IF_MARKED = "signed-if-marked"  # valid as soon as any of `marks` is present
    OPEN = "open"  # nothing; `why` says what protects the endpoint instead


@dataclass(frozen=True, slots=True)
class Call:
    """A request that has passed its guard."""

    request: Request
    params: Mapping[str, str]  # query, no key twice
    host: str  # lower case, as sent, with its port if one was
    url: str  # https://host/path?query, as signed
    request_id: str
    signed: bool

    def header(self, name: str) -> str | None:
        """A header's value; the first when it came more than once."""
        return self.request.headers.get(name)

    @property
    def cookie_lines(self) -> list[str]:
        """Every Cookie header line."""
        return self.request.headers.getlist("cookie")

    async def form(self) -> dict[str, str]:
        """The urlencoded form in the body. Raises RefusedRequestError; at most 64 KiB."""
        content_type = (self.header("content-type") or "").partition(";")[0].strip().lower()
        if content_type != "application/x-www-form-urlencoded":
            raise bad_request("The form cannot be read", reason="form-type")
        body = bytearray()
        try:
            async for chunk in self.request.stream():
                body += chunk
                if len(body) > BODY_LIMIT_BYTES:
                    raise RefusedRequestError(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The form is too large"
                    )
        except ClientDisconnect as error:
            raise bad_request("The form did not arrive", reason="form-cut") from error
        return parse_parameters(bytes(body), limit_bytes=BODY_LIMIT_BYTES)


Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path of a service's own."""

    path: str
    handler: Handler
    methods: tuple[str, ...] = ("GET",)
    guard: Guard = Guard.SIGNED
    marks: tuple[str, ...] = SIGNATURE_PARAMETERS
    why: str = ""  # for OPEN and SIGNED_IF_MARKED: why that is safe
    any_origin: bool = False  # takes unsafe methods from other sites (an IdP's form_post)
    reads_query: bool = True  # False: the query is neither parsed nor refused
    any_host: bool = False  # answers on every name, for probes by address

    def __post_init__(self) -> None:
        assert self.guard is Guard.SIGNED or self.why, f"{self.path}: say why it needs no signature"


class Log(Protocol):
    """What is needed of a structlog logger."""

    def info(self, event: str, **fields: object) -> object: ...  # noqa: D102

    def warning(self, event: str, **fields: object) -> object: ...  # noqa: D102

    def exception(self, event: str, **fields: object) -> object: ...  # noqa: D102


@dataclass(slots=True)
class EndpointApp:
    """The endpoints of one service as an ASGI application (`.asgi`).

    `verify(url)` raises InvalidTokenError for a URL whose signature does not hold.
    `canonical_host(host)` is the host a URL is signed for, or None for a host not served here.
    """

    endpoints: Sequence[Endpoint]
    verify: Callable[[str], None]
    canonical_host: Callable[[str], str | None]
    rng: Rng
    log: Log
    branding: Callable[[], Branding] = branding_in_force
    asgi: Starlette = field(init=False)

    def __post_init__(self) -> None:
        routes = [
            Route(endpoint.path, self._guarded(endpoint), methods=None)
            for endpoint in self.endpoints
        ]
        routes.append(Route("/{rest:path}", _AsgiEndpoint(self._missing), methods=None))
        self.asgi = Starlette(routes=routes)
        self.asgi.router.redirect_slashes = False

    def _guarded(self, endpoint: Endpoint) -> _AsgiEndpoint:
        async def serve(request: Request) -> Response:
            return await self._answer(request, endpoint)

        return _AsgiEndpoint(serve)

    async def _missing(self, request: Request) -> Response:
        return self.refusal(request, not_found(), self._request_id(request))

    async def _answer(self, request: Request, endpoint: Endpoint) -> Response:
        request_id = self._request_id(request)
        try:
            call = self._check(request, endpoint, request_id)
            response = await endpoint.handler(call)
        except RefusedRequestError as error:
            self.log.info(
                "request refused",
                path=endpoint.path,
                status=error.status,
                reason=error.reason,
                error=str(error),
                request_id=request_id,
            )
            return self.refusal(request, error, request_id)
        except Exception as error:  # the last stop: a page, never a traceback
            self.log.exception(
                "request failed",
                path=endpoint.path,
                error_type=type(error).__name__,
                reason=error.reason if isinstance(error, GatehouseError) else "unexpected",
                request_id=request_id,
            )
            return self.refusal(request, _unexpected(), request_id)
        for name, value in _base_headers().items():
            response.headers.setdefault(name, value)
        return response

    def _check(self, request: Request, endpoint: Endpoint, request_id: str) -> Call:
        if request.method not in endpoint.methods:
            raise RefusedRequestError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "This address does not take that kind of request",
                reason="method",
                headers=(("allow", ", ".join(endpoint.methods)),),
            )
        host = "" if endpoint.any_host else self._host(request)
        raw_query = request.scope.get("query_string", b"")
        params = parse_parameters(raw_query) if endpoint.reads_query else {}
        if request.method not in _SAFE_METHODS and not endpoint.any_origin:
            _refuse_other_origins(request, host)
        path = request.scope.get("raw_path") or request.scope["path"].encode()
        url = f"https://{host}{path.decode('latin-1')}"
        if raw_query:
            url = f"{url}?{raw_query.decode('latin-1')}"
        signed = endpoint.guard is Guard.SIGNED or (
            endpoint.guard is Guard.SIGNED_IF_MARKED
            and any(mark in params for mark in endpoint.marks)
        )
        if signed:
            try:
                self.verify(url)
            except InvalidTokenError as error:
                raise bad_signature(str(error)) from error
        return Call(request, params, host, url, request_id, signed)

    def _host(self, request: Request) -> str:
        hosts = request.headers.getlist("host")
        host = self.canonical_host(hosts[0].lower()) if len(hosts) == 1 else None
        if host is None:
            raise not_found()
        return host

    def _request_id(self, request: Request) -> str:
        return safe_request_id(request.headers.get("x-request-id")) or self.rng.uuid4()

    def refusal(self, request: Request, error: RefusedRequestError, request_id: str) -> Response:
        """The answer for a refused request, as HTML, or JSON if exactly that is accepted."""
        page = error.page(request_id)
        response: Response
        if wants_exact_json(request.headers.get("accept")):
            response = JSONResponse(error_document(page), status_code=error.status)
        else:
            response = html(render_error(page, self.branding()), self.branding(), error.status)
        response.headers[INTERCEPTED_HEADER[0]] = INTERCEPTED_HEADER[1]
        response.headers["x-request-id"] = request_id
        response.headers.update(_base_headers())
        for name, value in error.headers:
            if name == "set-cookie":
                response.headers.append(name, value)
            else:
                response.headers[name] = value
        return response


class _AsgiEndpoint:
    """An endpoint that takes every method: Starlette's Route would answer some by itself."""

    def __init__(self, serve: Callable[[Request], Awaitable[Response]]) -> None:
        self._serve = serve

    async def __call__(self, scope: object, receive: object, send: object) -> None:
        request = Request(scope, receive)  # type: ignore[arg-type]
        response = await self._serve(request)
        await response(scope, receive, send)  # type: ignore[arg-type]


def parse_parameters(raw: bytes, *, limit_bytes: int = QUERY_LIMIT_BYTES) -> dict[str, str]:
    """A query or form as a mapping.

    Raises RefusedRequestError (400) over `limit_bytes` or 64 fields, for a key that comes twice,
    and for bytes that are not UTF-8.
    """
    if len(raw) > limit_bytes:
        raise bad_request("The request is too long", reason="query-size")
    try:
        pairs = parse_qsl(
            raw.decode("ascii"),
            keep_blank_values=True,
            max_num_fields=FIELD_LIMIT,
            errors="strict",
        )
    except ValueError as error:
        raise bad_request("The request cannot be read", reason="query-encoding") from error
    params = dict(pairs)
    if len(params) != len(pairs):
        raise bad_request(
            "The request says the same thing twice",
            reason="query-duplicate",
            detail="A parameter of the address is given more than once.",
        )
    return params


def html(
    document: str,
    branding: Branding | None = None,
    status: int = 200,
    *,
    has_own_script: bool = False,
    has_form: bool = False,
) -> Response:
    """A page with the headers that belong to it."""
    headers = dict(security_headers(branding, has_own_script=has_own_script, has_form=has_form))
    return HTMLResponse(document, status_code=status, headers=headers)


def page_or_json(
    call: Call, document: str, data: Mapping[str, object], *, has_own_script: bool = False
) -> Response:
    """The page, or the same as JSON for those who accept exactly that."""
    if wants_exact_json(call.header("accept")):
        return JSONResponse(dict(data), headers=dict(_base_headers()))
    return html(document, has_own_script=has_own_script)


def plain(text: str, status: int = 200) -> Response:
    """A text answer."""
    return PlainTextResponse(text, status_code=status, headers=dict(_base_headers()))


def probe_endpoints() -> tuple[Endpoint, ...]:
    """What balancers ask, under any name: whether there is somebody to answer."""
    return tuple(
        Endpoint(
            path,
            _alive,
            methods=("GET", "HEAD"),
            guard=Guard.OPEN,
            why="a constant",
            reads_query=False,
            any_host=True,
        )
        for path in ("/ping", "/healthz")
    )


async def _alive(_call: Call) -> Response:
    return plain("OK\n")


def redirect(url: str, *, set_cookies: Sequence[str] = ()) -> Response:
    """302 to `url`, never stored and telling the next site nothing about this one.

    `set_cookies` are whole Set-Cookie values.
    """
    assert not any(ord(character) <= 0x20 or ord(character) >= 0x7F for character in url)
    response = Response(status_code=HTTPStatus.FOUND, headers={"location": url, **_base_headers()})
    return with_cookies(response, set_cookies)


def with_cookies(response: Response, set_cookies: Sequence[str]) -> Response:
    """`response` with Set-Cookie lines added."""
    for line in set_cookies:
        response.headers.append("set-cookie", line)
    return response


def _base_headers() -> Mapping[str, str]:
    return {
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


def _refuse_other_origins(request: Request, host: str) -> None:
    """Fetch Metadata first, then Origin; a request that names neither is no browser's."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        allowed = site.lower() in _OWN_SITES
    else:
        allowed = origin is None or origin.lower() == f"https://{host}"
    if not allowed:
        raise bad_request(
            "This request came from another site",
            reason="cross-origin",
            detail="Changes are only accepted from the gateway's own pages.",
        )


def _unexpected() -> RefusedRequestError:
    return RefusedRequestError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "Something went wrong here",
        reason="unexpected",
        detail="The gateway met an error of its own.",
        next_steps=(
            "Try again in a moment.",
            "If it goes on, send the request ID below to your administrator.",
        ),
    )
