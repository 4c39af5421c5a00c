"""The part of JSON Schema draft 7 that our schema uses, checked by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "boolean": bool,
    "object": dict,
    "array": list,
    "null": type(None),
}
KNOWN = frozenset(
    {"$schema", "$ref", "title", "description", "definitions", "default", "deprecated"}
    | {"writeOnly", "type", "enum", "const", "anyOf", "oneOf", "pattern", "minimum", "maximum"}
    | {"properties", "patternProperties", "propertyNames", "additionalProperties", "required"}
    | {"items"}
)


def is_type(value: Any, name: str) -> bool:
    if name in {"integer", "number"}:
        kinds = int if name == "integer" else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])


def violations(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[str]:
    """Where `value` breaks `schema`, in words."""
    unknown = schema.keys() - KNOWN
    assert not unknown, unknown
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/definitions/")
        yield from violations(value, root["definitions"][name], root)
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(is_type(value, name) for name in names):
            yield f"{value!r} is not of type {names}"
            return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{value!r} is not one of {schema['enum']}"
    if "const" in schema and (value != schema["const"] or isinstance(value, bool)):
        yield f"{value!r} is not {schema['const']!r}"
    for word, least, most in (("anyOf", 1, 99), ("oneOf", 1, 1)):
        if word in schema:
            fits = sum(not list(violations(value, part, root)) for part in schema[word])
            if not least <= fits <= most:
                yield f"{value!r} fits {fits} of {word}"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{value!r} does not match {schema['pattern']}"
    if isinstance(value, int | float) and not (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
    ):
        yield f"{value!r} is out of range"
    if isinstance(value, list) and "items" in schema:
        for item in value:
            yield from violations(item, schema["items"], root)
    if isinstance(value, dict):
        yield from object_violations(value, schema, root)


def object_violations(
    value: Mapping[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any]
) -> Iterator[str]:
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{name} is missing"
    for name, item in value.items():
        yield from violations(name, schema.get("propertyNames", {}), root)
        parts = [schema["properties"][name]] if name in schema.get("properties", {}) else []
        patterns = schema.get("patternProperties", {})
        parts += [part for pattern, part in patterns.items() if re.search(pattern, name)]
        more = schema.get("additionalProperties", {})
        if not parts and more is False:
            yield f"{name} is unknown"
        for part in parts or ([more] if isinstance(more, dict) else []):
            yield from violations(item, part, root)
