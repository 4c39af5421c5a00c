"""What is known of routes from the last time the configuration was read.

Whoever reads a configuration again and again keeps one and passes it along; nobody else has any
state. Everything in it is found by what it was made of, so that forgetting it changes nothing but
the time it takes. It holds what the last reading used that could be taken apart, and no more: a
file that is broken for a moment does not make the next one slow.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel, SecretStr, ValidationError

from gatehouse.common.config import keys
from gatehouse.common.config.documents import (
    MAX_NODES,
    Document,
    DocumentError,
    ListItem,
    Path,
    parse_document,
    parse_list_item,
)
from gatehouse.common.config.model import Route
from gatehouse.common.config.resolved import ResolvedRoute
from gatehouse.common.config.route_texts import ROUTES, RouteText, split_routes
from gatehouse.common.config.values import ENVIRON

FILE_KEYS: Final = tuple(name for name in Route.model_fields if name.endswith("_file"))
_RENAMED: Final = frozenset(keys.ROUTE_ALIASES) | frozenset(keys.REMOVED_ROUTE)


@dataclass(frozen=True, slots=True)
class WrittenRoute:
    """One route as it is written, and as it is read."""

    item: ListItem
    route: Route | None  # None: the loader has something to say or to change


@dataclass(frozen=True, slots=True)
class KnownRoute:
    """What a route resolved to without a remark, under one basis."""

    route: Route  # kept alive, so that its identity stays its own
    resolved: ResolvedRoute


@dataclass(slots=True)
class RouteMemory:
    """Of one process. Not for use by several threads at once."""

    environ: dict[str, str] = field(default_factory=dict)
    written: dict[str, WrittenRoute] = field(default_factory=dict)  # by the text
    basis: object = None  # all that `resolved` depends on besides the routes
    resolved: dict[int, KnownRoute] = field(default_factory=dict)  # by id() of the route
    digests: dict[int, tuple[Route, bytes]] = field(default_factory=dict)  # by id() of the route

    def __repr__(self) -> str:
        return f"RouteMemory({len(self.written)} texts, {len(self.resolved)} resolved)"

    def read(self, text: str, environ: Mapping[str, str]) -> Document | None:
        """A YAML file whose known routes are models already; None when it must be read whole."""
        split = split_routes(text)
        if split is None:
            return None
        try:
            document = parse_document(split.rest, "yaml", lower_keys=True)
        except DocumentError:
            return None
        # An open quote or bracket before the list would have swallowed the key, or what follows.
        if document.problems or document.lines.get((ROUTES,)) != split.line:
            return None
        if document.data.get(ROUTES, "") is not None:
            return None
        if self.environ != environ:
            self.environ = dict(environ)
            self.written = {}
        found: dict[str, WrittenRoute] = {}
        nodes = 0
        for each in split.routes:
            written = found.get(each.text) or self.written.get(each.text) or _written(each, environ)
            if written is None:
                return None
            nodes += written.item.nodes
            found[each.text] = written
        if nodes > MAX_NODES:
            return None
        self.written = {text: each for text, each in found.items() if each.route is not None}
        in_order = [found[each.text] for each in split.routes]
        document.data[ROUTES] = [_value(written) for written in in_order]
        for index, written in enumerate(in_order):
            for path, name in written.item.lowered.items():
                document.lowered[(ROUTES, index, *path)] = name
        document.lines = _Lines(
            document.lines,
            tuple(
                (each.line, written.item)
                for each, written in zip(split.routes, in_order, strict=True)
            ),
        )
        return document

    def known(self, basis: object) -> dict[int, KnownRoute]:
        """What routes resolved to under an equal basis; empties it for the next to fill."""
        known = self.resolved if self.basis == basis else {}
        self.basis, self.resolved = basis, {}
        return known

    def digest(self, routes: Iterable[Route]) -> bytes:
        """A hash of all that these routes say, in their order. It tells nothing of it unkeyed."""
        digests: dict[int, tuple[Route, bytes]] = {}
        whole = hashlib.sha256()
        for route in routes:
            entry = self.digests.get(id(route))
            if entry is None:
                entry = (route, hashlib.sha256(revealed(route).encode()).digest())
            digests[id(route)] = entry
            whole.update(entry[1])
        self.digests = digests
        return whole.digest()


def reads_files(route: Route) -> bool:
    """True when what the route resolves to depends on files that it names."""
    return any(getattr(route, name) for name in FILE_KEYS)


def revealed(model: BaseModel) -> str:
    """Settings as text, secrets included: only ever hashed with a key."""

    def plain(value: Any) -> Any:
        return value.get_secret_value() if isinstance(value, SecretStr) else str(value)

    return json.dumps(model.model_dump(), default=plain, sort_keys=True)


def _written(piece: RouteText, environ: Mapping[str, str]) -> WrittenRoute | None:
    item = parse_list_item(piece.text)
    if item is None:
        return None
    if item.lowered or not _RENAMED.isdisjoint(item.value):
        return WrittenRoute(item, None)
    try:
        route = Route.model_validate(item.value, context={ENVIRON: environ})
    except ValidationError:
        route = None
    return WrittenRoute(item, route)


def _value(written: WrittenRoute) -> Any:
    # The loader takes out what it warned of.
    return written.route if written.route is not None else copy.deepcopy(written.item.value)


class _Lines(Mapping[Path, int]):
    """The lines of a file whose routes were read one by one."""

    def __init__(self, rest: Mapping[Path, int], items: tuple[tuple[int, ListItem], ...]) -> None:
        self._rest = rest
        self._items = items

    def __getitem__(self, path: Path) -> int:
        if len(path) > 1 and path[0] == ROUTES:
            index = path[1]
            if isinstance(index, int) and 0 <= index < len(self._items):
                line, item = self._items[index]
                return line + item.lines[path[2:]]
            raise KeyError(path)
        return self._rest[path]

    def __iter__(self) -> Iterator[Path]:
        yield from self._rest
        for index, (_, item) in enumerate(self._items):
            for path in item.lines:
                yield (ROUTES, index, *path)

    def __len__(self) -> int:
        return len(self._rest) + sum(len(item.lines) for _, item in self._items)
