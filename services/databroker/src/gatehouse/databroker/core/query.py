"""Which records a filter picks, and where a store must look for them.

A filter is a JSON object (spec: databroker, filters and indexes): keys are AND-ed, a list means OR,
nesting joins the path; `$and`, `$or`, `$not` and equality are offered, the other operators of the
language are known and answered with Unimplemented. `narrow` turns an expression into the ids and
index terms that any match must have, so that a store need not look at every record.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from google.protobuf import struct_pb2
from google.protobuf.message import Message

from gatehouse.common.errors import (
    InvalidArgumentError,
    ResourceExhaustedError,
    UnimplementedError,
)
from gatehouse.databroker.core.payload import decode, number_text, strings, struct_text, text_at
from gatehouse.databroker.core.records import StoredRecord

MAX_DEPTH: Final = 32
MAX_TERMS: Final = 1_000
MAX_LIMIT: Final = 1_000
MAX_SCANNED: Final = 10_000  # records looked at without an index to narrow them
MAX_REPLY_BYTES: Final = 15 << 20  # under the largest message of our channels

CIDR_FIELD: Final = "$index"
EXACT: Final = 129  # longer than any prefix: a match by something else than a prefix

_EQUALITY: Final = frozenset({"$eq", "=", "==", "$equals", "$is"})
_NOT_OFFERED: Final = frozenset(
    {
        "$after", "$before", "$contains", "$doesNotContain", "!=", "$doesNotEqual", "$endsWith",
        ">", "$gt", ">=", "$gte", "$isAnyOf", "$isEmpty", "$isNotEmpty", "<", "$lt", "<=", "$lte",
        "$ne", "$onOrAfter", "$onOrBefore", "$startsWith",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Equals:
    """The text at a dotted path equals `value`."""

    path: str
    value: str


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every part matches; so does no part at all."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one part matches."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not match."""

    part: Expression


Expression = Equals | AllOf | AnyOf | Not
EVERYTHING: Final = AllOf(())

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Selection:
    """Records with one of these ids or one of these (field, value) index terms."""

    ids: frozenset[str] = frozenset()
    terms: frozenset[tuple[str, str]] = frozenset()

    def union(self, other: Selection) -> Selection:
        """Return what either selects."""
        return Selection(self.ids | other.ids, self.terms | other.terms)


def parse_filter(value: struct_pb2.Struct) -> Expression:
    """Read a filter. Raises InvalidArgumentError or UnimplementedError."""
    return _Parser().fields(value, (), 0)


class _Parser:
    def __init__(self) -> None:
        self._terms = 0

    def fields(self, value: struct_pb2.Struct, path: tuple[str, ...], depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise InvalidArgumentError(f"filter is nested deeper than {MAX_DEPTH} levels")
        parts = tuple(
            self._key(key, value.fields[key], path, depth) for key in sorted(value.fields)
        )
        return parts[0] if len(parts) == 1 else AllOf(parts)

    def _key(
        self, key: str, value: struct_pb2.Value, path: tuple[str, ...], depth: int
    ) -> Expression:
        if key in {"$and", "$or"}:
            if value.WhichOneof("kind") != "list_value":
                raise InvalidArgumentError(f"filter: {key} wants a list")
            parts = tuple(self._value(item, path, depth + 1) for item in value.list_value.values)
            return AllOf(parts) if key == "$and" else AnyOf(parts)
        if key == "$not":
            return Not(self._value(value, path, depth + 1))
        if key in _EQUALITY:
            return self._value(value, path, depth + 1)
        if key in _NOT_OFFERED:
            raise UnimplementedError(
                f"filter: operator {key} is not offered; only equality, $and, $or and $not are"
            )
        if key.startswith("$") and key != CIDR_FIELD:
            raise InvalidArgumentError(f"filter: unknown operator {key}")
        if not key:
            raise InvalidArgumentError("filter: an empty field name")
        return self._value(value, (*path, key), depth + 1)

    def _value(self, value: struct_pb2.Value, path: tuple[str, ...], depth: int) -> Expression:
        match value.WhichOneof("kind"):
            case "struct_value":
                return self.fields(value.struct_value, path, depth)
            case "list_value":
                if depth > MAX_DEPTH:
                    raise InvalidArgumentError(f"filter is nested deeper than {MAX_DEPTH} levels")
                items = value.list_value.values
                return AnyOf(tuple(self._value(item, path, depth + 1) for item in items))
            case "string_value":
                text = value.string_value.replace("\x00", "")
            case "number_value":
                text = number_text(value.number_value)
            case "bool_value":
                text = "true" if value.bool_value else "false"
            case _:
                raise InvalidArgumentError("filter: null is not a value to compare with")
        if not path:
            raise InvalidArgumentError("filter: a value without the field that it is for")
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise InvalidArgumentError(f"filter has more than {MAX_TERMS} comparisons")
        return Equals(".".join(path), text)


def narrow(expression: Expression, indexed: Collection[str]) -> Selection | None:
    """Return what every match must have, given the type's indexed fields; None: could be any."""
    match expression:
        case Equals("id", value):
            return Selection(ids=frozenset({value}))
        case Equals(path, value) if path == CIDR_FIELD:
            return Selection(terms=frozenset((CIDR_FIELD, text) for text in containing(value)))
        case Equals(path, value) if path in indexed:
            return Selection(terms=frozenset({(path, value)}))
        case AnyOf(parts):
            selection = Selection()
            for part in parts:
                narrowed = narrow(part, indexed)
                if narrowed is None:
                    return None
                selection = selection.union(narrowed)
            return selection
        case AllOf(parts):
            narrowed_parts = [item for part in parts if (item := narrow(part, indexed)) is not None]
            return min(narrowed_parts, key=_cost, default=None)
        case _:
            return None


def _cost(selection: Selection) -> tuple[int, int]:
    return len(selection.terms), len(selection.ids)


def index_terms(data: bytes, indexed: Iterable[str]) -> frozenset[tuple[str, str]]:
    """Return the (field, value) index terms of a serialized payload."""
    message = decode(data)
    if message is None:
        return frozenset()
    terms = {(path, text) for path in indexed if (text := text_at(message, path))}
    network = _network(message)
    if network is not None:
        terms.add((CIDR_FIELD, str(network)))
    return frozenset(terms)


def containing(value: str) -> Iterator[str]:
    """Yield every prefix that contains an IP address or prefix, the longest first."""
    network = parse_network(value)
    if network is None:
        return
    for length in range(network.prefixlen, -1, -1):
        yield str(network.supernet(new_prefix=length))


def parse_network(value: str) -> Network | None:
    """Return an address or prefix in its canonical form; host bits are dropped."""
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        return None
    if isinstance(network, ipaddress.IPv6Network):
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= 96:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def _network(message: Message) -> Network | None:
    text = struct_text(message, (CIDR_FIELD, "cidr"))
    return None if text is None else parse_network(text)


@dataclass(slots=True)
class _View:
    """A record that is decoded only when a comparison looks into it."""

    record: StoredRecord
    _message: Message | None = None
    _is_decoded: bool = False

    @property
    def message(self) -> Message | None:
        if not self._is_decoded:
            self._message = decode(self.record.data)
            self._is_decoded = True
        return self._message

    @property
    def network(self) -> Network | None:
        return None if self.message is None else _network(self.message)

    def matches(self, expression: Expression) -> bool:
        match expression:
            case Equals("id", value):
                return self.record.id == value
            case Equals("type", value):
                return self.record.type == value
            case Equals(path, value) if path == CIDR_FIELD:
                return self._contains(value)
            case Equals(path, value):
                return self.message is not None and text_at(self.message, path) == value
            case AllOf(parts):
                return all(self.matches(part) for part in parts)
            case AnyOf(parts):
                return any(self.matches(part) for part in parts)
            case Not(part):
                return not self.matches(part)

    def _contains(self, value: str) -> bool:
        mine, wanted = self.network, parse_network(value)
        if isinstance(mine, ipaddress.IPv4Network) and isinstance(wanted, ipaddress.IPv4Network):
            return wanted.subnet_of(mine)
        if isinstance(mine, ipaddress.IPv6Network) and isinstance(wanted, ipaddress.IPv6Network):
            return wanted.subnet_of(mine)
        return False

    def specificity(self, addresses: Collection[str]) -> int:
        network = self.network
        if network is not None and any(self._contains(value) for value in addresses):
            return network.prefixlen
        return EXACT


def _addresses(expression: Expression) -> Iterator[str]:
    match expression:
        case Equals(path, value) if path == CIDR_FIELD:
            yield value
        case AllOf(parts) | AnyOf(parts):
            for part in parts:
                yield from _addresses(part)
        case Not(part):
            yield from _addresses(part)
        case _:
            return


@dataclass(frozen=True, slots=True)
class Query:
    """What a client asks for. `text` is the lowercased search text; "" searches for nothing."""

    type: str  # "": all types
    expression: Expression
    text: str
    offset: int
    limit: int

    @property
    def is_listing(self) -> bool:
        """True when every record of the type is a match."""
        return self.expression == EVERYTHING and not self.text


def accept_query(
    *, type_: str, filter_: struct_pb2.Struct, text: str, offset: int, limit: int
) -> Query:
    """Check a client's query. Raises InvalidArgumentError or UnimplementedError."""
    if offset < 0:
        raise InvalidArgumentError(f"offset is {offset}; it must be 0 or more")
    if not 0 <= limit <= MAX_LIMIT:
        raise InvalidArgumentError(
            f"limit is {limit}; it must be 1 to {MAX_LIMIT}, or 0 for the count alone"
        )
    return Query(type_, parse_filter(filter_), text.lower(), offset, limit)


@dataclass(slots=True)
class QueryResults:
    """Takes in candidates in (type, id) order and keeps the window that was asked for.

    With `$index` in the filter the most specific prefix comes first; otherwise the order is that of
    the candidates. A text search looks at no more than MAX_SCANNED records unless it is narrowed; a
    filter that would have to is refused instead, since an incomplete answer would be a wrong one.
    """

    query: Query
    is_narrowed: bool
    total: int = 0
    is_complete: bool = False  # no more candidates are wanted
    _scanned: int = 0
    _bytes: int = 0
    _kept: list[tuple[int, StoredRecord]] = field(default_factory=list)
    _addresses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._addresses = tuple(_addresses(self.query.expression))

    def add(self, record: StoredRecord) -> None:
        """Look at the next candidate. Raises ResourceExhaustedError."""
        if self.is_complete:
            return
        self._scanned += 1
        if self._scanned > MAX_SCANNED and not self.is_narrowed:
            if not self.query.text:
                raise ResourceExhaustedError(
                    f"the filter would look at more than {MAX_SCANNED} records; filter by id or "
                    "by a field that SetOptions indexes",
                    reason="scan-too-large",
                )
            self.is_complete = True
            return
        view = _View(record)
        if not view.matches(self.query.expression) or not self._has_text(view):
            return
        self.total += 1
        if self._addresses:
            if self.total > MAX_SCANNED:
                raise ResourceExhaustedError(
                    f"more than {MAX_SCANNED} records match the $index filter",
                    reason="scan-too-large",
                )
            self._kept.append((-view.specificity(self._addresses), record))
        elif self.query.offset < self.total <= self.query.offset + self.query.limit:
            self._keep(record)

    def _keep(self, record: StoredRecord) -> None:
        self._bytes += len(record.data)
        if self._bytes > MAX_REPLY_BYTES:
            raise ResourceExhaustedError(
                f"the reply would be over {MAX_REPLY_BYTES} bytes; ask for fewer records at a time",
                reason="reply-too-large",
            )
        self._kept.append((0, record))

    def _has_text(self, view: _View) -> bool:
        if not self.query.text:
            return True
        if view.message is None:
            return False
        return any(self.query.text in text.lower() for text in strings(view.message))

    def records(self) -> tuple[StoredRecord, ...]:
        """Return the window."""
        if not self._addresses:
            return tuple(record for _, record in self._kept)
        ordered = sorted(self._kept, key=lambda item: (item[0], item[1].key))
        window = ordered[self.query.offset : self.query.offset + self.query.limit]
        self._kept = []
        for _, record in window:
            self._keep(record)
        return tuple(record for _, record in window)
