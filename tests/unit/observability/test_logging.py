"""Lines as they leave: one JSON object each, the right level, and no secrets."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.observability.logging import (
    configure_logging,
    get_logger,
    parse_level,
    set_level,
    write_line,
)

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjF9.c2lnbmF0dXJlLXNpZ25hdHVyZQ"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    out = io.StringIO()
    configure_logging("debug", stream=out)
    yield out
    for handler in list(root.handlers):
        if handler not in before:
            root.removeHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def only(stream: io.StringIO) -> dict[str, Any]:
    (line,) = lines(stream)
    return line


def test_fields_of_a_line(stream: io.StringIO) -> None:
    get_logger("proxy").info("listener added", name="https-ingress", count=3)
    line = only(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line.pop("time"))
    assert line == {
        "level": "info",
        "message": "listener added",
        "service": "proxy",
        "name": "https-ingress",
        "count": 3,
    }


@pytest.mark.parametrize(
    ("method", "word"),
    [("debug", "debug"), ("info", "info"), ("warning", "warn"), ("error", "error"),
     ("critical", "critical")],
)  # fmt: skip
def test_level_words(stream: io.StringIO, method: str, word: str) -> None:
    getattr(get_logger("proxy"), method)("x")
    assert only(stream)["level"] == word


def test_library_lines_take_the_same_way(stream: io.StringIO) -> None:
    logging.getLogger("some.package").warning("took %d ms, jwt=%s", 5, JWT)
    line = only(stream)
    assert line["message"] == "took 5 ms, jwt=[redacted]"
    assert (line["service"], line["level"]) == ("some", "warn")


def test_libraries_that_log_urls_are_held_at_warn(stream: io.StringIO) -> None:
    logging.getLogger("httpx").info("HTTP Request: GET https://idp/?code=secret")
    logging.getLogger("hpack.table").debug("cookie: x")
    assert lines(stream) == []
    set_level("error")
    logging.getLogger("httpx").warning("x")
    assert lines(stream) == []


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("trace", ["debug", "info", "warning", "error", "critical"]),
        ("debug", ["debug", "info", "warning", "error", "critical"]),
        ("info", ["info", "warning", "error", "critical"]),
        ("", ["info", "warning", "error", "critical"]),
        ("warn", ["warning", "error", "critical"]),
        ("warning", ["warning", "error", "critical"]),
        ("error", ["error", "critical"]),
        ("critical", ["critical"]),
        ("fatal", ["critical"]),
        ("panic", []),
        ("off", []),
        ("none", []),
        ("disabled", []),
    ],
)
def test_levels(stream: io.StringIO, level: str, heard: list[str]) -> None:
    logger = get_logger("proxy")  # made before the change, and follows it
    set_level(level)
    for method in ("debug", "info", "warning", "error", "critical"):
        getattr(logger, method)(method)
    assert [line["message"] for line in lines(stream)] == heard


@pytest.mark.parametrize("word", ["INFO", "verbose", "5", " info"])
def test_unknown_levels(word: str) -> None:
    with pytest.raises(InvalidArgumentError, match="trace, debug"):
        parse_level(word)


def test_exceptions_become_error_and_stack(stream: io.StringIO) -> None:
    try:
        local_secret = "hunter2" + "hunter2"
        raise ValueError(f"cannot use Bearer {JWT}")  # noqa: TRY301
    except ValueError:
        get_logger("proxy").exception("it failed")
    line = only(stream)
    assert line["error"] == "ValueError: cannot use Bearer [redacted]"
    assert "test_logging.py" in line["stack"]
    assert JWT not in stream.getvalue()
    assert local_secret not in stream.getvalue()


def test_a_librarys_exception(stream: io.StringIO) -> None:
    try:
        raise ValueError(f"bad {JWT}")  # noqa: TRY301
    except ValueError:
        logging.getLogger("some.package").exception("it failed")
    line = only(stream)
    assert line["error"] == "ValueError: bad [redacted]"
    assert "test_logging.py" in line["stack"]
    assert JWT not in stream.getvalue()


def test_an_exception_as_a_field(stream: io.StringIO) -> None:
    get_logger("proxy").warning("it failed", error=ConnectionError("no route"))
    assert only(stream)["error"] == "ConnectionError: no route"


def test_warnings_are_captured(stream: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old way", DeprecationWarning, stacklevel=1)
    assert "old way" in only(stream)["message"]


def test_bound_context_is_added(stream: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(**{"request-id": "r-1"}):
        get_logger("authorize").info("x")
    get_logger("authorize").info("y")
    first, second = lines(stream)
    assert first["request-id"] == "r-1"
    assert "request-id" not in second


def test_r24_nothing_from_outside_makes_a_second_record(stream: io.StringIO) -> None:
    hostile = 'x\n{"level":"info","message":"forged"}\r\n\x1b[2J\u2028\x00'
    get_logger("proxy").info("request", path=hostile)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert json.loads(text)["path"] == hostile


def test_configuring_twice_does_not_write_twice(stream: io.StringIO) -> None:
    again = io.StringIO()
    configure_logging("info", stream=again)
    get_logger("proxy").info("once")
    assert lines(stream) == []
    assert len(lines(again)) == 1


def test_values_of_any_kind(stream: io.StringIO) -> None:
    get_logger("proxy").info(
        "x", data=b"secret-bytes", items=[1, {"password": "p"}, None], path=io.StringIO
    )
    line = only(stream)
    assert line["data"] == "<12 bytes>"
    assert line["items"] == [1, {"password": "[redacted]"}, None]
    assert isinstance(line["path"], str)


LINE = {"level": "info", "time": "2027-01-15T08:00:00Z", "service": "authorize", "path": "/x\nf"}


def test_a_line_that_is_ready_is_written_as_it_is(stream: io.StringIO) -> None:
    write_line({**LINE, "odd": {1}, "message": "authorize check"})
    assert list(only(stream).items()) == [
        *LINE.items(), ("odd", "{1}"), ("message", "authorize check"),
    ]  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_readable_lines_that_cannot_move_the_cursor(stream: io.StringIO) -> None:
    terminal = Terminal()
    configure_logging("info", stream=terminal)
    get_logger("proxy").info("request", path="/\x1b[2Jx\nforged", token="t0ps3cret")
    text = terminal.getvalue()
    assert "\x1b[2J" not in text
    assert text.count("\n") == 1
    assert "t0ps3cret" not in text
    assert "request" in text


def test_a_terminal_gets_ready_lines_readable_too(stream: io.StringIO) -> None:
    terminal = Terminal()
    configure_logging("info", stream=terminal)
    write_line({**LINE, "message": "authorize check"})
    assert terminal.getvalue().count("\n") == 1
    assert "authorize check" in terminal.getvalue()
    assert "{" not in terminal.getvalue()
