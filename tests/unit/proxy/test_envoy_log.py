"""Envoy's own lines: their levels, and what must not stay in them."""

from __future__ import annotations

import asyncio

import pytest

from gatehouse.common.config.model import LOG_LEVELS
from gatehouse.common.observability.logging import configure_logging, flush_logging
from gatehouse.proxy.edge.envoy_log import envoy_level, parse_line, relay, without_credentials

ENVOY_LEVELS = {"trace", "debug", "info", "warning", "error", "critical", "off"}


@pytest.mark.parametrize("level", LOG_LEVELS)
def test_each_of_our_levels_has_one_of_envoys(level: str):
    assert envoy_level(level) in ENVOY_LEVELS


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        ("[gatehouse]info--main--starting", ("info", "main", "starting")),
        ("[gatehouse]warning--config--a--b", ("warning", "config", "a--b")),
        ("[gatehouse]odd--main--x", ("error", "", "[gatehouse]odd--main--x")),
        ("[gatehouse]info", ("error", "", "[gatehouse]info")),
        ("Segmentation fault", ("error", "", "Segmentation fault")),
        ("", ("error", "", "")),
    ],
)
def test_lines_are_parsed(line: str, parsed: tuple[str, str, str]):
    assert parse_line(line) == parsed


def test_r25_headers_that_hold_credentials_are_left_out():
    line = (
        r"request headers complete:\n\':authority\', \'app.example.com\'\n"
        r"\'cookie\', \'_pomerium=SECRET; it\'s=SECRET\'\n\'authorization\', \'Bearer SECRET\'\n"
        r"\'x-pomerium-authorization\', \'SECRET\'\n\'jwt\', \'SECRET\'\n\'accept\', \'*/*\'\n"
    )
    cleaned = without_credentials(line)
    assert "SECRET" not in cleaned
    assert r"\':authority\', \'app.example.com\'\n" in cleaned
    assert r"\'accept\', \'*/*\'\n" in cleaned
    assert "SECRET" not in without_credentials("'set-cookie', 'a=SECRET'\n'x', 'y'")


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (r"[Tags: \"ConnectionId\":\"9\"] completed header: key=X-Api-Key value=SECRET", "9"),
        ("completed header: key=Accept value=KEPT", "KEPT"),
        (
            r"key: \"cookie\"\n   value: \"a=\\\"SECRET\"\n  key: \"a\"\n   value: \"KEPT\"\n",
            "KEPT",
        ),
        ('header {\n  key: "x-token"\n  raw_value: "SECRET"\n}', "x-token"),
        (r"headers {\n key: \"cookie\"\n value: \"cut SECRET", "cookie"),
        (r"\'x-upstream-token\':\'SECRET\'", "x-upstream-token"),
        (
            r"a: \"=6:x-open4:KEPT=24:x-pomerium-jwt-assertion6:SECRET1:x6:SECRET\"\n b: \"c\"",
            r"b: \"c\"",
        ),
    ],
)
def test_r25_no_form_of_a_header_shows_a_credential(line: str, kept: str):
    cleaned = without_credentials(line)
    assert "SECRET" not in cleaned
    assert kept in cleaned
    assert ("KEPT" in line) is ("KEPT" in cleaned)


async def test_r25_the_rest_of_a_line_that_was_cut_is_not_told(
    capsys: pytest.CaptureFixture[str],
):
    """Without what stood before it nothing in it could be told for a credential."""
    configure_logging("debug")
    stream = asyncio.StreamReader()
    stream.feed_data(b"[gatehouse]debug--http--'cookie', '" + b"x" * 200_000)
    stream.feed_data(b"SECRET'" + b"x" * 70_000)
    stream.feed_data(b"SECRET\n[gatehouse]error--main--next\n" + b"y" * 70_000 + b"SECRET")
    stream.feed_eof()
    await relay(stream, asyncio.Event())
    flush_logging()
    told = capsys.readouterr().err
    assert "SECRET" not in told
    assert "next" in told
    assert len(told.splitlines()) == 3


async def test_long_and_broken_lines_are_bounded(capsys: pytest.CaptureFixture[str]):
    stream = asyncio.StreamReader()
    stream.feed_data(b"x" * 100_000 + b"\xff\xfe\n\n[gatehouse]error--main--last")
    stream.feed_eof()
    await relay(stream, asyncio.Event())


@pytest.mark.parametrize("stopping", [False, True])
async def test_warnings_of_a_wanted_end_are_no_warnings(
    capsys: pytest.CaptureFixture[str], stopping: bool
):
    stop = asyncio.Event()
    if stopping:
        stop.set()
    configure_logging("info")
    stream = asyncio.StreamReader()
    stream.feed_data(
        b"[gatehouse]warning--main--caught ENVOY_SIGTERM\n[gatehouse]error--main--real trouble\n"
    )
    stream.feed_eof()
    await relay(stream, stop)
    flush_logging()
    told = capsys.readouterr().err
    assert "real trouble" in told
    assert ("ENVOY_SIGTERM" in told) is not stopping
