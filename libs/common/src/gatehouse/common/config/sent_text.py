"""Whether a route's text may stand where it ends up: in a request line, a header or a Location.

Envoy sends such text as it is written. It refuses all routes for a line break, and for a blank or a
letter outside ASCII it sends what no server can read. Spec: routes.md sections 5, 7 and 8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, urlsplit

from gatehouse.common.config.issues import Finding, Severity
from gatehouse.common.config.model import Route
from gatehouse.common.config.route_model import Redirect
from gatehouse.common.config.routes import RouteURLError, check_authority
from gatehouse.common.config.values import check_header_name, check_header_value, shorten

ERROR: Final = Severity.ERROR
WARNING: Final = Severity.WARNING

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_UNSENDABLE: Final = re.compile(r"[^\x21-\x7e]")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*")
_NOT_IN_HOST: Final = re.compile(r"[^A-Za-z0-9._\-:\[\]\\]")
_UPGRADE: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:/[!#$%&'*+\-.^_`|~0-9A-Za-z]+)?")
_PRINTABLE: Final = "".join(map(chr, range(0x21, 0x7F)))  # what may stay as it is

Place = tuple[str | int, ...]


def check_texts(route: Route) -> Iterator[Finding]:
    """Everything wrong with the paths, hosts and header values that a route sends."""
    if _CONTROL.search(route.name):
        message = f"{shorten(route.name)} holds a control character"
        yield Finding(ERROR, ("name",), message, "one line of text")
    yield from _paths(route)
    yield from _hosts(route)
    for index, token in enumerate(route.allow_upgrades or ()):
        yield from upgrade_token(("allow_upgrades", index), token)
    yield from _substitutions(route)
    if route.redirect is not None:
        yield from _redirect(route.redirect)
    for index, rewrite in enumerate(route.rewrite_response_headers):
        place: Place = ("rewrite_response_headers", index)
        try:
            check_header_name(rewrite.header)
        except ValueError as error:
            yield Finding(ERROR, (*place, "header"), str(error), "a header name")
        for key in ("prefix", "value"):
            yield from header_value((*place, key), getattr(rewrite, key))


def header_value(place: Place, text: str) -> Iterator[Finding]:
    """One line of text."""
    try:
        check_header_value(text)
    except ValueError:
        message = f"{shorten(text)} holds a control character"
        yield Finding(ERROR, place, message, "one line of text")


def upgrade_token(place: Place, text: str) -> Iterator[Finding]:
    """A protocol of the Upgrade header; empty ones are dropped."""
    if text.strip() and not _UPGRADE.fullmatch(text.strip()):
        message = f"{shorten(text)} is no upgrade token"
        yield Finding(ERROR, place, message, "websocket, spdy/3.1 or another protocol")


def sent_path(place: Place, text: str, *, may_have_query: bool = False) -> Iterator[Finding]:
    """A path, or the beginning of one, as it goes out."""
    if not text.startswith("/"):
        message = f"{shorten(text)} does not start with /, so the path sent will not"
        yield Finding(ERROR, place, message, f"a path such as {_escaped('/' + text)}")
    else:
        yield from sendable(place, text)
    if "#" in text:
        message = f"{shorten(text)} holds a #, which ends a path and is never sent"
        yield Finding(ERROR, place, message, "%23 for the sign itself")
    elif "?" in text and not may_have_query:
        message = f"{shorten(text)} holds a ?, after which the rest of the path would follow"
        yield Finding(WARNING, place, message, "the path alone; the query is kept anyway")


def sendable(place: Place, text: str) -> Iterator[Finding]:
    """Text of a request line: no control characters, no blanks, nothing outside ASCII."""
    if _CONTROL.search(text):
        message = f"{shorten(text)} holds a control character"
        yield Finding(ERROR, place, message, "one line of text")
        return
    found = _UNSENDABLE.search(text)
    if found is not None:
        what = "a blank" if found.group() == " " else found.group()
        message = f"{shorten(text)} holds {what}, which goes out as it is and cannot be read"
        yield Finding(ERROR, place, message, f"write it escaped: {_escaped(text)}")


def sent_host(place: Place, text: str) -> Iterator[Finding]:
    """A host, with or without a port."""
    fix = "a host such as app.example.com, or host:port"
    if "://" in text:
        named = urlsplit(text).netloc if "[" not in text else ""
        message = f"{shorten(text)} is a URL"
        yield Finding(ERROR, place, message, f"the host alone: {named}" if named else fix)
        return
    if _CONTROL.search(text):
        yield Finding(ERROR, place, f"{shorten(text)} holds a control character", fix)
        return
    try:
        check_authority(text)
    except RouteURLError as error:
        yield Finding(ERROR, place, str(error), fix)


def _escaped(text: str) -> str:
    return quote(text, safe=_PRINTABLE)


def _paths(route: Route) -> Iterator[Finding]:
    if route.prefix_rewrite:
        yield from sent_path(("prefix_rewrite",), route.prefix_rewrite)
    for key in ("path", "prefix"):
        text = getattr(route, key)
        if text.startswith("/") and _UNSENDABLE.search(text):
            message = f"{shorten(text)} can never match: a request has these characters escaped"
            yield Finding(WARNING, (key,), message, f"write it escaped: {_escaped(text)}")


def _hosts(route: Route) -> Iterator[Finding]:
    if route.host_rewrite:
        yield from sent_host(("host_rewrite",), route.host_rewrite)
    if route.host_rewrite_header:
        try:
            check_header_name(route.host_rewrite_header)
        except ValueError as error:
            yield Finding(
                ERROR, ("host_rewrite_header",), str(error), "the name of a request header"
            )


def _substitutions(route: Route) -> Iterator[Finding]:
    """What stands between the groups; the groups themselves come from a request that was sent."""
    yield from sendable(("regex_rewrite_substitution",), route.regex_rewrite_substitution)
    key = "host_path_regex_rewrite_substitution"
    text = getattr(route, key)
    if _CONTROL.search(text):
        yield Finding(
            ERROR, (key,), f"{shorten(text)} holds a control character", "one line of text"
        )
    elif (found := _NOT_IN_HOST.search(text)) is not None:
        message = f"{shorten(text)} holds {shorten(found.group())}, which no host may"
        yield Finding(ERROR, (key,), message, r"a host, with \1 for groups")


def _redirect(redirect: Redirect) -> Iterator[Finding]:
    scheme = redirect.scheme_redirect
    if scheme and not _SCHEME.fullmatch(scheme):
        message = f"{shorten(scheme)} is not the scheme of a URL"
        yield Finding(ERROR, ("redirect", "scheme_redirect"), message, "https or http")
    if redirect.host_redirect:
        yield from sent_host(("redirect", "host_redirect"), redirect.host_redirect)
    if redirect.path_redirect:
        place: Place = ("redirect", "path_redirect")
        yield from sent_path(place, redirect.path_redirect, may_have_query=True)
    if redirect.prefix_rewrite:
        yield from sent_path(("redirect", "prefix_rewrite"), redirect.prefix_rewrite)
