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
