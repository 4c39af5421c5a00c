"""Load on an HTTPS port: with wrk and h2load where they are installed, else with Python.

wrk presses as hard as it can and changes host and cookie from request to request; h2load keeps a
pace and notes each latency, and speaks HTTP/2. `python_load.py` stands in for both on HTTP/1.1.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_WRK_COUNT = re.compile(r"(\d+) requests in ([\d.]+)(us|ms|s|m),")
_WRK_REFUSED = re.compile(r"Non-2xx or 3xx responses: (\d+)")
_WRK_SOCKET = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")
_H2LOAD_TIME = re.compile(r"finished in ([\d.]+)(?:us|ms|s|m), ([\d.]+) req/s")
_H2LOAD_COUNTS = re.compile(
    r"requests: \d+ total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed"
)
_SPARE_S = 60


class LoadError(Exception):
    """The load tool did not do what was asked."""


@dataclass(frozen=True)
class Target:
    """Where requests go, and the (host, cookie) pairs that they take in turn."""

    port: int
    senders: Sequence[tuple[str, str]]
    connections: int = 32


@dataclass(frozen=True)
class Throughput:
    """What came of pressing. `refused` counts every answer that is no success."""

    requests: int
    seconds: float
    refused: int

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds


@dataclass(frozen=True)
class Paced:
    """Latencies in microseconds of requests at a given pace."""

    latencies_us: Sequence[float]
    refused: int


def has_wrk() -> bool:
    return shutil.which("wrk") is not None


def has_h2load() -> bool:
    return shutil.which("h2load") is not None


def parse_wrk(text: str) -> Throughput:
    """The totals of wrk's report."""
    found = _WRK_COUNT.search(text)
    if found is None:
        message = f"no totals in what wrk printed:\n{text[-2000:]}"
        raise LoadError(message)
    refused = _WRK_REFUSED.search(text)
    sockets = _WRK_SOCKET.search(text)
    lost = sum(int(count) for count in sockets.groups()) if sockets else 0
    return Throughput(
        int(found[1]),
        float(found[2]) * _TIMES[found[3]],
        lost + (int(refused[1]) if refused else 0),
    )


def parse_h2load(text: str) -> Throughput:
    """The totals of h2load's report."""
    times, counts = _H2LOAD_TIME.search(text), _H2LOAD_COUNTS.search(text)
    if times is None or counts is None:
        message = f"no totals in what h2load printed:\n{text[-2000:]}"
        raise LoadError(message)
    # The time printed includes the warm-up, counts and rate do not.
    good, rate = int(counts[1]), float(times[2])
    return Throughput(good, good / rate if rate else float(times[1]), int(counts[2]))


def parse_h2load_log(text: str) -> Paced:
    """Each line: start in microseconds, status, duration in microseconds."""
    rows = [line.split("\t") for line in text.splitlines()]
    good = [float(row[2]) for row in rows if row[1] == "200"]
    return Paced(good, len(rows) - len(good))


def press(target: Target, seconds: int) -> Throughput:
    """As many requests over HTTP/1.1 as go through."""
    if not has_wrk():
        return _python(target, seconds, rate=0)[0]
    with tempfile.TemporaryDirectory() as name:
        requests, script = Path(name, "requests"), Path(name, "script.lua")
        requests.write_text("".join(f"{host}\t{cookie}\n" for host, cookie in target.senders))
        script.write_text(_wrk_script(requests))
        threads = ("-t1", f"-c{target.connections}", f"-d{seconds}s", "--timeout", "10s")
        url = f"https://127.0.0.1:{target.port}/"
        return parse_wrk(_run(["wrk", *threads, "-s", str(script), url], seconds))


def press_http2(target: Target, seconds: int) -> Throughput:
    """The same over HTTP/2, with the first sender only; ten streams on each connection."""
    done = _h2load(target, "-m10", "--warm-up-time", "1", "-D", str(seconds), seconds=seconds)
    return parse_h2load(done)


def pace(target: Target, seconds: int, rate: float) -> Paced:
    """`rate` requests a second over HTTP/1.1, with the first sender only."""
    if not has_h2load():
        return _python(target, seconds, rate)[1]
    per_client = f"{rate / target.connections:.3f}"
    with tempfile.TemporaryDirectory() as name:
        log = Path(name, "log")
        _h2load(
            target,
            *("--h1", "--rps", per_client, "-D", str(seconds), "--log-file", str(log)),
            seconds=seconds,
        )
        return parse_h2load_log(log.read_text())


def _h2load(target: Target, *options: str, seconds: int) -> str:
    host, cookie = target.senders[0]
    headers = ["-H", "accept: application/json", *(["-H", f"cookie: {cookie}"] if cookie else [])]
    where = (f"--connect-to=127.0.0.1:{target.port}", f"https://{host}:{target.port}/")
    clients = f"-c{target.connections}"
    return _run(["h2load", "-t1", clients, *headers, *options, *where], seconds)


def _run(command: Sequence[str], seconds: int) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + _SPARE_S, check=False
    )
    if done.returncode != 0:
        message = (
            f"{command[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
        )
        raise LoadError(message)
    return done.stdout


def _python(target: Target, seconds: int, rate: float) -> tuple[Throughput, Paced]:
    question = {
        "port": target.port,
        "senders": list(target.senders),
        "connections": target.connections,
        "seconds": seconds,
        "rate": rate,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.python_load"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        timeout=seconds + _SPARE_S,
        check=True,
    )
    told = json.loads(done.stdout)
    latencies, refused = told["latencies_us"], told["refused"]
    return Throughput(len(latencies), told["seconds"], refused), Paced(latencies, refused)


def _wrk_script(requests: Path) -> str:
    """Not a browser's Accept: who is not signed in gets 401 and no redirect, so it is counted."""
    return f"""
local requests, at = {{}}, 0
function init()
  for line in io.lines("{requests}") do
    local host, cookie = line:match("^(.-)\\t(.*)$")
    wrk.headers["Host"], wrk.headers["Accept"] = host, "application/json"
    wrk.headers["Cookie"] = cookie ~= "" and cookie or nil
    requests[#requests + 1] = wrk.format("GET", "/")
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
"""
