"""An HTTP/3 client: a second Envoy that hands on what it hears in HTTP/1.1."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gatehouse.proxy.edge.envoy_binary import find_envoy_binary
from tests.support.ports import free_ports
from tests.support.traffic import Connection, eventually

_API = "type.googleapis.com/envoy"


def _config(
    port: int,
    target: int,
    authority: Path,
    server_name: str,
    client: Path | None,
    adds: Mapping[str, str],
) -> dict[str, Any]:
    common: dict[str, Any] = {"validation_context": {"trusted_ca": {"filename": str(authority)}}}
    if client is not None:
        source = {"filename": str(client)}
        common["tls_certificates"] = [{"certificate_chain": source, "private_key": source}]
    tls = {"sni": server_name, "common_tls_context": common}
    manager = {
        "@type": f"{_API}.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "bridge",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "http3"}}],
                    "request_headers_to_add": [
                        {
                            "header": {"key": name, "value": value},
                            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                        }
                        for name, value in adds.items()
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_API}.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    cluster = {
        "name": "http3",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": "http3",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(target)}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_API}.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http3_protocol_options": {}},
            }
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.quic",
            "typed_config": {
                "@type": f"{_API}.extensions.transport_sockets.quic.v3.QuicUpstreamTransport",
                "upstream_tls_context": tls,
            },
        },
    }
    chain = {
        "filters": [
            {
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": manager,
            }
        ]
    }
    listener = {"name": "bridge", "address": _address(port), "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


@contextlib.contextmanager
def http3_bridge(
    target: int,
    authority: Path,
    server_name: str,
    client: Path | None = None,
    adds: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """A loopback port whose HTTP/1.1 requests go to UDP port `target` as HTTP/3.

    `client`: a PEM file of the client's certificate and key. `adds`: headers put on each request.
    """
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="gh-") as directory:
        path = Path(directory) / "bridge.json"
        path.write_text(
            json.dumps(_config(port, target, authority, server_name, client, adds or {}))
        )
        log = Path(directory) / "bridge.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [
                    *(str(find_envoy_binary()), "-c", str(path), "--disable-hot-restart"),
                    *("--concurrency", "1", "--log-level", "warning"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=sink,
            )

        def listening() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                Connection(port, None).close()
            except OSError:
                return False
            return True

        try:
            eventually(listening)
            yield port
        finally:
            process.terminate()
            process.wait(10)
