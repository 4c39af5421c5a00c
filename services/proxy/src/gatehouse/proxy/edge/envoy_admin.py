"""How the running Envoy is, asked and told things, over its admin socket."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from gatehouse.proxy.errors import EnvoyUnavailableError

_TIMEOUT_S: Final = 5.0
_MAX_BODY: Final = 64 << 20
# Requests under way, on all listeners of the main connection manager.
_ACTIVE_PATTERN: Final = r"^http\.ingress\.downstream_rq_active$"
_OVERLOAD_PATTERN: Final = r"^overload\.envoy\.overload_actions\..*\.scale_percent$"


class EnvoyAdmin:
    """A client of https://www.envoyproxy.io/docs/envoy/v1.40/operations/admin on a Unix socket.

    Every call has a deadline and raises EnvoyUnavailableError when Envoy does not answer 200.
    """

    def __init__(self, socket: Path) -> None:
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)),
            base_url="http://envoy-admin",
            timeout=_TIMEOUT_S,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def is_live(self) -> bool:
        """True when Envoy has its first configuration and serves (`/ready` says LIVE)."""
        try:
            return (await self._call("GET", "/ready")).strip() == b"LIVE"
        except EnvoyUnavailableError:
            return False

    async def drain(self) -> None:
        """Tell clients to go elsewhere: GOAWAY, `connection: close`; what runs goes on.

        A listener drain alone says so to a share of the responses that grows over the drain time;
        a failed health check makes it all of them.
        """
        await self._call("POST", "/healthcheck/fail")
        await self._call("POST", "/drain_listeners?graceful")

    async def active_requests(self) -> int:
        """How many requests and open tunnels the public listeners carry now."""
        stats = await self.stats(_ACTIVE_PATTERN)
        return sum(stats.values())

    async def has_healthy_host(self, cluster: str) -> bool:
        """True when some address of the cluster may be sent requests; False also without Envoy."""
        name = f"cluster.{cluster}.membership_healthy"
        try:
            found = await self.stats(f"^{re.escape(name)}$")
        except EnvoyUnavailableError:
            return False
        return found.get(name, 0) > 0

    async def stats(self, pattern: str) -> dict[str, int]:
        """Counters and gauges whose name matches the regular expression."""
        body = await self._call("GET", "/stats", params={"filter": pattern, "format": "json"})
        found: dict[str, int] = {}
        for entry in json.loads(body).get("stats", ()):
            if "name" in entry and isinstance(entry.get("value"), int):
                found[entry["name"]] = entry["value"]
        return found

    async def overload_actions(self) -> dict[str, int]:
        """How far Envoy takes each of its actions against overload, in percent."""
        stats = await self.stats(_OVERLOAD_PATTERN)
        return {name.split(".")[-2]: value for name, value in stats.items()}

    async def prometheus(self) -> bytes:
        """Everything that Envoy counts, as Prometheus text; the caller sets the time."""
        return await self._call("GET", "/stats/prometheus", timeout_s=None)

    async def warming_clusters(self) -> frozenset[str]:
        """Clusters that Envoy was given and does not use yet."""
        body = await self._call(
            "GET",
            "/config_dump",
            params={"resource": "dynamic_warming_clusters", "mask": "cluster.name"},
        )
        names: set[str] = set()
        for entry in json.loads(body).get("configs", ()):
            cluster: dict[str, Any] = entry.get("cluster") or {}
            if "name" in cluster:
                names.add(cluster["name"])
        return frozenset(names)

    async def listeners(self) -> frozenset[str]:
        """Listeners that have their addresses and serve."""
        body = await self._call("GET", "/listeners", params={"format": "json"})
        return frozenset(entry["name"] for entry in json.loads(body).get("listener_statuses", ()))

    async def set_log_level(self, level: str) -> None:
        """Change the level of all of Envoy's loggers."""
        await self._call("POST", "/logging", params={"level": level})

    async def config_dump(self) -> dict[str, Any]:
        """The whole configuration in force."""
        loaded: dict[str, Any] = json.loads(await self._call("GET", "/config_dump"))
        return loaded

    async def _call(
        self,
        method: str,
        path: str,
        params: dict[str, str] | None = None,
        timeout_s: float | None = _TIMEOUT_S,
    ) -> bytes:
        body = bytearray()
        try:
            async with self._client.stream(
                method, path, params=params, timeout=timeout_s
            ) as response:
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > _MAX_BODY:
                        raise EnvoyUnavailableError(f"envoy admin {path}: the answer is too big")
        except httpx.HTTPError as error:
            raise EnvoyUnavailableError(f"envoy admin {path}: {type(error).__name__}") from error
        if response.status_code != httpx.codes.OK:
            raise EnvoyUnavailableError(f"envoy admin {path}: HTTP {response.status_code}")
        return bytes(body)
