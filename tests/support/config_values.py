"""Strategies for settings of every kind, and how settings are written into a file again."""

from __future__ import annotations

import enum
from typing import Any

from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from gatehouse.common.config.reference import format_duration
from gatehouse.common.config.shape import Kind, Shape, keys_of

# Printable, and free of commas: those separate the elements of a list given as one text.
TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters=","), max_size=12
)
ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
NAME = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
URLS = st.builds("{}://{}.example.com".format, st.sampled_from(["http", "https"]), NAME)
HEADERS = st.dictionaries(NAME, ASCII, max_size=3)
NANOSECONDS = st.integers(0, 10**15)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3),
    max_leaves=5,
)
_SIMPLE: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.TEXT: TEXT,
    Kind.FLAG: st.booleans(),
    Kind.NUMBER: st.floats(allow_nan=False, allow_infinity=False),
    Kind.DURATION: NANOSECONDS.map("{}ns".format),
    Kind.SECONDS: st.integers(0, 10**6).map(lambda value: f"{value / 1000:.3f}s"),
    Kind.LIST: st.lists(TEXT, max_size=3),
    Kind.TEXT_OR_LIST: st.lists(TEXT, max_size=3),
    Kind.MAP: st.dictionaries(NAME, TEXT, max_size=3),
    Kind.HEADERS: HEADERS,
    Kind.HEADER_NAMES: st.lists(NAME, max_size=3),
    Kind.CLAIMS_HEADERS: HEADERS,
    Kind.CLAIMS: st.dictionaries(NAME, st.lists(TEXT, max_size=2), max_size=2),
    Kind.FLAGS: st.dictionaries(NAME, st.booleans(), max_size=3),
    Kind.PATH: TEXT.map(lambda text: "/" + text.replace("$", "")),
    Kind.PATHS: st.lists(TEXT.map(lambda text: "/" + text.replace("$", "")), max_size=3),
    Kind.URL: URLS,
    Kind.HTTP_URL: URLS,
    Kind.ADDRESS: st.builds("{}:{}".format, NAME, st.integers(1, 65535)),
    Kind.SECRET: TEXT,
    Kind.SECRETS: st.lists(TEXT, max_size=2),
    Kind.MAPS: st.lists(st.dictionaries(NAME, TEXT, max_size=2), max_size=2),
    Kind.ANY: st.dictionaries(NAME, JSON, max_size=2),
}


def of_model(model: type[BaseModel], *, most: int = 8) -> st.SearchStrategy[dict[str, Any]]:
    """Maps in the spelling of a file, with some of the keys of `model`."""
    keys = {key.name: key for key in keys_of(model)}
    return (
        st.lists(st.sampled_from(sorted(keys)), max_size=most, unique=True).flatmap(
            lambda names: st.fixed_dictionaries(
                {name: of_shape(keys[name].shape) for name in names}
            )
        )
        if keys
        else st.just({})
    )


def of_shape(shape: Shape) -> st.SearchStrategy[Any]:
    """Values in the spelling of a file."""
    if shape.model is not None:
        model = st.deferred(lambda: of_model(shape.model, most=4))  # type: ignore[arg-type]
        if shape.kind is Kind.MODELS:
            return st.lists(model, max_size=2)
        if shape.kind is Kind.MODEL_MAP:
            return st.dictionaries(NAME, model, max_size=2)
        return model
    if shape.kind is Kind.CHOICE:
        return st.sampled_from(shape.choices)
    if shape.bounds is not None:
        return st.integers(*shape.bounds)
    return _SIMPLE[shape.kind]


def written(model: BaseModel) -> dict[str, Any]:
    """A model as one would write it in a file; only what was set."""
    kinds = {key.name: key.shape.kind for key in keys_of(type(model))}
    out: dict[str, Any] = {}
    for name, info in type(model).model_fields.items():
        if name in model.model_fields_set:
            key = info.alias or name
            out[key] = _plain(getattr(model, name), kinds[key])
    return out


def _plain(value: Any, kind: Kind) -> Any:
    if isinstance(value, BaseModel):
        return written(value)
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, enum.Enum):
        return value.value
    if kind is Kind.DURATION and isinstance(value, float):
        return f"{round(value * 1e9)}ns"
    if kind is Kind.SECONDS and isinstance(value, float):
        return format_duration(value) if value < 60 else f"{value:.9f}s"
    if isinstance(value, tuple):
        return [_plain(item, Kind.ANY) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item, Kind.ANY) for name, item in value.items()}
    return value
