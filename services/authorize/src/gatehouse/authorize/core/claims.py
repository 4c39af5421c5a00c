"""Claims as authorize keeps them: compact, immutable, compared by type and value."""

from __future__ import annotations

import decimal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from google.protobuf.struct_pb2 import ListValue, Value

from gatehouse.common.policy.ast import Data, FrozenObject

_EMPTY: Final[tuple[Data, ...]] = ()
_EXPONENT_FROM: Final = 6  # fmt writes larger exponents in scientific notation: 1e+06
_MAX_DEPTH: Final = 16


class Claims:
    """Claim name to list of values.

    Sessions of one provider share their tuple of names, and a list of one value is kept as the
    value alone: a million sessions must fit.
    """

    __slots__ = ("_names", "_values")

    def __init__(self, names: tuple[str, ...], values: tuple[Data, ...]) -> None:
        self._names = names
        self._values = values  # a tuple is a list of values, anything else the only value

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def items(self) -> Iterator[tuple[str, tuple[Data, ...]]]:
        """Each claim with its values."""
        for name, value in zip(self._names, self._values, strict=True):
            yield name, value if isinstance(value, tuple) else (value,)

    def get(self, name: str) -> tuple[Data, ...]:
        """The values of a claim; empty when there is no such claim."""
        try:
            value = self._values[self._names.index(name)]
        except ValueError:
            return _EMPTY
        return value if isinstance(value, tuple) else (value,)


NO_CLAIMS: Final = Claims((), ())


class SharedTexts:
    """Gives equal texts as one object where it has seen them lately; a fixed number of them.

    Groups are shared by many people and found again. Names and addresses are each one's own: an
    entry for each of them (as `sys.intern` keeps) would cost more than the text.
    """

    def __init__(self, places: int = 1 << 14) -> None:
        self._places: list[str] = [""] * places

    def __call__(self, text: str) -> str:
        """Return an equal text: the one that was seen before, if it is still at hand."""
        place = hash(text) % len(self._places)
        held = self._places[place]
        if held == text:
            return held
        self._places[place] = text
        return text


class ClaimsReader:
    """Makes Claims out of protobuf, sharing what many records have in common."""

    def __init__(self, shared_limit: int = 1024) -> None:
        self._shared: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._limit = shared_limit
        self._texts = SharedTexts()

    def read(self, claims: Mapping[str, ListValue]) -> Claims:
        """Values keep their types: string, number, boolean, null, and nested lists and objects."""
        if not claims:
            return NO_CLAIMS
        names = tuple(sys.intern(name) for name in sorted(claims))
        values: list[Data] = []
        for name in names:
            items = tuple(value_of(item, self._texts) for item in claims[name].values)
            # A lone list or object stays wrapped, so that it cannot be taken for several values.
            single = len(items) == 1 and not isinstance(items[0], tuple)
            values.append(items[0] if single else items)
        return Claims(self._share(names), tuple(values))

    def _share(self, names: tuple[str, ...]) -> tuple[str, ...]:
        shared = self._shared.get(names)
        if shared is not None:
            return shared
        if len(self._shared) < self._limit:
            self._shared[names] = names
        return names


def value_of(value: Value, share: Callable[[str], str] = str, depth: int = 0) -> Data:
    """A protobuf Value as immutable data; numbers without fraction become integers.

    `share` is asked for the one object of a text that many values have.
    """
    if depth > _MAX_DEPTH:
        raise ValueError("value is nested too deeply")
    match value.WhichOneof("kind"):
        case "string_value":
            return share(value.string_value)
        case "bool_value":
            return value.bool_value
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) < 2**53 else number
        case "list_value":
            return tuple(value_of(item, share, depth + 1) for item in value.list_value.values)
        case "struct_value":
            fields = value.struct_value.fields
            return FrozenObject({key: value_of(fields[key], share, depth + 1) for key in fields})
        case _:
            return None


def claim_text(values: Sequence[Data]) -> str:
    """Values as one header or assertion text: joined with commas, nested ones and null left out."""
    return ",".join(
        scalar_text(value) for value in values if isinstance(value, str | bool | int | float)
    )


def scalar_text(value: str | float) -> str:
    """A scalar as Pomerium's upstreams have always seen it: numbers as Go's %v prints a float64."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return _go_float(float(value))


def json_of(value: Data) -> Any:
    """Immutable data as what the json module writes."""
    if isinstance(value, tuple):
        return [json_of(item) for item in value]
    if isinstance(value, FrozenObject):
        return {key: json_of(item) for key, item in value.items()}
    return value


def _go_float(number: float) -> str:
    """As Go: strconv.FormatFloat(number, 'g', -1, 64)."""
    sign, digit_tuple, raw_exponent = decimal.Decimal(repr(number)).as_tuple()
    if not isinstance(raw_exponent, int):
        return repr(number)
    digits = "".join(map(str, digit_tuple)).lstrip("0")
    stripped = digits.rstrip("0")
    if not stripped:
        return "-0" if sign else "0"
    exponent = len(digits) + raw_exponent - 1
    if exponent < -4 or exponent >= _EXPONENT_FROM:
        mantissa = stripped[0] + ("." + stripped[1:] if len(stripped) > 1 else "")
        text = f"{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
    elif exponent >= len(stripped) - 1:
        text = stripped + "0" * (exponent - len(stripped) + 1)
    elif exponent >= 0:
        text = f"{stripped[: exponent + 1]}.{stripped[exponent + 1 :]}"
    else:
        text = "0." + "0" * (-exponent - 1) + stripped
    return f"-{text}" if sign else text
