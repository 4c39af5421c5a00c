"""Which kind of value each key takes, read off the annotations of the models.

Used for the JSON schema, the reference and nothing that serves requests.
"""

from __future__ import annotations

import enum
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gatehouse.common.config import values
from gatehouse.common.config.model import LOG_LEVELS, CookieSameSite, LogLevel
from gatehouse.common.config.route_model import BearerTokenFormat, Claims


class Kind(enum.StrEnum):
    """Kinds of values, named as the reference names them."""

    TEXT = "text"
    FLAG = "true or false"
    NUMBER = "number"
    WHOLE = "whole number"
    DURATION = "duration"
    SECONDS = "duration in seconds"
    LIST = "list of text"
    TEXT_OR_LIST = "text or list of text"
    MAP = "map of text"
    HEADERS = "map of header to value"
    HEADER_NAMES = "list of header names"
    CLAIMS_HEADERS = "map of header to claim, or list of claims"
    CLAIMS = "map of claim to values"
    FLAGS = "map of flag to true or false"
    PATH = "file path"
    PATHS = "list of file paths"
    URL = "URL"
    HTTP_URL = "http or https URL"
    ADDRESS = "host:port"
    SECRET = "secret text"  # noqa: S105 - the name of a kind
    SECRETS = "list of secret texts"
    CHOICE = "one of"
    MODEL = "map"
    MODELS = "list of maps"
    MODEL_MAP = "map of name to map"
    MAPS = "list of maps of text"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a key takes."""

    kind: Kind
    model: type[BaseModel] | None = None  # of the value, or of each element
    choices: tuple[str, ...] = ()  # as the reference writes them
    prefix: str = ""  # of the long spelling of choices: CODEC_TYPE
    any_case: bool = False  # choices in any letters' case
    bounds: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a model as users write it."""

    name: str
    info: FieldInfo
    shape: Shape


_KINDS: Final[Mapping[Any, Kind]] = {
    values.Text: Kind.TEXT,
    values.Flag: Kind.FLAG,
    values.Number: Kind.NUMBER,
    values.Duration: Kind.DURATION,
    values.ProtoDuration: Kind.SECONDS,
    values.TextList: Kind.LIST,
    values.TextOrList: Kind.TEXT_OR_LIST,
    values.TextMap: Kind.MAP,
    values.Headers: Kind.HEADERS,
    values.HeaderNames: Kind.HEADER_NAMES,
    values.ClaimsHeaders: Kind.CLAIMS_HEADERS,
    values.FlagMap: Kind.FLAGS,
    values.FilePath: Kind.PATH,
    values.FilePathList: Kind.PATHS,
    values.URL: Kind.URL,
    values.HttpURL: Kind.HTTP_URL,
    values.HostPort: Kind.ADDRESS,
    values.Secret: Kind.SECRET,
    values.SecretList: Kind.SECRETS,
    Claims: Kind.CLAIMS,
}
_HIDDEN: Final = BearerTokenFormat.UNKNOWN  # accepted; it means the default
_BOUNDS: Final[Mapping[Any, tuple[int, int]]] = {
    values.Int32: (-(2**31), 2**31 - 1),
    values.UInt32: (0, 2**32 - 1),
    values.UInt64: (0, 2**63 - 1),
    values.Percent: (0, 100),
    values.Port: (0, 65535),
}


@functools.cache
def keys_of(model: type[BaseModel]) -> tuple[Key, ...]:
    """The keys of a model in its order, spelled as in a file."""
    hints = typing.get_type_hints(model, include_extras=True)
    return tuple(
        Key(info.alias or name, info, shape_of(hints[name]))
        for name, info in model.model_fields.items()
    )


def shape_of(hint: Any) -> Shape:
    """What an annotation lets in; TypeError when it is of no known kind."""
    hint = _without_none(hint)
    known = next((found for found in _spellings(hint) if found in _KINDS), None)
    if known is not None:
        return Shape(_KINDS[known])
    whole = next((found for found in _spellings(hint) if found in _BOUNDS), None)
    if whole is not None:
        return Shape(Kind.WHOLE, bounds=_BOUNDS[whole])
    if hint == LogLevel:
        return Shape(Kind.CHOICE, choices=LOG_LEVELS)
    metadata = getattr(hint, "__metadata__", ())
    bare = hint.__origin__ if metadata else hint
    if isinstance(bare, type) and issubclass(bare, enum.StrEnum):
        return _choice(bare, metadata)
    return _structure(bare)


def _choice(members: type[enum.StrEnum], metadata: tuple[Any, ...]) -> Shape:
    mark = next((item for item in metadata if isinstance(item, values.EnumOf)), None)
    return Shape(
        Kind.CHOICE,
        choices=tuple(str(m.value) for m in members if m.value and m is not _HIDDEN),
        prefix="" if mark is None else mark.prefix,
        any_case=mark is not None or members is CookieSameSite,
    )


def _structure(bare: Any) -> Shape:
    if bare is Any:
        return Shape(Kind.ANY)
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        return Shape(Kind.MODEL, bare)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    item = arguments[0 if origin is tuple else -1] if arguments else None
    is_model = isinstance(item, type) and issubclass(item, BaseModel)
    if origin is tuple and is_model:
        return Shape(Kind.MODELS, item)
    if origin is tuple:
        return Shape(Kind.MAPS)
    if origin is dict and is_model:
        return Shape(Kind.MODEL_MAP, item)
    if origin is dict:
        return Shape(Kind.ANY)
    raise TypeError(f"{bare!r} is of no kind that the reference knows; add it to shape.py")


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint


def _spellings(hint: Any) -> Iterator[Any]:
    """The annotation itself, then with fewer and fewer of its last marks."""
    metadata = getattr(hint, "__metadata__", ())
    for count in range(len(metadata), 0, -1):
        yield Annotated[(hint.__origin__, *metadata[:count])]
