"""Who may read this process's metrics, and where: `/metrics` and `/metrics/envoy`.

Beside an Envoy the pages stand on a Unix socket behind its metrics listener, which does TLS.
Elsewhere this listens on `metrics_address` itself. Never on a public listener.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.config.resolved import MetricsListener, ResolvedSettings, ServiceName
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.observability.metrics_page import (
    BUDGET_S,
    CONTENT_TYPE,
    Fetch,
    MetricsPage,
    MetricsSources,
    extra_labels,
    own_page,
)
from gatehouse.common.runtime.asgi_limits import App
from gatehouse.common.runtime.context import ProcessContext
from gatehouse.common.runtime.following import follow_settings
from gatehouse.common.runtime.http_server import ServerTls, serve_http

_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}

_log = get_logger("metrics")


def build_metrics_app(hub: ConfigHub, sources: MetricsSources) -> Starlette:
    """The ASGI application: both pages, for those who may."""
    page = MetricsPage(sources)

    async def merged(request: Request) -> Response:
        settings = hub.current
        if not _may_read(settings.metrics, request):
            return _unauthorized()
        labels = extra_labels(
            settings.settings.installation_id,
            wanted=settings.settings.runtime_flags["add_extra_metrics_labels"],
        )
        try:
            return _text(await page.merged(labels, telemetry_name(settings)))
        except TimeoutError:
            return Response("The page took too long.\n", 503, headers=_HEADERS)

    async def envoy(request: Request) -> Response:
        if not _may_read(hub.current.metrics, request):
            return _unauthorized()
        return _text(await page.envoy())

    return Starlette(
        routes=[
            Route("/metrics", merged, methods=["GET"]),
            Route("/metrics/envoy", envoy, methods=["GET"]),
        ]
    )


async def serve_worker_metrics(context: ProcessContext, stop: asyncio.Event) -> None:
    """What a worker of this process has counted, for the process that started it."""

    async def page(_request: Request) -> Response:
        return _text(await asyncio.to_thread(own_page))

    await serve_http(
        cast("App", Starlette(routes=[Route("/", page, methods=["GET"])])),
        stop=stop,
        unix_socket=_worker_socket(context, context.worker),
        grace_s=0.5,
        max_body_bytes=0,
    )


def worker_page(context: ProcessContext, number: int) -> Fetch:
    """Asks the worker of that number for its page."""
    socket = str(_worker_socket(context, number))

    async def fetch() -> bytes:
        transport = httpx.AsyncHTTPTransport(uds=socket)
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            answer = await client.get("http://worker/")
            answer.raise_for_status()
            return answer.content

    return fetch


def _worker_socket(context: ProcessContext, number: int) -> Path:
    return context.run_dir / f"metrics-worker-{number}.sock"


def telemetry_name(settings: ResolvedSettings) -> str:
    """What this process is called in metrics and traces, and to Envoy."""
    if len(settings.services) == 1:
        (service,) = settings.services
        return f"pomerium-{service}"
    return "pomerium"


async def serve_metrics(
    hub: ConfigHub,
    sources: MetricsSources,
    stop: asyncio.Event,
    *,
    socket: Path,
    key_dir: Path,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until `stop`. An address that cannot be had is an error in the log, not an end."""
    app = cast("App", build_metrics_app(hub, sources))
    if hub.current.runs(ServiceName.PROXY):
        await serve_http(
            app,
            stop=stop,
            unix_socket=socket,
            ready=ready,
            grace_s=1.0,
            max_body_bytes=0,
            request_timeout_s=BUDGET_S + 5.0,
        )
        return
    ready()

    async def listen(wanted: MetricsListener | None, ended: asyncio.Event) -> None:
        if wanted is not None:
            await _listen(app, wanted, ended, key_dir)

    await follow_settings(hub, "metrics", lambda settings: settings.metrics, listen, stop)


async def _listen(app: App, wanted: MetricsListener, stop: asyncio.Event, key_dir: Path) -> None:
    tls: ServerTls | None = None
    if wanted.certificate is not None:
        tls = ServerTls((wanted.certificate,), key_dir, client_ca_pem=wanted.client_ca_pem)
    assert tls is not None or wanted.client_ca_pem is None
    try:
        await serve_http(
            app,
            stop=stop,
            address=wanted.address,
            tls=tls,
            grace_s=1.0,
            max_body_bytes=0,
            request_timeout_s=BUDGET_S + 5.0,
        )
    except OSError as error:
        _log.error("no metrics", key="metrics_address", error=str(error))


def _may_read(listener: MetricsListener | None, request: Request) -> bool:
    """True with the right credentials, or when none are asked for."""
    if listener is None:
        return False  # nobody has said that metrics may be read
    if listener.basic_auth is None:
        return True
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    try:
        shown = base64.b64decode(credentials.strip(), validate=True)
    except (binascii.Error, ValueError):
        shown = b""
    same = hmac.compare_digest(shown, listener.basic_auth)
    return same and scheme.lower() == "basic"


def _unauthorized() -> Response:
    challenge = {"www-authenticate": 'Basic realm="metrics", charset="UTF-8"'}
    return Response("", 401, headers={**_HEADERS, **challenge})


def _text(page: bytes) -> Response:
    return Response(page, headers={**_HEADERS, "content-type": CONTENT_TYPE})
