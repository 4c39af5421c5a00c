"""The global response headers, where no Envoy stands in front to add them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final

from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.runtime.asgi_limits import App

_DISABLE: Final = "disable"
_DEFAULT: Final = {"x-frame-options": "SAMEORIGIN", "x-xss-protection": "1; mode=block"}
_HSTS: Final = {"strict-transport-security": "max-age=31536000; includeSubDomains; preload"}


def global_headers(settings: ResolvedSettings) -> Mapping[str, str]:
    """`set_response_headers`, or the default ones; names in lower case.

    HSTS is promised only with a configured certificate: a browser that remembers it for a host
    with a self-made one would lock its user out.
    """
    custom = settings.settings.set_response_headers
    if custom:
        lowered = {name.lower(): value for name, value in custom.items()}
        return {} if _DISABLE in lowered else lowered
    if settings.certificates and not settings.settings.autocert_use_staging:
        return _DEFAULT | _HSTS
    return _DEFAULT


def with_global_headers(app: App, settings_of: Callable[[], ResolvedSettings]) -> App:
    """`app` with the global headers on every response, replacing its own of the same name."""

    async def wrapped(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = {
                    name.encode("latin-1"): value.encode("latin-1")
                    for name, value in global_headers(settings_of()).items()
                }
                kept = [pair for pair in message.get("headers", ()) if pair[0] not in added]
                message["headers"] = [*kept, *added.items()]
            await send(message)

        await app(scope, receive, send_with_headers)

    return wrapped
