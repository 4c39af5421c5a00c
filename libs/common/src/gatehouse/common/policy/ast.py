"""What a policy says: rules, operators and criteria as an immutable, hashable tree.

A tree has a canonical byte form, so that two processes can agree by checksum on which policy a
route has.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from gatehouse.common.policy.errors import PolicyError

Action: TypeAlias = Literal["allow", "deny"]
Operator: TypeAlias = Literal["and", "or", "not", "nor"]

ACTIONS: Final[tuple[Action, ...]] = ("allow", "deny")
OPERATORS: Final[tuple[Operator, ...]] = ("and", "or", "not", "nor")

MAX_DEPTH: Final = 32  # nesting of data; far beyond any real policy


class FrozenObject(Mapping[str, "Data"]):
    """An immutable JSON object that keeps the order of its keys."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Data]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: str) -> Data:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrozenObject) and same(self, other)

    def __hash__(self) -> int:
        return hash(_dump(self))

    def __repr__(self) -> str:
        return f"FrozenObject({self._items!r})"


Data: TypeAlias = "bool | int | float | str | tuple[Data, ...] | FrozenObject | None"


@dataclass(frozen=True, slots=True, eq=False)
class Criterion:
    """One test: a name, an optional sub-path (`claim/<sub-path>`) and its data.

    `path` says where it stands in the policy's text; it is no part of what the criterion means.
    """

    name: str
    sub_path: str
    data: Data
    path: tuple[str | int, ...] = ()

    def __eq__(self, other: object) -> bool:
        # 1, 1.0 and True are equal in Python and different things in a policy.
        return isinstance(other, Criterion) and _dump(_plain(self)) == _dump(_plain(other))

    def __hash__(self) -> int:
        return hash(_dump(_plain(self)))

    @property
    def key(self) -> str:
        """The name as it is written in a policy."""
        return f"{self.name}/{self.sub_path}" if self.sub_path else self.name


@dataclass(frozen=True, slots=True)
class Rule:
    """One action with its operators. Each non-empty operator is an alternative of its own."""

    action: Action
    and_: tuple[Criterion, ...] = ()
    or_: tuple[Criterion, ...] = ()
    not_: tuple[Criterion, ...] = ()
    nor: tuple[Criterion, ...] = ()

    def operators(self) -> tuple[tuple[Operator, tuple[Criterion, ...]], ...]:
        """The non-empty operators in evaluation order."""
        pairs: tuple[tuple[Operator, tuple[Criterion, ...]], ...] = (
            ("and", self.and_),
            ("or", self.or_),
            ("not", self.not_),
            ("nor", self.nor),
        )
        return tuple(pair for pair in pairs if pair[1])


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one route."""

    rules: tuple[Rule, ...] = ()

    def criteria(self) -> Iterator[Criterion]:
        """Every criterion, in order of appearance."""
        for rule in self.rules:
            for _, criteria in rule.operators():
                yield from criteria


def canonical(policy: Policy) -> bytes:
    """The same bytes for the same policy, in every process and version: input of checksums."""
    rules = [
        [rule.action, [[name, [_plain(c) for c in crits]] for name, crits in rule.operators()]]
        for rule in policy.rules
    ]
    return _dump(rules).encode()


def freeze(value: object, *, depth: int = 0) -> Data:
    """Decoded JSON or YAML as immutable data.

    YAML's dates become their ISO text, as in a conversion to JSON. PolicyError for what JSON cannot
    hold.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise PolicyError(f"unsupported number: {value}, expected a finite one")
        return value
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat()
    if depth >= MAX_DEPTH:
        raise PolicyError(f"nested too deeply, at most {MAX_DEPTH} levels are read")
    if isinstance(value, list | tuple):
        return tuple(freeze(item, depth=depth + 1) for item in value)
    if isinstance(value, Mapping):
        return FrozenObject(
            {key_text(key): freeze(item, depth=depth + 1) for key, item in value.items()}
        )
    raise PolicyError(
        f"unsupported value of type {type(value).__name__}, expected what JSON can hold"
    )


def key_text(key: object) -> str:
    """A mapping key as text; YAML also has numbers, booleans and null as keys."""
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool | int | float):
        return json.dumps(key)
    if isinstance(key, dt.datetime | dt.date):
        return key.isoformat()
    raise PolicyError(f"unsupported key of type {type(key).__name__}, expected a string")


def type_name(value: object) -> str:
    """JSON's name for the type of a value, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list | tuple):
        return "array"
    if isinstance(value, Mapping):
        return "object"
    return type(value).__name__


def same(left: Data, right: Data) -> bool:
    """Equality as the policy language has it: by type and value, numbers by value alone."""
    if isinstance(left, str) or isinstance(right, str):
        return left == right
    if left is None or right is None or isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, tuple):
        return (
            isinstance(right, tuple)
            and len(left) == len(right)
            and all(same(a, b) for a, b in zip(left, right, strict=True))
        )
    if isinstance(left, FrozenObject):
        return (
            isinstance(right, FrozenObject)
            and left.keys() == right.keys()
            and all(same(left[key], right[key]) for key in left)
        )
    return isinstance(right, int | float) and left == right


def _plain(criterion: Criterion) -> list[Any]:
    return [criterion.name, criterion.sub_path, criterion.data]


def _dump(value: object) -> str:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_object
    )


def _object(value: object) -> dict[str, object]:
    assert isinstance(value, FrozenObject), type(value)
    return dict(value)
