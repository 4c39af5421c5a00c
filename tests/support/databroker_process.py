"""A databroker in a process of its own, which may be killed and started again."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.support.ports import free_ports

STOP_S = 60.0  # a store in memory with a million sessions takes its time to go


class DatabrokerProcess:
    """One databroker over one store; it keeps its port over restarts."""

    def __init__(
        self, storage: str, connection: str, directory: Path, secret: bytes, **settings: object
    ) -> None:
        """`settings`: further ones."""
        self.port, self.probes = free_ports(2)
        self._config = directory / f"databroker-{self.port}.yaml"
        self._log = directory / f"databroker-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._config.write_text(
            yaml.safe_dump(
                {
                    "shared_secret": base64.b64encode(secret).decode(),
                    "authenticate_service_url": "https://authenticate.example.com",
                    "grpc_insecure": True,
                    "databroker_storage_type": storage,
                    "databroker_storage_connection_string": connection,
                    **settings,
                }
            )
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; whether it serves yet is for its clients to find out."""
        assert self._process is None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gatehouse.databroker", "--config", str(self._config)],
                env={
                    **os.environ,
                    "GRPC_ADDRESS": f"127.0.0.1:{self.port}",
                    "HEALTH_CHECK_ADDR": f"127.0.0.1:{self.probes}",
                },
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def kill(self) -> None:
        """kill -9."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """End it in good order, or else at all."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
            self._process = None
        finally:
            self.kill()

    @contextlib.contextmanager
    def running(self) -> Iterator[DatabrokerProcess]:
        """Started, and stopped at the end, for the length of the block."""
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def said(self) -> str:
        """All that it has said so far."""
        return self._log.read_text(errors="replace")

    def last_lines(self, count: int = 20) -> str:
        """What it said last."""
        return "\n".join(self.said().splitlines()[-count:])
