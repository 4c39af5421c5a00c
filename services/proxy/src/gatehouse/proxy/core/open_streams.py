"""What an open connection was allowed by, and the question that asks whether it still is.

Envoy asks authorize once, when a request comes. WebSockets, tunnels, events and other streams go on
after that; while one is open it is asked about again, with the same question, whenever something
its decision rests on has changed (design D5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from envoy.config.core.v3 import address_pb2, base_pb2
from envoy.service.auth.v3 import external_auth_pb2
from google.protobuf.struct_pb2 import Struct

from gatehouse.common.extauthz_context import (
    DECISION_ALLOW,
    DECISION_FIELD,
    ENVELOPE_FIELD,
    INTERNAL,
    ROUTE_CHECKSUM,
    ROUTE_ID,
)

# What Envoy is told of a connection that must end; it stands in the access log.
ACCESS_HAS_ENDED: Final = "access has ended"

# Attributes of Envoy's that the question is made of besides headers and metadata.
SOURCE_ADDRESS: Final = "source.address"
ROUTE_NAME: Final = "xds.route_name"

_ROUTE_NAME: Final = re.compile(r"policy-([0-9a-zA-Z_.-]+?)(?:-websocket)?")
_ADDRESS: Final = re.compile(r"\[?([0-9a-fA-F:.%]+?)\]?:(\d{1,5})")
_ROUNDED_MS: Final = 2  # lifetimes are in whole milliseconds, rounded down
_HEAD: Final = re.compile(r"(\d+) (\d+) ([\d:,;]*)\n")


@dataclass(frozen=True, slots=True)
class Grounds:
    """What an allow rests on: it stands while no key has changed after its version, and in time."""

    server_version: int
    ends_s: float  # monotonic
    versions: Mapping[int, int]  # by record key


def question(
    headers: Iterable[base_pb2.HeaderValue],
    attributes: Mapping[str, Struct],
    metadata: base_pb2.Metadata,
) -> external_auth_pb2.CheckRequest:
    """Envoy's question about a request, as ext_authz asks it, of what ext_proc tells.

    The checksum of the route is left open: it is that of the configuration in force when the
    question is put.
    """
    asked = external_auth_pb2.CheckRequest()
    http = asked.attributes.request.http
    for header in headers:
        value = header.raw_value.decode("utf-8", "replace") or header.value
        known = http.headers.get(header.key)
        http.headers[header.key] = value if known is None else f"{known},{value}"
    http.method = http.headers.get(":method", "")
    http.path = http.headers.get(":path", "")
    http.host = http.headers.get(":authority", "")
    http.scheme = http.headers.get(":scheme", "")
    source = _ADDRESS.fullmatch(_attribute(attributes, SOURCE_ADDRESS))
    if source is not None:
        asked.attributes.source.address.socket_address.CopyFrom(
            address_pb2.SocketAddress(address=source[1], port_value=int(source[2]))
        )
    asked.attributes.metadata_context.CopyFrom(metadata)
    route = _ROUTE_NAME.fullmatch(_attribute(attributes, ROUTE_NAME))
    context = asked.attributes.context_extensions
    context[INTERNAL] = "false"
    context[ROUTE_ID] = "" if route is None else route[1]
    context[ROUTE_CHECKSUM] = ""
    return asked


def _attribute(attributes: Mapping[str, Struct], name: str) -> str:
    """Envoy puts all that were asked for under the name of the filter."""
    for values in attributes.values():
        if name in values.fields:
            return str(values.fields[name].string_value)
    return ""


def is_allowed(answer: Any) -> bool:
    """Whether this CheckResponse is an allow: one that does not say so is none."""
    fields = answer.dynamic_metadata.fields
    return (
        answer.status.code == 0
        and not answer.HasField("denied_response")
        and not answer.HasField("error_response")
        and DECISION_FIELD in fields
        and fields[DECISION_FIELD].string_value == DECISION_ALLOW
    )


def grounds_of(answer: Any, answered_s: float) -> Grounds | None:
    """What an allow says that it rests on; None when it does not say (authorize, `envelope`).

    `answered_s`: monotonic time after the answer came. So its end is never before the moment that
    authorize meant: asked about a little early, it would be allowed once more.
    """
    fields = answer.dynamic_metadata.fields
    text = fields[ENVELOPE_FIELD].string_value if ENVELOPE_FIELD in fields else ""
    head = _HEAD.match(text)
    if head is None:
        return None
    versions: dict[int, int] = {}
    for part in filter(None, head[3].split(";")):
        version, _, keys = part.partition(":")
        for key in keys.split(","):
            versions[int(key)] = min(int(version), versions.get(int(key), int(version)))
    ends_s = answered_s + (int(head[2]) + _ROUNDED_MS) / 1000.0
    return Grounds(int(head[1]), ends_s, versions)


def is_contradicted(grounds: Grounds, server_version: int, slot_versions: Sequence[int]) -> bool:
    """Whether the change table knows of something that the allow was made without.

    `slot_versions` are the table's for `grounds.versions`, in order. Without a table
    (`server_version` 0) nothing is known.
    """
    if not server_version:
        return False
    return server_version != grounds.server_version or any(
        found > version
        for found, version in zip(slot_versions, grounds.versions.values(), strict=True)
    )
