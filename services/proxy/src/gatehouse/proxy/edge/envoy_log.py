"""What Envoy says on its standard error, and where it goes."""

from __future__ import annotations

import asyncio
import re
from typing import Final

from gatehouse.common.observability.logging import get_logger
from gatehouse.common.observability.redaction import REDACTED, is_secret_name

# Given to Envoy as --log-format: level, logger and the escaped message, one line each.
LOG_FORMAT: Final = "[gatehouse]%l--%n--%v"

_PREFIX: Final = "[gatehouse]"
_CHUNK: Final = 64 << 10
_MAX_LINE: Final = 16 << 10

# Envoy's levels to ours: its `info` tells of its own life, which is our debug.
_METHODS: Final = {
    "trace": "debug",
    "debug": "debug",
    "info": "debug",
    "warning": "warning",
    "warn": "warning",
    "error": "error",
    "critical": "error",
}
# Our level names to --log-level.
_ENVOY_LEVELS: Final = {
    "trace": "trace",
    "debug": "debug",
    "info": "info",
    "warn": "warning",
    "warning": "warning",
    "error": "error",
    "critical": "critical",
    "fatal": "critical",
    "panic": "critical",
    "off": "off",
    "none": "off",
    "disabled": "off",
}

# At debug level Envoy prints the headers of each request, a pair of quoted words on a line of its
# own; line ends and quotes come escaped.
_HEADER: Final = re.compile(r"(\\?'([\w-]{1,128})\\?', \\?')((?:(?!\\?'(?:\\n|\n|$)).)*)")

_log = get_logger("envoy")


def envoy_level(level: str) -> str:
    """Envoy's name of one of our log levels."""
    return _ENVOY_LEVELS[level]


def parse_line(line: str) -> tuple[str, str, str]:
    """Level, logger and message of a line. A line of another form is an error of Envoy's."""
    if line.startswith(_PREFIX):
        level, first, rest = line[len(_PREFIX) :].partition("--")
        name, second, message = rest.partition("--")
        if first and second and level in _METHODS:
            return level, name, message
    return "error", "", line


def without_credentials(message: str) -> str:
    """`message` with the values of cookie, authorization and like headers left out."""

    def replace(match: re.Match[str]) -> str:
        return match.group(1) + REDACTED if is_secret_name(match.group(2)) else match.group()

    return _HEADER.sub(replace, message)


async def relay(stream: asyncio.StreamReader, stop: asyncio.Event) -> None:
    """Log every line until the stream ends; longer lines are cut.

    Once `stop` is set, Envoy's warnings about its end (a signal, a closed stream) are what was
    asked for, and are told at debug.
    """
    rest = b""
    while chunk := await stream.read(_CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            _write(line, ending=stop.is_set())
        if len(rest) > _MAX_LINE:
            _write(rest, ending=stop.is_set())
            rest = b""
    if rest:
        _write(rest, ending=stop.is_set())


def _write(raw: bytes, *, ending: bool) -> None:
    line = raw[:_MAX_LINE].decode(errors="replace").rstrip()
    if not line:
        return
    level, name, message = parse_line(line)
    method = _METHODS[level]
    if ending and method == "warning":
        method = "debug"
    getattr(_log, method)(without_credentials(message), name=name)
