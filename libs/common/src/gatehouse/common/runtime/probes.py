"""The HTTP probes of a process: /startupz, /readyz, /healthz, /status (observability §5.1)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.health import CheckRecord, HealthRegistry, HealthSnapshot
from gatehouse.common.runtime.http_server import serve_http

_log = get_logger("health")

_HEADERS: Final = {"cache-control": "no-store"}


def build_probe_app(health: HealthRegistry) -> Starlette:
    """The ASGI application behind the probes. GET and HEAD only; anything else is 405."""

    async def startupz(_request: Request) -> Response:
        snapshot = health.snapshot()
        return _verdict(snapshot, good=snapshot.started)

    async def readyz(_request: Request) -> Response:
        snapshot = health.snapshot()
        return _verdict(snapshot, good=snapshot.ready)

    async def healthz(_request: Request) -> Response:
        # That this runs is the answer: the process is there and its event loop turns.
        return _verdict(health.snapshot(), good=True)

    async def status(_request: Request) -> Response:
        snapshot = health.snapshot()
        body = {
            "statuses": {name: entry(one) for name, one in sorted(snapshot.records.items())},
            "checks": list(snapshot.expected),
        }
        return _json(body, 200)

    return Starlette(
        routes=[
            Route("/startupz", startupz, methods=["GET"]),
            Route("/readyz", readyz, methods=["GET"]),
            Route("/healthz", healthz, methods=["GET"]),
            Route("/status", status, methods=["GET"]),
        ]
    )


async def serve_probes(
    address: str,
    health: HealthRegistry,
    stop: asyncio.Event,
    *,
    bound: Callable[[int], None] | None = None,
) -> None:
    """Serve the probes on `host:port` until `stop`.

    An address that cannot be had is a warning: the process then has no HTTP probes, and this
    returns. Raises InvalidArgumentError for an address that is none.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit() or not 0 <= int(port) < 65536:
        raise InvalidArgumentError(
            f"health_check_addr: {address!r} is not host:port, such as 127.0.0.1:28080"
        )
    from gatehouse.common.config.resolved import ListenAddress  # noqa: PLC0415  # heavy import

    where = ListenAddress(host.removeprefix("[").removesuffix("]"), int(port))
    try:
        await serve_http(
            build_probe_app(health),
            stop=stop,
            address=where,
            bound=bound,
            grace_s=1.0,
            max_body_bytes=0,
            request_timeout_s=5.0,
        )
    except OSError as error:
        _log.warning(
            "no health probes: the address cannot be used",
            key="health_check_addr",
            address=address,
            error=str(error),
        )


def entry(record: CheckRecord) -> dict[str, Any]:
    """A check as the probes show it."""
    shown: dict[str, Any] = {"status": record.status.value}
    if record.error:
        shown["error"] = record.error
    if record.attributes:
        shown["attributes"] = [
            {"Key": name, "Value": value} for name, value in sorted(record.attributes.items())
        ]
    return shown


def _verdict(snapshot: HealthSnapshot, *, good: bool) -> Response:
    """200 or 503 with every expected check; one that never reported shows UNAVAILABLE."""
    body: dict[str, Any] = {}
    for name in sorted({*snapshot.expected, *snapshot.records}):
        record = snapshot.records.get(name)
        body[name] = {"status": "UNAVAILABLE"} if record is None else entry(record)
    return _json(body, 200 if good else 503)


def _json(body: object, status: int) -> Response:
    text = json.dumps(body, ensure_ascii=False) + "\n"
    return Response(text, status, media_type="application/json", headers=_HEADERS)
