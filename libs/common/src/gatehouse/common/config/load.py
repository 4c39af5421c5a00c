"""How a file and the environment become `Settings`.

Environment over file over default. Everything wrong is collected and raised at once, each mistake
with its key, its file and line, and what would be right. The only I/O is reading the main file.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from gatehouse.common.config import keys
from gatehouse.common.config.documents import (
    FORMATS,
    Document,
    DocumentError,
    parse_document,
    parse_yaml_value,
)
from gatehouse.common.config.issues import ConfigError, Issue, Severity
from gatehouse.common.config.memory import RouteMemory
from gatehouse.common.config.model import RUNTIME_FLAGS, DownstreamMTLS, Route, Settings
from gatehouse.common.config.values import ENVIRON, decode_base64, shorten

KeyPath = tuple[str | int, ...]

ENVIRONMENT: Final = "environment"
ALL_KEYS: Final = "`gatehouse config defaults` prints all keys"
MANY_OBJECTS: Final = 100_000  # made by one reading; a few hundred routes make less
MAX_FILE_BYTES: Final = 64 << 20
MOST_KEYS_NAMED: Final = 10
_CLAIMS: Final = "allowed_idp_claims"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from; `key` is the name it has there."""

    file: str
    line: int | None
    key: str


class Origins:
    """Where each key path of the settings comes from: a file by line, or a named variable."""

    def __init__(self) -> None:
        self._file = ""
        self._lines: Mapping[KeyPath, int] = {}
        self._moved: dict[KeyPath, KeyPath] = {}  # path in the settings -> path in the file
        self._elsewhere: dict[KeyPath, Origin] = {}
        self._holders: dict[KeyPath, KeyPath] = {}  # what only dotted keys made -> the first

    def set_file(self, file: str, lines: Mapping[KeyPath, int]) -> None:
        """Take the lines of the main file."""
        self._file, self._lines = file, lines

    def move(self, old: KeyPath, new: KeyPath) -> None:
        """The value at `new` stands under another name, `old`, where it was written."""
        self._moved[new] = old
        if old in self._elsewhere:
            self._elsewhere[new] = self._elsewhere.pop(old)

    def hold(self, path: KeyPath, key: KeyPath) -> None:
        """`path` is written nowhere: the dotted `key` made it."""
        self._holders[path] = key

    def set_elsewhere(self, path: KeyPath, origin: Origin) -> None:
        """The value at `path`, and all below it, does not come from the file."""
        self._elsewhere[path] = origin

    def __getitem__(self, path: KeyPath) -> Origin:
        """The origin of `path`, else of the nearest thing that holds it."""
        for length in range(len(path), 0, -1):
            origin = self._elsewhere.get(path[:length])
            if origin is not None:
                rest = format_path(path[length:], tail=True)
                return Origin(origin.file, origin.line, origin.key + rest)
        written = path
        for length in range(len(path), 0, -1):
            if path[:length] in self._moved:
                written = (*self._moved[path[:length]], *path[length:])
                break
        shown = format_path(written)
        for length in range(len(written), 0, -1):
            part = written[:length]
            line = self._lines.get(self._holders.get(part, part))
            if line is not None:
                return Origin(self._file, line, shown)
        return Origin("", None, shown)

    def issue(self, severity: Severity, path: KeyPath, message: str, fix: str = "") -> Issue:
        """A mistake at `path`."""
        origin = self[path]
        return Issue(severity, origin.key, message, fix, origin.file, origin.line)


def format_path(path: KeyPath, *, tail: bool = False) -> str:
    """`routes[2].from`; with `tail`, as it continues another path."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text if tail else text.removeprefix(".")


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings as written, and where everything was written."""

    settings: Settings
    origins: Origins
    warnings: tuple[Issue, ...] = ()
    file: Path | None = None
    file_digest: bytes = b""  # SHA-256 of the file as it was read
    file_mode: int | None = None  # its permission bits


@dataclass(slots=True)
class Outcome:
    """What could be loaded, and everything that was wrong.

    With errors, `settings` lacks what was wrong, so that later checks can still run; `dropped`
    names what is missing: keys, routes, and keys of routes. None when nothing could be loaded.
    """

    settings: Settings | None = None
    origins: Origins = field(default_factory=Origins)
    warnings: list[Issue] = field(default_factory=list)
    errors: list[Issue] = field(default_factory=list)
    dropped: set[KeyPath] = field(default_factory=set)
    file: Path | None = None
    file_digest: bytes = b""
    file_mode: int | None = None

    def loaded(self) -> LoadedSettings:
        """What could be loaded; there must be something."""
        assert self.settings is not None
        return LoadedSettings(
            settings=self.settings,
            origins=self.origins,
            warnings=tuple(self.warnings),
            file=self.file,
            file_digest=self.file_digest,
            file_mode=self.file_mode,
        )


def load_settings(path: Path | None, environ: Mapping[str, str]) -> LoadedSettings:
    """Settings of a file (None: the environment alone), or ConfigError with every mistake."""
    outcome = load_outcome(path, environ)
    if outcome.errors:
        raise ConfigError(tuple(outcome.errors))
    return outcome.loaded()


def load_outcome(
    path: Path | None, environ: Mapping[str, str], memory: RouteMemory | None = None
) -> Outcome:
    """Like `load_settings`, without raising. `memory` saves reading known routes again."""
    loader = _Loader(environ, RouteMemory() if memory is None else memory)
    with paused_collection():
        if path is not None and not loader.read_file(path):
            return loader.outcome
        loader.read_environment()
        loader.certificate_key_path()
        loader.validate()
    return loader.outcome


@contextlib.contextmanager
def paused_collection() -> Iterator[None]:
    """No cycle collection meanwhile.

    Reading many routes makes millions of objects, none of them garbage; looking for cycles among
    them takes four times as long as the reading (measured with 10,000 routes). When there are many
    they are set apart from then on: each look through them would stop every request for longer
    than all of its work takes. They are freed all the same when nothing refers to them.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            if gc.get_count()[0] > MANY_OBJECTS:
                gc.freeze()
            gc.enable()


class _Loader:
    def __init__(self, environ: Mapping[str, str], memory: RouteMemory) -> None:
        self._environ = environ
        self._memory = memory
        self._raw: dict[str, Any] = {}
        self._seen: set[tuple[str, KeyPath]] = set()
        self.outcome = Outcome()
        self._origins = self.outcome.origins

    def _error(self, path: KeyPath, message: str, fix: str = "") -> None:
        self.outcome.errors.append(self._origins.issue(Severity.ERROR, path, message, fix))

    def _warn(self, path: KeyPath, message: str, fix: str = "") -> None:
        self.outcome.warnings.append(self._origins.issue(Severity.WARNING, path, message, fix))

    # -- the file ------------------------------------------------------------------------------

    def read_file(self, path: Path) -> bool:
        """Take in the main file; False when there is nothing to go on with."""
        document = self._document(path)
        if document is None:
            return False
        self._origins.set_file(str(path), document.lines)
        for where, line, message, fix in document.problems:
            self.outcome.errors.append(
                Issue(Severity.ERROR, format_path(where) or "(top)", message, fix, str(path), line)
            )
        self._raw = document.data
        self._lowered(document.lowered)
        self._nest_dotted()
        self._removed()
        self._aliases()
        return True

    def _document(self, path: Path) -> Document | None:
        def fail(message: str, fix: str, line: int | None = None) -> None:
            self.outcome.errors.append(
                Issue(Severity.ERROR, "--config", message, fix, str(path), line)
            )

        extension = ".env" if path.name == ".env" else path.suffix.lower()
        if extension.removeprefix(".") not in FORMATS:
            fail(
                f"failed to read config: unknown kind of file {path.suffix!r}",
                "a name ending in .yaml, .yml, .json, .toml or .env",
            )
            return None
        try:
            data = path.read_bytes()
            self.outcome.file_mode = path.stat().st_mode
        except OSError as error:
            fail(f"failed to read config: {error.strerror}", "a file this process can read")
            return None
        self.outcome.file = path
        self.outcome.file_digest = hashlib.sha256(data).digest()
        if len(data) > MAX_FILE_BYTES:
            fail("failed to read config: the file is too large", f"{MAX_FILE_BYTES} bytes at most")
            return None
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            fail("failed to read config: not UTF-8", "UTF-8 text", line)
            return None
        if extension in {".yaml", ".yml"}:
            document = self._memory.read(text, self._environ)
            if document is not None:
                return document
        try:
            return parse_document(text, extension.removeprefix("."), lower_keys=True)
        except DocumentError as error:
            fail(f"failed to read config: {error}", error.fix, error.line)
            return None

    def _lowered(self, written: Mapping[KeyPath, str]) -> None:
        """Claims whose name lost its capital letters with those of the keys."""
        for path, name in written.items():
            if path[0] not in {"policy", "routes", "explain_policy"}:
                continue
            key = str(path[-1])
            if key.startswith("claim/") and key[6:] != name[6:]:
                self._warn(path, *_lost_capitals(key, name))
            elif _CLAIMS in path[:-1]:
                self._warn(path, *_lost_capitals(f"{_CLAIMS}.{key}", name))

    def _nest_dotted(self) -> None:
        """`a.b: x` at the top means `a: {b: x}`."""
        for name in [name for name in self._raw if "." in name]:
            value = self._raw.pop(name)
            *parents, leaf = name.split(".")
            target = self._raw
            for depth, parent in enumerate(parents, 1):
                if parent not in target:
                    self._origins.hold(tuple(parents[:depth]), (name,))
                inner = target.setdefault(parent, {})
                if not isinstance(inner, dict):
                    self._error((name,), f"{parent} is given as a value too", "keep one of them")
                    break
                target = inner
            else:
                here = (*parents, leaf)
                if leaf in target:
                    self._error((name,), "given twice", "keep one of them")
                else:
                    target[leaf] = value
                    self._origins.move((name,), here)

    def _removed(self) -> None:
        for name, instead in keys.REMOVED.items():
            if name in self._raw:
                del self._raw[name]
                what = "policy file setting is deprecated" if name == "policy_file" else ""
                self._error(
                    (name,), what or "some configuration options are no longer supported", instead
                )
                self.outcome.dropped.add((name,))
        for top in ("policy", "routes"):
            for index, route in self._routes(top):
                for name, instead in keys.REMOVED_ROUTE.items():
                    if name not in route:
                        continue
                    del route[name]
                    path = (top, index, name)
                    if top == "routes":
                        self._error(
                            path, "some configuration options are no longer supported", instead
                        )
                    else:
                        self._warn(path, "no longer supported and without effect", instead)

    def _routes(self, top: str) -> list[tuple[int, dict[str, Any]]]:
        routes = self._raw.get(top)
        if not isinstance(routes, list):
            return []
        return [(index, route) for index, route in enumerate(routes) if isinstance(route, dict)]

    def _aliases(self) -> None:
        self._rename(self._raw, (), keys.ALIASES)
        for top in ("policy", "routes"):
            for index, route in self._routes(top):
                self._rename(route, (top, index), keys.ROUTE_ALIASES)

    def _rename(self, where: dict[str, Any], path: KeyPath, names: Mapping[str, str]) -> None:
        for alias, name in names.items():
            if alias not in where:
                continue
            value = where.pop(alias)
            if name in where and where[name] != value:
                self._error(
                    (*path, alias),
                    f"{alias} and {name} mean the same and differ",
                    f"keep one of them, best {name}",
                )
                continue
            where.setdefault(name, value)
            self._origins.move((*path, alias), (*path, name))

    # -- the environment -----------------------------------------------------------------------

    def read_environment(self) -> None:
        """Lay the environment's values over the file's."""
        taken: dict[str, str] = {}
        for name, info in Settings.model_fields.items():
            key = info.alias or name
            text = self._environ.get(key.upper(), "")
            if text and key not in {"policy", "routes", "downstream_mtls"}:
                taken[key] = text
                self._place((key,), _structure(key, text), key.upper())
        for alias, key in keys.ALIASES.items():
            text = self._environ.get(alias.upper(), "")
            if not text:
                continue
            if taken.get(key, text) != text:
                self._place((key,), taken[key], alias.upper())
                self._error(
                    (key,),
                    f"{alias.upper()} and {key.upper()} mean the same and differ",
                    f"keep one of them, best {key.upper()}",
                )
                continue
            self._place((key,), text, alias.upper())
        for name in DownstreamMTLS.model_fields:
            variable = f"DOWNSTREAM_MTLS_{name.upper()}"
            if text := self._environ.get(variable, ""):
                self._place(("downstream_mtls", name), text, variable)
        self._headers()
        for key in ("policy", "routes"):
            self._encoded_routes(key)
        for name, instead in keys.NO_VARIABLE.items():
            if self._environ.get(name.upper()):
                self.outcome.warnings.append(
                    Issue(Severity.WARNING, name.upper(), "has no effect", instead, ENVIRONMENT)
                )
        if self._environ.get("DEBUG_FORCE_AUTHENTICATE_FLOW", "stateful") != "stateful":
            self.outcome.warnings.append(
                Issue(
                    Severity.WARNING,
                    "DEBUG_FORCE_AUTHENTICATE_FLOW",
                    "only the stateful flow is offered",
                    "leave it out",
                    ENVIRONMENT,
                )
            )

    def _place(self, path: KeyPath, value: Any, variable: str) -> None:
        target = self._raw
        for step in path[:-1]:
            inner = target.get(str(step))
            if not isinstance(inner, dict):
                inner = target[str(step)] = {}
            target = inner
        target[str(path[-1])] = value
        self._origins.set_elsewhere(path, Origin(ENVIRONMENT, None, variable))

    def _headers(self) -> None:
        text = self._environ.get("HEADERS", "")
        if not text:
            return
        self._place(("set_response_headers",), {}, "HEADERS")
        if text.lstrip().startswith("{"):
            try:
                self._raw["set_response_headers"] = json.loads(text)
            except (ValueError, RecursionError):
                self._error(("set_response_headers",), "is not JSON", '{"Name": "value"}')
            return
        headers: dict[str, str] = {}
        for pair in text.split(","):
            name, colon, value = pair.partition(":")
            if not colon or not name:
                self._error(
                    ("set_response_headers",),
                    "holds an element that is not Name:value",
                    "Name:value,Name2:value2, or a JSON object when a value holds a comma",
                )
                return
            headers[name] = value
        self._raw["set_response_headers"] = headers

    def _encoded_routes(self, key: str) -> None:
        text = self._environ.get(key.upper(), "")
        if not text:
            return
        fix = "base64 of a YAML or JSON list of routes"
        self._place((key,), [], key.upper())
        decoded = decode_base64(text)
        if decoded is None:
            self._error((key,), "is not base64", fix)
            return
        try:
            value, lines = parse_yaml_value(decoded.decode())
        except (DocumentError, UnicodeDecodeError) as error:
            line = error.line if isinstance(error, DocumentError) else None
            what = str(error) if isinstance(error, DocumentError) else "is not UTF-8"
            self.outcome.errors.append(
                Issue(Severity.ERROR, key.upper(), what, fix, ENVIRONMENT, line)
            )
            return
        if not isinstance(value, list):
            self._error((key,), "does not decode to a list", fix)
            return
        self._raw[key] = value
        for where, line in lines.items():
            shown = key.upper() + format_path(where, tail=True)
            self._origins.set_elsewhere((key, *where), Origin(ENVIRONMENT, line, shown))
        for index, route in self._routes(key):
            self._rename(route, (key, index), keys.ROUTE_ALIASES)

    def certificate_key_path(self) -> None:
        """A `certificate_key` that is a path counts as `certificate_key_file`."""
        value = self._raw.get("certificate_key")
        if not isinstance(value, str) or not value or "-----BEGIN" in value:
            return
        decoded = decode_base64(value)
        looks_like_path = len(value) < 4096 and (
            value.startswith(("/", "./", "../", "~", "$")) or value.endswith((".pem", ".key"))
        )
        if (decoded is not None and b"-----BEGIN" in decoded) or not looks_like_path:
            return
        del self._raw["certificate_key"]
        other = self._raw.get("certificate_key_file")
        if other and other != value:
            is_variable = bool(self._environ.get("CERTIFICATE_KEY"))
            if is_variable == bool(self._environ.get("CERTIFICATE_KEY_FILE")):
                self._error(
                    ("certificate_key",),
                    "certificate_key holds a path and certificate_key_file another",
                    "keep certificate_key_file",
                )
                return
            if not is_variable:  # as everywhere, the environment wins over the file
                return
        self._raw["certificate_key_file"] = value
        self._origins.move(("certificate_key",), ("certificate_key_file",))

    # -- the model -----------------------------------------------------------------------------

    def validate(self) -> None:
        """Run the model over the raw values; drop what is unknown or wrong until it passes."""
        context = {ENVIRON: self._environ}
        while True:
            try:
                self.outcome.settings = Settings.model_validate(self._raw, context=context)
                break
            except ValidationError as error:
                for details in error.errors(include_input=False, include_url=False):
                    self._take(details["type"], tuple(details["loc"]), details)
        if self.outcome.settings is not None:
            self._flags(self.outcome.settings)

    def _take(self, kind: str, path: KeyPath, details: typing.Any) -> None:
        if (kind, path) in self._seen:  # dropping just that did not help: drop what holds it
            self._raw.pop(str(path[0]), None)
            self.outcome.dropped.add(path[:1])
            return
        self._seen.add((kind, path))
        if kind == "extra_forbidden":
            self._unknown(path)
            self._remove(path)
            return
        context = details.get("ctx", {})
        if kind == "config":
            message, fix = context["message"], context["fix"]
        else:
            message, fix = plain_problem(kind, details["msg"])
        self._error(path, message, fix)
        in_route = path[0] in {"routes", "policy"}
        if in_route and len(path) > 2:
            # The rest of the route is still looked at: everything wrong is told at once.
            self.outcome.dropped.add(path[:3])
            self._remove(path[:3])
            return
        whole = path[:2] if in_route and len(path) > 1 else path[:1]
        if whole not in self.outcome.dropped:
            self.outcome.dropped.add(whole)
            self._remove(whole, keep_index=True)

    def _unknown(self, path: KeyPath) -> None:
        name = str(path[-1])
        parent = keys.model_at(path[:-1])
        known = keys.fields_of(parent) if parent is not None else {}
        guess = keys.nearest(name, known)
        if len(path) == 1 and name in keys.OLDER:
            message, fix = "no longer exists and is ignored", keys.OLDER[name]
        elif keys.is_api_only(parent, name):
            message, fix = "is not a key of this file and is ignored", "set it in the console"
        else:
            message = "unknown key, ignored"
            few = f"one of {', '.join(known)}" if 0 < len(known) <= MOST_KEYS_NAMED else ALL_KEYS
            fix = f"did you mean {guess}?" if guess else few
            if parent is Settings and name in keys.fields_of(Route):
                fix = "it is a key of a route: put it into an element of routes"
            elif parent is Route and name in keys.fields_of(Settings):
                fix = "it is a global key: put it at the top of the file"
        self._warn(path, message, fix)

    def _remove(self, path: KeyPath, *, keep_index: bool = False) -> None:
        target: Any = self._raw
        try:
            for step in path[:-1]:
                target = target[step]
            if keep_index and isinstance(target, list):
                target[int(path[-1])] = {}
            else:
                del target[path[-1]]
        except (KeyError, IndexError, TypeError):
            pass

    def _flags(self, settings: Settings) -> None:
        for name in settings.runtime_flags:
            if name not in RUNTIME_FLAGS:
                guess = keys.nearest(name, RUNTIME_FLAGS)
                self._warn(
                    ("runtime_flags", name),
                    "unknown runtime flag",
                    f"did you mean {guess}?" if guess else f"one of {', '.join(RUNTIME_FLAGS)}",
                )


def _lost_capitals(read: str, written: str) -> tuple[str, str]:
    meaning = f"{shorten(written)} becomes {read}, which is not the claim that was meant"
    return (
        f"keys of a file are read in lower case: {meaning}",
        "a claim in lower case, or the routes in the variable ROUTES, where keys keep letters",
    )


def _structure(key: str, text: str) -> Any:
    """JSON text of a key that holds structures; what is not JSON stays for the model to refuse."""
    if keys.fields_of(Settings)[key] is None:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def plain_problem(kind: str, message: str) -> tuple[str, str]:
    """Pydantic's own complaints in the words of a configuration file."""
    if kind in {"tuple_type", "list_type"}:
        return "is not a list", "a list, each element beginning with a dash"
    if kind in {"dict_type", "model_type", "mapping_type", "model_attributes_type"}:
        return "is not a map", "a map"
    return message[:1].lower() + message[1:], ""
