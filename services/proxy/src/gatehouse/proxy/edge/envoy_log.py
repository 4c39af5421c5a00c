"""What Envoy says on its standard error, and where it goes."""

from __future__ import annotations

import asyncio
import re
from typing import Final

from gatehouse.common.observability.logging import get_logger
from gatehouse.common.observability.redaction import REDACTED, is_secret_name
from gatehouse.proxy.core.open_streams import ACCESS_HAS_ENDED

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

# At debug and trace level Envoy prints headers in these forms; line ends and quotes come escaped.
_HEADERS: Final = (
    # 'name', 'value' of a request, and 'name':'value' of what authorize adds, to the end of a line
    re.compile(r"(\\?'([\w-]{1,128})\\?'(?:, |:)\\?')((?:(?!\\?'(?:\\n|\n|$)).)*)"),
    # as the parser reads them
    re.compile(r"(completed header: key=([\w-]{1,128}) value=)(.*)"),
    # of the question to authorize and its answer, as text of a message
    re.compile(
        r'(key: \\?"([\w-]{1,128})\\?"(?:\\n|\s)*(?:raw_)?value: \\?")'
        r'((?:(?!\\?"(?:\\n|\s|$)).)*)'
    ),
)
# Of a decision that our script remembers: each text after its length.
_REMEMBERED: Final = re.compile(r"\d{1,4}:([A-Za-z][\w-]{0,127}?)\d{1,6}:")

# What Envoy warns of when the guard of open connections ends one; we have told why.
_ACCESS_ENDED: Final = f"gRPC error on stream: 7, message {ACCESS_HAS_ENDED}"

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

    for form in _HEADERS:
        message = form.sub(replace, message)
    return _without_remembered(message)


def _without_remembered(message: str) -> str:
    """A credential goes with what follows it, up to the end of the quoted whole."""
    kept, position = [], 0
    for match in _REMEMBERED.finditer(message):
        if match.start() >= position and is_secret_name(match.group(1)):
            kept += [message[position : match.end()], REDACTED]
            end = message.find('"', match.end())
            position = len(message) if end < 0 else end
    return "".join([*kept, message[position:]])


async def relay(stream: asyncio.StreamReader, stop: asyncio.Event) -> None:
    """Log every line until the stream ends; longer lines are cut.

    Once `stop` is set, Envoy's warnings about its end (a signal, a closed stream) are what was
    asked for, and are told at debug.
    """
    rest, told = b"", False  # the beginning of a line, and whether as much as fits was logged
    while chunk := await stream.read(_CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if not told:
                _write(line, ending=stop.is_set())
            told = False
        if len(rest) > _MAX_LINE:
            if not told:
                _write(rest, ending=stop.is_set())
            rest, told = b"", True
    if rest and not told:
        _write(rest, ending=stop.is_set())


def _write(raw: bytes, *, ending: bool) -> None:
    line = raw[:_MAX_LINE].decode(errors="replace").rstrip()
    if not line:
        return
    level, name, message = parse_line(line)
    method = _METHODS[level]
    if method == "warning" and (ending or _ACCESS_ENDED in message):
        method = "debug"
    getattr(_log, method)(without_credentials(message), name=name)
