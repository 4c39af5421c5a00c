"""What can be asked of a running process that misbehaves: stacks, tasks, profiles, memory.

On `debug_address`, else on a Unix socket in the run directory. Nobody is asked for credentials, so
the address is for operators alone; nothing here shows a value from memory, only names and places.
With the flag `debug_admin_endpoints` also the settings, their secrets removed.
"""

from __future__ import annotations

import asyncio
import collections
import io
import json
import platform
import sys
import time
import traceback
import tracemalloc
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.config.resolved import ListenAddress, ResolvedSettings
from gatehouse.common.config.values import parse_host_port
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.observability.redaction import REDACTED, redact
from gatehouse.common.runtime.asgi_limits import App
from gatehouse.common.runtime.following import follow_settings
from gatehouse.common.runtime.http_server import serve_http

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MAX_SECONDS: Final = 60.0
_SAMPLE_S: Final = 0.01
_TOP: Final = 100
_ADMIN_FLAG: Final = "debug_admin_endpoints"
_HEADERS: Final = {"cache-control": "no-store"}

_log = get_logger("debug")


def build_debug_app(hub: ConfigHub) -> Starlette:
    """The ASGI application. One measurement at a time; a second one is 409."""
    busy = asyncio.Lock()

    def admin(answer: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(_request: Request) -> Response:
            if not hub.current.settings.runtime_flags[_ADMIN_FLAG]:
                return _text(f"set the runtime flag {_ADMIN_FLAG}\n", 404)
            return answer()

        return guarded

    async def measured(request: Request, measure: Callable[[float], str]) -> Response:
        try:
            seconds = float(request.query_params.get("seconds", "5"))
        except ValueError:
            seconds = -1.0
        if not 0 < seconds <= MAX_SECONDS:
            return _text(f"seconds: a number up to {MAX_SECONDS:g}\n", 400)
        if busy.locked():
            return _text("another measurement is under way\n", 409)
        async with busy:
            return _text(await asyncio.to_thread(measure, seconds))

    async def profile(request: Request) -> Response:
        return await measured(request, _profile)

    async def allocations(request: Request) -> Response:
        return await measured(request, _allocations)

    async def threads(_request: Request) -> Response:
        return _text(_threads())

    async def tasks(_request: Request) -> Response:
        return _text(_tasks())

    async def command_line(_request: Request) -> Response:
        return _text("\0".join(sys.orig_argv))

    routes: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/debug/py/threads": threads,
        "/debug/py/tasks": tasks,
        "/debug/py/profile": profile,
        "/debug/py/allocations": allocations,
        "/debug/pprof/cmdline": command_line,
    }
    index = "".join(f"{path}\n" for path in (*routes, "/config_dump", "/version"))
    routes |= {
        "/": admin(lambda: _text(index)),
        "/config_dump": admin(lambda: _text(config_dump(hub.current))),
        "/version": admin(
            lambda: JSONResponse(
                {"version": version("gatehouse"), "python": platform.python_version()},
                headers=_HEADERS,
            )
        ),
    }
    return Starlette(
        routes=[Route(path, handler, methods=["GET"]) for path, handler in routes.items()]
    )


async def serve_debug(hub: ConfigHub, socket: Path, stop: asyncio.Event) -> None:
    """Serve until `stop`. An address that cannot be had is an error in the log, not an end."""
    app = cast("App", build_debug_app(hub))

    async def listen(address: ListenAddress | None, ended: asyncio.Event) -> None:
        try:
            await serve_http(
                app,
                stop=ended,
                unix_socket=socket if address is None else None,
                address=address,
                grace_s=1.0,
                max_body_bytes=0,
                request_timeout_s=MAX_SECONDS + 10.0,
            )
        except OSError as error:
            _log.error("no debug server", key="debug_address", error=str(error))

    await follow_settings(hub, "debug", _address, listen, stop)


def config_dump(settings: ResolvedSettings) -> str:
    """The settings in force as JSON, without secrets and without what may hold them."""
    found: dict[str, Any] = settings.settings.model_dump(mode="json", exclude_unset=True)
    for route in (*found.get("routes", ()), *found.get("policy", ())):
        headers = route.get("set_request_headers")
        if headers:
            route["set_request_headers"] = dict.fromkeys(headers, REDACTED)
    shown = {"generation": settings.generation, "settings": redact(found, -8)}
    return json.dumps(shown, indent=2, ensure_ascii=False) + "\n"


def _address(settings: ResolvedSettings) -> ListenAddress | None:
    parsed = parse_host_port(settings.settings.debug_address)
    return None if parsed is None else ListenAddress(*parsed)


def _text(body: str, status: int = 200) -> Response:
    return PlainTextResponse(body, status, headers=_HEADERS)


def _threads() -> str:
    """Where each thread is."""
    out = io.StringIO()
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - the documented way
        out.write(f"thread {ident}\n")
        out.write("".join(traceback.StackSummary.extract(traceback.walk_stack(frame)).format()))
        out.write("\n")
    return out.getvalue()


def _tasks() -> str:
    """Where each task of this event loop waits."""
    out = io.StringIO()
    for task in sorted(asyncio.all_tasks(), key=lambda task: task.get_name()):
        out.write(f"task {task.get_name()}\n")
        task.print_stack(file=out)
        out.write("\n")
    return out.getvalue()


def _profile(seconds: float) -> str:
    """Folded stacks of all threads with how often each was seen, as flame graph tools take them."""
    seen: collections.Counter[str] = collections.Counter()
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        for frame in sys._current_frames().values():  # noqa: SLF001 - the documented way
            names = [
                f"{Path(each.f_code.co_filename).name}:{each.f_code.co_qualname}"
                for each, _ in traceback.walk_stack(frame)
            ]
            seen[";".join(reversed(names))] += 1
        time.sleep(_SAMPLE_S)
    return "".join(f"{stack} {count}\n" for stack, count in seen.most_common())


def _allocations(seconds: float) -> str:
    """The lines that allocated most of what is still held after so many seconds."""
    tracemalloc.start()
    try:
        time.sleep(seconds)
        snapshot = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    return "".join(f"{each}\n" for each in snapshot.statistics("lineno")[:_TOP])
