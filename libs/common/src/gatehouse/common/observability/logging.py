"""How a process logs: structlog over stdlib, JSON lines on standard error, one redaction step.

Readable lines on a terminal. Libraries' lines take the same way (spec: observability §3.1).

Call `configure_logging` once, first thing; `set_level` applies a reload. The event is a constant
string, data goes into fields. Fields bound with `structlog.contextvars` (request-id) are added.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO, cast

import structlog
from structlog.stdlib import BoundLogger, ProcessorFormatter

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.observability.redaction import redact_event
from gatehouse.common.observability.writer import QueuedStream

# gRPC's C core writes lines of its own to standard error; ours say the same. It reads this while it
# is being imported, so entry points import this module before any that imports grpc.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

TRACE: Final = 5
OFF: Final = 100

LEVELS: Final[Mapping[str, int]] = {
    "": logging.INFO,
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "fatal": logging.CRITICAL,
    "panic": 60,
    "off": OFF,
    "none": OFF,
    "disabled": OFF,
}

# Libraries whose INFO and DEBUG lines hold URLs with codes, header values or statements.
_QUIET: Final = (
    "asyncio",
    "authlib",
    "h2",
    "hpack",
    "httpcore",
    "httpx",
    "hypercorn",
    "grpc",
    "psycopg",
    "psycopg.pool",
)

_LEVEL_WORDS: Final = {"warning": "warn", "exception": "error"}


def parse_level(word: str) -> int:
    """The threshold for one of the words of `log_level`; raises InvalidArgumentError."""
    try:
        return LEVELS[word]
    except KeyError:
        known = ", ".join(name for name in LEVELS if name)
        raise InvalidArgumentError(
            f"log_level: invalid level {word[:32]!r}; use one of {known}"
        ) from None


def configure_logging(level: str = "info", *, stream: TextIO | None = None) -> None:
    """Send all logging of this process to `stream`.

    The default is standard error through a bounded queue and a thread of its own, so that a
    reader who stalls stops nobody. A given stream is written to at once (tests, terminals).
    """
    threshold = parse_level(level)
    target = sys.stderr if stream is None else stream
    is_terminal = target.isatty()
    sink: Any = target if stream is not None or is_terminal else QueuedStream(target)
    handler = _LineHandler(sink, is_terminal=is_terminal)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[_add_foreign_service, *_SHARED],
            processors=[
                ProcessorFormatter.remove_processors_meta,
                *(_CONSOLE if is_terminal else _JSON),
            ],
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old, _LineHandler):
            root.removeHandler(old)
            old.close()
    root.addHandler(handler)
    logging.addLevelName(TRACE, "TRACE")
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    _apply(threshold)


def set_level(level: str) -> None:
    """Change the threshold of a running process; raises InvalidArgumentError."""
    _apply(parse_level(level))


def get_logger(service: str) -> BoundLogger:
    """A logger whose lines carry `service`."""
    logger = structlog.get_logger(f"gatehouse.{service}", service=service)
    return cast("BoundLogger", logger)


def write_line(fields: Mapping[str, object]) -> None:
    """Write one line with these fields as they are, for what is logged at every request.

    The way of all other lines costs more than a decision does. Here the caller has looked at the
    level, named `level`, `time`, `service` and `message`, and left nothing secret in.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LineHandler):
            handler.write_fields(fields)


def share_output(lock: int) -> None:
    """Take turns with the other processes that write to the same standard error.

    `lock`: descriptor of a file that all of them have; each line is written while holding its lock.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LineHandler) and isinstance(handler.stream, QueuedStream):
            handler.stream.take_turns(lock)


def flush_logging(timeout_s: float = 2.0) -> None:
    """Wait until every line so far is written, at most `timeout_s`; for the end of a process."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LineHandler) and isinstance(handler.stream, QueuedStream):
            handler.stream.drain(timeout_s)


class _LineHandler(logging.StreamHandler[Any]):
    """Marks the handler that is ours; one `write` per line, so that lines never mix."""

    terminator = ""

    def __init__(self, sink: Any, *, is_terminal: bool) -> None:
        super().__init__(sink)
        self._is_terminal = is_terminal

    def write_fields(self, fields: Mapping[str, object]) -> None:
        """Write a line that needs no more than to be rendered."""
        if self._is_terminal:
            event = {**fields, "event": fields["message"]}
            event.pop("message")
            name = f"gatehouse.{fields['service']}"
            record = logging.LogRecord(name, logging.INFO, "", 0, cast("str", event), (), None)
            # What structlog's wrap_for_formatter hands over, without a walk up the stack.
            record.__dict__.update(_logger=logging.getLogger(name), _name="info")
            self.handle(record)
            return
        line = _encode(fields) + "\n"
        if isinstance(self.stream, QueuedStream):
            self.stream.write(line)
            return
        with self.lock or contextlib.nullcontext(), contextlib.suppress(OSError, ValueError):
            self.stream.write(line)
            self.stream.flush()

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record) + "\n"

    def close(self) -> None:
        if isinstance(self.stream, QueuedStream):
            self.stream.close()
        super().close()


def _apply(threshold: int) -> None:
    logging.getLogger().setLevel(threshold)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


def _add_foreign_service(
    _logger: object, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    record = event.get("_record")
    if isinstance(record, logging.LogRecord):
        event.setdefault("service", record.name.partition(".")[0])
    return event


def _add_time(
    _logger: object, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    now = dt.datetime.now(dt.UTC)
    event["time"] = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return event


def _add_level(
    _logger: object, name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    record = event.get("_record")
    word = record.levelname.lower() if isinstance(record, logging.LogRecord) else name
    event["level"] = _LEVEL_WORDS.get(word, word)
    return event


def _render_exception(
    _logger: object, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """`exc_info` becomes `error` (type and text) and `stack` (the traceback, without locals)."""
    exc_info = event.pop("exc_info", None)
    if exc_info is True:
        exc_info = sys.exc_info()
    if isinstance(exc_info, BaseException):
        exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
    if exc_info and exc_info[1] is not None:
        error = exc_info[1]
        event.setdefault("error", f"{type(error).__name__}: {error}")
        event["stack"] = logging.Formatter().formatException(exc_info)
    elif isinstance(event.get("error"), BaseException):
        error = event["error"]
        event["error"] = f"{type(error).__name__}: {error}"
    return event


def _name_message(
    _logger: object, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    event["message"] = event.pop("event", "")
    return event


def _printable(
    _logger: object, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """On a terminal, what came from outside must not move the cursor or begin a new line."""
    for key, value in event.items():
        if key != "stack" and isinstance(value, str) and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode("ascii")
    stack = event.pop("stack", None)
    if stack is not None:
        event["exception"] = stack
    return event


_encode: Final = json.JSONEncoder(ensure_ascii=False, default=str).encode

_SHARED: Final[list[Any]] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.PositionalArgumentsFormatter(),
    _add_level,
    _add_time,
    _render_exception,
    redact_event,
]
_JSON: Final[list[Any]] = [_name_message, structlog.processors.JSONRenderer(ensure_ascii=False)]
_CONSOLE: Final[list[Any]] = [
    _printable,
    structlog.dev.ConsoleRenderer(
        timestamp_key="time", exception_formatter=structlog.dev.plain_traceback
    ),
]
