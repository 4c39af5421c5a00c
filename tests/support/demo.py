"""The demo as a newcomer starts it: `gatehouse demo run`, on ports of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_ports

READY = "Ctrl-C"


@dataclass
class Demo:
    """A running demo."""

    port: int
    state: Path
    process: subprocess.Popen[bytes]
    output: Path

    def url(self, host: str, path: str = "/") -> str:
        return f"https://{host}:{self.port}{path}"


@contextlib.contextmanager
def running_demo(directory: Path) -> Iterator[Demo]:
    ports = free_ports(5)
    names = ("PORT", "PROVIDER_PORT", "UPSTREAM_PORT", "GRPC_PORT", "HEALTH_PORT")
    environment = dict(os.environ) | {
        f"GATEHOUSE_DEMO_{name}": str(port) for name, port in zip(names, ports, strict=True)
    }
    output = directory / "output.log"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "gatehouse.cli", "demo", "run", "--state", directory / "state"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
    try:
        deadline = time.monotonic() + 60
        while READY not in output.read_text(errors="replace"):
            assert process.poll() is None, output.read_text(errors="replace")[-4000:]
            assert time.monotonic() < deadline, output.read_text(errors="replace")[-4000:]
            time.sleep(0.1)
        yield Demo(ports[0], directory / "state", process, output)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, output.read_text(errors="replace")[-4000:]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(5)
