"""Every key with its default, kind, environment form and meaning, taken from the model itself."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from gatehouse.common.config.keys import ALIASES, ROUTE_ALIASES
from gatehouse.common.config.model import Route, Settings
from gatehouse.common.config.shape import Key, Kind, Shape, keys_of

ROUTE_PREFIX: Final = "routes[]."
_LISTS_OF_ROUTES: Final = frozenset({"policy", "routes"})
_WHOLE_ONLY: Final = frozenset({"downstream_mtls"})  # its leaves have variables, itself has none
_FORMS: Final = {
    Kind.LIST: "commas between",
    Kind.HEADER_NAMES: "commas between",
    Kind.PATHS: "commas between",
    Kind.CLAIMS_HEADERS: "JSON, or claims with commas between",
    **dict.fromkeys(
        (Kind.MAP, Kind.FLAGS, Kind.MODEL, Kind.MODELS, Kind.MODEL_MAP, Kind.MAPS), "JSON"
    ),
}


@dataclass(frozen=True, slots=True)
class KeyReference:
    """One key: where it stands, what it is without being set, and what it means."""

    path: str  # timeout_read, downstream_mtls.ca, routes[].from
    default: str  # as one would write it in YAML; empty when there is none
    meaning: str
    variable: str  # environment variable; empty when there is none
    variable_form: str = ""  # how that variable is written, when not as in a file
    type: str = ""  # duration; one of a, b, c; whole number 0 to 100
    aliases: tuple[str, ...] = ()


def key_references() -> Iterator[KeyReference]:
    """Global keys in the order of the model, then those of routes, each with what it holds."""
    for key in keys_of(Settings):
        aliases = tuple(alias for alias, name in ALIASES.items() if name == key.name)
        yield _reference(key, key.name, *_variable(key), aliases)
        if key.shape.model is not None and key.name not in _LISTS_OF_ROUTES:
            yield from _below(key, key.name)
    for key in keys_of(Route):
        aliases = tuple(alias for alias, name in ROUTE_ALIASES.items() if name == key.name)
        yield _reference(key, f"{ROUTE_PREFIX}{key.name}", "", "", aliases)
        if key.shape.model is not None:
            yield from _below(key, f"{ROUTE_PREFIX}{key.name}")


def _below(parent: Key, path: str) -> Iterator[KeyReference]:
    assert parent.shape.model is not None
    path += {Kind.MODELS: "[]", Kind.MODEL_MAP: ".<name>"}.get(parent.shape.kind, "")
    for key in keys_of(parent.shape.model):
        variable = f"{path}_{key.name}".upper() if path in _WHOLE_ONLY else ""
        form = _FORMS.get(key.shape.kind, "") if variable else ""
        yield _reference(key, f"{path}.{key.name}", variable, form, ())
        if key.shape.model is not None:
            yield from _below(key, f"{path}.{key.name}")


def _variable(key: Key) -> tuple[str, str]:
    if key.name in _WHOLE_ONLY:
        return "", ""
    if key.name in _LISTS_OF_ROUTES:
        return key.name.upper(), "base64 of a YAML or JSON list"
    if key.name == "set_response_headers":
        return "HEADERS", "JSON, or Name:value with commas between"
    return key.name.upper(), _FORMS.get(key.shape.kind, "")


def _reference(
    key: Key, path: str, variable: str, form: str, aliases: tuple[str, ...]
) -> KeyReference:
    return KeyReference(
        path=path,
        default=written_default(key),
        meaning=key.info.description or "",
        variable=variable,
        variable_form=form,
        type=_type(key.shape),
        aliases=aliases,
    )


def _type(shape: Shape) -> str:
    if shape.kind is Kind.CHOICE:
        return f"one of {', '.join(shape.choices)}"
    if shape.kind is Kind.WHOLE and shape.bounds == (0, 100):
        return "percent, 0 to 100"
    return str(shape.kind)


def written_default(key: Key) -> str:
    """The default of a key as one would write it in a file; empty when there is none."""
    value: Any = key.info.default
    if value is None or value is PydanticUndefined or isinstance(value, SecretStr | BaseModel):
        return ""
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if key.shape.kind in {Kind.DURATION, Kind.SECONDS}:
        return format_duration(value)
    if isinstance(value, tuple | dict):
        return json.dumps(value) if value else ""
    return str(value)


def format_duration(seconds: float) -> str:
    """Seconds in the largest unit that leaves a whole number: 14h, 5m, 30s, 0.25s."""
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"
