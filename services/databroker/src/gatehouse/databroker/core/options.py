"""Which rules hold for the records of a type: capacity, time to live, indexed fields.

Options are set by clients per type; some types of our own have built-in ones, which stand in
wherever nothing was set (spec: databroker, types with server-set options).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.pb.databroker_pb2 import Options

MAX_INDEXED_FIELDS: Final = 16
MAX_FIELD_BYTES: Final = 256
_MAX_CAPACITY: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class TypeRules:
    """The options of one record type. `ttl_us` is in microseconds."""

    capacity: int | None = None
    ttl_us: int | None = None
    indexed: tuple[str, ...] = ()

    def to_message(self) -> Options:
        """Return the wire form."""
        options = Options(indexable_fields=self.indexed)
        if self.capacity is not None:
            options.capacity = self.capacity
        if self.ttl_us is not None:
            seconds, micros = divmod(self.ttl_us, 1_000_000)
            options.ttl.seconds = seconds
            options.ttl.nanos = micros * 1_000
        return options


NO_RULES: Final = TypeRules()

_MINUTE_US: Final = 60 * 1_000_000
_EVENTS_KEPT: Final = 50
_PREFIX: Final = "type.googleapis.com/"

BUILT_IN: Final[Mapping[str, TypeRules]] = {
    # `expires_at` is indexed by its text, for equality; sweeps by range are not offered yet.
    f"{_PREFIX}session.Session": TypeRules(
        indexed=("user_id", "expires_at", "idp_session_id", "id_token.subject")
    ),
    f"{_PREFIX}session.SessionBindingRequest": TypeRules(50_000, 15 * _MINUTE_US, ("key",)),
    f"{_PREFIX}session.SessionBinding": TypeRules(indexed=("session_id", "user_id")),
    f"{_PREFIX}session.IdentityBinding": TypeRules(indexed=("user_id",)),
    f"{_PREFIX}oauth21.UpstreamMCPToken": TypeRules(indexed=("user_id", "route_id")),
    f"{_PREFIX}oauth21.PendingUpstreamAuth": TypeRules(None, 15 * _MINUTE_US, ("state_id",)),
    f"{_PREFIX}pomerium.events.EnvoyConfigurationEvent": TypeRules(_EVENTS_KEPT),
    f"{_PREFIX}pomerium.events.LastError": TypeRules(_EVENTS_KEPT),
}


def accept_options(options: Options) -> TypeRules:
    """Check options that a client sets. Raises InvalidArgumentError."""
    capacity: int | None = None
    if options.HasField("capacity"):
        capacity = options.capacity
        if capacity > _MAX_CAPACITY:
            raise InvalidArgumentError(f"options.capacity is over {_MAX_CAPACITY}")
    ttl_us: int | None = None
    if options.HasField("ttl"):
        ttl_us = options.ttl.seconds * 1_000_000 + options.ttl.nanos // 1_000
        if ttl_us <= 0:
            raise InvalidArgumentError("options.ttl must be longer than nothing, or not set")
    fields = tuple(dict.fromkeys(options.indexable_fields))
    if len(fields) > MAX_INDEXED_FIELDS:
        raise InvalidArgumentError(
            f"options.indexable_fields names {len(fields)} fields; at most {MAX_INDEXED_FIELDS}"
        )
    for field in fields:
        if not field or "\x00" in field or len(field.encode()) > MAX_FIELD_BYTES:
            raise InvalidArgumentError(
                "options.indexable_fields holds a name that is empty, over "
                f"{MAX_FIELD_BYTES} bytes or with a NUL; a field path is wanted"
            )
        if field.startswith("$") or field in {"id", "type"}:
            raise InvalidArgumentError(
                f"options.indexable_fields: {field!r} needs no index of its own"
            )
    return TypeRules(capacity, ttl_us, fields)


def effective(type_: str, stored: TypeRules | None) -> TypeRules | None:
    """Return the rules in force: what was set, else what is built in, else None."""
    return stored if stored is not None else BUILT_IN.get(type_)
