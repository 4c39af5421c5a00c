"""Every key with its default and meaning, taken from the model itself."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from gatehouse.common.config.keys import fields_of
from gatehouse.common.config.model import Route, Settings

_ENVIRONMENT_ONLY_WHOLE = frozenset({"policy", "routes"})


@dataclass(frozen=True, slots=True)
class KeyReference:
    """One key: where it stands, what it is without being set, and what it means."""

    path: str  # timeout_read, downstream_mtls.ca, routes[].from
    default: str  # as one would write it in YAML; empty when there is none
    meaning: str
    variable: str  # environment variable; empty when there is none


def key_references() -> Iterator[KeyReference]:
    """Global keys in the order of the model, then those of routes, each with what it holds."""
    for key, model in fields_of(Settings).items():
        variable = "" if key == "downstream_mtls" else key.upper()
        yield _reference(Settings, key, key, variable)
        if model is not None and key not in _ENVIRONMENT_ONLY_WHOLE:
            yield from _below(model, key, Settings, key)
    for key, model in fields_of(Route).items():
        yield _reference(Route, key, f"routes[].{key}", "")
        if model is not None:
            yield from _below(model, f"routes[].{key}", Route, key)


def _below(
    model: type[BaseModel], path: str, parent: type[BaseModel], key: str
) -> Iterator[KeyReference]:
    annotation = str(_field(parent, key).annotation)
    if annotation.startswith("tuple"):
        path += "[]"
    elif annotation.startswith("dict"):
        path += ".<name>"
    for name, inner in fields_of(model).items():
        variable = f"{path}_{name}".upper() if path == "downstream_mtls" else ""
        yield _reference(model, name, f"{path}.{name}", variable)
        if inner is not None:
            yield from _below(inner, f"{path}.{name}", model, name)


def _field(model: type[BaseModel], key: str) -> Any:
    return next(
        info for name, info in model.model_fields.items() if key in {info.alias or name, name}
    )


def _reference(model: type[BaseModel], key: str, path: str, variable: str) -> KeyReference:
    info = _field(model, key)
    return KeyReference(
        path, _default(info.default, str(info.annotation)), info.description or "", variable
    )


def _default(value: Any, annotation: str) -> str:
    if value is None or value is PydanticUndefined or isinstance(value, SecretStr | BaseModel):
        return ""
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and "float" in annotation:
        return f"{value:g}s" if value != 1.0 else "1.0"
    if isinstance(value, tuple | dict):
        return json.dumps(value) if value else ""
    return str(value)
