"""What the `record` criterion may say about a record that an external data source keeps.

Which record is meant follows from who asks: its id is the user's id, or their email when
`foreign_key` says so. docs/policy.md has every edge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast

from gatehouse.common.policy.ast import Data, FrozenObject, same, type_name
from gatehouse.common.policy.errors import PolicyError
from gatehouse.common.policy.matchers import (
    ListTest,
    parse_list_matcher,
    parse_string_matcher,
)
from gatehouse.common.policy.matching import list_test, string_test

ForeignKey: TypeAlias = Literal["user.id", "user.email"]
Values: TypeAlias = "tuple[Data, ...] | None"  # None: no such record, or no such field in it
ValueTest: TypeAlias = Callable[[Data], bool]

_FOREIGN_KEYS: Final[tuple[ForeignKey, ...]] = ("user.id", "user.email")
_LIST_OPERATORS: Final = frozenset({"has", "is", "exclude"})
_STRING_OPERATORS: Final = frozenset(
    {"not", "starts_with", "ends_with", "contains", "in", "not_in"}
)
_COMPARISONS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<": lambda value, operand: value < operand,
    "<=": lambda value, operand: value <= operand,
    "=": lambda value, operand: value == operand,
    ">": lambda value, operand: value > operand,
    ">=": lambda value, operand: value >= operand,
}
# Records with a protobuf message of their own hold tokens and keys: no business of a policy.
_OWN_TYPES: Final = "type.googleapis.com/"
_MAX_TYPE: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class RecordMatcher:
    """One field of one record type, and what it must be. `tests` get the field's value."""

    type: str
    field: str
    foreign_key: ForeignKey
    exists: bool | None  # None: not asked
    tests: tuple[ValueTest, ...]

    def matches(self, record: FrozenObject | None) -> bool:
        """True when the record passes. Without the field only `exists: false` does."""
        value = None if record is None else field_of(record, self.field)
        if value is None:
            return self.exists is False and not self.tests
        return self.exists is not False and all(test(value) for test in self.tests)


def parse_record_matcher(data: Data) -> RecordMatcher:
    """`{type, field, foreign_key?, <operators>}`. At least one operator."""
    if not isinstance(data, FrozenObject):
        raise PolicyError(f"expected object for record criterion, got: {type_name(data)}")
    record_type, name = _text(data, "type"), _text(data, "field")
    if len(record_type) > _MAX_TYPE or record_type.startswith(_OWN_TYPES):
        raise PolicyError(
            f"record cannot read records of type {record_type[:64]}, "
            "expected that of an external data source",
            ("type",),
        )
    foreign_key = data.get("foreign_key", "user.id")
    if foreign_key not in _FOREIGN_KEYS:
        raise PolicyError(f"expected one of {', '.join(_FOREIGN_KEYS)}", ("foreign_key",))
    exists: bool | None = None
    tests: list[ValueTest] = []
    for key, operand in data.items():
        if key in {"type", "field", "foreign_key"}:
            continue
        if key == "exists":
            if not isinstance(operand, bool):
                raise PolicyError(f"expected true or false, got: {type_name(operand)}", (key,))
            exists = operand
        else:
            tests.append(_test(key, operand))
    if exists is None and not tests:
        raise PolicyError("record needs an operator, such as is, has, exists or >=")
    if exists is False and tests:
        raise PolicyError("record is never true: a field that does not exist has no value to test")
    return RecordMatcher(record_type, name, cast("ForeignKey", foreign_key), exists, tuple(tests))


def field_of(record: FrozenObject, path: str) -> Data:
    """A field by its exact name, else by its path through objects. None when there is none."""
    if path in record:
        return record[path]
    value: Data = record
    for step in path.split("."):
        if not isinstance(value, FrozenObject) or step not in value:
            return None
        value = value[step]
    return value


def _text(data: FrozenObject, key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value:
        raise PolicyError(f"record needs {key}, a string", (key,) if key in data else ())
    return value


def _test(key: str, operand: Data) -> ValueTest:
    """Lists pass list operators, scalars also the others; a type that does not fit is false."""
    if key in _LIST_OPERATORS:
        (has,) = parse_list_matcher(FrozenObject({key: operand})).tests
        return _on_list(has)
    if key == "not":
        return lambda value: _is_scalar(value) and not same(value, operand)
    if key in _STRING_OPERATORS:
        (test,) = parse_string_matcher(FrozenObject({key: operand})).tests
        passes = string_test(test)
        return lambda value: isinstance(value, str) and passes(value)
    compare = _COMPARISONS.get(key)
    if compare is None:
        known = sorted(_LIST_OPERATORS | _STRING_OPERATORS | _COMPARISONS.keys() | {"exists"})
        raise PolicyError(f"unknown record operator: {key}, expected one of {', '.join(known)}")
    if isinstance(operand, bool) or not isinstance(operand, int | float):
        raise PolicyError(f"{key} requires a number, got {type_name(operand)}", (key,))
    limit = operand
    return lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and compare(value, limit)
    )


def _on_list(test: ListTest) -> ValueTest:
    passes = list_test(test)
    return lambda value: passes(value if isinstance(value, tuple) else (value,))


def _is_scalar(value: Data) -> bool:
    return not isinstance(value, tuple | FrozenObject)
