"""No setting becomes code inside Envoy."""

from __future__ import annotations

from typing import Any

from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)

from gatehouse.proxy.core.xds.resource import LISTENER, ROUTE_CONFIGURATION
from gatehouse.proxy.core.xds.snapshot import build_snapshot
from tests.support.envoy import environment, messages, resolved

CODE = 'x") os.execute("touch /owned") --]] end'


def scripts(config: dict[str, Any]) -> set[str]:
    """Every script of every listener; routes hold none of their own."""
    snapshot = build_snapshot(resolved(config), environment("/run/gatehouse"))
    found = messages(snapshot)
    assert b"envoy.extensions.filters.http.lua" not in b"".join(
        each.SerializeToString() for each in found[ROUTE_CONFIGURATION]
    )
    sources = set()
    for listener in found[LISTENER]:
        for chain in listener.filter_chains:
            manager = http_connection_manager_pb2.HttpConnectionManager()
            if not chain.filters[-1].typed_config.Unpack(manager):
                continue
            for http_filter in manager.http_filters:
                script = lua_pb2.Lua()
                if http_filter.typed_config.Unpack(script):
                    sources.add(script.default_source_code.inline_string)
                    assert not script.source_codes
    return sources


def test_r60_settings_never_become_lua() -> None:
    route = {
        "from": "http://a.example.com",
        "to": "http://127.0.0.1:1",
        "allow_public_unauthenticated_access": True,
    }
    plain = {"insecure_server": True, "access_log_fields": ["query"], "routes": [route]}
    hostile = plain | {
        "jwt_claims_headers": {"X-Claim": CODE},
        "set_response_headers": {"X-Global": CODE},
        "error_message_first_paragraph": CODE,
        "routes": [
            route
            | {
                "name": CODE,
                "prefix": f"/{CODE}",
                "set_request_headers": {"X-Set": CODE},
                "rewrite_response_headers": [{"header": "X-A", "prefix": CODE, "value": CODE}],
            }
        ],
    }
    assert scripts(hostile) == scripts(plain)
    assert scripts(plain)
