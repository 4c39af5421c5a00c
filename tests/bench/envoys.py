"""Envoys to measure against, and what a process spends.

`bare_of` runs the product's own generated configuration with the filters that decide taken out:
same binary, listener, TLS, routes, upstream and access log.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)

from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.proxy.core.xds.resource import packed, serialize
from gatehouse.proxy.core.xds.snapshot import build_snapshot
from gatehouse.proxy.edge.envoy_binary import find_envoy_binary
from gatehouse.proxy.edge.secret_files import SecretFiles
from tests.support.envoy import environment, static_bootstrap
from tests.support.ports import free_ports

DECIDING = (
    *("envoy.filters.http.lua", "envoy.filters.http.ext_proc", "envoy.filters.http.ext_authz"),
)
_START_S = 60.0
_TYPES = "type.googleapis.com/envoy.extensions.filters"


def without_checks(bootstrap: bootstrap_pb2.Bootstrap) -> bootstrap_pb2.Bootstrap:
    """Take out of every listener the filters that decide, and of every cluster the probing."""
    for listener in bootstrap.static_resources.listeners:
        for chain in listener.filter_chains:
            for network_filter in chain.filters:
                manager = http_connection_manager_pb2.HttpConnectionManager()
                if not network_filter.typed_config.Unpack(manager):
                    continue
                kept = [item for item in manager.http_filters if item.name not in DECIDING]
                del manager.http_filters[:]
                manager.http_filters.extend(kept)
                network_filter.typed_config.CopyFrom(packed(manager))
    for cluster in bootstrap.static_resources.clusters:
        del cluster.health_checks[:]
    bootstrap.ClearField("admin")
    bootstrap.ClearField("overload_manager")
    return bootstrap


@contextlib.contextmanager
def bare_of(config: Path, directory: Path, cpus: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Run `config` as Envoy alone; gives its port and process id."""
    directory.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    settings, _ = load_and_resolve(
        config, {"ADDRESS": f"127.0.0.1:{port}"}, random_secret=lambda: bytes(32)
    )
    snapshot = build_snapshot(settings, environment(str(directory)))
    files = SecretFiles(directory / "envoy-files")
    files.prepare()
    files.write(snapshot.files)
    path = directory / "bare.pb"
    path.write_bytes(serialize(without_checks(static_bootstrap(snapshot))))
    with _running(path, port, cpus, directory / "bare.access.log") as process_id:
        yield port, process_id


@contextlib.contextmanager
def answering(directory: Path, cpus: Sequence[int]) -> Iterator[int]:
    """An upstream that is no bottleneck: an Envoy that answers by itself; gives its port."""
    directory.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    path = directory / "answering.json"
    path.write_text(json.dumps(answering_config(port)))
    with _running(path, port, cpus, directory / "answering.log"):
        yield port


def answering_config(port: int) -> dict[str, Any]:
    """A static configuration: 200 and two letters to everything."""
    route = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": "ok"}},
    }
    manager = {
        "@type": f"{_TYPES}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "answering",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPES}.http.router.v3.Router"},
            }
        ],
    }
    network_filter = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": manager,
    }
    listener = {
        "name": "answering",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [network_filter]}],
    }
    return {"static_resources": {"listeners": [listener]}}


@contextlib.contextmanager
def _running(bootstrap: Path, port: int, cpus: Sequence[int], log: Path) -> Iterator[int]:
    options = ("--use-dynamic-base-id", "-l", "error", "--concurrency", "1")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [find_envoy_binary(), "-c", bootstrap, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        pin(process.pid, cpus)
        deadline_s = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline_s, "Envoy does not listen"
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait(20)


def pin(process_id: int, cpus: Sequence[int]) -> None:
    """Keep all threads of a process on these CPUs."""
    for task in Path(f"/proc/{process_id}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cpus)


def cpu_s(process_id: int) -> float:
    """Time on a CPU of all threads of a process (proc(5): schedstat, nanoseconds)."""
    tasks = Path(f"/proc/{process_id}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def resident_bytes(process_id: int) -> int:
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def envoy_below(process_id: int) -> int:
    """The Envoy that a process of ours runs."""
    binary = find_envoy_binary().resolve()
    parents: dict[int, int] = {}
    envoys: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (entry / "stat").read_text()
            parents[int(entry.name)] = int(stat.rsplit(")", 1)[1].split()[1])
            if (entry / "exe").resolve() == binary:
                envoys.append(int(entry.name))
    for envoy in envoys:
        parent = envoy
        while parent in parents:
            parent = parents[parent]
            if parent == process_id:
                return envoy
    message = f"process {process_id} runs no Envoy"
    raise AssertionError(message)


def run_directory_of(envoy: int) -> Path:
    """Where the proxy service keeps its sockets and shared memory: beside Envoy's bootstrap."""
    arguments = Path(f"/proc/{envoy}/cmdline").read_bytes().split(b"\0")
    return Path(arguments[arguments.index(b"-c") + 1].decode()).parent
