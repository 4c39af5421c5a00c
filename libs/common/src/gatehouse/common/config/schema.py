"""The JSON schema of a configuration file, for editors.

It speaks of files only: what an environment variable may hold is looser. Keys are lower case and
spelled as in files; unknown ones are marked, and `gatehouse check` says which one was meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from gatehouse.common.config.keys import ALIASES, ROUTE_ALIASES
from gatehouse.common.config.model import Route, Settings
from gatehouse.common.config.shape import Key, Kind, Shape, keys_of

DIALECT: Final = "http://json-schema.org/draft-07/schema#"  # what YAML language servers know best
DEPRECATED: Final = frozenset(
    {"policy", "tls_server_name", "tls_downstream_client_ca", "tls_downstream_client_ca_file"}
)

_SCALAR: Final = ["string", "number", "boolean"]
_GO_DURATION: Final = r"^\+?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+$|^[+-]?0$"
_SECONDS: Final = r"^[0-9]{1,12}(\.[0-9]{1,9})?s$"
_HEADER: Final = r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$"
_SCALARS: Final = {"type": "array", "items": {"type": _SCALAR}}
_TEXT_MAP: Final = {"type": "object", "additionalProperties": {"type": _SCALAR}}
_HEADERS: Final = {**_TEXT_MAP, "propertyNames": {"pattern": _HEADER}}

_PLAIN: Final[Mapping[Kind, Mapping[str, Any]]] = {
    Kind.TEXT: {"type": _SCALAR},
    Kind.FLAG: {"type": "boolean"},
    Kind.NUMBER: {"type": "number"},
    Kind.DURATION: {"anyOf": [{"type": "string", "pattern": _GO_DURATION}, {"const": 0}]},
    Kind.SECONDS: {"anyOf": [{"type": "string", "pattern": _SECONDS}, {"const": 0}]},
    Kind.LIST: {"anyOf": [_SCALARS, {"type": _SCALAR}]},
    Kind.TEXT_OR_LIST: {"anyOf": [{"type": "string"}, _SCALARS]},
    Kind.MAP: _TEXT_MAP,
    Kind.HEADERS: _HEADERS,
    Kind.HEADER_NAMES: {"anyOf": [_SCALARS, {"type": "string"}]},
    Kind.CLAIMS_HEADERS: {"anyOf": [_HEADERS, _SCALARS, {"type": "string"}]},
    Kind.CLAIMS: {"type": "object"},
    Kind.FLAGS: {"type": "object", "additionalProperties": {"type": "boolean"}},
    Kind.PATH: {"type": "string"},
    Kind.PATHS: {"anyOf": [_SCALARS, {"type": "string"}]},
    Kind.URL: {"type": "string", "pattern": r"^$|^[A-Za-z][A-Za-z0-9+.\-]*:"},
    Kind.HTTP_URL: {"type": "string", "pattern": r"^$|^[Hh][Tt][Tt][Pp][Ss]?://"},
    Kind.ADDRESS: {"type": "string", "pattern": r"^\s*$|:[0-9]{1,5}\s*$"},
    Kind.SECRET: {"type": _SCALAR, "writeOnly": True},
    Kind.SECRETS: {"anyOf": [_SCALARS, {"type": "string"}], "writeOnly": True},
    Kind.MAPS: {"type": "array", "items": _TEXT_MAP},
    Kind.ANY: {},
}


def settings_schema() -> dict[str, Any]:
    """The schema of the whole file, JSON Schema draft 7, ready for `json.dumps`."""
    definitions: dict[str, Any] = {}
    top = _object(Settings, definitions)
    top["patternProperties"] = {r"\.": {}}  # `a.b: x` means `a: {b: x}`
    return {
        "$schema": DIALECT,
        "title": "Gatehouse settings",
        **top,
        "definitions": dict(sorted(definitions.items())),
    }


def _object(model: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    aliases = {Settings: ALIASES, Route: ROUTE_ALIASES}.get(model, {})
    properties = {key.name: _property(key, definitions) for key in keys_of(model)}
    for alias, name in aliases.items():
        properties[alias] = {
            **properties[name],
            "description": f"another name of {name}",
            "deprecated": True,
        }
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    if model is Route:
        schema["required"] = ["from"]
        schema["oneOf"] = [{"required": [name]} for name in ("to", "redirect", "response")]
    return schema


def _property(key: Key, definitions: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": key.info.description or ""}
    if key.name in DEPRECATED and not (key.name == "policy" and key.shape.kind is Kind.ANY):
        schema["deprecated"] = True
    schema.update(_or_null(_of_shape(key.shape, definitions)))
    default = key.info.default
    if isinstance(default, bool | int) and not isinstance(default, float):
        schema["default"] = default
    elif isinstance(default, str) and default:
        schema["default"] = str(default)
    return schema


def _of_shape(shape: Shape, definitions: dict[str, Any]) -> dict[str, Any]:
    if shape.model is not None:
        reference = _reference(shape.model, definitions)
        if shape.kind is Kind.MODELS:
            return {"type": "array", "items": reference}
        if shape.kind is Kind.MODEL_MAP:
            return {"type": "object", "additionalProperties": reference}
        return reference
    if shape.kind is Kind.WHOLE and shape.bounds is not None:
        return {"type": "integer", "minimum": shape.bounds[0], "maximum": shape.bounds[1]}
    if shape.kind is Kind.CHOICE:
        return _choice(shape)
    return dict(_PLAIN[shape.kind])


def _reference(model: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    name = model.__name__
    if name not in definitions:
        definitions[name] = {}  # marks it as begun, for models that hold themselves
        definitions[name] = _object(model, definitions)
    return {"$ref": f"#/definitions/{name}"}


def _choice(shape: Shape) -> dict[str, Any]:
    """The words, for completion; and, where letters' case is free, whatever else means them."""
    words: dict[str, Any] = {"enum": [*shape.choices, ""]}
    if not shape.any_case:
        return words
    names = [*shape.choices]
    if shape.prefix:
        names += [f"{shape.prefix}_{choice}" for choice in shape.choices]
    pattern = "|".join("".join(_either_case(letter) for letter in name) for name in names)
    return {"anyOf": [words, {"type": "string", "pattern": f"^({pattern})$"}]}


def _either_case(letter: str) -> str:
    return f"[{letter.upper()}{letter.lower()}]" if letter.isalpha() else letter


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A key without a value counts as absent."""
    if not schema:
        return schema
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if "$ref" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    types = schema["type"]
    return {**schema, "type": [*([types] if isinstance(types, str) else types), "null"]}
