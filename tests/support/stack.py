"""The whole product as processes: configuration, certificates, provider, and a client to use it.

`Stack` runs `gatehouse serve` in one process or in four, on loopback ports of its own, with the
configuration keys a user would write. Nothing in it is a stand-in: Envoy, PostgreSQL and the
identity provider are real.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from gatehouse.cli.demo.certificates import ensure_certificates
from tests.support.localhost import localhost_client
from tests.support.ports import free_ports

HOSTS = tuple(
    f"{name}.localhost"
    for name in (
        "authenticate",
        "app",
        "admin",
        "public",
        "methods",
        "rewrite",
        "ws",
        "new",
        "nobody",
    )
)
START_TIMEOUT_S = 120.0  # a machine that does much else; a missed start fails every test of a run
STOP_TIMEOUT_S = 30.0


def decision_cache_choice() -> dict[str, bool]:
    """`GATEHOUSE_TEST_DECISION_CACHE=off` runs the product without remembered decisions."""
    return {"decision_cache": os.environ.get("GATEHOUSE_TEST_DECISION_CACHE", "on") != "off"}


def secret() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def _written(config: Mapping[str, Any]) -> str:
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # thousands of routes in no time
    return str(yaml.dump(config, Dumper=dumper, sort_keys=False))


@dataclass
class Gatehouse:
    """One `gatehouse serve` process."""

    name: str
    process: subprocess.Popen[bytes]
    health_address: str
    log_path: Path
    access_log_path: Path

    def log(self) -> str:
        """What it has said; while it runs, the lines that are whole."""
        return self._lines(self.log_path)

    def access_log(self) -> str:
        """What its Envoy has said of requests, likewise."""
        return self._lines(self.access_log_path)

    def _lines(self, path: Path) -> str:
        is_over = self.process.poll() is not None
        text = path.read_text(errors="replace")
        return text if is_over else text[: text.rfind("\n") + 1]

    def probe(self, path: str) -> httpx.Response:
        return httpx.get(f"http://{self.health_address}{path}", timeout=5.0, trust_env=False)

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                message = f"{self.name} exited {self.process.returncode}:\n{self.log()[-6000:]}"
                raise AssertionError(message)
            with contextlib.suppress(httpx.HTTPError):
                if self.probe("/readyz").status_code == 200:
                    return
            time.sleep(0.05)
        status = ""
        with contextlib.suppress(httpx.HTTPError):
            status = self.probe("/status").text
        message = f"{self.name} not ready in {timeout_s} s\n{status}\n{self.log()[-6000:]}"
        raise AssertionError(message)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM, wait, and the exit status; SIGKILL when it takes too long."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
            message = f"{self.name} did not stop in {timeout_s} s:\n{self.log()[-6000:]}"
            raise AssertionError(message) from None

    def wait_log(self, text: str, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.log():
            assert time.monotonic() < deadline, f"{text!r} not in the log:\n{self.log()[-4000:]}"
            time.sleep(0.05)


@dataclass
class Stack:
    """A configuration and the processes that run it."""

    directory: Path
    issuer: str
    client_id: str
    client_secret: str
    routes: list[dict[str, Any]]
    split: bool = False
    postgres: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    processes: dict[str, Gatehouse] = field(default_factory=dict)
    serial: int = 0

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.certificates = ensure_certificates(self.directory / "ca", hosts=HOSTS)
        ports = free_ports(10)
        self.port, self.authenticate_port = ports[0], ports[0]
        if self.split:
            self.authenticate_port = ports[1]
        self.grpc_ports = dict(
            zip(("databroker", "authorize", "authenticate", "proxy"), ports[2:6], strict=True)
        )
        self.health_ports = dict(
            zip(("databroker", "authorize", "authenticate", "proxy"), ports[6:10], strict=True)
        )
        self.shared_secret = secret()
        self.cookie_secret = secret()
        self.config_path = self.directory / "config.yaml"
        self.write_config()

    @property
    def authenticate_url(self) -> str:
        return f"https://authenticate.localhost:{self.authenticate_port}"

    def url(self, host: str, path: str = "/") -> str:
        return f"https://{host}:{self.port}{path}"

    def config(self) -> dict[str, Any]:
        return {
            "authenticate_service_url": self.authenticate_url,
            "certificate_file": str(self.certificates.certificate),
            "certificate_key_file": str(self.certificates.key),
            "shared_secret": self.shared_secret,
            "cookie_secret": self.cookie_secret,
            "idp_provider": "oidc",
            "idp_provider_url": self.issuer,
            "idp_client_id": self.client_id,
            "idp_client_secret": self.client_secret,
            "databroker_storage_type": "postgres" if self.postgres else "file",
            "databroker_storage_connection_string": self.postgres
            or f"file://{self.directory / 'databroker'}",
            "routes": self.routes,
            "shutdown_delay": "0s",  # nobody balances here unless a test says so
            **decision_cache_choice(),
            **self.extra,
        }

    def write_config(self, text: str | None = None) -> None:
        """Replace the file as an editor does: write beside it, then rename."""
        content = text if text is not None else _written(self.config())
        beside = self.config_path.with_suffix(".new")
        beside.write_text(content)
        beside.replace(self.config_path)

    def _environment(self, name: str) -> dict[str, str]:
        keep = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
        environment = {key: os.environ[key] for key in keep if key in os.environ}
        environment |= {
            "HEALTH_CHECK_ADDR": f"127.0.0.1:{self.health_ports[name]}",
            "GRPC_ADDRESS": f"127.0.0.1:{self.grpc_ports[name]}",
        }
        if not self.split:
            environment |= {"ADDRESS": f"127.0.0.1:{self.port}"}
            return environment | self.environment
        environment |= {
            "SERVICES": name,
            "GRPC_INSECURE": "true",
            "DATABROKER_SERVICE_URL": f"http://127.0.0.1:{self.grpc_ports['databroker']}",
            "AUTHORIZE_SERVICE_URL": f"http://127.0.0.1:{self.grpc_ports['authorize']}",
        }
        if name == "proxy":
            environment["ADDRESS"] = f"127.0.0.1:{self.port}"
        if name == "authenticate":
            environment["ADDRESS"] = f"127.0.0.1:{self.authenticate_port}"
        return environment | self.environment

    def spawn(self, name: str, more: Mapping[str, str] | None = None) -> Gatehouse:
        """Start one process without waiting for it."""
        self.serial += 1
        log_path = self.directory / f"{name}-{self.serial}.log"
        access_path = self.directory / f"{name}-{self.serial}.access.log"
        with log_path.open("wb") as log, access_path.open("wb") as access:
            process = subprocess.Popen(
                [sys.executable, "-m", "gatehouse.cli", "serve", "--config", self.config_path],
                env=self._environment(name) | dict(more or {}),
                stdin=subprocess.DEVNULL,
                stdout=access,
                stderr=log,
            )
        started = Gatehouse(
            name, process, f"127.0.0.1:{self.health_ports[name]}", log_path, access_path
        )
        self.processes[name] = started
        return started

    def start(self) -> None:
        """Start every process and wait until each is ready."""
        names = ("databroker", "authorize", "authenticate", "proxy") if self.split else ("proxy",)
        for name in names:
            self.spawn(name)
        for name in names:
            self.processes[name].wait_ready()

    def stop(self) -> dict[str, int]:
        """Stop proxy first, databroker last; the exit statuses."""
        order = [
            name
            for name in ("proxy", "authenticate", "authorize", "databroker")
            if name in self.processes
        ]
        return {name: self.processes.pop(name).stop() for name in order}

    def client(self, **options: Any) -> httpx.Client:
        """A browser-like client: trusts the local authority, keeps cookies, finds *.localhost."""
        return localhost_client(self.certificates.authority, **options)


@contextlib.contextmanager
def running(stack: Stack) -> Iterator[Stack]:
    try:
        stack.start()
        yield stack
    finally:
        for process in list(stack.processes.values()):
            if process.process.poll() is None:
                process.process.send_signal(signal.SIGTERM)
        for process in list(stack.processes.values()):
            try:
                process.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.process.kill()
                process.process.wait(5)
