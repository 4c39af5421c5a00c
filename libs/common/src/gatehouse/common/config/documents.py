"""What a configuration file says, and on which line.

Text to plain values plus the line of every key and list item. Keys are lower-cased on request,
since Pomerium's are case-insensitive. No I/O.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import datetime as dt
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from gatehouse.common.config.numerals import fraction, whole
from gatehouse.common.config.syntax_help import other_help, yaml_help

Path = tuple[str | int, ...]

FORMATS: Final = ("yaml", "yml", "json", "toml", "env")
MAX_NODES: Final = 3_000_000  # aliases may repeat a node: bounds what they can expand to
MAX_DEPTH: Final = 100

_TAG: Final = "tag:yaml.org,2002:"
_INT: Final = re.compile(r"[-+]?(?:0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)", re.ASCII)
_FLOAT: Final = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    re.ASCII,
)


class DocumentError(ValueError):
    """A file that cannot be read at all; `line` counts from 1, `fix` is what would be right."""

    def __init__(self, message: str, line: int | None = None, fix: str = "") -> None:
        super().__init__(message)
        self.line = line
        self.fix = fix


@dataclass(slots=True)
class Document:
    """Plain values, the line of each path, and mistakes that leave the rest readable."""

    data: dict[str, Any]
    lines: Mapping[Path, int] = field(default_factory=dict)
    problems: list[tuple[Path, int, str, str]] = field(default_factory=list)  # message, fix
    lowered: dict[Path, str] = field(default_factory=dict)  # keys as written, where case was lost


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The core schema of YAML 1.2, as Go's loader reads it: `yes` and `12:30` are text."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        """The tag of a node without one."""
        if kind is not yaml.ScalarNode:
            return _SEQUENCE if kind is yaml.SequenceNode else _MAPPING
        return _scalar_tag(value) if implicit[0] else f"{_TAG}str"

    def descend_resolver(self, current_node: Any, current_index: Any) -> None:
        """No tags depend on where a node stands."""

    def ascend_resolver(self) -> None:
        """No tags depend on where a node stands."""


_SEQUENCE: Final = f"{_TAG}seq"
_MAPPING: Final = f"{_TAG}map"
_WORDS: Final = {
    "": f"{_TAG}null",
    **dict.fromkeys(("~", "null", "Null", "NULL"), f"{_TAG}null"),
    **dict.fromkeys(("true", "True", "TRUE", "false", "False", "FALSE"), f"{_TAG}bool"),
    "<<": f"{_TAG}merge",
}


def _scalar_tag(text: str) -> str:
    word = _WORDS.get(text)
    if word is not None:
        return word
    if text[0] in "-+.0123456789":
        if _INT.fullmatch(text):
            return f"{_TAG}int"
        if _FLOAT.fullmatch(text):
            return f"{_TAG}float"
    return f"{_TAG}str"


def parse_document(
    text: str, file_format: str, *, lower_keys: bool, max_nodes: int = MAX_NODES
) -> Document:
    """Read `text` in one of FORMATS, or raise DocumentError."""
    if file_format in {"yaml", "yml"}:
        document = _parse_yaml(text, lower_keys=lower_keys, max_nodes=max_nodes)
    elif file_format == "json":
        document = _JSONReader(text, lower_keys=lower_keys).document()
    elif file_format == "toml":
        document = _parse_toml(text, lower_keys=lower_keys)
    else:
        document = _parse_env(text)
    return document


def parse_yaml_value(text: str) -> tuple[Any, dict[Path, int]]:
    """Any YAML value with the lines of its keys; keys stay as written. DocumentError."""
    reader = _compose(text, lower_keys=False, max_nodes=MAX_NODES)
    if reader.problems:
        _, line, message, _ = reader.problems[0]
        raise DocumentError(message, line)
    return reader.value, reader.lines


@dataclass(frozen=True, slots=True)
class ListItem:
    """The map that is the one element of a YAML list; paths and lines begin with it."""

    value: dict[str, Any]
    lines: Mapping[Path, int]  # counted from 1
    lowered: Mapping[Path, str]  # keys as written, where case was lost
    nodes: int


def parse_list_item(text: str) -> ListItem | None:
    """A list of one map, keys in lower case; None for anything else and for any mistake in it."""
    try:
        reader = _compose(text, lower_keys=True, max_nodes=MAX_NODES)
    except DocumentError:
        return None
    value = reader.value
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], dict):
        return None
    if reader.problems:
        return None
    return ListItem(
        value=value[0],
        lines={path[1:]: line for path, line in reader.lines.items()},
        lowered={path[1:]: name for path, name in reader.lowered.items()},
        nodes=reader.count,
    )


class _YAMLReader:
    def __init__(self, *, lower_keys: bool, max_nodes: int) -> None:
        self.lines: dict[Path, int] = {}
        self.problems: list[tuple[Path, int, str, str]] = []
        self.lowered: dict[Path, str] = {}
        self.value: Any = None
        self._lower = lower_keys
        self._max_nodes = max_nodes
        self._open: set[int] = set()
        self.count = 0

    def read(self, node: yaml.Node, path: Path) -> Any:
        self.count += 1
        line = node.start_mark.line + 1
        if self.count > self._max_nodes:
            raise DocumentError("the file expands to too many values", line)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            raise DocumentError("an alias refers to what holds it", line)
        if len(self._open) >= MAX_DEPTH:
            raise DocumentError("nested too deeply", line)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                items = []
                for index, child in enumerate(node.value):
                    self.lines.setdefault((*path, index), child.start_mark.line + 1)
                    items.append(self.read(child, (*path, index)))
                return items
            assert isinstance(node, yaml.MappingNode)
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merges: list[yaml.Node] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == f"{_TAG}merge":
                merges.append(value_node)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append((path, line, "a key is not text", "a plain key"))
                continue
            key = key_node.value.lower() if self._lower else key_node.value
            here = (*path, key)
            if key in own:
                first = self.lines.get(here)
                self.problems.append(
                    (here, line, f"given twice, first on line {first}", "keep one of them")
                )
                continue
            if key != key_node.value:
                self.lowered.setdefault(here, key_node.value)
            self.lines.setdefault(here, line)
            own[key] = self.read(value_node, here)
        # After the map's own keys, so that these keep their values and lines.
        for merge in merges:
            for key, value in self._merge(merge, path).items():
                own.setdefault(key, value)
        return own

    def _merge(self, node: yaml.Node, path: Path) -> dict[str, Any]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        out: dict[str, Any] = {}
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                line = source.start_mark.line + 1
                self.problems.append((path, line, "<< does not merge a map", "<<: *anchor"))
                continue
            for key, value in self.read(source, path).items():
                out.setdefault(key, value)
        return out

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text: str = node.value
        tag = node.tag.removeprefix(_TAG)
        line = node.start_mark.line + 1
        try:
            match tag:
                case "null":
                    return None
                case "bool":
                    return text.lower() == "true"
                case "int":
                    return whole(int(text.replace("_", ""), 0), text)
                case "float":
                    return fraction(text)
                case "binary":
                    return base64.b64decode(text, validate=False).decode()
                case "str" | "timestamp" | "merge":
                    return text
        except (ValueError, binascii.Error):
            self.problems.append((path, line, f"is not a {tag}", "plain text"))
            return None
        self.problems.append((path, line, f"unknown tag {node.tag}", "no tag"))
        return None


def _compose(text: str, *, lower_keys: bool, max_nodes: int) -> _YAMLReader:
    reader = _YAMLReader(lower_keys=lower_keys, max_nodes=max_nodes)
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is not None:
            reader.value = reader.read(node, ())
    except yaml.MarkedYAMLError as error:
        raise _yaml_error(error, text) from None
    except yaml.YAMLError as error:
        raise DocumentError(f"not YAML: {type(error).__name__}") from None
    except RecursionError:
        raise DocumentError("nested too deeply") from None
    return reader


def _yaml_error(error: yaml.MarkedYAMLError, text: str) -> DocumentError:
    mark = error.problem_mark or error.context_mark
    number = None if mark is None else mark.line + 1
    lines = text.split("\n")
    line = lines[number - 1] if number is not None and number <= len(lines) else ""
    opened_on = None if error.context_mark is None else error.context_mark.line + 1
    better, fix = yaml_help(error.problem or "", line, opened_on=opened_on, problem_on=number)
    reason = better or " ".join(part for part in (error.problem, error.context) if part)
    return DocumentError(f"not YAML: {reason}", number, fix)


def _parse_yaml(text: str, *, lower_keys: bool, max_nodes: int) -> Document:
    reader = _compose(text, lower_keys=lower_keys, max_nodes=max_nodes)
    if reader.value is None:
        return Document({}, reader.lines, reader.problems)
    if not isinstance(reader.value, dict):
        fix = "routes: and the list below it" if isinstance(reader.value, list) else "key: value"
        raise DocumentError("the file is not a map of keys to values", 1, fix)
    return Document(reader.value, reader.lines, reader.problems, reader.lowered)


class _JSONReader:
    """JSON by the standard decoder's rules, keeping lines (RFC 8259)."""

    _BLANK = re.compile(r"[ \t\r\n]*")

    def __init__(self, text: str, *, lower_keys: bool) -> None:
        self._text = text
        self._lower = lower_keys
        self._starts = [match.start() for match in re.finditer(r"\n", text)]
        self._scalars = json.JSONDecoder(parse_constant=self._constant, parse_float=fraction)
        self._lines: dict[Path, int] = {}
        self._document = Document({}, self._lines)

    def document(self) -> Document:
        try:
            value, end = self._value(0, ())
            end = self._skip(end)
        except json.JSONDecodeError as error:
            fix = other_help(error.msg)
            raise DocumentError(f"not JSON: {error.msg}", error.lineno, fix) from None
        except ValueError as error:
            if isinstance(error, DocumentError):
                raise
            raise DocumentError("not JSON: a number has too many digits") from None
        except RecursionError:
            raise DocumentError("nested too deeply") from None
        if end != len(self._text):
            where = self._line(end)
            raise DocumentError("not JSON: text after the end", where, "one { } and no more")
        if not isinstance(value, dict):
            raise DocumentError("the file is not a map of keys to values", 1)
        self._document.data = value
        return self._document

    @staticmethod
    def _constant(name: str) -> Any:
        raise DocumentError(f"not JSON: {name}")

    def _line(self, position: int) -> int:
        return bisect.bisect_left(self._starts, position) + 1

    def _skip(self, position: int) -> int:
        match = self._BLANK.match(self._text, position)
        assert match is not None
        return match.end()

    def _value(self, position: int, path: Path) -> tuple[Any, int]:
        position = self._skip(position)
        head = self._text[position : position + 1]
        if len(path) > MAX_DEPTH:
            raise DocumentError("nested too deeply", self._line(position))
        if head == "{":
            return self._object(position, path)
        if head == "[":
            return self._array(position, path)
        return self._scalars.raw_decode(self._text, position)

    def _object(self, position: int, path: Path) -> tuple[dict[str, Any], int]:
        out: dict[str, Any] = {}
        position = self._skip(position + 1)
        if self._text[position : position + 1] == "}":
            return out, position + 1
        while True:
            start = self._skip(position)
            if self._text[start : start + 1] != '"':
                raise json.JSONDecodeError("a key in double quotes is missing", self._text, start)
            name, position = self._scalars.raw_decode(self._text, start)
            key = name.lower() if self._lower else name
            here = (*path, key)
            position = self._expect(self._skip(position), ":")
            line = self._line(start)
            first = self._lines.get(here)
            value, position = self._value(position, here)
            if key in out:
                self._document.problems.append(
                    (here, line, f"given twice, first on line {first}", "keep one of them")
                )
            else:
                if key != name:
                    self._document.lowered[here] = name
                self._lines[here] = line
                out[key] = value
            position = self._skip(position)
            if self._text[position : position + 1] == "}":
                return out, position + 1
            position = self._expect(position, ",")

    def _array(self, position: int, path: Path) -> tuple[list[Any], int]:
        out: list[Any] = []
        position = self._skip(position + 1)
        if self._text[position : position + 1] == "]":
            return out, position + 1
        while True:
            position = self._skip(position)
            here = (*path, len(out))
            self._lines[here] = self._line(position)
            value, position = self._value(position, here)
            out.append(value)
            position = self._skip(position)
            if self._text[position : position + 1] == "]":
                return out, position + 1
            position = self._expect(position, ",")

    def _expect(self, position: int, character: str) -> int:
        if self._text[position : position + 1] != character:
            raise json.JSONDecodeError(f"a {character} is missing", self._text, position)
        return position + 1


_TOML_HEADER: Final = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_TOML_KEY: Final = re.compile(r"""\s*((?:[A-Za-z0-9_\-.]+|"[^"]*"|'[^']*'|\s*\.\s*)+?)\s*=""")


def _parse_toml(text: str, *, lower_keys: bool) -> Document:
    try:
        data = tomllib.loads(text, parse_float=fraction)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        reason = re.sub(r" \(at .*\)$", "", str(error))
        line = int(found.group(1)) if found else None
        raise DocumentError(f"not TOML: {reason}", line, other_help(reason)) from None
    except ValueError:
        raise DocumentError("not TOML: a number has too many digits") from None
    except RecursionError:
        raise DocumentError("nested too deeply") from None
    document = Document({})
    document.data = _plain_toml(data, (), document, lower=lower_keys)
    document.lines = _toml_lines(text, lower=lower_keys)
    return document


def _plain_toml(value: Any, path: Path, document: Document, *, lower: bool) -> Any:
    if isinstance(value, dict):
        out: dict[str, Any] = {}
        for name, item in value.items():
            key = name.lower() if lower else name
            if key in out:
                document.problems.append(((*path, key), 1, "given twice", "keep one of them"))
            if key != name:
                document.lowered[(*path, key)] = name
            out[key] = _plain_toml(item, (*path, key), document, lower=lower)
        return out
    if isinstance(value, list):
        return [
            _plain_toml(item, (*path, index), document, lower=lower)
            for index, item in enumerate(value)
        ]
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    return value


def _toml_lines(text: str, *, lower: bool) -> dict[Path, int]:
    """The line of every table and key that starts a line; values inside inline tables have none."""
    lines: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    prefix: Path = ()
    for number, line in enumerate(text.split("\n"), start=1):
        header = _TOML_HEADER.match(line)
        if header is not None:
            prefix = _toml_path((), header.group(2), counts, lower=lower)
            if header.group(1) == "[[":
                index = counts.get(prefix, 0)
                counts[prefix] = index + 1
                lines.setdefault(prefix, number)
                prefix = (*prefix, index)
            lines[prefix] = number
            continue
        key = _TOML_KEY.match(line)
        if key is not None:
            lines.setdefault(_toml_path(prefix, key.group(1), counts, lower=lower), number)
    return lines


def _toml_path(prefix: Path, dotted: str, counts: Mapping[Path, int], *, lower: bool) -> Path:
    path = prefix
    names = [part.strip().strip("\"'") for part in dotted.split(".")]
    for position, name in enumerate(names):
        path = (*path, name.lower() if lower else name)
        if path in counts and position < len(names) - 1:
            path = (*path, counts[path] - 1)
    return path


def _parse_env(text: str) -> Document:
    lines: dict[Path, int] = {}
    document = Document({}, lines)
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.removeprefix("export ").partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name.strip()):
            raise DocumentError("not a KEY=value line", number, "KEY=value, or # before a remark")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        key = name.strip().lower()
        document.data[key] = value
        lines[key,] = number
    return document
