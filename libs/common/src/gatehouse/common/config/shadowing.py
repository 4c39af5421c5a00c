"""Which routes can never be reached, and which hide others, as Envoy will match them.

Spec: routes.md sections 3.1 and 6. Pure; works on what was resolved and names places by index.
A regular expression is only judged where its beginning or its whole is plain text, so that a
warning is always right, while an unreachable route may go without one.
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from gatehouse.common.config.resolved import FromURL, ResolvedRoute
from gatehouse.common.config.routes import PathMatch, PathMatchKind, compile_regex, path_match

OWN_PATHS: Final = ("/ping", "/healthz", "/.pomerium", "/.well-known/pomerium")
OWN_PREFIXES: Final = ("/.pomerium/", "/.well-known/pomerium/")
SIGN_IN_PATHS: Final = ("/", "/robots.txt", "/oauth2/callback")
MOST_PATTERNS: Final = 50  # unusual wildcards or expressions of one host compared with each other

_META: Final = frozenset("\\.+*?()|[]{}^$")
_ESCAPED_LITERAL: Final = re.compile(r"\\([^0-9A-Za-z])")
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


class Hiding(enum.Enum):
    """How one route stands before another."""

    WHOLE = "whole"  # never reached
    SAME = "same"  # never reached: the same host and path rule
    OWN = "own"  # never reached: a path that Gatehouse answers itself
    REST = "rest"  # the other is hidden on this host, for all other paths


@dataclass(frozen=True, slots=True)
class Shadow:
    """`route` is affected because of `by`; indices into the routes given."""

    hiding: Hiding
    route: int
    by: int | None
    host: str


@dataclass(frozen=True, slots=True)
class Remark:
    """What to tell whoever wrote `route`, an index into the routes given."""

    route: int
    message: str
    fix: str


def shadow_remark(shadow: Shadow, labels: Sequence[str]) -> Remark:
    """A shadow in words; `labels` name the routes."""
    if shadow.by is None:
        return Remark(
            shadow.route,
            "can never be reached: Gatehouse itself answers these paths of every host",
            "another path; /.pomerium, /.well-known/pomerium, /ping and /healthz are taken",
        )
    by = labels[shadow.by]
    if shadow.hiding is Hiding.SAME:
        message = f"can never be reached: {by} before it has the same from and path"
        return Remark(shadow.route, message, "keep one")
    if shadow.hiding is Hiding.WHOLE:
        message = f"can never be reached: {by} before it matches all of it"
        return Remark(shadow.route, message, "put the narrower route first")
    return Remark(
        shadow.by,
        f"hides {labels[shadow.route]} on {shadow.host}: all other paths there answer 404",
        f"add a route for {shadow.host} without path, if they are wanted",
    )


@dataclass(frozen=True, slots=True)
class _Host:
    """What a virtual host, or a wildcard in the catch-all one, is known by."""

    kind: str  # "http", or the scheme of a tunnel
    name: str
    port: int | None

    @property
    def shown(self) -> str:
        return self.name if self.port is None else f"{self.name}:{self.port}"


@dataclass(slots=True)
class _Seen:
    """The path rules of one host so far, each with the first route that has it."""

    exact: dict[str, int] = field(default_factory=dict)
    prefixes: dict[str, int] = field(default_factory=dict)
    regexes: dict[str, int] = field(default_factory=dict)
    compiled: list[tuple[Any, int]] = field(default_factory=list)
    matches: list[tuple[PathMatch, int]] = field(default_factory=list)
    connect: int | None = None

    def add(self, match: PathMatch, route: int) -> None:
        self.matches.append((match, route))
        if match.kind is PathMatchKind.CONNECT:
            self.connect = route if self.connect is None else self.connect
            return
        if match.kind is PathMatchKind.REGEX and match.value not in self.regexes:
            self.regexes[match.value] = route
            if len(self.compiled) < MOST_PATTERNS:
                self.compiled.append((compile_regex(match.value), route))
        rule = _plain(match)
        if rule is not None:
            table = self.exact if rule.kind is PathMatchKind.EXACT else self.prefixes
            table.setdefault(rule.value, route)

    def cover(self, match: PathMatch) -> int | None:
        """The route that matches all that `match` does; the earliest of those known."""
        if match.kind is PathMatchKind.CONNECT:
            return self.connect
        found: list[int | None] = []
        stem = match.value
        if match.kind is PathMatchKind.REGEX:
            found.append(self.regexes.get(match.value))
            stem = _literal_stem(match.value)
        rule = _plain(match)
        if rule is not None and rule.kind is PathMatchKind.EXACT:
            stem = rule.value
            found.append(self.exact.get(stem))
            found += [route for regex, route in self.compiled if regex.fullmatch(stem)]
        found += [self.prefixes.get(stem[:end]) for end in range(len(stem) + 1)]
        return min((route for route in found if route is not None), default=None)


def shadows(
    routes: Sequence[ResolvedRoute], *, sign_in_url: str = "", serves_sign_in: bool = False
) -> Iterator[Shadow]:
    """Routes that cannot be reached, then hosts that hide wildcards.

    `sign_in_url` is the authenticate service's; `serves_sign_in` tells whether it runs here. Where
    it does not, its host is passed through and has none of Gatehouse's own paths.
    """
    sign_in = urlsplit(sign_in_url).hostname or ""
    reaches = [_hosts(route.from_url) for route in routes]
    alone = _alone(reaches)
    hosts: dict[_Host, _Seen] = {}
    wildcards = _Wildcards()
    for index, (route, reach) in enumerate(zip(routes, reaches, strict=True)):
        match = path_match(route.settings, route.from_url)
        reached = [
            _own(host, match, index, sign_in, serves_sign_in=serves_sign_in)
            or (None if host in alone else _shadow(host, match, index, hosts, wildcards, routes))
            for host in reach
        ]
        if reached and all(shadow is not None for shadow in reached):
            assert reached[0] is not None
            yield reached[0]
        for host in reach:
            if host in alone:
                continue
            hosts.setdefault(host, _Seen()).add(match, index)
            if "*" in host.name:
                wildcards.add(host)
    yield from _hidden(hosts, wildcards)


def _alone(reaches: Sequence[tuple[_Host, ...]]) -> frozenset[_Host]:
    """Hosts of one route that no pattern covers: most of many, and nothing can stand in its way."""
    counts = Counter(host for reach in reaches for host in reach)
    wildcards = _Wildcards()
    for host in counts:
        if "*" in host.name:
            wildcards.add(host)
    return frozenset(
        host
        for host, count in counts.items()
        if count == 1 and "*" not in host.name and next(wildcards.covering(host), None) is None
    )


def _own(
    host: _Host, match: PathMatch, index: int, sign_in: str, *, serves_sign_in: bool
) -> Shadow | None:
    """Whether Gatehouse itself answers all that the rule matches on this host."""
    if host.kind != "http" or (host.name == sign_in and not serves_sign_in):
        return None
    own = (*OWN_PATHS, *(SIGN_IN_PATHS if host.name == sign_in else ()))
    rule = _plain(match)
    stem = match.value if match.kind is not PathMatchKind.REGEX else _literal_stem(match.value)
    exact = rule.value if rule is not None and rule.kind is PathMatchKind.EXACT else None
    if exact in own or stem.startswith(OWN_PREFIXES):
        return Shadow(Hiding.OWN, index, None, host.shown)
    return None


def _shadow(
    host: _Host,
    match: PathMatch,
    index: int,
    hosts: dict[_Host, _Seen],
    wildcards: _Wildcards,
    routes: Sequence[ResolvedRoute],
) -> Shadow | None:
    before = [host, *(wildcards.covering(host) if "*" in host.name else ())]
    found = [hosts[other].cover(match) for other in before if other in hosts]
    by = min((route for route in found if route is not None), default=None)
    if by is None:
        return None
    other = routes[by]
    same = other.from_url == routes[index].from_url and match == path_match(
        other.settings, other.from_url
    )
    return Shadow(Hiding.SAME if same else Hiding.WHOLE, index, by, host.shown)


def _hidden(hosts: dict[_Host, _Seen], wildcards: _Wildcards) -> Iterator[Shadow]:
    """Exact hosts that answer some paths only, though a wildcard is there for their name."""
    for host, seen in hosts.items():
        if host.kind != "http" or "*" in host.name:
            continue
        wider = (hosts[other] for other in wildcards.covering(host))
        hidden = next(
            (
                route
                for other in wider
                for match, route in other.matches
                if seen.cover(match) is None
            ),
            None,
        )
        if hidden is not None:
            yield Shadow(Hiding.REST, hidden, seen.matches[0][1], host.shown)


class _Wildcards:
    """Host patterns, found by what they cover."""

    def __init__(self) -> None:
        self._suffixes: dict[tuple[str, str], list[_Host]] = {}  # by kind and text after a lone *
        self._lengths: set[int] = set()  # of those texts
        self._others: list[tuple[_Host, re.Pattern[str]]] = []
        self._known: set[_Host] = set()

    def add(self, host: _Host) -> None:
        if host in self._known:
            return
        self._known.add(host)
        before, _, suffix = host.name.partition("*")
        if not before and "*" not in suffix:
            self._suffixes.setdefault((host.kind, suffix), []).append(host)
            self._lengths.add(len(suffix))
        elif len(self._others) < MOST_PATTERNS:
            expression = ".*".join(re.escape(part) for part in host.name.split("*"))
            self._others.append((host, re.compile(expression)))

    def covering(self, host: _Host) -> Iterator[_Host]:
        """The patterns, other than `host` itself, that match every name that `host` does.

        A star in the name can only be matched by a star, so that one test serves patterns too.
        """
        # The longest first, as they stand in the name.
        for length in sorted(self._lengths, reverse=True):
            if length > len(host.name):
                continue
            suffix = host.name[len(host.name) - length :]
            for pattern in self._suffixes.get((host.kind, suffix), ()):
                if pattern != host and pattern.port in {None, host.port}:
                    yield pattern
        for pattern, expression in self._others:
            fits = pattern.kind == host.kind and pattern.port in {None, host.port}
            if fits and pattern != host and expression.fullmatch(host.name):
                yield pattern


def _hosts(url: FromURL) -> tuple[_Host, ...]:
    if url.scheme == "ssh":
        return ()
    if url.connect_targets:
        pairs = (target.rpartition(":") for target in url.connect_targets)
        return tuple(_Host(url.scheme, name, int(port)) for name, _, port in pairs)
    port = None if url.port == _DEFAULT_PORTS.get(url.scheme) else url.port
    return (_Host("http", url.host, port),)


def _plain(match: PathMatch) -> PathMatch | None:
    """`match` as an exact path or a prefix, if it amounts to one."""
    if match.kind in {PathMatchKind.EXACT, PathMatchKind.PREFIX}:
        return match
    if match.kind is PathMatchKind.CONNECT:
        return None
    text = match.value.removeprefix("^").removesuffix("$")
    for kind, body in (
        (PathMatchKind.PREFIX, text.removesuffix(".*")),
        (PathMatchKind.EXACT, text),
    ):
        if kind is PathMatchKind.PREFIX and body == text:
            continue
        plain = _ESCAPED_LITERAL.sub("", body)
        if not _META & set(plain):
            return PathMatch(kind, _ESCAPED_LITERAL.sub(r"\1", body))
    return None


def _literal_stem(pattern: str) -> str:
    """Text that everything `pattern` matches begins with; maybe empty."""
    if "|" in pattern:
        return ""
    rest, stem = pattern.removeprefix("^"), ""
    while rest:
        escaped = _ESCAPED_LITERAL.match(rest)
        if escaped is not None:
            literal, rest = escaped.group(1), rest[2:]
        elif rest[0] in _META:
            break
        else:
            literal, rest = rest[0], rest[1:]
        if rest[:1] in {"*", "?", "{"}:
            break
        stem += literal
    return stem
