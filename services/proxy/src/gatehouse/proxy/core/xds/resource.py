"""What one xDS resource is, and which types there are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from gatehouse.common.ids import TypeUrl

SECRET: Final = TypeUrl("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret")
CLUSTER: Final = TypeUrl("type.googleapis.com/envoy.config.cluster.v3.Cluster")
LISTENER: Final = TypeUrl("type.googleapis.com/envoy.config.listener.v3.Listener")
ROUTE_CONFIGURATION: Final = TypeUrl("type.googleapis.com/envoy.config.route.v3.RouteConfiguration")

# The order in which additions are pushed; removals go the other way round. A cluster that names a
# secret is used once it has it.
PUSH_ORDER: Final = (CLUSTER, SECRET, LISTENER, ROUTE_CONFIGURATION)

# How the types are called in health checks and logs.
SHORT_NAMES: Final[Mapping[TypeUrl, str]] = {
    CLUSTER: "cluster",
    SECRET: "other",
    LISTENER: "listener",
    ROUTE_CONFIGURATION: "route-configuration",
}

ResourceMap = Mapping[str, "Resource"]


@dataclass(frozen=True, slots=True)
class Resource:
    """A named resource in its final bytes. `version` changes exactly when the bytes do."""

    type_url: TypeUrl
    name: str
    version: str
    body: bytes

    def __repr__(self) -> str:
        return f"Resource({SHORT_NAMES.get(self.type_url, self.type_url)} {self.name!r})"


def serialize(message: Message) -> bytes:
    """Bytes that are equal for equal messages, whatever the order their maps were filled in."""
    return message.SerializeToString(deterministic=True)


def embedded(number: int, body: bytes) -> bytes:
    """`body`, a serialized message, as field `number` of another one.

    Protobuf's encoding of a length-delimited record: messages made of the same parts again and
    again are put together from bytes, without being parsed and serialized each time.
    """
    head = bytearray()
    for value in (number << 3 | 2, len(body)):
        left = value
        while left > 0x7F:
            head.append(left & 0x7F | 0x80)
            left >>= 7
        head.append(left)
    return bytes(head) + body


def digest(data: bytes) -> str:
    """A 16-hex-digit name for some bytes (SHA-256, cut)."""
    return hashlib.sha256(data).hexdigest()[:16]


def packed(message: Message) -> AnyMessage:
    """`message` in an Any, deterministically; `Any.Pack` alone leaves map order to chance."""
    result = AnyMessage()
    result.type_url = f"type.googleapis.com/{message.DESCRIPTOR.full_name}"
    result.value = serialize(message)
    return result


def resource_of(message: Message, name: str) -> Resource:
    """The resource that `message` is."""
    type_url = TypeUrl(f"type.googleapis.com/{message.DESCRIPTOR.full_name}")
    return resource_from(type_url, name, serialize(message))


def resource_from(type_url: TypeUrl, name: str, body: bytes) -> Resource:
    """The resource whose bytes are known."""
    return Resource(type_url=type_url, name=name, version=digest(body), body=body)
